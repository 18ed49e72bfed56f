//! Network devices (include/uapi/linux/if_link.h).

use std::io;

use crate::netlink::{Attributes, Body, Socket, half, word};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// Size of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
/// The program where there is one, then those of the driver, of the generic hook and of the hardware.
const IFLA_XDP_IDS: std::ops::RangeInclusive<u16> = 4..=7;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const ARPHRD_ETHER: u16 = 1;

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kernel's word for what it is (`veth`, `bridge`, `vxlan`, ...); empty for hardware and loopback.
    pub kind: String,
    /// In bytes, without the link layer's header.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback device.
    pub loopback: bool,
    /// Whether its frames have Ethernet headers.
    pub ethernet: bool,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Index of its other end (veth) or of what it lies on; it may be in another namespace.
    pub peer: Option<u32>,
    /// Ids of its XDP programs.
    pub xdp: Vec<u32>,
}

/// The devices of the socket's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    let all = Body::new(&[0; IFINFOMSG]);
    socket.dump(RTM_GETLINK, RTM_NEWLINK, all.bytes(), |body| found.extend(read(body)))?;
    Ok(found)
}

/// Name of a device of the socket's namespace; `if` and the index where it cannot be read.
#[must_use]
pub fn name(socket: &mut Socket, index: u32) -> String {
    let links = list(socket).unwrap_or_default();
    links.into_iter().find(|l| l.index == index).map_or_else(|| format!("if{index}"), |l| l.name)
}

/// A device out of a message of type RTM_NEWLINK or RTM_DELLINK.
#[must_use]
pub fn read(body: &[u8]) -> Option<Link> {
    let attributes = Attributes::behind(body, IFINFOMSG);
    let flags = word(body, 8)?;
    let mut xdp: Vec<u32> = attributes
        .nested(IFLA_XDP)
        .into_iter()
        .flat_map(|xdp| IFLA_XDP_IDS.filter_map(move |kind| xdp.word(kind)))
        .filter(|id| *id != 0)
        .collect();
    xdp.sort_unstable();
    xdp.dedup();
    Some(Link {
        index: word(body, 4)?,
        name: attributes.text(IFLA_IFNAME)?,
        kind: attributes.nested(IFLA_LINKINFO).and_then(|i| i.text(IFLA_INFO_KIND)).unwrap_or_default(),
        mtu: attributes.word(IFLA_MTU).unwrap_or(0),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ethernet: half(body, 2) == Some(ARPHRD_ETHER),
        master: attributes.word(IFLA_MASTER),
        peer: attributes.word(IFLA_LINK),
        xdp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_device_is_read() {
        let mut header = [0u8; IFINFOMSG];
        header[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        header[4..8].copy_from_slice(&7u32.to_ne_bytes());
        header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        let info = Body::default().with(IFLA_INFO_KIND, b"veth\0");
        let body = Body::new(&header)
            .with(IFLA_IFNAME, b"veth1\0")
            .with(IFLA_MTU, &1450u32.to_ne_bytes())
            .with(IFLA_LINK, &2u32.to_ne_bytes())
            .with(IFLA_MASTER, &3u32.to_ne_bytes())
            .with_nested(IFLA_LINKINFO, &info)
            .with_nested(IFLA_XDP, &Body::default().with(2, &[1]).with(4, &77u32.to_ne_bytes()).with(6, &77u32.to_ne_bytes()));
        let link = read(body.bytes()).expect("a device");
        let expected = Link {
            index: 7,
            name: "veth1".into(),
            kind: "veth".into(),
            mtu: 1450,
            up: true,
            loopback: false,
            ethernet: true,
            master: Some(3),
            peer: Some(2),
            xdp: vec![77],
        };
        assert_eq!(link, expected);
        assert_eq!(read(&header[..8]), None);
    }
}
