//! Matches of iptables, and their targets that change marks.

use super::{Evaluator, State};
use crate::bits::{Truth, Word, within};
use crate::extension::{AddressRange, Match, PortRange, Remark};
use crate::packet::{AddressType, octets, state};

impl State {
    /// Changes the marks as a target does.
    pub(super) fn remark(&mut self, remark: &Remark) {
        let mix = |a: Word, clear: u32, b: Word, take: u32| {
            let (a, b) = (a.masked(!clear, 0), b.masked(take, 0));
            let known = a.known & b.known;
            Word { value: (a.value ^ b.value) & known, known }
        };
        let (mark, connection) = (self.mark, self.connection.mark);
        match remark {
            Remark::Mark { value, mask } => self.mark = mark.masked(!mask, *value),
            Remark::Connection { value, mask } => self.connection.mark = connection.masked(!mask, *value),
            Remark::Save { connection: clear, packet } => self.connection.mark = mix(connection, *clear, mark, *packet),
            Remark::Restore { connection: take, packet } => {
                let restored = mix(mark, *packet, connection, *take);
                // Without a connection nothing is restored.
                self.mark = match self.connection.exists() {
                    Some(true) => restored,
                    Some(false) => mark,
                    None => mark.join(restored),
                };
            }
            Remark::Unknown => (self.mark, self.connection.mark) = (Word::UNKNOWN, Word::UNKNOWN),
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
                let is = |range: &Option<AddressRange>, ip: Option<std::net::IpAddr>, negated: bool| match range {
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
