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
}

/// Asks for the route of a packet from `source` to `destination` that came in by a device.
///
/// # Errors
/// When there is none (ENETUNREACH, EHOSTUNREACH) or the kernel refuses.
pub fn forwarding(socket: &mut Socket, source: IpAddr, destination: IpAddr, device: u32) -> io::Result<Route> {
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    let mut header = [0u8; RTMSG];
    (header[0], header[1], header[2]) = (family(destination), bits, bits);
    let body = Body::new(&header).with(RTA_DST, &octets(destination)).with(RTA_SRC, &octets(source)).with(RTA_IIF, &device.to_ne_bytes());
    let answers = socket.request(RTM_GETROUTE, 0, body.bytes())?;
    let route = answers.iter().filter(|m| m.kind == RTM_NEWROUTE).find_map(|m| read(&m.body));
    route.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
}

/// The address that the socket's namespace gives its own packets to this destination.
///
/// # Errors
/// When there is no route.
pub fn source(socket: &mut Socket, destination: IpAddr) -> io::Result<IpAddr> {
    let mut header = [0u8; RTMSG];
    (header[0], header[1]) = (family(destination), if destination.is_ipv4() { 32 } else { 128 });
    let answers = socket.request(RTM_GETROUTE, 0, Body::new(&header).with(RTA_DST, &octets(destination)).bytes())?;
    let source = answers.iter().filter(|m| m.kind == RTM_NEWROUTE).find_map(|m| Attributes::behind(&m.body, RTMSG).address(RTA_PREFSRC));
    source.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_device_and_mtu_are_read() {
        let mut header = [0u8; RTMSG];
        header[7] = RTN_UNICAST;
        let metrics = Body::default().with(RTAX_MTU, &1400u32.to_ne_bytes());
        let body =
            Body::new(&header).with(RTA_OIF, &4u32.to_ne_bytes()).with(RTA_GATEWAY, &[10, 0, 0, 9]).with_nested(RTA_METRICS, &metrics);
        let expected =
            Route { forwards: true, device: 4, gateway: Some(IpAddr::from([10, 0, 0, 9])), mtu: Some(1400), encapsulates: false };
        assert_eq!(read(body.bytes()), Some(expected));
        assert_eq!(read(&header), None);
    }
}
