//! From single observations to whole packets: pure, no BPF and no system calls.
//!
//! An observation either knows its packet (the programs number recorded packets) or is joined to one here: bytes written
//! and read by sequence number, route lookups and address resolutions by CPU and time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::Message;
use sockpath_protocol::packet::{Incident, IncidentKind, PacketKind};
use sockpath_protocol::request::Protocol;

use self::conversation::{Conversations, DirectedConversation, Pair};
use self::hops::Answer;
use self::open::Open;
use self::outcome::{Verdict, last_verdict, verdict};
use self::pending::Pending;
use super::event::{Event, Hook};
use super::names::Names;
use super::places::Places;
use super::rules::Rules;

pub mod conversation;
mod hops;
mod incident;
mod join;
mod netfilter;
mod open;
mod outcome;
mod pending;
mod report;
mod stages;
#[cfg(test)]
mod tests;

/// Events held for packets whose path has not ended; beyond that the oldest packets are reported as they are.
const MAX_EVENTS: usize = 40_000;
/// Writes and route lookups that wait for their packet.
const MAX_WAITING: usize = 64;
/// A route lookup belongs to the packet that leaves the same CPU within this time, in nanoseconds.
const ROUTE_AGE: u64 = 1_000_000;
/// The tables of one route lookup are searched within this time of each other, in nanoseconds.
const TABLE_GAP: u64 = 3_000;

/// Neighbours' answers that are remembered.
const MAX_ANSWERS: usize = 256;

/// The last packet that was seen on a CPU, and where.
#[derive(Debug, Clone, Copy)]
struct LastOnCpu {
    id: u32,
    hook: Hook,
    netns: u32,
}

/// Builds packets out of observations.
#[derive(Debug)]
pub struct Assembler {
    conversations: Conversations,
    places: Places,
    names: Names,
    rules: Rules,
    /// Packets that wait for the answers to their questions.
    pending: Pending,
    open: BTreeMap<u32, Open>,
    events: usize,
    /// Packets that wait for a reader, by what the reader's socket says.
    waiting: HashMap<DirectedConversation, VecDeque<u32>>,
    /// Bytes handed to a socket, until their packet leaves.
    writes: HashMap<DirectedConversation, VecDeque<Event>>,
    /// Route lookups, until their packet leaves.
    routes: VecDeque<Event>,
    on_cpu: HashMap<u16, LastOnCpu>,
    /// Neighbours that answered lately.
    answers: VecDeque<Answer>,
    /// Neighbours that were asked lately.
    asked: VecDeque<Answer>,
    has_netfilter: bool,
    datagrams: bool,
    ready: Vec<Message>,
    last_id: u32,
    reported: u64,
    delivered_requests: u64,
    misses: u64,
}

impl Assembler {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(pair: Pair, places: Places, names: Names) -> Self {
        Self {
            conversations: Conversations::new(pair),
            places,
            names,
            rules: Rules::default(),
            pending: Pending::default(),
            open: BTreeMap::new(),
            events: 0,
            waiting: HashMap::new(),
            writes: HashMap::new(),
            routes: VecDeque::new(),
            on_cpu: HashMap::new(),
            answers: VecDeque::new(),
            asked: VecDeque::new(),
            has_netfilter: true,
            datagrams: false,
            ready: Vec::new(),
            last_id: 0,
            reported: 0,
            delivered_requests: 0,
            misses: 0,
        }
    }

    /// With the rules of its namespaces, to name those that rewrite or drop.
    #[must_use]
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Without netfilter links (before 6.4) a packet is delivered where a pod's stack receives it.
    #[must_use]
    pub fn without_netfilter(mut self) -> Self {
        self.has_netfilter = false;
        self
    }

    /// Packets from source to target that carried payload, were delivered and reported.
    #[must_use]
    pub fn delivered_requests(&self) -> u64 {
        self.delivered_requests
    }

    /// Whether packets without sequence numbers were seen: the calls that write them have to be watched.
    #[must_use]
    pub fn saw_datagrams(&self) -> bool {
        self.datagrams
    }

    /// Observations that belonged to no packet.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Whether the programs may forget this packet: it has been seen, and its path has ended.
    #[must_use]
    pub fn is_done_with(&self, id: u32) -> bool {
        id <= self.last_id && !self.open.contains_key(&id)
    }

    /// Takes one observation.
    pub fn see(&mut self, event: Event) {
        match event.hook {
            Hook::TRACE_TCP_SENDMSG | Hook::TRACE_FN_TCP_SENDMSG => self.written(event),
            Hook::TRACE_FIB_LOOKUP => self.routed(event),
            Hook::TRACE_NEIGH_UPDATE => self.resolved(&event),
            Hook::TRACE_DATA_READY | Hook::TRACE_FN_SOCK_DEF_READABLE => self.woken(event),
            Hook::TRACE_RECV_LENGTH | Hook::TRACE_RCV_SPACE_ADJUST => self.read(&event),
            Hook::TRACE_COPY_DATAGRAM | Hook::TRACE_CONSUME_SKB => self.at_the_reader(event),
            Hook::TRACE_KFREE_SKB => self.dropped(event),
            Hook::TRACE_WRITE_CALL | Hook::TRACE_BYPASS_READY | Hook::TRACE_BYPASS_READ => self.bypassed(event),
            Hook::TRACE_NEIGH_SEND
            | Hook::TRACE_NEIGH_DEAD
            | Hook::TRACE_SEND_RESET
            | Hook::TRACE_RECEIVE_RESET
            | Hook::TRACE_RETRANSMIT
            | Hook::TRACE_RETRANSMIT_SYNACK
            | Hook::TRACE_SET_STATE
            | Hook::TRACE_RCVQUEUE_FULL => self.incident(&event),
            _ => self.passed(event),
        }
    }

    /// Reports the packets whose path has ended at `now` (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn settle(&mut self, now: u64) {
        let over: Vec<(u32, Verdict)> = self
            .open
            .iter()
            .filter_map(|(id, open)| Some((*id, verdict(open, &mut self.places, self.conversations.pair(), now, false)?)))
            .collect();
        for (id, verdict) in over {
            self.report(id, verdict);
        }
        while self.events > MAX_EVENTS {
            let Some((id, open)) = self.open.first_key_value() else { break };
            let (id, verdict) = (*id, verdict(open, &mut self.places, self.conversations.pair(), now, true).unwrap_or(Verdict::Vanished));
            self.report(id, verdict);
        }
    }

    /// Reports every packet as it is: the trace ends, everything until `now` was observed. Packets in transit are left out.
    pub fn finish(&mut self, now: u64) {
        let open: Vec<(u32, Verdict)> = self
            .open
            .iter()
            .filter_map(|(id, open)| Some((*id, last_verdict(open, &mut self.places, self.conversations.pair(), now)?)))
            .collect();
        for (id, verdict) in open {
            self.report(id, verdict);
        }
    }

    /// Something in this namespace that a counter shows, which knows no addresses.
    pub fn counted(&mut self, now: u64, netns: u32, what: IncidentKind, detail: String) {
        let place = self.places.number(netns, 0);
        self.ready.push(Message::Incident(Incident { at_ns: now, what, flow: None, place: Some(place), detail: Some(detail) }));
    }

    /// What the plugin has to hear: new places first, then what refers to them.
    pub fn take(&mut self) -> Vec<Message> {
        for (number, found) in self.rules.answers() {
            self.ready.extend(self.pending.answer(number, found).map(Message::Packet));
        }
        let mut messages: Vec<Message> = self.places.fresh().into_iter().map(Message::Place).collect();
        messages.append(&mut self.ready);
        messages
    }

    /// As `take`, at the end of the trace: waits for what was asked of the rules, as long as `patience`.
    pub fn take_last(&mut self, patience: Duration) -> Vec<Message> {
        for (number, found) in self.rules.last_answers(patience) {
            self.ready.extend(self.pending.answer(number, found).map(Message::Packet));
        }
        self.ready.extend(self.pending.give_up().map(Message::Packet));
        self.take()
    }

    /// An event of the packet itself.
    fn passed(&mut self, event: Event) {
        let Some(protocol) = event.protocol else { return };
        if event.id == 0 {
            self.misses += 1;
            return;
        }
        if !self.open.contains_key(&event.id) {
            // Two CPUs may number their packets in one order and report them in the other.
            if event.id <= self.last_id && !event.has(trace_flag::TRACE_F_ORIGIN) {
                // Reported already; a clone or a late reader.
                self.misses += 1;
                return;
            }
            self.begin(protocol, &event);
        }
        let (id, hook, netns, cpu, flow) = (event.id, event.hook, event.netns, event.cpu, event.flow);
        let is_error = event.has(trace_flag::TRACE_F_ICMP_ERROR);
        let arrives = self.is_arrival(hook) && self.places.netns(netns).is_some_and(|t| t.source || t.target);
        self.on_cpu.insert(cpu, LastOnCpu { id, hook, netns });
        let Some(open) = self.open.get_mut(&id) else { return };
        let directed = open.directed;
        if arrives && open.arrived_in.is_none() {
            open.arrived_in = Some(netns);
            if open.is_for_a_reader() {
                self.waiting.entry(directed).or_default().push_back(id);
            }
        }
        self.events += usize::from(open.add(event));
        if !is_error && self.conversations.find(protocol, flow).is_none() {
            self.conversations.join(protocol, flow, directed);
        }
    }

    /// Whether what is seen here in a pod is delivered to it.
    fn is_arrival(&self, hook: Hook) -> bool {
        match hook {
            Hook::TRACE_NF_LAST_LOCAL_IN | Hook::TRACE_TCP_PROBE => true,
            Hook::TRACE_RECEIVE_SKB => !self.has_netfilter,
            _ => false,
        }
    }

    fn begin(&mut self, protocol: Protocol, event: &Event) {
        self.last_id = self.last_id.max(event.id);
        let about = event.has(trace_flag::TRACE_F_ICMP_ERROR).then(|| self.conversations.about(event.flow)).flatten();
        let directed = about.unwrap_or_else(|| self.conversations.of(protocol, event.flow, event.kind, event.seq));
        let mut open = Open::new(directed, protocol, event);
        if let Some(write) = self.take_write(directed, event) {
            self.events += usize::from(open.add(write));
        }
        // A segment of an established connection goes by the route its socket keeps: a lookup just before was not its own.
        let looks_up = protocol != Protocol::Tcp || matches!(open.kind, PacketKind::Syn | PacketKind::SynAck | PacketKind::Rst);
        if let Some(mut route) = self.take_route(event).filter(|_| looks_up) {
            route.netns = event.netns;
            self.events += usize::from(open.add(route));
        }
        self.datagrams |= protocol != Protocol::Tcp;
        self.open.insert(event.id, open);
    }
}
