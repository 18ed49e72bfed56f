//! Matches and targets of iptables.

use super::{Evaluator, State};
use crate::bits::{Truth, Word, within};
use crate::model::Bytes;
use crate::packet::{AddressType, octets, state};

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
    /// All others.
    pub negated: bool,
}

/// A match of iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `tcp` and `udp`.
    Ports {
        /// Of the source.
        source: PortRange,
        /// Of the destination.
        destination: PortRange,
        /// TCP's flags: mask, value, negated.
        flags: Option<(u8, u8, bool)>,
        /// It asks for an option of TCP.
        option: bool,
    },
    /// `multiport`.
    AnyPort {
        /// 0: the source's, 1: the destination's, 2: one of both.
        of: u8,
        /// Ranges, both ends included.
        ranges: Box<[(u16, u16)]>,
        /// All others.
        negated: bool,
    },
    /// `conntrack` and `state`.
    Connection {
        /// What it asks for (`XT_CONNTRACK_*`).
        asks: u16,
        /// Which of it is negated.
        negated: u16,
        /// State bits.
        states: u16,
        /// Status bits.
        status: u16,
    },
    /// `mark` and `connmark`.
    Mark {
        /// The connection's.
        connection: bool,
        /// The value of the masked bits.
        value: u32,
        /// The mask.
        mask: u32,
        /// Negated.
        negated: bool,
    },
    /// `addrtype`.
    AddressType {
        /// Types of the source, a bit each.
        source: u16,
        /// Types of the destination.
        destination: u16,
        /// Negated: source and destination.
        negated: (bool, bool),
        /// As the packet's device sees it.
        of_device: bool,
    },
    /// `icmp` and `icmp6`.
    Icmp {
        /// Type; 255 for any.
        kind: u8,
        /// Codes from and to.
        codes: (u8, u8),
        /// Negated.
        negated: bool,
    },
    /// `iprange`.
    Addresses {
        /// Of the source: 16 bytes each.
        source: Option<(Bytes, Bytes)>,
        /// Of the destination.
        destination: Option<(Bytes, Bytes)>,
        /// Negated: source and destination.
        negated: (bool, bool),
    },
    /// `length`.
    Length {
        /// At least.
        from: u16,
        /// At most.
        to: u16,
        /// Negated.
        negated: bool,
    },
}

/// A target of iptables that changes marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// `MARK`: `(mark & !mask) ^ value`.
    Mark {
        /// Bits that are flipped after that.
        value: u32,
        /// Bits that are cleared.
        mask: u32,
    },
    /// `CONNMARK --set-xmark`.
    Connection {
        /// As of `Mark`.
        value: u32,
        /// As of `Mark`.
        mask: u32,
    },
    /// `CONNMARK --save-mark`: the packet's becomes the connection's.
    Save {
        /// Bits of the connection's mark that are cleared.
        connection: u32,
        /// Bits of the packet's mark that are taken.
        packet: u32,
    },
    /// `CONNMARK --restore-mark`.
    Restore {
        /// Bits of the connection's mark that are taken.
        connection: u32,
        /// Bits of the packet's mark that are cleared.
        packet: u32,
    },
    /// Not known.
    Unknown,
}

impl Remark {
    /// Changes the marks.
    pub(super) fn apply(&self, carried: &mut State) {
        let mix = |a: Word, clear: u32, b: Word, take: u32| {
            let (a, b) = (a.masked(!clear, 0), b.masked(take, 0));
            let known = a.known & b.known;
            Word { value: (a.value ^ b.value) & known, known }
        };
        let (mark, connection) = (carried.mark, carried.connection.mark);
        match self {
            Self::Mark { value, mask } => carried.mark = mark.masked(!mask, *value),
            Self::Connection { value, mask } => carried.connection.mark = connection.masked(!mask, *value),
            Self::Save { connection: clear, packet } => carried.connection.mark = mix(connection, *clear, mark, *packet),
            Self::Restore { connection: take, packet } => {
                let restored = mix(mark, *packet, connection, *take);
                // Without a connection nothing is restored.
                carried.mark = match carried.connection.exists() {
                    Some(true) => restored,
                    Some(false) => mark,
                    None => mark.join(restored),
                };
            }
            Self::Unknown => (carried.mark, carried.connection.mark) = (Word::UNKNOWN, Word::UNKNOWN),
        }
    }
}

impl Evaluator<'_> {
    /// Whether the packet passes a match.
    pub(super) fn matches(&self, m: &Match, carried: &State) -> Truth {
        let packet = self.packet;
        match m {
            Match::Ports { source, destination, flags, option } => {
                let ports = in_range(packet.source_port, *source).and(in_range(packet.destination_port, *destination));
                let flags = flags
                    .map_or(Truth::Yes, |(mask, value, negated)| Truth::from(packet.tcp_flags.map(|f| f & mask == value)).xor(negated));
                ports.and(flags).and(if *option { Truth::Maybe } else { Truth::Yes })
            }
            Match::AnyPort { of, ranges, negated } => {
                let any = |port: Option<u16>| Truth::from(port.map(|p| ranges.iter().any(|(from, to)| (*from..=*to).contains(&p))));
                let truth = match of {
                    0 => any(packet.source_port),
                    1 => any(packet.destination_port),
                    _ => any(packet.source_port).or(any(packet.destination_port)),
                };
                truth.xor(*negated)
            }
            Match::Connection { asks, negated, states, status } => connection(carried, *asks, *negated, *states, *status),
            Match::Mark { connection, value, mask, negated } => {
                let (word, exists) = match connection {
                    true => (carried.connection.mark, Truth::from(carried.connection.exists())),
                    false => (carried.mark, Truth::Yes),
                };
                word.masked_equals(*mask, *value).xor(*negated).and(exists)
            }
            Match::AddressType { source, destination, negated, of_device } => {
                let is = |types: u16, kind: Option<AddressType>, negated: bool| match types {
                    0 => Truth::Yes,
                    types => Truth::from(kind.map(|k| types & (1 << k as u16) != 0)).xor(negated),
                };
                let truth = is(*source, packet.source_type, negated.0).and(is(*destination, packet.destination_type, negated.1));
                if *of_device { truth.and(Truth::Maybe) } else { truth }
            }
            Match::Icmp { kind, codes, negated } => {
                let any = *kind == u8::MAX && packet.protocol == Some(1);
                let is = Truth::from(packet.icmp_type.map(|t| t == *kind));
                let code = if *codes == (0, u8::MAX) { Truth::Yes } else { Truth::Maybe };
                (if any { Truth::Yes } else { is.and(code) }).xor(*negated)
            }
            Match::Addresses { source, destination, negated } => {
                let is = |range: &Option<(Bytes, Bytes)>, ip: Option<std::net::IpAddr>, negated: bool| match range {
                    None => Truth::Yes,
                    Some((from, to)) => {
                        let Some(bytes) = ip.map(octets) else { return Truth::Maybe };
                        within(&bytes, &vec![u8::MAX; bytes.len()], &from[..bytes.len()], &to[..bytes.len()]).xor(negated)
                    }
                };
                is(source, packet.source, negated.0).and(is(destination, packet.destination, negated.1))
            }
            Match::Length { from, to, negated } => {
                let (from, to) = (u32::from(*from), u32::from(*to));
                Truth::from(packet.length.map(|l| (from..=to).contains(&l))).xor(*negated)
            }
        }
    }
}

fn in_range(port: Option<u16>, range: PortRange) -> Truth {
    if (range.from, range.to) == (0, u16::MAX) {
        return Truth::Yes.xor(range.negated);
    }
    Truth::from(port.map(|p| (range.from..=range.to).contains(&p))).xor(range.negated)
}

/// net/netfilter/xt_conntrack.c
fn connection(carried: &State, asks: u16, negated: u16, states: u16, status: u16) -> Truth {
    const STATE: u16 = 1;
    const STATUS: u16 = 64;
    const DIRECTION: u16 = 1 << 12;
    const STATE_SNAT: u16 = 64;
    const STATE_DNAT: u16 = 128;
    const STATE_UNTRACKED: u16 = 256;
    /// `IPS_SRC_NAT` and `IPS_DST_NAT`.
    const SOURCE: u32 = 16;
    const DESTINATION: u32 = 32;
    let c = &carried.connection;
    let mut truth = Truth::Yes;
    if asks & STATE != 0 {
        let mut wanted = u32::from(states) & 0xf;
        if states & STATE_UNTRACKED != 0 {
            wanted |= state::UNTRACKED;
        }
        let mut is = match (c.states & wanted != 0, c.states & !wanted == 0) {
            (_, true) => Truth::Yes,
            (true, false) => Truth::Maybe,
            (false, false) => Truth::No,
        };
        for (bit, translated) in [(STATE_SNAT, SOURCE), (STATE_DNAT, DESTINATION)] {
            if states & bit != 0 {
                let has = Truth::from(c.status.map(|s| s & translated != 0));
                is = is.or(if c.exists() == Some(false) { Truth::No } else { has });
            }
        }
        truth = is.xor(negated & STATE != 0);
    }
    if c.exists() == Some(false) {
        return truth.and(Truth::from(asks & STATE != 0));
    }
    if asks & DIRECTION != 0 {
        // It asks for the original direction.
        truth = truth.and(Truth::from(c.reply.map(|r| !r)).xor(negated & DIRECTION != 0));
    }
    if asks & STATUS != 0 {
        truth = truth.and(Truth::from(c.status.map(|s| s & u32::from(status) != 0)).xor(negated & STATUS != 0));
    }
    let others = asks & !(STATE | STATUS | DIRECTION | (1 << 13));
    if others != 0 || (c.exists().is_none() && asks & !STATE != 0) { truth.and(Truth::Maybe) } else { truth }
}
