//! Single expressions: what they load, and what they test.

use std::net::IpAddr;
use std::rc::Rc;

use super::{Evaluator, Fate, State};
use crate::bits::{Truth, Word, equals, within};
use crate::model::{Bitwise, Comparison, Expression, Fact, Header, Register, Translation};
use crate::packet::{Device, state};

/// `IFNAMSIZ`.
const NAME: usize = 16;

impl Evaluator<'_> {
    /// Runs an expression that gives no verdict, for the packets that come to it.
    pub(super) fn test(&mut self, expression: &Expression, carried: &mut State) -> Truth {
        match expression {
            Expression::Payload { header, offset, length, to } => self.payload(*header, usize::from(*offset), usize::from(*length), *to),
            Expression::Load { fact, to } => self.load(*fact, *to, carried),
            Expression::Unknown { to, may_fail } => {
                if let Some(to) = to {
                    self.registers.forget(*to);
                    self.registers.map = None;
                }
                if *may_fail { Truth::Maybe } else { Truth::Yes }
            }
            Expression::Bitwise(b) => {
                self.bitwise(b);
                Truth::Yes
            }
            Expression::Swap { from, to, length, size } => {
                self.swap(*from, *to, usize::from(*length), usize::from(*size));
                Truth::Yes
            }
            Expression::Compare { from, how, value } => self.compare(*from, *how, value),
            Expression::Within(range) => {
                let (from, negated, low, high) = &**range;
                let (bytes, known) = self.registers.get(*from, low.len());
                within(bytes, known, low, high).xor(*negated)
            }
            Expression::Lookup { set, from, to, negated } => self.look_up(*set, *from, *to, *negated),
            Expression::Constant { to, value } => {
                self.registers.set(*to, value);
                Truth::Yes
            }
            Expression::SetMark { from, connection } => {
                let word = self.registers.word(*from);
                if *connection {
                    carried.connection.mark = word;
                } else {
                    carried.mark = word;
                }
                Truth::Yes
            }
            Expression::Untrack => {
                if carried.connection.exists() != Some(true) {
                    carried.connection.states = state::UNTRACKED;
                }
                Truth::Yes
            }
            Expression::Match(m) => self.matches(m, carried),
            Expression::Remark(r) => {
                carried.remark(r);
                Truth::Yes
            }
            Expression::Counter | Expression::Verdict(_) | Expression::Translate(_) => Truth::Yes,
        }
    }

    fn payload(&mut self, header: Header, offset: usize, length: usize, to: Register) -> Truth {
        let Some(bits) = self.headers.bytes(header, offset, length) else {
            self.registers.forget(to);
            return Truth::Maybe;
        };
        let padding = length.next_multiple_of(4) - length;
        self.registers.set_bits(to, bits.iter().copied().chain(std::iter::repeat_n((0, u8::MAX), padding)));
        Truth::Yes
    }

    fn load(&mut self, fact: Fact, to: Register, carried: &State) -> Truth {
        let packet = self.packet;
        let connection = &carried.connection;
        match fact {
            Fact::Length => self.registers.set_word(to, packet.length.into()),
            Fact::EtherType => self.registers.set(to, if packet.v6 { &[0x86, 0xdd] } else { &[8, 0] }),
            Fact::Family => self.registers.set(to, if packet.v6 { &[10] } else { &[2] }),
            Fact::Protocol => match packet.protocol {
                Some(protocol) => self.registers.set(to, &[protocol]),
                None => self.registers.forget(to),
            },
            Fact::Mark => self.registers.set_word(to, carried.mark),
            Fact::DeviceIndex { out } => {
                let device = if out { &packet.output } else { &packet.input };
                let index = device.as_ref().map(|d| d.as_ref().map_or(0, |d| d.index));
                self.registers.set_word(to, index.into());
            }
            Fact::DeviceName { out } => match device_name(if out { &packet.output } else { &packet.input }) {
                Some(name) => self.registers.set(to, &name),
                None => self.registers.set_bits(to, std::iter::repeat_n((0, 0), NAME)),
            },
            Fact::State => {
                let word = match connection.states.count_ones() {
                    1 => Word::known(connection.states),
                    _ => Word { value: 0, known: !connection.states },
                };
                self.registers.set_word(to, word);
            }
            Fact::Direction => match connection.reply {
                Some(reply) => self.registers.set(to, &[u8::from(reply)]),
                None => self.registers.set_bits(to, [(0, 0xfe), (0, 255), (0, 255), (0, 255)].into_iter()),
            },
            Fact::Status => self.registers.set_word(to, connection.status.into()),
            Fact::ConnectionMark => self.registers.set_word(to, connection.mark),
            Fact::AddressType { destination } => {
                let kind = if destination { packet.destination_type } else { packet.source_type };
                self.registers.set_word(to, kind.map(|k| k as u32).into());
            }
        }
        // Without a connection there is only a state.
        match fact {
            Fact::Direction | Fact::Status | Fact::ConnectionMark => Truth::from(connection.exists()),
            _ => Truth::Yes,
        }
    }

    fn bitwise(&mut self, b: &Bitwise) {
        let (bytes, known) = self.registers.get(b.from, b.mask.len());
        let result: Vec<(u8, u8)> = bytes
            .iter()
            .zip(known)
            .zip(b.mask.iter().zip(&b.flip))
            .map(|((byte, known), (mask, flip))| ((byte & mask) ^ flip, known | !mask))
            .collect();
        self.registers.set_bits(b.to, result.into_iter());
    }

    fn swap(&mut self, from: Register, to: Register, length: usize, size: usize) {
        let (bytes, known) = self.registers.get(from, length);
        let bits: Vec<(u8, u8)> = bytes.iter().copied().zip(known.iter().copied()).collect();
        let size = size.max(1);
        let swapped = bits.chunks(size).flat_map(|c| c.iter().rev().copied());
        self.registers.set_bits(to, swapped.collect::<Vec<_>>().into_iter());
    }

    fn compare(&self, from: Register, how: Comparison, value: &[u8]) -> Truth {
        let (bytes, known) = self.registers.get(from, value.len());
        let (zero, most) = (vec![0; value.len()], vec![u8::MAX; value.len()]);
        match how {
            Comparison::Equal => equals(bytes, known, value),
            Comparison::Unequal => !equals(bytes, known, value),
            Comparison::LessOrEqual => within(bytes, known, &zero, value),
            Comparison::Greater => !within(bytes, known, &zero, value),
            Comparison::GreaterOrEqual => within(bytes, known, value, &most),
            Comparison::Less => !within(bytes, known, value, &most),
        }
    }

    /// What a translation does to the packet.
    pub(super) fn fate_of(&self, translation: &Translation) -> Fate {
        match translation {
            Translation::Fixed { destination, address, port } => {
                Fate::Translated { destination: *destination, to: Rc::from([(*address, *port)]) }
            }
            Translation::Masquerade => Fate::Translated { destination: false, to: Rc::from([(None, None)]) },
            Translation::Redirect => Fate::Translated { destination: true, to: Rc::from([(None, None)]) },
            Translation::Registers { destination, length, address, port } => {
                let to = self.targets(usize::from(*length), *address, *port);
                Fate::Translated { destination: *destination, to: to.into() }
            }
        }
    }

    fn targets(&self, length: usize, address: Option<Register>, port: Option<Register>) -> Vec<(Option<IpAddr>, Option<u16>)> {
        let known = |from: Option<Register>, length: usize| {
            let (bytes, known) = self.registers.get(from?, length);
            known.iter().all(|k| *k == u8::MAX).then(|| bytes.to_vec())
        };
        let number = |b: &[u8]| Some(u16::from_be_bytes(b.get(..2)?.try_into().ok()?));
        if let Some((register, map)) = self.registers.map
            && address.or(port) == Some(register)
        {
            return self.choices(map, register, length, address, port);
        }
        let ip = known(address, length).and_then(|b| address_of(&b));
        vec![(ip, known(port, 2).and_then(|b| number(&b)))]
    }

    /// The values of a map that may have been loaded.
    fn choices(
        &self,
        map: u32,
        register: Register,
        length: usize,
        address: Option<Register>,
        port: Option<Register>,
    ) -> Vec<(Option<IpAddr>, Option<u16>)> {
        let at = |of: Option<Register>| of.map(|r| usize::from(r.saturating_sub(register)) * 4);
        let value = |element: &crate::model::Element| {
            let crate::model::Data::Value(bytes) = &element.data else { return (None, None) };
            let ip = at(address).and_then(|a| address_of(bytes.get(a..a + length)?));
            let port = at(port).and_then(|p| Some(u16::from_be_bytes(bytes.get(p..p + 2)?.try_into().ok()?)));
            (ip, port)
        };
        self.ruleset.sets[map as usize].elements.iter().map(value).collect()
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// A device's name, padded; all zeros without a device, `None` when it is not known.
pub(super) fn device_name(device: &Option<Option<Device>>) -> Option<[u8; NAME]> {
    let mut bytes = [0; NAME];
    if let Some(device) = device.as_ref()? {
        for (to, from) in bytes.iter_mut().zip(device.name.as_ref()?.bytes()) {
            *to = from;
        }
    }
    Some(bytes)
}
