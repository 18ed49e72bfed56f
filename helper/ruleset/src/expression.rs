//! What a rule is made of: steps that load, test, change and decide.

use crate::extension::{Match, Remark};

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

/// A property of a packet or its connection.
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
    Match(Box<Match>),
    /// A target of iptables that changes marks.
    Remark(Box<Remark>),
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
