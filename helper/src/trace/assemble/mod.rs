//! From single observations to whole packets: pure, no BPF and no system calls.
//!
//! An observation either knows its packet (the programs number recorded packets) or is joined to one here: bytes written
//! and read by sequence number, route lookups and address resolutions by CPU and time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use sockpath_protocol::Message;
use sockpath_protocol::packet::{Direction, Drop, Hop, Incident, IncidentKind, Outcome, Packet, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use self::conversation::{Conversations, Course, Pair};
use self::open::Open;
use self::outcome::{Verdict, expected_after, verdict};
use super::event::{Hook, Sight};
use super::names::Names;
use super::places::Places;

pub mod conversation;
mod hops;
mod incident;
mod open;
mod outcome;
mod stages;
#[cfg(test)]
mod tests;

/// Sights held for packets whose way is not over; beyond that the oldest packets are reported as they are.
const MAX_SIGHTS: usize = 40_000;
/// Writes and route lookups that wait for their packet.
const MAX_WAITING: usize = 64;
/// A route lookup belongs to the packet that leaves the same CPU within this time, in nanoseconds.
const ROUTE_AGE: u64 = 1_000_000;
/// The tables of one route lookup are searched within this time of each other, in nanoseconds.
const TABLE_GAP: u64 = 3_000;

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
    open: BTreeMap<u32, Open>,
    sights: usize,
    /// Packets that wait for a reader, by what the reader's socket says.
    waiting: HashMap<Course, VecDeque<u32>>,
    /// Bytes handed to a socket, until their packet leaves.
    writes: HashMap<Course, VecDeque<Sight>>,
    /// Route lookups, until their packet leaves.
    routes: VecDeque<Sight>,
    on_cpu: HashMap<u16, LastOnCpu>,
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
            open: BTreeMap::new(),
            sights: 0,
            waiting: HashMap::new(),
            writes: HashMap::new(),
            routes: VecDeque::new(),
            on_cpu: HashMap::new(),
            ready: Vec::new(),
            last_id: 0,
            reported: 0,
            delivered_requests: 0,
            misses: 0,
        }
    }

    /// Packets from source to target that carried payload, were delivered and reported.
    #[must_use]
    pub fn delivered_requests(&self) -> u64 {
        self.delivered_requests
    }

    /// Observations that belonged to no packet.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Whether the programs may forget this packet: it has been seen, and its way is over.
    #[must_use]
    pub fn is_done_with(&self, id: u32) -> bool {
        id <= self.last_id && !self.open.contains_key(&id)
    }

    /// Takes one observation.
    pub fn see(&mut self, sight: Sight) {
        match sight.hook {
            Hook::TRACE_TCP_SENDMSG => self.written(sight),
            Hook::TRACE_FIB_LOOKUP => self.routed(sight),
            Hook::TRACE_NEIGH_SEND => self.resolving(sight),
            Hook::TRACE_DATA_READY => self.woken(sight),
            Hook::TRACE_RECV_LENGTH | Hook::TRACE_RCV_SPACE_ADJUST => self.read(&sight),
            Hook::TRACE_COPY_DATAGRAM | Hook::TRACE_CONSUME_SKB => self.at_the_reader(sight),
            Hook::TRACE_KFREE_SKB => self.dropped(sight),
            Hook::TRACE_NEIGH_DEAD
            | Hook::TRACE_NEIGH_UPDATE
            | Hook::TRACE_SEND_RESET
            | Hook::TRACE_RECEIVE_RESET
            | Hook::TRACE_RETRANSMIT
            | Hook::TRACE_RETRANSMIT_SYNACK
            | Hook::TRACE_SET_STATE
            | Hook::TRACE_RCVQUEUE_FULL => self.incident(&sight),
            _ => self.passed(sight),
        }
    }

    /// Reports the packets whose way is over at `now` (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn settle(&mut self, now: u64) {
        let over: Vec<(u32, Verdict)> =
            self.open.iter().filter_map(|(id, open)| Some((*id, verdict(open, &mut self.places, now, false)?))).collect();
        for (id, verdict) in over {
            self.report(id, verdict);
        }
        while self.sights > MAX_SIGHTS {
            let Some((id, open)) = self.open.first_key_value() else { break };
            let (id, verdict) = (*id, verdict(open, &mut self.places, now, true).unwrap_or(Verdict::Vanished));
            self.report(id, verdict);
        }
    }

    /// Reports every packet as it is: the trace ends.
    pub fn finish(&mut self, now: u64) {
        let open: Vec<(u32, Verdict)> =
            self.open.iter().map(|(id, open)| (*id, verdict(open, &mut self.places, now, true).unwrap_or(Verdict::Vanished))).collect();
        for (id, verdict) in open {
            self.report(id, verdict);
        }
    }

    /// What the plugin has to hear: new places first, then what refers to them.
    pub fn take(&mut self) -> Vec<Message> {
        let mut messages: Vec<Message> = self.places.fresh().into_iter().map(Message::Place).collect();
        messages.append(&mut self.ready);
        messages
    }

    /// A sight of the packet itself on its way.
    fn passed(&mut self, sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        if sight.id == 0 {
            self.misses += 1;
            return;
        }
        if !self.open.contains_key(&sight.id) {
            if sight.id <= self.last_id {
                // Reported already; a clone or a late reader.
                self.misses += 1;
                return;
            }
            self.begin(protocol, &sight);
        }
        let (id, hook, netns, cpu, flow) = (sight.id, sight.hook, sight.netns, sight.cpu, sight.flow);
        self.on_cpu.insert(cpu, LastOnCpu { id, hook, netns });
        let Some(open) = self.open.get_mut(&id) else { return };
        let course = open.course;
        if hook == Hook::TRACE_NF_LAST_LOCAL_IN && self.places.territory(netns).is_some_and(|t| t.source || t.target) {
            open.arrived_in = Some(netns);
            if open.is_for_a_reader() {
                self.waiting.entry(course).or_default().push_back(id);
            }
        }
        self.sights += usize::from(open.add(sight));
        if self.conversations.find(protocol, flow).is_none() {
            self.conversations.join(protocol, flow, course);
        }
    }

    fn begin(&mut self, protocol: Protocol, sight: &Sight) {
        self.last_id = sight.id;
        let course = self.conversations.of(protocol, sight.flow, sight.kind, sight.seq);
        let mut open = Open::new(course, protocol, sight);
        if let Some(write) = self.take_write(course, sight) {
            self.sights += usize::from(open.add(write));
        }
        // A segment of an established connection goes by the route its socket keeps: a lookup just before was not its own.
        let looks_up = protocol != Protocol::Tcp || matches!(open.kind, PacketKind::Syn | PacketKind::SynAck | PacketKind::Rst);
        if let Some(mut route) = self.take_route(sight).filter(|_| looks_up) {
            route.netns = sight.netns;
            self.sights += usize::from(open.add(route));
        }
        self.open.insert(sight.id, open);
    }

    /// The write that holds the packet's first byte. Later packets of the same write began with it too.
    fn take_write(&mut self, course: Course, sight: &Sight) -> Option<Sight> {
        if sight.payload == 0 {
            return None;
        }
        let writes = self.writes.get_mut(&course)?;
        let after = |w: &Sight| sight.seq.wrapping_sub(w.seq).cast_signed() >= 0;
        // Older writes are in packets that left before.
        while writes.len() > 1 && writes.get(1).is_some_and(after) {
            writes.pop_front();
        }
        let write = writes.front().filter(|w| after(w) && sight.seq.wrapping_sub(w.seq) < w.len.max(1) && w.at <= sight.at)?;
        Some(write.clone())
    }

    /// The last lookup that this CPU made for these addresses just before; one lookup shows up once for each table.
    fn take_route(&mut self, sight: &Sight) -> Option<Sight> {
        let same = |r: &Sight| {
            r.cpu == sight.cpu
                && r.pid == sight.pid
                && r.at <= sight.at
                && sight.at - r.at <= ROUTE_AGE
                && r.flow.to.ip() == sight.flow.to.ip()
        };
        let mut found: Option<&Sight> = None;
        for route in self.routes.iter().filter(|r| same(r)).rev() {
            if found.is_none_or(|later| later.at - route.at <= TABLE_GAP) {
                found = Some(route);
            }
        }
        let found = found.cloned();
        self.routes.retain(|r| !same(r));
        found
    }

    fn written(&mut self, sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.of(protocol, sight.flow, 0, 0);
        let writes = self.writes.entry(course).or_default();
        // One call shows up once for each sk_buff it fills; the bytes that are left shrink.
        if writes.len() >= MAX_WAITING {
            writes.pop_front();
        }
        writes.push_back(sight);
    }

    fn routed(&mut self, sight: Sight) {
        // On a node the packet is known already: it has just been seen on this CPU.
        if let Some(last) = self.on_cpu.get(&sight.cpu)
            && last.hook == Hook::TRACE_NF_LAST_PRE_ROUTING
            && let Some(open) = self.open.get_mut(&last.id)
            && open.sights.last().is_some_and(|s| s.flow.to.ip() == sight.flow.to.ip() && sight.at >= s.at && sight.at - s.at < ROUTE_AGE)
        {
            return;
        }
        if self.routes.len() >= MAX_WAITING {
            self.routes.pop_front();
        }
        self.routes.push_back(sight);
    }

    /// The neighbour's address is asked for: by the packet that this CPU was about to hand to the device.
    fn resolving(&mut self, sight: Sight) {
        self.incident(&sight);
        if let Some(last) = self.on_cpu.get(&sight.cpu).copied()
            // A bridge that has rewritten the destination asks for its address before FORWARD.
            && matches!(last.hook, Hook::TRACE_NF_LAST_POST_ROUTING | Hook::TRACE_NF_LAST_PRE_ROUTING)
            && last.netns == sight.netns
            && let Some(open) = self.open.get_mut(&last.id)
        {
            self.sights += usize::from(open.add(sight));
        }
    }

    fn woken(&mut self, mut sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.find(protocol, sight.flow.reversed()).filter(|_| protocol == Protocol::Tcp);
        let Some(course) = course else {
            // UDP and ICMP know their packet. What wakes a listener is the packet that this CPU has just delivered.
            let last = self
                .on_cpu
                .get(&sight.cpu)
                .filter(|last| last.netns == sight.netns && matches!(last.hook, Hook::TRACE_NF_LAST_LOCAL_IN | Hook::TRACE_TCP_PROBE));
            let id = if sight.id == 0 { last.map(|last| last.id) } else { Some(sight.id) };
            if let Some(open) = id.and_then(|id| self.open.get_mut(&id))
                && open.protocol == protocol
                && !open.woken
            {
                open.woken = true;
                sight.len = open.payload();
                self.sights += usize::from(open.add(sight));
            }
            return;
        };
        for id in self.waiting.get(&course).into_iter().flatten() {
            let Some(open) = self.open.get_mut(id) else { continue };
            // Only what is in the queue by now; a segment ahead of a gap is not.
            if !open.woken && sight.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 {
                open.woken = true;
                let len = open.payload();
                self.sights += usize::from(open.add(Sight { len, ..sight.clone() }));
            }
        }
    }

    /// A reader's call returned: every packet up to what it has read by now is copied.
    fn read(&mut self, sight: &Sight) {
        if sight.protocol != Some(Protocol::Tcp) {
            self.copied(sight.id, sight);
            return;
        }
        let Some(course) = self.conversations.find(Protocol::Tcp, sight.flow.reversed()) else { return };
        let Some(waiting) = self.waiting.get_mut(&course) else { return };
        let mut read = Vec::new();
        waiting.retain(|id| match self.open.get(id) {
            Some(open) if sight.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 => {
                read.push(*id);
                false
            }
            Some(_) => true,
            None => false,
        });
        for id in read {
            self.copied(id, sight);
        }
    }

    fn copied(&mut self, id: u32, sight: &Sight) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.copied {
            return;
        }
        open.copied = true;
        self.sights += usize::from(open.add(sight.clone()));
    }

    /// The reader takes it, or it is freed: the programs know the packet, but not where they are.
    fn at_the_reader(&mut self, mut sight: Sight) {
        let Some(open) = self.open.get_mut(&sight.id) else { return };
        if open.was_at(sight.hook) {
            return;
        }
        sight.netns = open.arrived_in.unwrap_or(0);
        self.sights += usize::from(open.add(sight));
    }

    fn dropped(&mut self, sight: Sight) {
        if let Some(open) = self.open.get_mut(&sight.id) {
            // A socket that closes frees what it has: that was delivered, unless somebody should have read it.
            // ICMP goes to raw sockets as clones, and the original is dropped if nobody else wants it.
            let purged = open.arrived_in.is_some() && !open.is_for_a_reader() && self.names.is_purge(sight.arg);
            let cloned = open.protocol == Protocol::Icmp && open.woken;
            // A bridge floods clones, which others drop.
            let flooded = sight.shared && open.arrived_in.is_some_and(|netns| netns != sight.netns);
            if !purged && !cloned && !flooded {
                open.drop = Some(sight);
            }
            return;
        }
        if sight.id != 0 && sight.id <= self.last_id {
            // Its way was over: the socket closed with it, or it was a clone's.
            return;
        }
        self.dropped_unrecorded(&sight);
    }

    /// A drop is reported even if the packet was not recorded: with the one hop that is known.
    fn dropped_unrecorded(&mut self, sight: &Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.of(protocol, sight.flow, sight.kind, sight.seq);
        let mut open = Open::new(course, protocol, sight);
        let stage = self.stage_of_drop(course, sight);
        let place = self.places.number(sight.netns, sight.ifindex);
        let hop = Hop {
            stage,
            hook: super::event::hook_name(sight.hook).to_owned(),
            at_ns: sight.at,
            place,
            cpu: sight.cpu,
            context: sight.context(),
            len: sight.len,
            segments: sight.segments.max(1),
            rewritten: None,
            offsets: sight.offsets,
            note: Some("its way until here was not recorded".to_owned()),
        };
        open.add(sight.clone());
        let outcome = Outcome::Dropped(self.drop_of(sight, stage));
        self.say(&open, vec![hop], outcome);
    }

    fn stage_of_drop(&self, course: Course, sight: &Sight) -> StageId {
        let Some(t) = self.places.territory(sight.netns) else { return StageId::NodeReceive };
        match (course.direction, t.source, t.target) {
            (Direction::Request, _, true) | (Direction::Reply, true, _) => StageId::ReceiveTransport,
            (Direction::Request, true, _) | (Direction::Reply, _, true) => StageId::SendNetwork,
            _ => StageId::NodeReceive,
        }
    }

    fn drop_of(&mut self, sight: &Sight, stage: StageId) -> Drop {
        Drop {
            reason: self.names.drop_reason(sight.arg),
            location: self.names.symbol(sight.location),
            place: self.places.number(sight.netns, sight.ifindex),
            stage,
            detail: None,
        }
    }

    fn report(&mut self, id: u32, verdict: Verdict) {
        let Some(mut open) = self.open.remove(&id) else { return };
        self.sights = self.sights.saturating_sub(open.sights.len());
        if let Some(waiting) = self.waiting.get_mut(&open.course) {
            waiting.retain(|w| *w != id);
            if waiting.is_empty() {
                self.waiting.remove(&open.course);
            }
        }
        let hops = hops::hops(&mut open, &mut self.places, self.conversations.pair());
        let last = hops.last().map_or(StageId::SendNetwork, |h| h.stage);
        let outcome = match (verdict, &open.drop) {
            (Verdict::Delivered, _) => Outcome::Delivered,
            (Verdict::Left, _) => Outcome::Left,
            (Verdict::Dropped, Some(drop)) => {
                let drop = drop.clone();
                Outcome::Dropped(self.drop_of(&drop, last))
            }
            (Verdict::Dropped | Verdict::Vanished, _) => Outcome::Vanished { expected: expected_after(last, open.protocol) },
        };
        if outcome == Outcome::Delivered && open.course.direction == Direction::Request && open.payload() > 0 {
            self.delivered_requests += 1;
        }
        self.say(&open, hops, outcome);
    }

    fn say(&mut self, open: &Open, hops: Vec<Hop>, outcome: Outcome) {
        let Some(first) = open.first().or(open.sights.first()) else { return };
        self.reported += 1;
        self.ready.push(Message::Packet(Box::new(Packet {
            id: self.reported,
            conversation: open.course.conversation,
            direction: open.course.direction,
            protocol: open.protocol,
            kind: open.kind,
            flow: first.flow,
            seq: first.seq,
            ack: first.ack,
            payload: first.payload,
            hops,
            outcome,
        })));
    }

    fn incident(&mut self, sight: &Sight) {
        let Some(what) = incident::kind(sight.hook) else { return };
        let mut known = sight.protocol.is_some();
        if what == IncidentKind::Neighbour {
            known = false;
            if sight.hook == Hook::TRACE_NEIGH_UPDATE && !incident::is_news(sight) {
                return;
            }
        }
        let place = Some(self.places.number(sight.netns, sight.ifindex));
        self.ready.push(Message::Incident(Incident {
            at_ns: sight.at,
            what,
            flow: known.then_some(sight.flow),
            place,
            detail: incident::detail(sight),
        }));
    }
}
