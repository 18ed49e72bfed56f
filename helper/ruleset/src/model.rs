//! What a ruleset is made of: tables, chains, rules, sets.

use std::sync::Arc;

use crate::bits::Truth;

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

/// A word of the registers, 4 bytes; a value begins there.
pub type Register = u8;

/// Bytes of a comparison or mask.
pub type Bytes = Box<[u8]>;

/// Where the bytes of a header are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The network header.
    Network,
    /// The transport header.
    Transport,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Same.
    Equal,
    /// Different.
    Unequal,
    /// Less.
    Less,
    /// Less or same.
    LessOrEqual,
    /// More.
    Greater,
    /// More or same.
    GreaterOrEqual,
}

/// What a packet or its connection is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// Length in bytes from the network header on.
    Length,
    /// EtherType, in network order.
    EtherType,
    /// Address family, `NFPROTO_*`.
    Family,
    /// Transport protocol.
    Protocol,
    /// Packet mark.
    Mark,
    /// Index of the device it came in by, or leaves by.
    DeviceIndex {
        /// It leaves by it.
        out: bool,
    },
    /// Name of that device.
    DeviceName {
        /// It leaves by it.
        out: bool,
    },
    /// State of its connection, as bits.
    State,
    /// Direction in its connection.
    Direction,
    /// Status bits of its connection.
    Status,
    /// Mark of its connection.
    ConnectionMark,
    /// Type of an address, as routing has it.
    AddressType {
        /// Of the destination.
        destination: bool,
    },
}

/// What decides a packet's further fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Leave this base chain; the next one goes on.
    Accept,
    /// Drop.
    Drop,
    /// Drop, and answer.
    Reject,
    /// Hand to a program.
    Queue,
    /// Go on with the next rule.
    Continue,
    /// Back to the rule after the jump; at the end of a base chain its policy.
    Return,
    /// To a chain, and back after it.
    Jump(u32),
    /// To a chain, and not back.
    Goto(u32),
    /// It cannot be known what happens.
    Unknown,
}

/// What an address translation is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translation {
    /// Address and port in registers: `(address, port)`.
    Registers {
        /// Of the destination, otherwise of the source.
        destination: bool,
        /// Bytes of an address.
        length: u8,
        /// Where the address is.
        address: Option<Register>,
        /// Where the port is.
        port: Option<Register>,
    },
    /// Fixed.
    Fixed {
        /// Of the destination, otherwise of the source.
        destination: bool,
        /// The first address.
        address: Option<std::net::IpAddr>,
        /// The first port.
        port: Option<u16>,
    },
    /// The source becomes an address of the device it leaves by.
    Masquerade,
    /// The destination becomes this machine.
    Redirect,
}

/// A step of a rule.
#[derive(Debug)]
pub enum Expression {
    /// Loads bytes of a header.
    Payload {
        /// Which header.
        header: Header,
        /// Offset in it, in bytes.
        offset: u16,
        /// Bytes.
        length: u8,
        /// Where to.
        to: Register,
    },
    /// Loads something known of the packet or its connection.
    Load {
        /// What.
        fact: Fact,
        /// Where to.
        to: Register,
    },
    /// Makes registers unknown; `may_fail` when it also tests something.
    Unknown {
        /// Where to; none for a mere test.
        to: Option<Register>,
        /// Whether the rule may end here.
        may_fail: bool,
    },
    /// `to = (from & mask) ^ flip`.
    Bitwise(Box<Bitwise>),
    /// Swaps bytes.
    Swap {
        /// From here.
        from: Register,
        /// To there.
        to: Register,
        /// Bytes in all.
        length: u8,
        /// Bytes of one number.
        size: u8,
    },
    /// Compares.
    Compare {
        /// What.
        from: Register,
        /// How.
        how: Comparison,
        /// With what.
        value: Bytes,
    },
    /// Compares with a range, both ends included.
    Within(Box<(Register, bool, Bytes, Bytes)>),
    /// Looks a value up.
    Lookup {
        /// Index of the set.
        set: u32,
        /// The key.
        from: Register,
        /// Where a map's value goes; `VERDICT` for a verdict.
        to: Option<Register>,
        /// Succeeds when it is not in there.
        negated: bool,
    },
    /// Loads a constant.
    Constant {
        /// Where to.
        to: Register,
        /// What.
        value: Bytes,
    },
    /// Counts.
    Counter,
    /// Sets the packet's mark, or that of its connection.
    SetMark {
        /// From here.
        from: Register,
        /// That of the connection.
        connection: bool,
    },
    /// The connection is not tracked.
    Untrack,
    /// Decides.
    Verdict(Verdict),
    /// Translates an address, and accepts.
    Translate(Translation),
    /// A match of iptables.
    Match(Box<crate::evaluate::Match>),
    /// A target of iptables that changes marks.
    Remark(Box<crate::evaluate::Remark>),
}

/// Register of verdicts.
pub const VERDICT: Register = u8::MAX;

/// A mask.
#[derive(Debug)]
pub struct Bitwise {
    /// From here.
    pub from: Register,
    /// To there.
    pub to: Register,
    /// Bits that are kept.
    pub mask: Bytes,
    /// Bits that are flipped.
    pub flip: Bytes,
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
