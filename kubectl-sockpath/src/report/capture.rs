//! What a trace has received so far, in bounded memory.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sockpath_protocol::Message;
use sockpath_protocol::message::{Armed, Counters, EndReason, Hello, Probed};
use sockpath_protocol::packet::{Context, Direction, Hop, Incident, Outcome, Packet, PacketKind, Place, Rule};
use sockpath_protocol::stage::Side;

use super::redirected::is_redirected;
use crate::session::{ClockEstimate, Event};
use crate::target::Plan;

/// Packets kept for the report: enough for a 99th percentile of fifty. A packet with 30 hops takes about 7 KiB, so the plugin stays
/// within tens of MiB (tests/memory.rs).
pub const PACKETS_KEPT: usize = 5_000;

/// Bytes that the packets kept may take, for packets with hundreds of hops and long notes.
const BYTES_KEPT: usize = 48 << 20;

/// Places of one helper that are kept: a namespace and a device each, of which a node has a few hundred with many pods.
const PLACES_KEPT: usize = 4_096;

/// Probes that are kept; all are counted.
const PROBES_KEPT: usize = 1_000;

/// Incidents kept; all are counted.
const INCIDENTS_KEPT: usize = 1_000;

/// Warnings kept, for helpers that repeat themselves.
const WARNINGS_KEPT: usize = 100;

/// How a trace began: the first line of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// What was asked.
    pub plan: Plan,
    /// Release of the plugin.
    pub release: String,
    /// The helpers.
    pub helpers: Vec<HelperOrigin>,
}

/// A helper as it introduced itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HelperOrigin {
    /// The nodes it serves.
    pub nodes: Vec<String>,
    /// Its hello; empty until it has started.
    pub hello: Hello,
}

impl HelperOrigin {
    /// One that has not started yet.
    #[must_use]
    pub fn expected(nodes: Vec<String>) -> Self {
        Self { nodes, hello: Hello::default() }
    }

    /// What turns its `CLOCK_MONOTONIC` into nanoseconds since 1970, on its own clock.
    #[must_use]
    pub fn clock_offset_ns(&self) -> i128 {
        i128::from(self.hello.realtime_ns) - i128::from(self.hello.monotonic_ns)
    }

    /// Whether it has started; its nodes were not watched otherwise.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.hello.protocol != 0
    }
}

/// What one helper has said besides packets.
#[derive(Debug, Clone, Default)]
pub struct HelperLog {
    /// Its hooks are attached.
    pub armed: Option<Armed>,
    /// The places its hops refer to.
    pub places: HashMap<u32, Place>,
    /// Its last totals.
    pub counters: Option<Counters>,
    /// How its session ended.
    pub ended: Option<EndReason>,
    /// How its clock lies to the plugin's.
    pub clock: Option<ClockEstimate>,
    /// Why its session was lost.
    pub lost: Option<String>,
    /// Its error, with the code scripts rely on.
    pub error: Option<(String, String)>,
}

/// What a trace has received so far.
#[derive(Debug, Clone)]
pub struct Capture {
    /// How it began.
    pub origin: Origin,
    /// By helper.
    pub helpers: Vec<HelperLog>,
    /// Packets with the index of the helper that saw them, in the order they came.
    pub packets: Vec<(usize, Packet)>,
    /// Packets that came but were not kept.
    pub not_kept: u64,
    /// Incidents with the index of the helper.
    pub incidents: Vec<(usize, Incident)>,
    /// Incidents that came but were not kept.
    pub incidents_not_kept: u64,
    /// Probes and what became of them; beyond a thousand the last replaces the one before.
    pub probes: Vec<Probed>,
    /// How many probes there were.
    pub probed: usize,
    /// What happened to the pods meanwhile, as sentences.
    pub changes: Vec<String>,
    /// What helpers warned of, each once, with how often.
    pub warnings: BTreeMap<String, u64>,
    /// Request packets with payload that were delivered, kept or not.
    pub requests_delivered: u64,
    /// Of these, bytes that went socket to socket.
    pub requests_bypassed: u64,
    /// Of these, packets with data that no node's stack had.
    pub requests_redirected: u64,
    /// Packets that were dropped, kept or not.
    pub dropped: u64,
    /// Packets that came, by direction.
    pub seen: BTreeMap<Direction, u64>,
    /// Bytes that the packets kept take.
    bytes: usize,
    limit: usize,
    random: u64,
}

impl Capture {
    /// An empty one.
    #[must_use]
    pub fn new(origin: Origin) -> Self {
        Self::with_limit(origin, PACKETS_KEPT)
    }

    /// An empty one that keeps at most `limit` packets.
    #[must_use]
    pub fn with_limit(origin: Origin, limit: usize) -> Self {
        Self {
            helpers: vec![HelperLog::default(); origin.helpers.len()],
            origin,
            packets: Vec::new(),
            not_kept: 0,
            incidents: Vec::new(),
            incidents_not_kept: 0,
            probes: Vec::new(),
            probed: 0,
            changes: Vec::new(),
            warnings: BTreeMap::new(),
            requests_delivered: 0,
            requests_bypassed: 0,
            requests_redirected: 0,
            dropped: 0,
            seen: BTreeMap::new(),
            bytes: 0,
            limit: limit.max(1),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Takes in what a helper said. Events of helpers that did not introduce themselves are ignored.
    pub fn take(&mut self, helper: usize, event: Event) {
        match event {
            Event::Joined(hello) => self.hear(helper, Message::Hello(*hello)),
            Event::Said(message) => self.hear(helper, *message),
            Event::Ended(reason) => {
                if let Some(log) = self.helpers.get_mut(helper) {
                    log.ended = Some(reason);
                }
            }
            Event::Lost(error) => self.lose(helper, error.to_string()),
            Event::Disconnected(_) | Event::Reconnected(_) => {}
        }
    }

    /// Notes that a helper's session was lost, and why.
    pub fn lose(&mut self, helper: usize, why: String) {
        if let Some(log) = self.helpers.get_mut(helper) {
            log.lost = Some(why);
        }
    }

    /// Notes that something happened to a pod.
    pub fn change(&mut self, text: String) {
        if self.changes.len() < WARNINGS_KEPT {
            self.changes.push(text);
        }
    }

    /// Notes how a helper's clock lies to the plugin's.
    pub fn compare(&mut self, helper: usize, clock: ClockEstimate) {
        if let Some(log) = self.helpers.get_mut(helper) {
            log.clock = Some(clock);
        }
    }

    /// Takes in one message.
    pub fn hear(&mut self, helper: usize, message: Message) {
        let Some(log) = self.helpers.get_mut(helper) else { return };
        match message {
            Message::Hello(hello) => {
                if let Some(origin) = self.origin.helpers.get_mut(helper) {
                    origin.hello = hello;
                }
            }
            Message::Armed(armed) => log.armed = Some(armed),
            Message::Place(place) => {
                if log.places.len() < PLACES_KEPT || log.places.contains_key(&place.index) {
                    log.places.insert(place.index, place);
                }
            }
            Message::Counters(counters) => log.counters = Some(counters),
            Message::Error { text, code } => log.error = Some((text, code)),
            Message::Packet(packet) => self.keep(helper, *packet),
            Message::Incident(incident) if self.incidents.len() < INCIDENTS_KEPT => self.incidents.push((helper, incident)),
            Message::Incident(_) => self.incidents_not_kept += 1,
            Message::Probed(probed) => {
                self.probed += 1;
                self.probes.truncate(PROBES_KEPT - 1);
                self.probes.push(probed);
            }
            Message::Warning { text } => {
                if self.warnings.len() < WARNINGS_KEPT || self.warnings.contains_key(&text) {
                    *self.warnings.entry(text).or_default() += 1;
                }
            }
            // Answers to other requests than a trace.
            Message::Pairs(_)
            | Message::Bypassed { .. }
            | Message::Status(_)
            | Message::Summary(_)
            | Message::Canary(_)
            | Message::Check(_)
            | Message::Removed { .. }
            | Message::Clock(_)
            | Message::Heartbeat
            | Message::End(_) => {}
        }
    }

    /// Keeps a packet. Beyond the limit every packet so far has the same chance to be kept (reservoir sampling), so that
    /// figures stay those of the whole trace; the generator is fixed, so that a replay gives the same report.
    fn keep(&mut self, helper: usize, mut packet: Packet) {
        // What was decoded has room for up to twice as many.
        packet.hops.shrink_to_fit();
        // Of the halves that two nodes see, the sender's counts.
        if self.watched() == 1 || packet.hops.first().is_some_and(|h| h.stage.stage().side == Side::Send) {
            *self.seen.entry(packet.direction).or_default() += 1;
        }
        self.dropped += u64::from(matches!(packet.outcome, Outcome::Dropped(_)));
        if is_delivered_request(&packet) {
            self.requests_delivered += 1;
            self.requests_bypassed += u64::from(packet.kind == PacketKind::Bypass);
            self.requests_redirected += u64::from(is_redirected(&packet, self.armed(helper)));
        }
        let size = size_of(&packet);
        if self.not_kept == 0 && self.packets.len() < self.limit && self.bytes + size <= BYTES_KEPT {
            self.bytes += size;
            self.packets.push((helper, packet));
            return;
        }
        self.not_kept += 1;
        let came = self.packets.len() as u64 + self.not_kept;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if let Ok(slot) = usize::try_from(self.random % came)
            && let Some(kept) = self.packets.get_mut(slot)
        {
            let bytes = self.bytes - size_of(&kept.1) + size;
            if bytes <= BYTES_KEPT {
                self.bytes = bytes;
                *kept = (helper, packet);
            }
        }
    }

    /// A time of a helper's `CLOCK_MONOTONIC` on the plugin's clock, in nanoseconds since 1970.
    #[must_use]
    pub fn common_time(&self, helper: usize, at_ns: u64) -> Option<i128> {
        let offset = self.helpers.get(helper)?.clock.map_or(0, |c| i128::from(c.offset_ns));
        Some(i128::from(at_ns) + self.origin.helpers.get(helper)?.clock_offset_ns() - offset)
    }

    /// What this helper observes with, once it has said so.
    #[must_use]
    pub fn armed(&self, helper: usize) -> Option<&Armed> {
        self.helpers.get(helper)?.armed.as_ref()
    }

    /// The place that hops and incidents of this helper name by an index.
    #[must_use]
    pub fn place(&self, helper: usize, index: u32) -> Option<&Place> {
        self.helpers.get(helper)?.places.get(&index)
    }

    /// How many helpers have started.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.origin.helpers.iter().filter(|h| h.has_joined()).count()
    }

    /// Whether anything of the pair was seen.
    #[must_use]
    pub fn saw_something(&self) -> bool {
        !self.packets.is_empty() || !self.incidents.is_empty()
    }
}

/// About what a packet takes in memory, in bytes.
fn size_of(packet: &Packet) -> usize {
    /// Overhead of an allocation.
    const ALLOCATION: usize = 16;
    let text = |text: &Option<String>| text.as_ref().map_or(0, |t| t.len() + ALLOCATION);
    let rule = |rule: &Rule| std::mem::size_of::<Rule>() + rule.table.len() + rule.chain.len() + text(&rule.comment) + 4 * ALLOCATION;
    let chains = |rule: &Rule| rule.via.iter().map(|chain| std::mem::size_of::<String>() + chain.len() + ALLOCATION).sum::<usize>();
    let rule = |r: &Option<Box<Rule>>| r.as_deref().map_or(0, |r| rule(r) + chains(r));
    let comm = |context: &Context| if let Context::Process { comm, .. } = context { comm.len() + ALLOCATION } else { 0 };
    let hop = |hop: &Hop| hop.hook.len() + ALLOCATION + comm(&hop.context) + rule(&hop.rule) + text(&hop.note);
    let dropped = match &packet.outcome {
        Outcome::Dropped(drop) => drop.reason.len() + text(&drop.location) + text(&drop.detail) + rule(&drop.rule),
        _ => 0,
    };
    std::mem::size_of::<(usize, Packet)>()
        + packet.hops.len() * std::mem::size_of::<Hop>()
        + packet.hops.iter().map(hop).sum::<usize>()
        + dropped
}

/// What `--count` counts: requests with payload that reached the other side. The half of a path on one of two nodes counts,
/// too, where it ends at the reader.
fn is_delivered_request(packet: &Packet) -> bool {
    packet.direction == Direction::Request
        && packet.outcome == Outcome::Delivered
        && matches!(packet.kind, PacketKind::Data | PacketKind::EchoRequest | PacketKind::Bypass)
}
