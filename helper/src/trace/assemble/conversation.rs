//! Which conversation a packet belongs to, and in which direction it goes.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use sockpath_protocol::packet::{Direction, Flow};
use sockpath_protocol::request::{Protocol, Service};

/// Flows that are remembered; a flow more makes the oldest forgotten.
const MAX_FLOWS: usize = 16_384;

const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Where Linux begins to take ports for outgoing connections (`net.ipv4.ip_local_port_range`).
const FIRST_EPHEMERAL: u16 = 32_768;

/// The two ends of a trace.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// Addresses of the source.
    pub sources: Vec<IpAddr>,
    /// Addresses of the targets, and of what stands for them (Service frontends).
    pub targets: Vec<IpAddr>,
    /// Only this destination port.
    pub port: Option<u16>,
    /// Services between the two.
    pub services: Vec<Service>,
}

impl Pair {
    /// The Service that has this address as a frontend, as `namespace/name`.
    #[must_use]
    pub fn service_at(&self, addr: SocketAddr, protocol: Protocol) -> Option<String> {
        self.services
            .iter()
            .find(|s| s.frontends.iter().any(|f| f.addr == addr && f.protocol == protocol))
            .map(|s| format!("{}/{}", s.namespace, s.name))
    }

    /// Whether this is an address of one of the two ends.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        self.sources.contains(&ip) || self.targets.contains(&ip)
    }

    /// The direction of the first packet of a conversation that was seen.
    fn direction(&self, flow: Flow, protocol: Protocol, kind: u8) -> Direction {
        let out = self.sources.contains(&flow.from.ip()) && self.targets.contains(&flow.to.ip());
        let back = self.sources.contains(&flow.to.ip()) && self.targets.contains(&flow.from.ip());
        match (out, back) {
            (true, false) => Direction::Request,
            (false, true) => Direction::Reply,
            // Neither: rewritten before it was seen. An answer has an address of the source to go to.
            (false, false) if self.sources.contains(&flow.to.ip()) => Direction::Reply,
            (false, false) => Direction::Request,
            // Both: the two are in one pod, so the one who asks is the source.
            (true, true) => self.asks(flow, protocol, kind),
        }
    }

    fn asks(&self, flow: Flow, protocol: Protocol, kind: u8) -> Direction {
        let syn = kind & (TCP_SYN | TCP_ACK);
        let reply = match protocol {
            Protocol::Tcp if syn == TCP_SYN => false,
            Protocol::Tcp if syn == TCP_SYN | TCP_ACK => true,
            Protocol::Icmp => matches!(kind, 0 | 129),
            _ => match self.port {
                Some(port) => flow.from.port() == port,
                None => flow.from.port() < FIRST_EPHEMERAL && flow.to.port() >= FIRST_EPHEMERAL,
            },
        };
        if reply { Direction::Reply } else { Direction::Request }
    }
}

/// One direction of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirectedConversation {
    /// Number of the conversation, from 1.
    pub conversation: u64,
    /// The direction.
    pub direction: Direction,
}

/// The conversations, found by any flow that one of their packets had.
#[derive(Debug, Default)]
pub struct Conversations {
    pair: Pair,
    flows: HashMap<(Protocol, Flow), DirectedConversation>,
    oldest: VecDeque<(Protocol, Flow)>,
    /// Sequence number of the SYN that began a conversation: another SYN on the same ports begins another one.
    syns: HashMap<u64, u32>,
    last: u64,
}

impl Conversations {
    /// No conversation yet.
    #[must_use]
    pub fn new(pair: Pair) -> Self {
        Self { pair, ..Self::default() }
    }

    /// The two ends.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// The conversation of a flow, if it is known.
    #[must_use]
    pub fn find(&self, protocol: Protocol, flow: Flow) -> Option<DirectedConversation> {
        self.flows.get(&(protocol, flow)).copied()
    }

    /// The conversation that an ICMP error is about: it goes to an end of it, with the ports of the packet it answers.
    #[must_use]
    pub fn about(&self, error: Flow) -> Option<DirectedConversation> {
        let answers = |f: &Flow| f.to == error.to && f.from.port() == error.from.port();
        self.flows.iter().find(|((protocol, f), _)| *protocol != Protocol::Icmp && answers(f)).map(|(_, directed)| *directed)
    }

    /// The conversation of a packet's first event; a new one when the flow is not known.
    pub fn of(&mut self, protocol: Protocol, flow: Flow, kind: u8, seq: u32) -> DirectedConversation {
        let syn = (protocol == Protocol::Tcp && kind & (TCP_SYN | TCP_ACK) == TCP_SYN).then_some(seq);
        if let Some(directed) = self.find(protocol, flow)
            && syn.is_none_or(|seq| self.syns.get(&directed.conversation).is_none_or(|begun| *begun == seq))
        {
            return directed;
        }
        self.last += 1;
        let directed = DirectedConversation { conversation: self.last, direction: self.pair.direction(flow, protocol, kind) };
        if let Some(seq) = syn {
            self.syns.insert(self.last, seq);
        }
        self.join(protocol, flow, directed);
        directed
    }

    /// Takes note that packets in one direction of a conversation have this flow, and their answers its reverse.
    pub fn join(&mut self, protocol: Protocol, flow: Flow, directed: DirectedConversation) {
        let back = match directed.direction {
            Direction::Request => Direction::Reply,
            Direction::Reply => Direction::Request,
        };
        for (flow, direction) in [(flow, directed.direction), (flow.reversed(), back)] {
            let key = (protocol, flow);
            if self.flows.insert(key, DirectedConversation { direction, ..directed }).is_none() {
                self.oldest.push_back(key);
            }
        }
        while self.flows.len() > MAX_FLOWS {
            let Some(key) = self.oldest.pop_front() else { break };
            if let Some(directed) = self.flows.remove(&key) {
                self.syns.remove(&directed.conversation);
            }
        }
    }
}
