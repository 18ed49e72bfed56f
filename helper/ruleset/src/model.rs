//! What a ruleset is made of: tables, chains, rules, sets.

use std::sync::Arc;

use crate::bits::Truth;
pub use crate::expression::*;

/// The rules of a network namespace.
#[derive(Debug, Default)]
pub struct Ruleset {
    /// All chains; verdicts refer to them by index.
    pub chains: Vec<Chain>,
    /// All sets and maps; lookups refer to them by index.
    pub sets: Vec<Set>,
    /// What could not be read, in words.
    pub gaps: Vec<String>,
}

/// Which code of the kernel runs a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// nf_tables, also under iptables-nft.
    Nftables,
    /// ip_tables and ip6_tables.
    Legacy,
}

/// A table.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Who runs it.
    pub engine: Engine,
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its name.
    pub name: String,
}

impl Table {
    /// `ip nat`.
    #[must_use]
    pub fn title(&self) -> String {
        let family = match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "?",
        };
        format!("{family} {}", self.name)
    }
}

/// `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// PRE_ROUTING.
    PreRouting,
    /// LOCAL_IN.
    LocalIn,
    /// FORWARD.
    Forward,
    /// LOCAL_OUT.
    LocalOut,
    /// POST_ROUTING.
    PostRouting,
}

impl Hook {
    /// By its number in the kernel.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::PreRouting, Self::LocalIn, Self::Forward, Self::LocalOut, Self::PostRouting].get(usize::try_from(number).ok()?).copied()
    }
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Filters, or changes what is routed by.
    Filter,
    /// Runs for the first packet of a connection only.
    Nat,
}

/// How a chain is attached to a hook.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// The hook.
    pub hook: Hook,
    /// Its place among what is attached there; lower runs earlier.
    pub priority: i32,
    /// What it is for.
    pub kind: ChainKind,
    /// Whether what comes to its end is dropped.
    pub drops: bool,
}

/// A chain.
#[derive(Debug)]
pub struct Chain {
    /// Its table.
    pub table: Arc<Table>,
    /// Its name.
    pub name: Box<str>,
    /// Of a base chain.
    pub base: Option<Base>,
    /// Packets that its policy decided on, where they are counted.
    pub packets: Option<u64>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug)]
pub struct Rule {
    /// Its number in the table; for iptables-legacy its position in the chain, from 1.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<Box<str>>,
    /// Packets that came to its counter, where it has one.
    pub packets: Option<u64>,
    /// What it does, in order.
    pub expressions: Box<[Expression]>,
    /// What it does to packets that a sender, a receiver or others notice, besides translating them: `drop`, `log`, `limit`, ...
    pub effects: Vec<&'static str>,
}

/// What an element of a map stands for.
#[derive(Debug)]
pub enum Data {
    /// Of a set: nothing.
    Nothing,
    /// A verdict.
    Verdict(Verdict),
    /// A value.
    Value(Bytes),
}

/// An element of a set or map.
#[derive(Debug)]
pub struct Element {
    /// Its key, or the first of a range; empty for the one that stands for all others.
    pub key: Bytes,
    /// The last of a range.
    pub end: Option<Bytes>,
    /// Of a map.
    pub data: Data,
    /// Its comment.
    pub comment: Option<Box<str>>,
    /// Packets that matched it, where they are counted.
    pub packets: Option<u64>,
}

/// A set or map.
#[derive(Debug, Default)]
pub struct Set {
    /// Its name.
    pub name: Box<str>,
    /// Bytes of a key.
    pub key_length: u8,
    /// Whether elements may be ranges.
    pub ranges: bool,
    /// Whether elements may go by themselves, or are added by packets.
    pub changes: bool,
    /// Lengths of the parts of a concatenation; each begins at a multiple of 4.
    pub fields: Vec<u8>,
    /// Its elements; ranges of a single field are sorted.
    pub elements: Vec<Element>,
    /// Whether elements are missing here.
    pub incomplete: bool,
    /// Position in `elements` by key, of sets without ranges.
    pub(crate) by_key: std::collections::HashMap<Bytes, u32>,
}

impl Set {
    /// What it means that a key is in no element.
    #[must_use]
    pub fn absent(&self) -> Truth {
        if self.incomplete || self.changes { Truth::Maybe } else { Truth::No }
    }
}

impl Ruleset {
    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.iter().map(|c| c.rules.len()).sum()
    }

    /// Whether there are neither rules nor policies that drop.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.iter().all(|c| c.rules.is_empty() && c.base.is_none_or(|b| !b.drops))
    }
}
