//! What is known of a packet when it comes to a hook.

use std::net::IpAddr;

use crate::bits::Word;
use crate::model::Header;

/// State of a packet's connection as rules see it, one bit each (`NF_CT_STATE_*`).
pub mod state {
    /// No connection: conntrack finds it invalid, or has not seen it yet.
    pub const INVALID: u32 = 1;
    /// Of a connection that was seen in both directions, or a reply.
    pub const ESTABLISHED: u32 = 2;
    /// Of a connection that another one announced, or an ICMP error.
    pub const RELATED: u32 = 4;
    /// The first packet of a connection, or one before the first reply.
    pub const NEW: u32 = 8;
    /// Taken out of connection tracking.
    pub const UNTRACKED: u32 = 64;
}

/// A packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The states it may be in, as bits of [`state`]; it is in one.
    pub states: u32,
    /// Whether it goes in the direction of replies.
    pub reply: Option<bool>,
    /// `nf_conn.status`.
    pub status: Option<u32>,
    /// `nf_conn.mark`.
    pub mark: Word,
}

impl Connection {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        states: state::INVALID | state::ESTABLISHED | state::RELATED | state::NEW | state::UNTRACKED,
        reply: None,
        status: None,
        mark: Word::UNKNOWN,
    };

    /// Conntrack knows nothing of it.
    pub const NONE: Self = Self { states: state::INVALID, reply: None, status: None, mark: Word::UNKNOWN };

    /// Whether the packet has a connection, as far as that is known.
    #[must_use]
    pub fn exists(&self) -> Option<bool> {
        let none = state::INVALID | state::UNTRACKED;
        match (self.states & none != 0, self.states & !none != 0) {
            (true, false) => Some(false),
            (false, true) => Some(true),
            _ => None,
        }
    }

    /// What is true of both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self {
            states: self.states | other.states,
            reply: self.reply.filter(|r| other.reply == Some(*r)),
            status: self.status.filter(|s| other.status == Some(*s)),
            mark: self.mark.join(other.mark),
        }
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name, when known.
    pub name: Option<String>,
}

/// What routing takes an address for (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressType {
    /// One of another machine.
    Unicast = 1,
    /// One of this machine.
    Local = 2,
    /// Of all on a link.
    Broadcast = 3,
    /// Of a group.
    Multicast = 5,
}

/// What is known of a packet.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Transport protocol; that of ICMP is 1 or 58.
    pub protocol: Option<u8>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
    /// TCP's byte of flags.
    pub tcp_flags: Option<u8>,
    /// ICMP's type.
    pub icmp_type: Option<u8>,
    /// Bytes from the network header on.
    pub length: Option<u32>,
    /// Packet mark.
    pub mark: Word,
    /// Its connection.
    pub connection: Connection,
    /// The device it came in by: unknown, none, or one.
    pub input: Option<Option<Device>>,
    /// The device it leaves by: unknown, none, or one.
    pub output: Option<Option<Device>>,
    /// What the source address is here.
    pub source_type: Option<AddressType>,
    /// What the destination address is here.
    pub destination_type: Option<AddressType>,
}

impl Packet {
    /// Nothing is known but its family.
    #[must_use]
    pub fn unknown(v6: bool) -> Self {
        Self {
            v6,
            source: None,
            destination: None,
            protocol: None,
            source_port: None,
            destination_port: None,
            tcp_flags: None,
            icmp_type: None,
            length: None,
            mark: Word::UNKNOWN,
            connection: Connection::UNKNOWN,
            input: None,
            output: None,
            source_type: None,
            destination_type: None,
        }
    }

    /// With addresses and protocol; nothing else is known.
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        let (source, v6) = (Some(source), destination.is_ipv6());
        Self { source, destination: Some(destination), protocol: Some(protocol), ..Self::unknown(v6) }
    }

    /// With ports.
    #[must_use]
    pub fn with_ports(mut self, source: u16, destination: u16) -> Self {
        (self.source_port, self.destination_port) = (Some(source), Some(destination));
        self
    }

    /// Whether it is one of a table's family (`NFPROTO_*`).
    #[must_use]
    pub fn is_of(&self, family: u8) -> bool {
        family == 1 || family == if self.v6 { 10 } else { 2 }
    }
}

/// The headers of a packet as far as they are known.
#[derive(Debug)]
pub struct Headers {
    network: [(u8, u8); 40],
    transport: [(u8, u8); 20],
}

impl Headers {
    /// Those of a packet.
    #[must_use]
    pub fn of(packet: &Packet) -> Self {
        let mut headers = Self { network: [(0, 0); 40], transport: [(0, 0); 20] };
        let (source, destination, next) = if packet.v6 { (8, 24, 6) } else { (12, 16, 9) };
        if let Some(protocol) = packet.protocol {
            headers.network[next] = (protocol, 255);
        }
        headers.network[0] = (if packet.v6 { 0x60 } else { 0x40 }, 0xf0);
        for (at, ip) in [(source, packet.source), (destination, packet.destination)] {
            put(&mut headers.network[at..], &ip.map(octets).unwrap_or_default());
        }
        if let (false, Some(Ok(length))) = (packet.v6, packet.length.map(u16::try_from)) {
            put(&mut headers.network[2..], &length.to_be_bytes());
        }
        for (at, port) in [(0, packet.source_port), (2, packet.destination_port)] {
            if let Some(port) = port {
                put(&mut headers.transport[at..], &port.to_be_bytes());
            }
        }
        if let Some(flags) = packet.tcp_flags.filter(|_| packet.protocol == Some(6)) {
            headers.transport[13] = (flags, 255);
        }
        if let Some(kind) = packet.icmp_type.filter(|_| matches!(packet.protocol, Some(1 | 58))) {
            headers.transport[0] = (kind, 255);
        }
        headers
    }

    /// Bytes of a header, each with the bits of it that are known.
    #[must_use]
    pub fn bytes(&self, header: Header, offset: usize, length: usize) -> Option<&[(u8, u8)]> {
        let bytes: &[(u8, u8)] = match header {
            Header::Network => &self.network,
            Header::Transport => &self.transport,
        };
        bytes.get(offset..offset.checked_add(length)?)
    }
}

/// The bytes of an address.
#[must_use]
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn put(to: &mut [(u8, u8)], bytes: &[u8]) {
    for (slot, byte) in to.iter_mut().zip(bytes) {
        *slot = (*byte, 255);
    }
}
