//! What the settings of a network namespace say about a drop that no rule did: routes, forwarding, reverse path filter, bridge ports,
//! neighbours and MTUs, and programs at control groups, read when it happened.

use std::fs::File;
use std::path::Path;

use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_kernel::netns::inside;
use sockpath_protocol::packet::Cause;

mod bridge;
mod call;
mod control_group;
mod drop;
mod mtu;
mod neighbour;
mod route;
mod sysctl;

pub use call::of_call;
pub use control_group::Call;
use drop::Finding;
pub use drop::KernelDrop;

/// Reads what explains the drop in this namespace, in words and as the protocol has it; `None` where nothing does. `group` is the control
/// group of the sockets of the pod whose namespace it is.
#[must_use]
pub fn look(netns: &File, group: Option<&Path>, drop: &KernelDrop) -> Option<(String, Cause)> {
    if drop.reason == "BPF_CGROUP_EGRESS" {
        return control_group::of_drop(group);
    }
    inside(netns, || Ok(look_here(drop))).ok().flatten().map(Finding::cause)
}

fn look_here(drop: &KernelDrop) -> Option<Finding> {
    let mut socket = Socket::open(NETLINK_ROUTE).ok()?;
    match (drop.reason.as_str(), drop.function.as_str()) {
        ("IP_RPFILTER", _) => route::reverse_path(&mut socket, drop),
        ("IP_LOCAL_SOURCE" | "IP_INVALID_SOURCE", _) => route::martian(&mut socket, drop),
        ("IP_INNOROUTES" | "IP_OUTNOROUTES" | "IP_INADDRERRORS", _) => route::refused(&mut socket, drop),
        ("NEIGH_FAILED" | "NEIGH_QUEUEFULL" | "NEIGH_CREATEFAIL" | "NEIGH_DEAD", _) => neighbour::unresolved(&mut socket, drop),
        ("PKT_TOO_BIG", _) => mtu::too_big(&mut socket, drop),
        ("BRIDGE_INGRESS_STP_STATE", _) => bridge::not_forwarded(&mut socket, drop),
        (_, function) if bridge::FUNCTIONS.contains(&function) => {
            bridge::not_forwarded(&mut socket, drop).or_else(|| mtu::too_big(&mut socket, drop))
        }
        (_, function) if mtu::FUNCTIONS.contains(&function) => mtu::too_big(&mut socket, drop),
        _ => None,
    }
}
