//! A packet whose path has not ended yet.

use sockpath_bpf::trace::types::{trace_flag, trace_rest};
use sockpath_protocol::packet::PacketKind;
use sockpath_protocol::request::Protocol;

use super::conversation::DirectedConversation;
use crate::trace::event::{Event, Hook};

/// Events kept of one packet; a routing loop makes more.
const MAX_EVENTS: usize = 96;

/// A packet whose path has not ended yet.
#[derive(Debug)]
pub struct Open {
    /// Conversation and direction.
    pub directed: DirectedConversation,
    /// Transport protocol.
    pub protocol: Protocol,
    /// What it is.
    pub kind: PacketKind,
    /// Where it was seen, as the events came.
    pub events: Vec<Event>,
    /// Where the kernel freed it as a drop. A clone's drop is one too, so it counts only if nothing comes after it.
    pub drop: Option<Event>,
    /// Namespace in which it reached its socket.
    pub arrived_in: Option<u32>,
    /// Whether its reader was woken, and whether the reader has its bytes.
    pub woken: bool,
    /// As `woken`.
    pub copied: bool,
    /// Whether it was dropped because the next hop's address could not be had.
    pub unresolved: bool,
    /// Whether only netfilter's hooks could see it.
    pub at_rest: bool,
    /// Time of the last event.
    pub last: u64,
}

impl Open {
    /// A packet that was seen for the first time.
    #[must_use]
    pub fn new(directed: DirectedConversation, protocol: Protocol, event: &Event) -> Self {
        Self {
            directed,
            protocol,
            kind: kind_of(protocol, event),
            events: Vec::with_capacity(20),
            drop: None,
            arrived_in: None,
            woken: false,
            copied: false,
            unresolved: false,
            at_rest: event.has(trace_flag::TRACE_F_ORIGIN) && event.arg == trace_rest::TRACE_SILENT.0,
            last: event.at,
        }
    }

    /// Adds an event. Returns whether there was room for it.
    pub fn add(&mut self, event: Event) -> bool {
        self.last = self.last.max(event.at);
        let room = self.events.len() < MAX_EVENTS;
        if room {
            self.events.push(event);
        }
        room
    }

    /// The first event of the packet itself, not of the socket or the route before it.
    #[must_use]
    pub fn first(&self) -> Option<&Event> {
        self.events.iter().find(|s| s.id != 0)
    }

    /// Payload bytes: of the largest skb it was in, so that a split packet is known by what was sent.
    #[must_use]
    pub fn payload(&self) -> u32 {
        self.first().map_or(0, |s| s.payload)
    }

    /// The TCP sequence number after its last byte.
    #[must_use]
    pub fn end_seq(&self) -> u32 {
        self.first().map_or(0, |s| s.seq.wrapping_add(s.payload))
    }

    /// Whether it waits for a reader.
    #[must_use]
    pub fn is_for_a_reader(&self) -> bool {
        match self.protocol {
            Protocol::Tcp | Protocol::Udp => self.payload() > 0,
            // The kernel answers echo requests itself; a reader is only where one was woken.
            Protocol::Icmp => self.woken,
        }
    }

    /// Whether one of its events comes from this hook.
    #[must_use]
    pub fn was_at(&self, hook: Hook) -> bool {
        self.events.iter().any(|s| s.hook == hook)
    }
}

fn kind_of(protocol: Protocol, event: &Event) -> PacketKind {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    match protocol {
        Protocol::Tcp if event.kind & RST != 0 => PacketKind::Rst,
        Protocol::Tcp if event.kind & (SYN | ACK) == SYN | ACK => PacketKind::SynAck,
        Protocol::Tcp if event.kind & SYN != 0 => PacketKind::Syn,
        Protocol::Tcp if event.kind & FIN != 0 => PacketKind::Fin,
        Protocol::Tcp if event.payload == 0 => PacketKind::Ack,
        Protocol::Tcp | Protocol::Udp => PacketKind::Data,
        Protocol::Icmp => match (event.has(trace_flag::TRACE_F_IPV6), event.kind) {
            (false, 8) | (true, 128) => PacketKind::EchoRequest,
            (false, 0) | (true, 129) => PacketKind::EchoReply,
            (false, 5) => PacketKind::IcmpRedirect,
            _ => PacketKind::IcmpError,
        },
    }
}
