//! The expressions of an nftables rule.

use crate::decode::extension;
use crate::model::{Bitwise, Comparison, Expression, Fact, Header, Register, Translation, VERDICT, Verdict};
use sockpath_netlink::Attributes;

/// Expressions that a packet's sender or receiver notices, or others.
const EFFECTS: [&str; 8] = ["reject", "log", "limit", "quota", "queue", "dup", "fwd", "connlimit"];

/// Follows the expressions of one rule.
pub struct Decoder<'a> {
    /// The index of a chain of the rule's table, by its name.
    chain_at: &'a dyn Fn(&str) -> Option<u32>,
    /// The index of a set of the rule's table, by its name.
    set_at: &'a dyn Fn(&str) -> Option<u32>,
    /// What was read so far.
    pub expressions: Vec<Expression>,
    /// The rule's comment.
    pub comment: Option<String>,
    /// What the rule's counter says.
    pub packets: Option<u64>,
    /// What others notice.
    pub effects: Vec<&'static str>,
}

impl<'a> Decoder<'a> {
    pub fn new(chain_at: &'a dyn Fn(&str) -> Option<u32>, set_at: &'a dyn Fn(&str) -> Option<u32>) -> Self {
        Self { chain_at, set_at, expressions: Vec::new(), comment: None, packets: None, effects: Vec::new() }
    }

    /// One expression: its name and attributes.
    pub fn read(&mut self, name: &str, data: &Attributes<'_>) {
        let expression = match name {
            "match" => {
                let info = data.get(3).unwrap_or_default();
                let extension = data.text(1).unwrap_or_default();
                if extension == "comment" {
                    self.comment = Some(sockpath_netlink::text(info));
                    return;
                }
                Some(extension::matches(&extension, data.network_word(2).unwrap_or(0), info))
            }
            "target" => {
                extension::target(&data.text(1).unwrap_or_default(), data.network_word(2).unwrap_or(0), data.get(3).unwrap_or_default())
            }
            "counter" => {
                self.packets = data.network_long(2);
                Some(Expression::Counter)
            }
            "immediate" => self.immediate(data),
            "lookup" => Some(self.lookup(data)),
            "dynset" => Some(Expression::Unknown { to: None, may_fail: data.get(7).is_some() || data.get(10).is_some() }),
            // Named objects: counters let pass, quotas and limits may not.
            "objref" if data.network_word(1) == Some(1) => None,
            _ => plain(name, data),
        };
        self.effects.extend(match (name, &expression) {
            ("match" | "target", _) => extension::effect(&data.text(1).unwrap_or_default()),
            ("immediate", Some(Expression::Verdict(Verdict::Drop))) => Some("drop"),
            _ => EFFECTS.iter().find(|e| **e == name).copied(),
        });
        self.expressions.extend(expression);
    }

    fn immediate(&self, data: &Attributes<'_>) -> Option<Expression> {
        let value = data.nested(2)?;
        if let Some(v) = value.nested(2) {
            return Some(Expression::Verdict(verdict(&v, self.chain_at)));
        }
        Some(Expression::Constant { to: register(data.network_word(1))?, value: value.get(1)?.into() })
    }

    fn lookup(&self, data: &Attributes<'_>) -> Expression {
        const INVERTED: u32 = 1;
        let unknown = Expression::Unknown { to: register(data.network_word(3)), may_fail: true };
        let found = data.text(1).and_then(|name| (self.set_at)(&name));
        let (Some(set), Some(from)) = (found, register(data.network_word(2))) else {
            return if data.network_word(3) == Some(0) { Expression::Verdict(Verdict::Unknown) } else { unknown };
        };
        let to = data.network_word(3).map(|r| if r == 0 { VERDICT } else { register(Some(r)).unwrap_or(VERDICT - 1) });
        Expression::Lookup { set, from, to, negated: data.network_word(5).unwrap_or(0) & INVERTED != 0 }
    }
}

/// A register as the number of its first word; `None` for that of verdicts and unknown ones.
pub fn register(number: Option<u32>) -> Option<Register> {
    match number? {
        n @ 1..=4 => u8::try_from((n - 1) * 4).ok(),
        n @ 8..=23 => u8::try_from(n - 8).ok(),
        _ => None,
    }
}

/// The verdict in NFTA_DATA_VERDICT.
pub fn verdict(v: &Attributes<'_>, chain: &dyn Fn(&str) -> Option<u32>) -> Verdict {
    const QUEUE: i32 = 3;
    let to = || v.text(2).and_then(|name| chain(&name));
    match v.network_word(1).map(u32::cast_signed) {
        Some(0) => Verdict::Drop,
        Some(1) => Verdict::Accept,
        Some(-1 | -2) => Verdict::Continue,
        Some(-3) => to().map_or(Verdict::Unknown, Verdict::Jump),
        Some(-4) => to().map_or(Verdict::Unknown, Verdict::Goto),
        Some(-5) => Verdict::Return,
        Some(code) if code & 0xff == QUEUE => Verdict::Queue,
        _ => Verdict::Unknown,
    }
}

/// Expressions that need nothing but their attributes.
fn plain(name: &str, data: &Attributes<'_>) -> Option<Expression> {
    let unknown = |may_fail| Some(Expression::Unknown { to: register(data.network_word(1)), may_fail });
    match name {
        "payload" => payload(data),
        "meta" => meta(data),
        "ct" => connection(data),
        "bitwise" => bitwise(data),
        "byteorder" => Some(Expression::Swap {
            from: register(data.network_word(1))?,
            to: register(data.network_word(2))?,
            length: u8::try_from(data.network_word(4)?).ok()?,
            size: u8::try_from(data.network_word(5)?).ok()?,
        }),
        "cmp" => Some(compare(data).unwrap_or(Expression::Unknown { to: None, may_fail: true })),
        "range" => Some(range(data).unwrap_or(Expression::Unknown { to: None, may_fail: true })),
        "fib" => fib(data),
        "nat" => Some(translate(data)),
        "masq" => Some(Expression::Translate(Translation::Masquerade)),
        "redir" => Some(Expression::Translate(Translation::Redirect)),
        "reject" => Some(Expression::Verdict(Verdict::Reject)),
        "queue" => Some(Expression::Verdict(Verdict::Queue)),
        "notrack" => Some(Expression::Untrack),
        "log" | "dup" | "last" | "flow_offload" | "fwd" => None,
        // They give a value and test nothing.
        "numgen" => unknown(false),
        "hash" => Some(Expression::Unknown { to: register(data.network_word(2)), may_fail: false }),
        "rt" => unknown(true),
        "synproxy" => Some(Expression::Verdict(Verdict::Unknown)),
        "tproxy" => Some(Expression::Unknown { to: None, may_fail: true }),
        "socket" => Some(Expression::Unknown { to: register(data.network_word(2)), may_fail: true }),
        "exthdr" => unknown(true),
        // limit, quota, connlimit, objref, and what is not known.
        _ => Some(Expression::Unknown { to: None, may_fail: true }),
    }
}

fn payload(data: &Attributes<'_>) -> Option<Expression> {
    let header = match data.network_word(2) {
        Some(1) => Some(Header::Network),
        Some(2) => Some(Header::Transport),
        _ => None,
    };
    // Without a destination it writes into the packet.
    let to = register(data.network_word(1))?;
    match (header, data.network_word(3), data.network_word(4).map(u8::try_from)) {
        (Some(header), Some(offset), Some(Ok(length))) => {
            Some(Expression::Payload { header, offset: u16::try_from(offset).unwrap_or(u16::MAX), length, to })
        }
        _ => Some(Expression::Unknown { to: Some(to), may_fail: true }),
    }
}

fn meta(data: &Attributes<'_>) -> Option<Expression> {
    const MARK: u32 = 3;
    if let Some(from) = register(data.network_word(3)) {
        return (data.network_word(2) == Some(MARK)).then_some(Expression::SetMark { from, connection: false });
    }
    let to = register(data.network_word(1))?;
    let fact = match data.network_word(2) {
        Some(0) => Fact::Length,
        Some(1) => Fact::EtherType,
        Some(MARK) => Fact::Mark,
        Some(n @ (4 | 5)) => Fact::DeviceIndex { out: n == 5 },
        Some(n @ (6 | 7)) => Fact::DeviceName { out: n == 7 },
        Some(15) => Fact::Family,
        Some(16) => Fact::Protocol,
        _ => return Some(Expression::Unknown { to: Some(to), may_fail: true }),
    };
    Some(Expression::Load { fact, to })
}

fn connection(data: &Attributes<'_>) -> Option<Expression> {
    const MARK: u32 = 3;
    if let Some(from) = register(data.network_word(4)) {
        return (data.network_word(2) == Some(MARK)).then_some(Expression::SetMark { from, connection: true });
    }
    let to = register(data.network_word(1))?;
    let fact = match data.network_word(2) {
        Some(0) => Fact::State,
        Some(1) => Fact::Direction,
        Some(2) => Fact::Status,
        Some(MARK) => Fact::ConnectionMark,
        _ => return Some(Expression::Unknown { to: Some(to), may_fail: true }),
    };
    Some(Expression::Load { fact, to })
}

fn bitwise(data: &Attributes<'_>) -> Option<Expression> {
    let (from, to) = (register(data.network_word(1))?, register(data.network_word(2))?);
    let bytes = |kind| data.nested(kind).and_then(|m| m.get(1)).map(Box::<[u8]>::from);
    // Shifts, and operations on two registers.
    match (data.network_word(6).unwrap_or(0), bytes(4), bytes(5)) {
        (0, Some(mask), Some(flip)) => Some(Expression::Bitwise(Box::new(Bitwise { from, to, mask, flip }))),
        _ => Some(Expression::Unknown { to: Some(to), may_fail: false }),
    }
}

fn compare(data: &Attributes<'_>) -> Option<Expression> {
    let how = match data.network_word(2)? {
        0 => Comparison::Equal,
        1 => Comparison::Unequal,
        2 => Comparison::Less,
        3 => Comparison::LessOrEqual,
        4 => Comparison::Greater,
        5 => Comparison::GreaterOrEqual,
        _ => return None,
    };
    Some(Expression::Compare { from: register(data.network_word(1))?, how, value: data.nested(3)?.get(1)?.into() })
}

fn range(data: &Attributes<'_>) -> Option<Expression> {
    let bytes = |kind| data.nested(kind).and_then(|m| m.get(1)).map(Box::<[u8]>::from);
    Some(Expression::Within(Box::new((register(data.network_word(1))?, data.network_word(2)? == 1, bytes(3)?, bytes(4)?))))
}

fn fib(data: &Attributes<'_>) -> Option<Expression> {
    const ADDRESS_TYPE: u32 = 3;
    const SOURCE: u32 = 1;
    const DESTINATION: u32 = 2;
    const MARK: u32 = 4;
    let to = register(data.network_word(1))?;
    // A device narrows it down to that device's own addresses.
    match (data.network_word(2), data.network_word(3)? & !MARK) {
        (Some(ADDRESS_TYPE), flags @ (SOURCE | DESTINATION)) => {
            Some(Expression::Load { fact: Fact::AddressType { destination: flags == DESTINATION }, to })
        }
        _ => Some(Expression::Unknown { to: Some(to), may_fail: false }),
    }
}

fn translate(data: &Attributes<'_>) -> Expression {
    const DNAT: u32 = 1;
    const IPV6: u32 = 10;
    Expression::Translate(Translation::Registers {
        destination: data.network_word(1) == Some(DNAT),
        length: if data.network_word(2) == Some(IPV6) { 16 } else { 4 },
        address: register(data.network_word(3)),
        port: register(data.network_word(5)),
    })
}
