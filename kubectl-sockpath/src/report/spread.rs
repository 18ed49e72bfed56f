//! How far the times of one trace lie apart: what a difference to another trace has to exceed.

use std::collections::HashMap;

use sockpath_protocol::packet::{Direction, Outcome};
use sockpath_protocol::stage::StageId;

use super::document::Report;
use super::journey::Class;
use super::packet_row::PacketRow;
use super::role::place;

/// A stage of a path, independent of the names of pods, nodes and devices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StageKey {
    pub stage: StageId,
    /// By its part in the trace.
    pub place: String,
    /// How often the packet had passed it before.
    pub pass: usize,
}

/// Items with their keys, repeated ones numbered.
pub(super) fn passes<T>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> StageKey) -> Vec<(StageKey, T)> {
    let mut seen: HashMap<StageKey, usize> = HashMap::new();
    let number = |item: T| {
        let mut key = key(&item);
        let pass = seen.entry(key.clone()).or_default();
        key.pass = *pass;
        *pass += 1;
        (key, item)
    };
    items.map(number).collect()
}

/// The middle half of times, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    low: u64,
    high: u64,
}

impl Spread {
    /// Fewer packets than this say nothing about what is usual.
    const FEWEST: usize = 4;

    /// Of fewer than four times nothing is known: each other time is within them.
    fn of(mut times: Vec<u64>) -> Self {
        if times.len() < Self::FEWEST {
            return Self { low: 0, high: u64::MAX };
        }
        times.sort_unstable();
        Self { low: times[times.len() / 4], high: times[times.len() * 3 / 4] }
    }

    /// Whether a time of another trace could be one of these.
    fn contains(self, time: u64) -> bool {
        (self.low..=self.high).contains(&time)
    }
}

/// Whether the typical times of two traces do not tell them apart: they differ by a twentieth at most, or each lies in the middle half of the other
/// trace's times.
pub(super) fn within_noise((a, of_a): (u64, Spread), (b, of_b): (u64, Spread)) -> bool {
    a.abs_diff(b) <= a.max(b) / 20 || (of_a.contains(b) && of_b.contains(a))
}

/// The spread of a direction's times: of the whole and of each stage.
#[derive(Debug)]
pub(super) struct Spreads {
    pub whole: Spread,
    stages: HashMap<StageKey, Spread>,
}

impl Spreads {
    /// Of the packets that the figures are made of: those of one kind that arrived.
    pub(super) fn of(report: &Report, direction: Direction) -> Self {
        let of = report.packets_of(direction);
        let counts =
            |p: &PacketRow| p.direction == direction && Some(Class::of(p.kind).word(direction)) == of && p.outcome == Outcome::Delivered;
        let (mut whole, mut stages) = (Vec::new(), HashMap::<StageKey, Vec<u64>>::new());
        for packet in report.packets.iter().filter(counts) {
            whole.extend(packet.end_to_end_ns);
            for (key, took) in stages_of(report, &packet) {
                stages.entry(key).or_default().push(took);
            }
        }
        Self { whole: Spread::of(whole), stages: stages.into_iter().map(|(key, times)| (key, Spread::of(times))).collect() }
    }

    pub(super) fn stage(&self, key: &StageKey) -> Spread {
        self.stages.get(key).copied().unwrap_or_else(|| Spread::of(Vec::new()))
    }
}

/// The stages of a packet with their times; hops of one stage in a row are one.
fn stages_of(report: &Report, packet: &PacketRow) -> Vec<(StageKey, u64)> {
    let mut steps: Vec<(StageId, String, u64)> = Vec::new();
    for hop in &packet.hops {
        let here = place(report, hop.node.as_deref(), hop.pod.as_deref());
        let took = hop.took_ns.unwrap_or(0);
        match steps.last_mut() {
            Some((stage, place, so_far)) if *stage == hop.stage && *place == here => *so_far += took,
            _ => steps.push((hop.stage, here, took)),
        }
    }
    let key = |(stage, place, _): &(StageId, String, u64)| StageKey { stage: *stage, place: place.clone(), pass: 0 };
    passes(steps.into_iter(), key).into_iter().map(|(key, (_, _, took))| (key, took)).collect()
}
