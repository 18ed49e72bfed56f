//! Packets that are larger than the next link takes.

use sockpath_kernel::link::{self, Link};
use sockpath_kernel::netlink::Socket;
use sockpath_kernel::route;
use sockpath_protocol::packet::Mechanism;

use super::drop::{Finding, KernelDrop};

/// Functions that drop what is too large without a reason.
pub(super) const FUNCTIONS: &[&str] = &[
    "__dev_forward_skb2",
    "__dev_forward_skb",
    "veth_xmit",
    "br_nf_dev_queue_xmit",
    "ip_do_fragment",
    "ip_fragment",
    "ip6_fragment",
    "ip_forward",
    "ip6_forward",
];

/// The link that takes less.
pub(super) fn too_big(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let links = link::list(socket).ok()?;
    let route = route::output(socket, drop.flow.to.ip()).ok();
    if let Some(mtu) = route.as_ref().and_then(|r| r.mtu).filter(|mtu| *mtu < drop.length) {
        let device = links.iter().find(|l| Some(l.index) == route.as_ref().map(|r| r.device));
        let name = device.map_or_else(|| "its device".to_owned(), |l| l.name.clone());
        return Some(finding(drop.length, mtu, &format!("the route by {name}")));
    }
    let routed = route.map(|r| r.device);
    let own = drop.device.as_ref().map(|(index, _)| *index);
    let passes = |l: &&Link| routed == Some(l.index) || own == Some(l.index) || drop.ports.contains(&l.index);
    let small = links.iter().filter(passes).filter(|l| l.mtu < drop.length).min_by_key(|l| (l.mtu, own != Some(l.index)))?;
    Some(finding(drop.length, small.mtu, &small.name))
}

fn finding(length: u32, mtu: u32, what: &str) -> Finding {
    Finding {
        mechanism: Mechanism::Mtu,
        detail: format!("a packet of {length} bytes, and the MTU of {what} is {mtu}"),
        evidence: vec![format!("`ip link` there: mtu {mtu} ({what}); the packet has {length} bytes")],
    }
}
