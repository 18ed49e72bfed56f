//! Tables of iptables-legacy as IPT_SO_GET_ENTRIES gives them (include/uapi/linux/netfilter_ipv4/ip_tables.h and
//! netfilter_ipv6/ip6_tables.h), read into the same model as nftables.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::extension;
use crate::model::{
    Base, Bitwise, Chain, ChainKind, Comparison, Engine, Expression, Fact, Header, Hook, Rule, Ruleset, Table as Named, Verdict,
};

/// Address family of a table, with the layout of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyFamily {
    /// `struct ipt_entry`.
    V4,
    /// `struct ip6t_entry`.
    V6,
}

/// A table.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Family.
    pub family: LegacyFamily,
    /// Its name: `filter`.
    pub name: &'a str,
    /// A bit for each hook it is attached to.
    pub hooks: u32,
    /// Offset of each hook's first entry.
    pub begins: [u32; 5],
    /// Offset of the entry that is each hook's policy.
    pub policies: [u32; 5],
    /// The entries.
    pub entries: &'a [u8],
}

/// `struct xt_entry_match` and `struct xt_entry_target`, before their data.
const EXTENSION: usize = 32;
/// The name's place in both.
const NAME: std::ops::Range<usize> = 2..31;

impl LegacyFamily {
    /// Bytes of an address, and of an entry before its matches.
    fn layout(self) -> (usize, usize) {
        match self {
            Self::V4 => (4, 112),
            Self::V6 => (16, 168),
        }
    }

    /// Offset of the `target_offset` of an entry; `next_offset` comes after it.
    fn target_offset(self) -> usize {
        match self {
            Self::V4 => 88,
            Self::V6 => 140,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// An entry of a table.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: usize,
    family: LegacyFamily,
}

impl<'a> Entry<'a> {
    fn all(table: &Table<'a>) -> Vec<Self> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(entry) = table.entries.get(at..) {
            let offset = table.family.target_offset();
            let (Some(target), Some(next)) = (short(entry, offset), short(entry, offset + 2)) else { break };
            let (target, next) = (usize::from(target), usize::from(next));
            let Some(bytes) = entry.get(..next).filter(|b| b.len() >= target + EXTENSION && target >= table.family.layout().1) else {
                break;
            };
            found.push(Self { at, bytes, target, family: table.family });
            at += next;
        }
        found
    }

    fn target_name(&self) -> String {
        sockpath_netlink::text(&self.bytes[self.target..][NAME])
    }

    /// Of the nameless standard target.
    fn standard(&self) -> Option<i32> {
        self.target_name()
            .is_empty()
            .then(|| Some(i32::from_ne_bytes(self.bytes.get(self.target + EXTENSION..)?.get(..4)?.try_into().ok()?)))?
    }

    fn packets(&self) -> u64 {
        let at = self.family.layout().1 - 16;
        self.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }

    /// The name of the chain that begins after this entry.
    fn heading(&self) -> Option<String> {
        (self.target_name() == "ERROR").then(|| sockpath_netlink::text(&self.bytes[self.target + EXTENSION..]))
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Adds a table's chains.
pub fn read(table: &Table<'_>, ruleset: &mut Ruleset) {
    let named = Arc::new(Named { engine: Engine::Legacy, family: table.family.number(), name: table.name.to_owned() });
    let entries = Entry::all(table);
    let first = ruleset.chains.len();
    // Where each chain begins, by the offset of its first entry.
    let mut begins: HashMap<usize, u32> = HashMap::new();
    let chain = |name: &str, base| Chain { table: Arc::clone(&named), name: name.into(), base, packets: None, rules: Vec::new() };
    for hook in (0..5u32).filter(|h| table.hooks & (1 << h) != 0) {
        let begin = table.begins[hook as usize] as usize;
        let (Some(at), Some(name)) = (Hook::from_number(hook), HOOKS.get(hook as usize)) else { continue };
        let kind = if table.name == "nat" { ChainKind::Nat } else { ChainKind::Filter };
        let base = Base { hook: at, priority: priority(table.name, at), kind, drops: false };
        begins.insert(begin, u32::try_from(ruleset.chains.len()).unwrap_or(u32::MAX));
        ruleset.chains.push(chain(name, Some(base)));
    }
    for pair in entries.windows(2) {
        if let Some(name) = pair[0].heading() {
            begins.insert(pair[1].at, u32::try_from(ruleset.chains.len()).unwrap_or(u32::MAX));
            ruleset.chains.push(chain(&name, None));
        }
    }
    let mut current = None;
    for entry in &entries {
        current = begins.get(&entry.at).copied().or(current);
        let (Some(at), None) = (current, entry.heading()) else { continue };
        if at as usize >= first {
            add(&mut ruleset.chains[at as usize], table, entry, &begins);
        }
    }
}

const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// `NF_IP_PRI_*`.
fn priority(table: &str, hook: Hook) -> i32 {
    match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" if matches!(hook, Hook::PreRouting | Hook::LocalOut) => -100,
        "nat" => 100,
        "security" => 50,
        _ => 0,
    }
}

fn add(chain: &mut Chain, table: &Table<'_>, entry: &Entry<'_>, begins: &HashMap<usize, u32>) {
    if let Some(base) = &mut chain.base
        && table.policies.iter().enumerate().any(|(h, p)| table.hooks & (1 << h) != 0 && *p as usize == entry.at)
    {
        base.drops = entry.standard() == Some(-1);
        chain.packets = Some(entry.packets());
        return;
    }
    let (mut comment, mut effects) = (None, Vec::new());
    let mut expressions = header_tests(entry);
    let mut at = table.family.layout().1;
    while let Some(m) = entry.bytes.get(at..entry.target).filter(|m| m.len() >= EXTENSION) {
        let size = usize::from(short(m, 0).unwrap_or(0)).min(m.len());
        if size < EXTENSION {
            break;
        }
        let (name, data) = (sockpath_netlink::text(&m[NAME]), &m[EXTENSION..size]);
        effects.extend(extension::effect(&name));
        if name == "comment" {
            comment = Some(sockpath_netlink::text(data).into_boxed_str());
        } else {
            expressions.push(extension::matches(&name, u32::from(m[31]), data));
        }
        at += size;
    }
    expressions.push(Expression::Counter);
    let target = &entry.bytes[entry.target..];
    let size = usize::from(short(target, 0).unwrap_or(0)).clamp(EXTENSION, target.len());
    match entry.standard() {
        Some(verdict) => expressions.extend(standard(verdict, entry, begins).map(Expression::Verdict)),
        None => expressions.extend(extension::target(&entry.target_name(), u32::from(target[31]), &target[EXTENSION..size])),
    }
    effects.extend(if entry.standard() == Some(-1) { Some("drop") } else { extension::effect(&entry.target_name()) });
    let handle = chain.rules.len() as u64 + 1;
    chain.rules.push(Rule { handle, comment, packets: Some(entry.packets()), expressions: expressions.into(), effects });
}

/// The verdict of a standard target; a jump to the entry behind it is none.
fn standard(verdict: i32, entry: &Entry<'_>, begins: &HashMap<usize, u32>) -> Option<Verdict> {
    // Byte of the flags, and the one that makes a jump a goto.
    let (flags, goto) = match entry.family {
        LegacyFamily::V4 => (entry.bytes[82], 2),
        LegacyFamily::V6 => (entry.bytes[131], 4),
    };
    match verdict {
        -1 => Some(Verdict::Drop),
        -2 => Some(Verdict::Accept),
        -4 => Some(Verdict::Queue),
        -5 => Some(Verdict::Return),
        ..0 => Some(Verdict::Unknown),
        to if usize::try_from(to) == Ok(entry.at + entry.bytes.len()) => None,
        to => Some(
            usize::try_from(to)
                .ok()
                .and_then(|to| begins.get(&to))
                .map_or(Verdict::Unknown, |chain| if flags & goto != 0 { Verdict::Goto(*chain) } else { Verdict::Jump(*chain) }),
        ),
    }
}

/// What the entry itself asks for: addresses, devices, protocol.
fn header_tests(entry: &Entry<'_>) -> Vec<Expression> {
    const FRAGMENT: u8 = 1;
    let (length, _) = entry.family.layout();
    let v4 = entry.family == LegacyFamily::V4;
    let b = entry.bytes;
    let inverted = b[if v4 { 83 } else { 132 }];
    let flags = b[if v4 { 82 } else { 131 }];
    let mut tests = Vec::new();
    let (from, to) = if v4 { (12, 16) } else { (8, 24) };
    for (offset, address, bit) in [(from, 0, 8), (to, length, 16)] {
        let mask = &b[address + 2 * length..address + 3 * length];
        if mask.iter().any(|m| *m != 0) {
            let load = Expression::Payload { header: Header::Network, offset, length: if v4 { 4 } else { 16 }, to: 0 };
            tests.extend(masked(load, mask, &b[address..address + length], inverted & bit != 0));
        }
    }
    for (out, bit) in [(false, 1), (true, 2)] {
        let name = 4 * length + if out { 16 } else { 0 };
        let mask = &b[name + 32..name + 48];
        if mask.iter().any(|m| *m != 0) {
            let load = Expression::Load { fact: Fact::DeviceName { out }, to: 0 };
            tests.extend(masked(load, mask, &b[name..name + 16], inverted & bit != 0));
        }
    }
    let protocol = short(b, 4 * length + 64).unwrap_or(0);
    // For IPv6 only with the flag that says so.
    if protocol != 0 && (v4 || flags & 1 != 0) {
        let value: Box<[u8]> = [u8::try_from(protocol).unwrap_or(u8::MAX)].into();
        let how = if inverted & 0x40 != 0 { Comparison::Unequal } else { Comparison::Equal };
        tests.extend([Expression::Load { fact: Fact::Protocol, to: 0 }, Expression::Compare { from: 0, how, value }]);
    }
    if v4 && flags & FRAGMENT != 0 {
        tests.push(Expression::Unknown { to: None, may_fail: true });
    }
    tests
}

fn masked(load: Expression, mask: &[u8], value: &[u8], negated: bool) -> [Expression; 3] {
    let value: Box<[u8]> = value.iter().zip(mask).map(|(v, m)| v & m).collect();
    let how = if negated { Comparison::Unequal } else { Comparison::Equal };
    let flip = vec![0; mask.len()].into();
    [load, Expression::Bitwise(Box::new(Bitwise { from: 0, to: 0, mask: mask.into(), flip })), Expression::Compare { from: 0, how, value }]
}
