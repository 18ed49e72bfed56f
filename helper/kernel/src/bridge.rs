//! Ports of bridges (include/uapi/linux/if_link.h, if_bridge.h).

use std::io;

use crate::netlink::{Attributes, Body, Socket, half, word};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// Size of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const AF_BRIDGE: u8 = 7;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const RTEXT_FILTER_BRVLAN: u32 = 2;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
const BRIDGE_VLAN_INFO_PVID: u16 = 2;
/// `BR_STATE_FORWARDING`.
const FORWARDING: u8 = 3;

/// A port of a bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Index of its device.
    pub index: u32,
    /// Name of its device.
    pub name: String,
    /// MTU of its device, in bytes.
    pub mtu: u32,
    /// Index of its bridge.
    pub bridge: u32,
    /// `BR_STATE_*`: 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking.
    pub state: u8,
    /// Whether packets may leave by the port that they came in by.
    pub hairpin: bool,
    /// Whether it sends nothing to other ports that are isolated.
    pub isolated: bool,
    /// VLAN of packets without a tag.
    pub pvid: Option<u16>,
    /// VLANs it is a member of.
    pub vlans: Vec<u16>,
}

impl Port {
    /// Whether it forwards packets.
    #[must_use]
    pub fn forwards(&self) -> bool {
        self.state == FORWARDING
    }

    /// The word of iproute2 for its state.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        ["disabled", "listening", "learning", "forwarding", "blocking"].get(usize::from(self.state)).copied().unwrap_or("unknown")
    }
}

/// The ports of all bridges in the socket's namespace.
///
/// # Errors
/// When the kernel refuses, or has no bridges.
pub fn ports(socket: &mut Socket) -> io::Result<Vec<Port>> {
    let mut header = [0u8; IFINFOMSG];
    header[0] = AF_BRIDGE;
    let body = Body::new(&header).with(IFLA_EXT_MASK, &RTEXT_FILTER_BRVLAN.to_ne_bytes());
    let mut found = Vec::new();
    socket.dump(RTM_GETLINK, RTM_NEWLINK, body.bytes(), |body| found.extend(read(body)))?;
    Ok(found)
}

/// Indexes of the bridges in the socket's namespace that filter by VLAN.
///
/// # Errors
/// When the kernel refuses.
pub fn vlan_aware(socket: &mut Socket) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    options(socket, |index, options| {
        found.extend(options.byte(IFLA_BR_VLAN_FILTERING).is_some_and(|v| v != 0).then_some(index));
    })?;
    Ok(found)
}

/// Indexes of the bridges in the socket's namespace that pass packets to netfilter by an option of their own: for IPv4, and for IPv6.
/// The sysctls `net.bridge.bridge-nf-call-*` do so for all bridges. Neither has an effect without the module `br_netfilter`.
///
/// # Errors
/// When the kernel refuses.
pub fn netfilter_callers(socket: &mut Socket) -> io::Result<Vec<(u32, [bool; 2])>> {
    let mut found = Vec::new();
    options(socket, |index, options| {
        let is_on = |kind| options.byte(kind).is_some_and(|v| v != 0);
        found.push((index, [is_on(IFLA_BR_NF_CALL_IPTABLES), is_on(IFLA_BR_NF_CALL_IP6TABLES)]));
    })?;
    Ok(found)
}

/// Reports the options of each bridge in the socket's namespace.
fn options(socket: &mut Socket, mut each: impl FnMut(u32, &Attributes<'_>)) -> io::Result<()> {
    socket.dump(RTM_GETLINK, RTM_NEWLINK, Body::new(&[0; IFINFOMSG]).bytes(), |body| {
        let Some(info) = Attributes::behind(body, IFINFOMSG).nested(IFLA_LINKINFO) else { return };
        let is_bridge = info.text(IFLA_INFO_KIND).as_deref() == Some("bridge");
        if let (true, Some(index), Some(options)) = (is_bridge, word(body, 4), info.nested(IFLA_INFO_DATA)) {
            each(index, &options);
        }
    })
}

fn read(body: &[u8]) -> Option<Port> {
    let attributes = Attributes::behind(body, IFINFOMSG);
    // A bridge itself has no such attributes.
    let port = attributes.nested(IFLA_PROTINFO)?;
    let byte = |kind: u16| port.byte(kind).unwrap_or(0);
    let vlans: Vec<(u16, u16)> = attributes
        .nested(IFLA_AF_SPEC)
        .iter()
        .flat_map(|spec| spec.iter().filter(|(kind, _)| *kind == IFLA_BRIDGE_VLAN_INFO))
        .filter_map(|(_, info)| Some((half(info, 0)?, half(info, 2)?)))
        .collect();
    Some(Port {
        index: word(body, 4)?,
        name: attributes.text(IFLA_IFNAME)?,
        mtu: attributes.word(IFLA_MTU).unwrap_or(0),
        bridge: attributes.word(IFLA_MASTER)?,
        state: byte(IFLA_BRPORT_STATE),
        hairpin: byte(IFLA_BRPORT_MODE) != 0,
        isolated: byte(IFLA_BRPORT_ISOLATED) != 0,
        pvid: vlans.iter().find(|(flags, _)| flags & BRIDGE_VLAN_INFO_PVID != 0).map(|(_, vlan)| *vlan),
        vlans: vlans.iter().map(|(_, vlan)| *vlan).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read() {
        let mut header = [0u8; IFINFOMSG];
        header[4..8].copy_from_slice(&7u32.to_ne_bytes());
        let port = Body::default().with(IFLA_BRPORT_STATE, &[4]).with(IFLA_BRPORT_MODE, &[1]).with(IFLA_BRPORT_ISOLATED, &[1]);
        let vlan = |flags: u16, id: u16| [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
        let vlans = Body::default().with(IFLA_BRIDGE_VLAN_INFO, &vlan(6, 1)).with(IFLA_BRIDGE_VLAN_INFO, &vlan(0, 10));
        let body = Body::new(&header)
            .with(IFLA_IFNAME, b"veth1\0")
            .with(IFLA_MTU, &1400u32.to_ne_bytes())
            .with(IFLA_MASTER, &3u32.to_ne_bytes())
            .with_nested(IFLA_PROTINFO, &port)
            .with_nested(IFLA_AF_SPEC, &vlans);
        let read = read(body.bytes()).expect("a port");
        assert_eq!((read.index, read.name.as_str(), read.mtu, read.bridge), (7, "veth1", 1400, 3));
        assert_eq!((read.state_name(), read.forwards(), read.hairpin, read.isolated), ("blocking", false, true, true));
        assert_eq!((read.pvid, read.vlans), (Some(1), vec![1, 10]));
        assert_eq!(super::read(&header), None);
    }
}
