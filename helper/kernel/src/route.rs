//! Where the kernel would send a packet, and from which address (include/uapi/linux/rtnetlink.h).

use std::io;
use std::net::IpAddr;

use crate::netlink::{Attributes, Body, Socket, address, family, octets};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// Size of `struct rtmsg`.
const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTAX_MTU: u16 = 2;
const RTN_UNICAST: u8 = 1;
const RTN_BROADCAST: u8 = 3;
const RTN_BLACKHOLE: u8 = 6;
const RTN_UNREACHABLE: u8 = 7;
const RTN_PROHIBIT: u8 = 8;
const RTA_TABLE: u16 = 15;

/// An answer of the routing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whether packets are forwarded: neither delivered here nor refused.
    pub forwards: bool,
    /// Index of the device they leave by.
    pub device: u32,
    /// The next hop; `None` where the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Its MTU, where the route has one of its own.
    pub mtu: Option<u32>,
    /// Whether the route itself puts packets into a tunnel.
    pub encapsulates: bool,
    /// The address that the namespace gives its own packets on this route.
    pub source: Option<IpAddr>,
}

/// Asks for the route of a packet from `source` to `destination` that came in by a device.
///
/// # Errors
/// When there is none (ENETUNREACH, EHOSTUNREACH) or the kernel refuses.
pub fn forwarding(socket: &mut Socket, source: IpAddr, destination: IpAddr, device: u32) -> io::Result<Route> {
    let bits = bits(destination);
    let mut header = [0u8; RTMSG];
    (header[0], header[1], header[2]) = (family(destination), bits, bits);
    let body = Body::new(&header).with(RTA_DST, &octets(destination)).with(RTA_SRC, &octets(source)).with(RTA_IIF, &device.to_ne_bytes());
    ask(socket, &body)
}

/// Asks for the route of what the socket's namespace itself sends to a destination.
///
/// # Errors
/// When there is none (ENETUNREACH), when it refuses packets (EINVAL for a blackhole, EHOSTUNREACH, EACCES), or the kernel refuses.
pub fn output(socket: &mut Socket, destination: IpAddr) -> io::Result<Route> {
    let mut header = [0u8; RTMSG];
    (header[0], header[1]) = (family(destination), bits(destination));
    ask(socket, &Body::new(&header).with(RTA_DST, &octets(destination)))
}

/// Whether the socket's namespace takes a destination for a broadcast address.
///
/// # Errors
/// As [`output`].
pub fn is_broadcast(socket: &mut Socket, destination: IpAddr) -> io::Result<bool> {
    let mut header = [0u8; RTMSG];
    (header[0], header[1]) = (family(destination), bits(destination));
    let answers = socket.request(RTM_GETROUTE, 0, Body::new(&header).with(RTA_DST, &octets(destination)).bytes())?;
    Ok(answers.iter().any(|m| m.kind == RTM_NEWROUTE && m.body.get(7) == Some(&RTN_BROADCAST)))
}

/// Length of an address, in bits.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn ask(socket: &mut Socket, request: &Body) -> io::Result<Route> {
    let answers = socket.request(RTM_GETROUTE, 0, request.bytes())?;
    let route = answers.iter().filter(|m| m.kind == RTM_NEWROUTE).find_map(|m| read(&m.body));
    route.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
}

/// A route that refuses packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusing {
    /// How.
    pub how: Refusal,
    /// Its destination.
    pub prefix: IpAddr,
    /// Length of the prefix.
    pub length: u8,
    /// Its table; 254 is `main`.
    pub table: u32,
}

/// How a route refuses packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Without a word.
    Blackhole,
    /// With ICMP "host unreachable".
    Unreachable,
    /// With ICMP "administratively prohibited".
    Prohibit,
}

/// As iproute2 shows it.
impl std::fmt::Display for Refusing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.how.word(), self.prefix, self.length)
    }
}

impl Refusal {
    /// The word of iproute2.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        }
    }

    /// The errno that senders and lookups get.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Blackhole => libc::EINVAL,
            Self::Unreachable => libc::EHOSTUNREACH,
            Self::Prohibit => libc::EACCES,
        }
    }
}

/// The routes of any table that refuse packets to this destination, the most specific first.
///
/// # Errors
/// When the kernel refuses.
pub fn refusing(socket: &mut Socket, destination: IpAddr) -> io::Result<Vec<Refusing>> {
    let mut header = [0u8; RTMSG];
    header[0] = family(destination);
    let mut found = Vec::new();
    socket.dump(RTM_GETROUTE, RTM_NEWROUTE, Body::new(&header).bytes(), |body| found.extend(read_refusing(body)))?;
    found.retain(|r| contains(r.prefix, r.length, destination));
    found.sort_by_key(|r| std::cmp::Reverse(r.length));
    Ok(found)
}

fn read_refusing(body: &[u8]) -> Option<Refusing> {
    let how = match *body.get(7)? {
        RTN_BLACKHOLE => Refusal::Blackhole,
        RTN_UNREACHABLE => Refusal::Unreachable,
        RTN_PROHIBIT => Refusal::Prohibit,
        _ => return None,
    };
    let attributes = Attributes::behind(body, RTMSG);
    let any: IpAddr = if i32::from(*body.first()?) == libc::AF_INET { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let table = attributes.word(RTA_TABLE).unwrap_or_else(|| body.get(4).copied().unwrap_or(0).into());
    Some(Refusing { how, prefix: attributes.address(RTA_DST).unwrap_or(any), length: *body.get(1)?, table })
}

fn contains(prefix: IpAddr, length: u8, address: IpAddr) -> bool {
    let (prefix, address) = (octets(prefix), octets(address));
    prefix.len() == address.len()
        && (0..usize::from(length)).all(|bit| {
            let of = |bytes: &[u8]| bytes.get(bit / 8).map(|b| b >> (7 - bit % 8) & 1);
            of(&prefix) == of(&address)
        })
}

fn read(body: &[u8]) -> Option<Route> {
    let attributes = Attributes::behind(body, RTMSG);
    // RTA_VIA is a family of 16 bits and an address of it.
    let via = || attributes.get(RTA_VIA).and_then(|v| address(v.get(2..)?));
    Some(Route {
        forwards: *body.get(7)? == RTN_UNICAST,
        device: attributes.word(RTA_OIF)?,
        gateway: attributes.address(RTA_GATEWAY).or_else(via),
        mtu: attributes.nested(RTA_METRICS).and_then(|m| m.word(RTAX_MTU)).filter(|mtu| *mtu != 0),
        encapsulates: attributes.get(RTA_ENCAP).is_some(),
        source: attributes.address(RTA_PREFSRC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_that_refuse_are_read_and_compared() {
        let mut header = [0u8; RTMSG];
        (header[0], header[1], header[4], header[7]) = (2, 24, 254, RTN_BLACKHOLE);
        let body = Body::new(&header).with(RTA_DST, &[10, 42, 2, 0]).with(RTA_TABLE, &300u32.to_ne_bytes());
        let read = read_refusing(body.bytes()).expect("a route");
        assert_eq!(read, Refusing { how: Refusal::Blackhole, prefix: [10, 42, 2, 0].into(), length: 24, table: 300 });
        assert!(contains(read.prefix, 24, [10, 42, 2, 9].into()) && !contains(read.prefix, 24, [10, 42, 3, 9].into()));
        assert!(contains([0, 0, 0, 0].into(), 0, [10, 42, 3, 9].into()) && !contains([0, 0, 0, 0].into(), 0, [0u16; 8].into()));
        header[7] = RTN_UNICAST;
        assert_eq!(read_refusing(&header), None);
    }

    #[test]
    fn gateway_device_and_mtu_are_read() {
        let mut header = [0u8; RTMSG];
        header[7] = RTN_UNICAST;
        let metrics = Body::default().with(RTAX_MTU, &1400u32.to_ne_bytes());
        let body =
            Body::new(&header).with(RTA_OIF, &4u32.to_ne_bytes()).with(RTA_GATEWAY, &[10, 0, 0, 9]).with_nested(RTA_METRICS, &metrics);
        let gateway = Some(IpAddr::from([10, 0, 0, 9]));
        let expected = Route { forwards: true, device: 4, gateway, mtu: Some(1400), encapsulates: false, source: None };
        assert_eq!(read(body.bytes()), Some(expected));
        assert_eq!(read(&header), None);
        let body = Body::new(&header).with(RTA_OIF, &4u32.to_ne_bytes()).with(RTA_PREFSRC, &[10, 0, 0, 1]);
        assert_eq!(read(body.bytes()).and_then(|route| route.source), Some(IpAddr::from([10, 0, 0, 1])));
    }
}
