//! A packet's whole path: hops with their places resolved, halves of two helpers joined, repeated hops of a stage merged.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use sockpath_protocol::packet::{Direction, Flow, Outcome, Packet, PacketKind, Place};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::{Side, StageId};

use super::capture::Capture;
use super::redirected::is_redirected;

/// Where a stage is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spot {
    /// Name of the node.
    pub node: String,
    /// `namespace/name` of the pod, absent in the node's own namespace.
    pub pod: Option<String>,
    /// Inode of the network namespace; 0 when a place is unknown.
    pub netns: u32,
    /// Name of the device.
    pub device: Option<String>,
}

/// One stage of one packet.
#[derive(Debug, Clone)]
pub struct Step {
    /// The stage.
    pub stage: StageId,
    /// Where; steps at one place share it.
    pub spot: Arc<Spot>,
    /// Time until the next step, in nanoseconds; 0 for the last one, `None` where two clocks lie between.
    pub took_ns: Option<u64>,
    /// Index into [`Journey::hops`] of its first hop.
    pub first_hop: usize,
    /// How many hops of the packet it stands for.
    pub hops: usize,
}

/// A hop, and which part of the journey it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct HopRef {
    /// Index into [`Journey::parts`].
    pub part: usize,
    /// Index into the packet's hops.
    pub hop: usize,
}

/// One packet's whole path.
#[derive(Debug, Clone)]
pub struct Journey<'a> {
    /// What the helpers saw of it, in order: one part, or one per node.
    pub parts: Vec<(usize, &'a Packet)>,
    /// Its hops, all parts.
    pub hops: Vec<HopRef>,
    /// Its stages.
    pub steps: Vec<Step>,
    /// Time from the first to the last hop, in nanoseconds; absent where two clocks lie between.
    pub end_to_end_ns: Option<u64>,
    /// No node's stack had it: see [`redirected`](super::redirected).
    pub is_redirected: bool,
}

impl<'a> Journey<'a> {
    /// The packet as it was seen first.
    #[must_use]
    pub fn first(&self) -> &'a Packet {
        self.parts[0].1
    }

    /// How it ended, as the last part knows.
    #[must_use]
    pub fn outcome(&self) -> &'a Outcome {
        &self.parts[self.parts.len() - 1].1.outcome
    }

    /// Its direction.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.first().direction
    }

    /// Addresses at its last hop.
    #[must_use]
    pub fn last_flow(&self) -> Flow {
        last_flow(self.parts[self.parts.len() - 1].1)
    }

    /// The namespaces it passed, in order: packets with the same route can be compared.
    #[must_use]
    pub fn route(&self) -> Vec<(&str, Option<&str>)> {
        let mut route: Vec<(&str, Option<&str>)> = Vec::new();
        for step in &self.steps {
            let here = (step.spot.node.as_str(), step.spot.pod.as_deref());
            if route.last() != Some(&here) {
                route.push(here);
            }
        }
        route
    }

    /// What kind of packet it is, for choosing the ones a report is about.
    #[must_use]
    pub fn class(&self) -> Class {
        match Class::of(self.first().kind) {
            Class::Data if self.is_redirected && self.first().kind == PacketKind::Data => Class::Redirected,
            class => class,
        }
    }
}

/// Kinds of packets, the most telling first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Carries data over the network path.
    Data,
    /// Carries data from device to device, past the stacks of the nodes.
    Redirected,
    /// Bytes that went socket to socket.
    Bypass,
    /// Opens a connection.
    Opening,
    /// Anything else.
    Other,
}

impl Class {
    /// That of packets of this kind that nodes' stacks have passed.
    #[must_use]
    pub fn of(kind: PacketKind) -> Self {
        match kind {
            PacketKind::Bypass => Self::Bypass,
            PacketKind::Data | PacketKind::EchoRequest | PacketKind::EchoReply => Self::Data,
            PacketKind::Syn | PacketKind::SynAck => Self::Opening,
            PacketKind::Ack | PacketKind::Fin | PacketKind::Rst | PacketKind::IcmpError | PacketKind::IcmpRedirect => Self::Other,
        }
    }

    /// What the packets are called in reports.
    #[must_use]
    pub fn word(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Data | Self::Redirected, _) => "data",
            (Self::Bypass, _) => "accelerated",
            (Self::Opening, Direction::Request) => "SYN",
            (Self::Opening, Direction::Reply) => "SYN-ACK",
            (Self::Other, _) => "control",
        }
    }
}

/// The packets that are parts of one journey, as indices into [`Capture::packets`]; in the order of their first hops.
#[must_use]
pub(super) fn chains(capture: &Capture) -> Vec<Vec<usize>> {
    let several = capture.helpers.len() > 1;
    let mut waiting: HashMap<Key, VecDeque<usize>> = HashMap::new();
    let mut chains: Vec<Vec<usize>> = Vec::new();
    let mut later: Vec<usize> = Vec::new();
    let mut order: Vec<usize> = (0..capture.packets.len()).collect();
    order.sort_by_cached_key(|index| began(capture, *index));
    for index in order {
        let packet = &capture.packets[index].1;
        if several && packet.hops.first().is_some_and(|h| h.stage.stage().side != Side::Send) {
            later.push(index);
            continue;
        }
        if several && packet.outcome == Outcome::Left {
            waiting.entry(Key::new(packet, last_flow(packet))).or_default().push_back(chains.len());
        }
        chains.push(vec![index]);
    }
    for index in later {
        let (helper, packet) = &capture.packets[index];
        let chain = waiting.get_mut(&Key::new(packet, packet.flow)).and_then(|queue| {
            let at = queue.iter().position(|i| chains[*i].iter().all(|part| capture.packets[*part].0 != *helper))?;
            queue.remove(at)
        });
        match chain {
            Some(i) => {
                chains[i].push(index);
                if packet.outcome == Outcome::Left {
                    waiting.entry(Key::new(packet, last_flow(packet))).or_default().push_back(i);
                }
            }
            None => chains.push(vec![index]),
        }
    }
    chains.retain(|parts| parts.iter().any(|part| !capture.packets[*part].1.hops.is_empty()));
    chains.sort_by_cached_key(|parts| parts.first().and_then(|first| began(capture, *first)));
    chains
}

/// When a packet was seen first, on the plugin's clock. Packets arrive when their paths end, which a slow reader or a late observation
/// delays, and a sample of them is in no order.
fn began(capture: &Capture, index: usize) -> Option<i128> {
    let (helper, packet) = capture.packets.get(index)?;
    packet.hops.first().and_then(|hop| capture.common_time(*helper, hop.at_ns))
}

/// The journey that these packets are parts of.
#[must_use]
pub(super) fn journey<'a>(capture: &'a Capture, spots: &mut Spots, parts: &[usize]) -> Journey<'a> {
    assemble(capture, spots, parts.iter().filter_map(|part| capture.packets.get(*part)).map(|(helper, packet)| (*helper, packet)).collect())
}

/// The path of one packet as one helper saw it.
#[must_use]
pub(super) fn single<'a>(capture: &Capture, helper: usize, packet: &'a Packet) -> Journey<'a> {
    assemble(capture, &mut Spots::default(), vec![(helper, packet)])
}

/// What names a packet on two nodes.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    protocol: Protocol,
    direction: Direction,
    kind: PacketKind,
    seq: u32,
    ack: u32,
    payload: u32,
    from: SocketAddr,
    to: SocketAddr,
}

impl Key {
    fn new(packet: &Packet, flow: Flow) -> Self {
        let Packet { protocol, direction, kind, seq, ack, payload, .. } = *packet;
        Self { protocol, direction, kind, seq, ack, payload, from: flow.from, to: flow.to }
    }
}

fn last_flow(packet: &Packet) -> Flow {
    packet.hops.iter().rev().find_map(|h| h.rewritten).unwrap_or(packet.flow)
}

fn assemble<'a>(capture: &Capture, spots: &mut Spots, parts: Vec<(usize, &'a Packet)>) -> Journey<'a> {
    let mut hops = Vec::new();
    let mut steps: Vec<Step> = Vec::new();
    let mut previous: Option<(usize, u64)> = None;
    let mut one_clock = true;
    for (part, (helper, packet)) in parts.iter().enumerate() {
        for (index, hop) in packet.hops.iter().enumerate() {
            let comparable = previous.is_none_or(|(before, _)| same_clock(capture, before, *helper));
            one_clock &= comparable;
            if let (Some(step), Some((_, at))) = (steps.last_mut(), previous) {
                step.took_ns = match step.took_ns {
                    Some(so_far) if comparable => Some(so_far + hop.at_ns.saturating_sub(at)),
                    _ => None,
                };
            }
            previous = Some((*helper, hop.at_ns));
            hops.push(HopRef { part, hop: index });
            let spot = spots.at(capture, *helper, hop.place);
            match steps.last_mut() {
                Some(step) if continues(step, hop.stage, &spot) => step.hops += 1,
                _ => steps.push(Step { stage: hop.stage, spot, took_ns: Some(0), first_hop: hops.len() - 1, hops: 1 }),
            }
        }
    }
    let is_redirected = parts.iter().all(|(helper, packet)| is_redirected(packet, capture.armed(*helper)));
    let total = || steps.iter().map(|s| s.took_ns.unwrap_or(0)).sum();
    let end_to_end_ns = one_clock.then(total);
    Journey { parts, hops, steps, end_to_end_ns, is_redirected }
}

/// A hop at the same stage and place prolongs the step: netfilter is watched before the first and after the last rule.
fn continues(step: &Step, stage: StageId, spot: &Spot) -> bool {
    step.stage == stage
        && step.spot.netns == spot.netns
        && step.spot.node == spot.node
        && (step.spot.device == spot.device || is_netfilter(stage))
}

/// Whether a stage is a netfilter hook: where rules rewrite and drop.
#[must_use]
pub fn is_netfilter(stage: StageId) -> bool {
    use StageId::{
        NfLocalIn, NfLocalOut, NfPostRouting, NfPreRouting, NodeForward, NodeLocalIn, NodeLocalOut, NodePostRouting, NodePreRouting,
    };
    let hooks =
        [NfLocalOut, NfPostRouting, NfPreRouting, NfLocalIn, NodePreRouting, NodeForward, NodePostRouting, NodeLocalOut, NodeLocalIn];
    hooks.contains(&stage)
}

/// Whether a netfilter hook comes before conntrack's place there: no packet has a connection yet.
#[must_use]
pub fn is_before_conntrack(hook: &str) -> bool {
    hook.contains("PRE_ROUTING first") || hook.contains("LOCAL_OUT first")
}

/// The places of hops by helper and index, each resolved once.
#[derive(Debug, Default)]
pub(super) struct Spots(HashMap<(usize, u32), Arc<Spot>>);

impl Spots {
    fn at(&mut self, capture: &Capture, helper: usize, place: u32) -> Arc<Spot> {
        Arc::clone(self.0.entry((helper, place)).or_insert_with(|| Arc::new(spot(capture, helper, place))))
    }
}

fn spot(capture: &Capture, helper: usize, place: u32) -> Spot {
    match capture.place(helper, place) {
        Some(Place { node, pod, netns, device, .. }) => {
            Spot { node: node.clone(), pod: pod.clone(), netns: *netns, device: device.as_ref().map(|d| d.name.clone()) }
        }
        None => Spot { node: String::new(), pod: None, netns: 0, device: None },
    }
}

/// Whether two helpers read one clock: the same kernel.
fn same_clock(capture: &Capture, a: usize, b: usize) -> bool {
    let boot = |i: usize| capture.origin.helpers.get(i).map(|h| h.hello.boot.as_str()).filter(|b| !b.is_empty());
    a == b || (boot(a).is_some() && boot(a) == boot(b))
}
