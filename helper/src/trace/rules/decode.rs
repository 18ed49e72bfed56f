//! Chains and rules out of netlink attributes (include/uapi/linux/netfilter/nf_tables.h), as far as they matter here.

use std::collections::HashMap;
use std::net::IpAddr;

use super::At;
use super::netlink::{Attributes, Dump, text};

/// The chains and rules of a namespace.
#[derive(Debug, Default)]
pub struct Ruleset {
    pub chains: Vec<Chain>,
    pub rules: Vec<Rule>,
}

/// Where a chain lies: address family and table.
pub type Table = (u8, String);

/// A chain.
#[derive(Debug)]
pub struct Chain {
    pub table: Table,
    pub name: String,
    /// Of a base chain.
    pub hook: Option<At>,
    /// Whether what comes to its end is dropped.
    pub drops: bool,
}

/// A rule.
#[derive(Debug)]
pub struct Rule {
    pub table: Table,
    pub chain: String,
    pub handle: u64,
    pub comment: Option<String>,
    pub tests: Vec<Test>,
    pub action: Action,
    /// What it does to packets besides sending them on or translating them: `drop`, `log`, `limit`, ...
    pub does: Vec<String>,
}

/// What a rule asks of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Test {
    /// Bytes of a header, after a mask.
    Header { transport: bool, offset: usize, mask: Vec<u8>, value: Vec<u8>, negated: bool },
    /// The transport protocol.
    Protocol { value: u8, negated: bool },
    /// Anything else.
    Unknown,
}

/// What a rule does.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Drop,
    Jump(String),
    Destination(Option<IpAddr>, Option<u16>),
    Source(Option<IpAddr>, Option<u16>),
    /// To the address of the device it leaves by.
    Masquerade,
    /// By a map, or not about our questions.
    Other,
}

impl Ruleset {
    /// What was dumped; `None` where there is not one rule.
    pub fn decode(dump: &Dump) -> Option<Self> {
        let chains = dump.chains.iter().filter_map(|(family, a)| chain(*family, &Attributes::of(a))).collect();
        let rules: Vec<Rule> = dump.rules.iter().filter_map(|(family, a)| rule(*family, &Attributes::of(a))).collect();
        (!rules.is_empty()).then_some(Self { chains, rules })
    }
}

fn chain(family: u8, a: &Attributes<'_>) -> Option<Chain> {
    let hook = a.nested(4).and_then(|hook| match hook.number(1)? {
        0 => Some(At::PreRouting),
        1 => Some(At::LocalIn),
        2 => Some(At::Forward),
        3 => Some(At::LocalOut),
        4 => Some(At::PostRouting),
        _ => None,
    });
    let drops = hook.is_some() && a.number(5) == Some(0);
    Some(Chain { table: (family, a.text(1)?), name: a.text(3)?, hook, drops })
}

fn rule(family: u8, a: &Attributes<'_>) -> Option<Rule> {
    let handle = u64::from_be_bytes(a.get(3)?.try_into().ok()?);
    let mut reader = Reader { comment: a.get(7).and_then(user_comment), ..Reader::default() };
    for expression in a.nested(4).iter().flat_map(Attributes::values) {
        let expression = Attributes::of(expression);
        let (Some(name), Some(data)) = (expression.text(1), expression.nested(2)) else { continue };
        reader.read(&name, &data);
    }
    Some(Rule {
        table: (family, a.text(1)?),
        chain: a.text(2)?,
        handle,
        comment: reader.comment,
        tests: reader.tests,
        action: reader.action.unwrap_or(Action::Other),
        does: reader.does,
    })
}

/// nft keeps a comment in the rule's user data: type, length, value (libnftnl's udata.h).
fn user_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}

/// What a register holds.
#[derive(Debug, Clone)]
enum Loaded {
    Header { transport: bool, offset: usize, mask: Vec<u8> },
    Protocol,
    Value(Vec<u8>),
    Unknown,
}

/// Follows the expressions of a rule.
#[derive(Debug, Default)]
struct Reader {
    registers: HashMap<u32, Loaded>,
    tests: Vec<Test>,
    action: Option<Action>,
    comment: Option<String>,
    does: Vec<String>,
}

impl Reader {
    fn read(&mut self, name: &str, data: &Attributes<'_>) {
        self.note_effect(name, data);
        match name {
            "payload" => self.load(data),
            "meta" => {
                const NFT_META_L4PROTO: u32 = 16;
                let loaded = if data.number(2) == Some(NFT_META_L4PROTO) { Loaded::Protocol } else { Loaded::Unknown };
                self.set(data.number(1), loaded);
            }
            "bitwise" => {
                let masked = match (self.register(data.number(1)), data.nested(4).and_then(|m| m.get(1))) {
                    (Loaded::Header { transport, offset, .. }, Some(mask)) => Loaded::Header { transport, offset, mask: mask.to_vec() },
                    _ => Loaded::Unknown,
                };
                self.set(data.number(2), masked);
            }
            "cmp" => self.compare(data),
            "immediate" => self.immediate(data),
            "nat" => self.nat(data),
            "match" => match data.text(1).as_deref() {
                Some("comment") => self.comment = data.text(3),
                _ => self.tests.push(Test::Unknown),
            },
            "target" => self.target(data),
            "masq" => self.action = Some(Action::Masquerade),
            "reject" => self.action = Some(Action::Drop),
            "counter" | "log" | "notrack" => {}
            _ => {
                self.set(data.number(1), Loaded::Unknown);
                self.tests.push(Test::Unknown);
            }
        }
    }

    /// Expressions of nftables, and matches and targets of iptables, that do something a packet's sender or receiver notices, or others.
    fn note_effect(&mut self, name: &str, data: &Attributes<'_>) {
        const EXPRESSIONS: [&str; 8] = ["reject", "log", "limit", "quota", "queue", "dup", "fwd", "connlimit"];
        const MATCHES: [&str; 4] = ["limit", "hashlimit", "connlimit", "quota"];
        const TARGETS: [&str; 7] = ["DROP", "REJECT", "LOG", "NFLOG", "NFQUEUE", "TEE", "AUDIT"];
        let extension = data.text(1).unwrap_or_default();
        let does = match name {
            "match" => MATCHES.contains(&extension.as_str()).then_some(extension),
            "target" => TARGETS.contains(&extension.as_str()).then(|| extension.to_lowercase()),
            _ => EXPRESSIONS.contains(&name).then(|| name.to_owned()),
        };
        self.does.extend(does);
    }

    fn register(&self, register: Option<u32>) -> Loaded {
        register.and_then(|r| self.registers.get(&r)).cloned().unwrap_or(Loaded::Unknown)
    }

    fn set(&mut self, register: Option<u32>, loaded: Loaded) {
        if let Some(register) = register {
            self.registers.insert(register, loaded);
        }
    }

    fn load(&mut self, data: &Attributes<'_>) {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let loaded = match (data.number(2), data.number(3), data.number(4)) {
            (Some(base @ (NETWORK | TRANSPORT)), Some(offset), Some(length @ 1..=16)) => {
                Loaded::Header { transport: base == TRANSPORT, offset: offset as usize, mask: vec![0xff; length as usize] }
            }
            _ => Loaded::Unknown,
        };
        self.set(data.number(1), loaded);
    }

    fn compare(&mut self, data: &Attributes<'_>) {
        const EQUAL: u32 = 0;
        const UNEQUAL: u32 = 1;
        let value = data.nested(3).and_then(|v| v.get(1));
        let test = match (self.register(data.number(1)), data.number(2), value) {
            (Loaded::Header { transport, offset, mask }, Some(op @ (EQUAL | UNEQUAL)), Some(value)) if value.len() <= mask.len() => {
                Test::Header { transport, offset, mask, value: value.to_vec(), negated: op == UNEQUAL }
            }
            (Loaded::Protocol, Some(op @ (EQUAL | UNEQUAL)), Some([value, ..])) => Test::Protocol { value: *value, negated: op == UNEQUAL },
            _ => Test::Unknown,
        };
        self.tests.push(test);
    }

    fn immediate(&mut self, data: &Attributes<'_>) {
        const DROP: i32 = 0;
        const JUMP: i32 = -3;
        const GOTO: i32 = -4;
        let Some(value) = data.nested(2) else { return };
        if let Some(verdict) = value.nested(2) {
            self.action = match (verdict.number(1).map(u32::cast_signed), verdict.text(2)) {
                (Some(DROP), _) => {
                    self.does.push("drop".to_owned());
                    Some(Action::Drop)
                }
                (Some(JUMP | GOTO), Some(chain)) => Some(Action::Jump(chain)),
                _ => Some(Action::Other),
            };
        } else if let Some(bytes) = value.get(1) {
            self.set(data.number(1), Loaded::Value(bytes.to_vec()));
        }
    }

    fn nat(&mut self, data: &Attributes<'_>) {
        const DNAT: u32 = 1;
        let value = |register| match self.register(register) {
            Loaded::Value(bytes) => Some(bytes),
            _ => None,
        };
        // By a map: not followed.
        if data.number(3).is_some() && value(data.number(3)).is_none() {
            self.action = Some(Action::Other);
            return;
        }
        let ip = value(data.number(3)).and_then(|b| address(&b));
        let port = value(data.number(5)).and_then(|b| Some(u16::from_be_bytes(b.get(..2)?.try_into().ok()?)));
        self.action = Some(if data.number(1) == Some(DNAT) { Action::Destination(ip, port) } else { Action::Source(ip, port) });
    }

    /// The targets of iptables-nft: `struct nf_nat_range2`, or the older `nf_nat_ipv4_multi_range_compat`.
    fn target(&mut self, data: &Attributes<'_>) {
        const MAP_IPS: u32 = 1;
        const PROTO_SPECIFIED: u32 = 2;
        let range = || {
            let info = data.get(3)?;
            let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
            let flags = word(0)?;
            let port = |at: usize| Some(u16::from_be_bytes(info.get(at..at + 2)?.try_into().ok()?));
            let ip = info
                .get(4..20)
                .filter(|_| flags & MAP_IPS != 0)
                .and_then(|b| if b[4..] == [0; 12] { address(&b[..4]) } else { address(b) });
            Some((ip, port(36).filter(|_| flags & PROTO_SPECIFIED != 0)))
        };
        self.action = Some(match (data.text(1).as_deref(), data.number(2)) {
            (Some("DNAT"), Some(1..)) => range().map_or(Action::Other, |(ip, port)| Action::Destination(ip, port)),
            (Some("SNAT"), Some(1..)) => range().map_or(Action::Other, |(ip, port)| Action::Source(ip, port)),
            (Some("MASQUERADE"), _) => Action::Masquerade,
            (Some("REJECT" | "DROP"), _) => Action::Drop,
            _ => Action::Other,
        });
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
