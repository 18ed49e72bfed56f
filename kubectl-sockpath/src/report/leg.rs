//! One direction of the conversation: the stages its packets passed and the time they took there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use sockpath_protocol::packet::{Context, Direction, Hop, Outcome};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::{Side, StageId};

use super::inferred::{self, Watch};
use super::journey::{Class, Journey, Spot};
use super::stage_row::{Seen, StageRow};
use super::times::{Times, means, p99, typical};

/// One direction of the conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Leg {
    /// Which packets it is about: `data`, `SYN`, `SYN-ACK`, `control`, `accelerated`.
    pub packets_of: &'static str,
    /// Whether they went from device to device, past the stacks of the nodes.
    pub redirected: bool,
    /// How many packets the figures are made of.
    pub count: usize,
    /// Whether these packets reached the other side.
    pub complete: bool,
    /// The stages, in the order of the path.
    pub stages: Vec<StageRow>,
    /// The whole path.
    pub end_to_end: Times,
    /// Of the typical time, what was waiting rather than working.
    pub waiting_ns: Option<u64>,
    /// How many times a kernel network stack was run through.
    pub stack_traversals: u32,
    /// The routes that packets of this kind took, most used first.
    pub routes: Vec<Route>,
    /// Id of a typical packet, as in `packets[]`.
    pub typical_packet: Option<u64>,
    /// Protocol of these packets.
    pub protocol: Protocol,
}

/// The namespaces packets went through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// `node` or `node/namespace/pod`, in order.
    pub through: Vec<String>,
    /// Packets that went there.
    pub count: usize,
}

/// The leg of these packets, if there are any.
pub(super) fn leg(journeys: &[Journey<'_>], direction: Direction, class: Option<Class>, watch: &Watch) -> Option<Leg> {
    let of_direction = || journeys.iter().filter(|j| j.direction() == direction);
    let class = class.or_else(|| of_direction().map(Journey::class).min())?;
    let all: Vec<&Journey<'_>> = of_direction().filter(|j| j.class() == class).collect();
    let complete = all.iter().any(|j| is_complete(j));
    let mut chosen: Vec<&Journey<'_>> = if complete { all.iter().copied().filter(|j| is_complete(j)).collect() } else { all };
    let routes = routes(&chosen);
    let main = main_route(&chosen)?;
    chosen.retain(|j| j.route() == main);
    chosen.sort_by_key(|j| known_ns(j));

    let order = order(&chosen);
    let columns = columns(&chosen, &order);
    let middle = typical(chosen.len());
    let sums: Vec<u128> =
        columns.iter().map(|c| middle.clone().map(|i| u128::from(c.took.get(&i).copied().flatten().unwrap_or(0))).sum()).collect();
    let typical_times = means(&sums, middle.len());
    let one_clock = chosen.iter().all(|j| j.end_to_end_ns.is_some());
    let measurable = complete && one_clock;
    let end_to_end = end_to_end(&chosen, &middle, measurable);
    let total: u64 = typical_times.iter().sum();

    let mut rows = Vec::with_capacity(order.len());
    for ((key, column), p50) in order.iter().zip(&columns).zip(typical_times) {
        rows.push(row(key, column, p50, total, &chosen));
    }
    let waiting_ns = measurable.then(|| rows.iter().filter(|r| r.waits).filter_map(|r| r.times.p50_ns).sum());
    let sample = chosen[middle.start];
    let protocol = sample.first().protocol;
    let stages = inferred::fill(rows, &inferred::Situation { protocol, class, direction, complete, watch });
    Some(Leg {
        packets_of: class.word(direction),
        redirected: class == Class::Redirected,
        count: chosen.len(),
        complete,
        stages,
        end_to_end,
        waiting_ns,
        stack_traversals: traversals(sample),
        routes,
        typical_packet: Some(sample.first().id),
        protocol,
    })
}

fn is_complete(journey: &Journey<'_>) -> bool {
    let starts = journey.steps.first().is_some_and(|s| s.stage.stage().side == Side::Send);
    starts && *journey.outcome() == Outcome::Delivered
}

fn known_ns(journey: &Journey<'_>) -> u64 {
    journey.steps.iter().filter_map(|s| s.took_ns).sum()
}

fn end_to_end(chosen: &[&Journey<'_>], middle: &std::ops::Range<usize>, measurable: bool) -> Times {
    if !measurable {
        return Times::default();
    }
    let all: Vec<u64> = chosen.iter().filter_map(|j| j.end_to_end_ns).collect();
    let mean = |part: &[u64]| means(&[part.iter().map(|t| u128::from(*t)).sum()], part.len()).first().copied();
    Times { p50_ns: all.get(middle.clone()).and_then(mean), p99_ns: p99(&all), mean_ns: mean(&all) }
}

fn routes(journeys: &[&Journey<'_>]) -> Vec<Route> {
    let mut counts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for journey in journeys {
        let through =
            journey.route().into_iter().map(|(node, pod)| pod.map_or_else(|| node.to_owned(), |p| format!("{node}/{p}"))).collect();
        *counts.entry(through).or_default() += 1;
    }
    let mut routes: Vec<Route> = counts.into_iter().map(|(through, count)| Route { through, count }).collect();
    routes.sort_by_key(|r| std::cmp::Reverse(r.count));
    routes.truncate(20);
    routes
}

/// The route most packets took; of equals, the longer one.
fn main_route<'j>(journeys: &[&'j Journey<'_>]) -> Option<Vec<(&'j str, Option<&'j str>)>> {
    let mut counts: HashMap<Vec<(&str, Option<&str>)>, usize> = HashMap::new();
    for journey in journeys {
        *counts.entry(journey.route()).or_default() += 1;
    }
    counts.into_iter().max_by(|a, b| (a.1, a.0.len(), &a.0).cmp(&(b.1, b.0.len(), &b.0))).map(|(route, _)| route)
}

/// A stage at a place; the number tells repeated passes of one packet apart.
type StepKey = (StageId, Arc<Spot>, usize);

fn keys(journey: &Journey<'_>) -> Vec<StepKey> {
    let mut passes: HashMap<(StageId, &Spot), usize> = HashMap::new();
    let key = |s: &super::journey::Step, n: usize| (s.stage, s.spot.clone(), n);
    let mut keys = Vec::with_capacity(journey.steps.len());
    for step in &journey.steps {
        let pass = passes.entry((step.stage, &step.spot)).or_default();
        keys.push(key(step, *pass));
        *pass += 1;
    }
    keys
}

/// All steps of all packets in one order: that of the commonest sequence, with what only others passed put behind its
/// predecessor there.
fn order(journeys: &[&Journey<'_>]) -> Vec<StepKey> {
    let mut sequences: HashMap<Vec<StepKey>, (usize, usize)> = HashMap::new();
    for (i, journey) in journeys.iter().enumerate() {
        sequences.entry(keys(journey)).or_insert((0, i)).0 += 1;
    }
    let mut sequences: Vec<(Vec<StepKey>, (usize, usize))> = sequences.into_iter().collect();
    sequences.sort_by_key(|(_, (count, first))| (std::cmp::Reverse(*count), *first));
    let mut order: Vec<StepKey> = Vec::new();
    for (sequence, _) in sequences {
        let mut behind = 0;
        for key in sequence {
            match order.iter().position(|k| *k == key) {
                Some(at) => behind = at + 1,
                None => {
                    order.insert(behind.min(order.len()), key);
                    behind += 1;
                }
            }
        }
    }
    // A call that takes several packets releases the first of them before it returns: that is R20 before the hook of R19.
    for at in 1..order.len() {
        if (order[at - 1].0, order[at].0) == (StageId::Released, StageId::Copied) {
            order.swap(at - 1, at);
        }
    }
    order
}

/// What all packets say about one step.
#[derive(Default)]
struct Column {
    /// By position of the journey: time there, `None` inside where it cannot be measured.
    took: HashMap<usize, Option<u64>>,
    /// Position of the first journey that passed it, and the index of its step.
    sample: Option<(usize, usize)>,
    notes: BTreeMap<String, usize>,
}

fn columns(journeys: &[&Journey<'_>], order: &[StepKey]) -> Vec<Column> {
    let index: HashMap<&StepKey, usize> = order.iter().enumerate().map(|(i, k)| (k, i)).collect();
    let mut columns: Vec<Column> = order.iter().map(|_| Column::default()).collect();
    for (i, journey) in journeys.iter().enumerate() {
        for (s, key) in keys(journey).iter().enumerate() {
            let Some(column) = index.get(key).and_then(|c| columns.get_mut(*c)) else { continue };
            let step = &journey.steps[s];
            column.took.insert(i, step.took_ns);
            column.sample.get_or_insert((i, s));
            let mut notes: Vec<&str> = hops_of(journey, s).filter_map(|h| h.note.as_deref()).filter(|n| !n.is_empty()).collect();
            notes.dedup();
            if !notes.is_empty() {
                *column.notes.entry(notes.join("; ")).or_default() += 1;
            }
        }
    }
    columns
}

fn hops_of<'a>(journey: &'a Journey<'a>, step: usize) -> impl Iterator<Item = &'a Hop> {
    let step = &journey.steps[step];
    journey.hops[step.first_hop..step.first_hop + step.hops].iter().map(|h| &journey.parts[h.part].1.hops[h.hop])
}

fn row(key: &StepKey, column: &Column, p50: u64, total: u64, journeys: &[&Journey<'_>]) -> StageRow {
    let (id, spot, _) = key;
    let stage = id.stage();
    let hop = column.sample.and_then(|(journey, step)| hops_of(journeys[journey], step).next());
    let (context, comm) = match hop.map(|h| &h.context) {
        Some(Context::Process { comm, .. }) => (Some("process"), Some(comm.clone())),
        Some(Context::Softirq) => (Some("softirq"), None),
        None => (None, None),
    };
    let measurable = column.took.values().all(Option::is_some);
    let mut took: Vec<u64> = column.took.values().copied().flatten().collect();
    took.sort_unstable();
    let mean = means(&[took.iter().map(|t| u128::from(*t)).sum()], took.len()).first().copied();
    let times = if measurable { Times { p50_ns: Some(p50), p99_ns: p99(&took), mean_ns: mean } } else { Times::default() };
    #[expect(clippy::cast_precision_loss, reason = "a share is shown with two digits")]
    let share = (measurable && total > 0).then(|| (p50 as f64 / total as f64 * 1e4).round() / 1e4);
    let note = column.notes.iter().max_by_key(|(_, n)| **n).map(|(note, _)| note.clone());
    StageRow {
        id: *id,
        step: stage.step,
        name: stage.name,
        side: stage.side,
        node: (!spot.node.is_empty()).then(|| spot.node.clone()),
        pod: spot.pod.clone(),
        netns: (spot.netns != 0).then_some(spot.netns),
        device: spot.device.clone(),
        context,
        comm,
        observed_by: hop.map(|h| h.hook.clone()),
        seen: Seen::Observed,
        count: column.took.len(),
        times,
        share,
        waits: stage.waits,
        note: if measurable { note } else { Some("two clocks: this time cannot be measured".to_owned()) },
    }
}

/// How many times a network stack was run through: the sender's, each pass of a node that routed or filtered it (a
/// tunnel's outer packet is a pass of its own), and the receiver's.
fn traversals(journey: &Journey<'_>) -> u32 {
    let mut count = 0;
    let mut last_pass: Option<(&str, u32, u8)> = None;
    for step in &journey.steps {
        let pass = match step.stage {
            StageId::Verdict => continue,
            StageId::NodeLocalOut => 3,
            StageId::NodeLocalIn => 4,
            StageId::NodePreRouting | StageId::NodeRoute | StageId::NodeForward | StageId::NodePostRouting => 2,
            s if s.stage().side == Side::Send => 0,
            // What lies behind the socket queue is not the stack's doing.
            StageId::ReaderWoken | StageId::Dequeued | StageId::Copied | StageId::Released | StageId::ReceiveStackDone => continue,
            s if s.stage().side == Side::Receive => 1,
            _ => continue,
        };
        // An outer packet passes PRE_ROUTING before LOCAL_IN and POST_ROUTING after LOCAL_OUT: the same pass.
        let here = (step.spot.node.as_str(), step.spot.netns, pass);
        let same = last_pass.is_some_and(|(node, netns, last)| {
            (node, netns) == (here.0, here.1) && (last == pass || (last == 3 && pass == 2) || (last == 2 && pass == 4))
        });
        if !same {
            count += 1;
        }
        let continues_outer = same && last_pass.is_some_and(|(_, _, last)| last == 3);
        last_pass = Some(if continues_outer { (here.0, here.1, 3) } else { here });
    }
    count
}
