//! Matches of iptables, and its targets that change marks.

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

/// The first and the last address, of 16 bytes each.
pub type AddressRange = (Box<[u8]>, Box<[u8]>);

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
        /// Of the source.
        source: Option<AddressRange>,
        /// Of the destination.
        destination: Option<AddressRange>,
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
