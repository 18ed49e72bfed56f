//! What the settings of a network namespace say about a drop that no rule did: routes, forwarding, reverse path filter, bridge ports,
//! neighbours and MTUs, and programs at control groups, read when it happened.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_protocol::packet::{Cause, Certainty, Flow, Mechanism};

use sockpath_kernel::netns::inside;

mod bridge;
mod call;
mod control_group;
mod mtu;
mod neighbour;
mod route;

pub use call::of_call;
pub use control_group::Call;

/// A drop that the kernel did without netfilter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelDrop {
    /// `enum skb_drop_reason` without its prefix.
    pub reason: String,
    /// Its number, where `enum skb_drop_reason` does not have it.
    pub unnamed: Option<u32>,
    /// The function that dropped, without offset; empty where that is not known.
    pub function: String,
    /// Addresses as it was dropped.
    pub flow: Flow,
    /// Bytes of a packet of it, from the network header on; of each segment, where it stands for several.
    pub length: u32,
    /// The device it was at: index and name.
    pub device: Option<(u32, String)>,
    /// Ports of bridges that lead to pods of the trace, by index.
    pub ports: Vec<u32>,
}

/// What did it, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What did it.
    pub mechanism: Mechanism,
    /// In words.
    pub detail: String,
    /// What was read.
    pub evidence: Vec<String>,
}

impl Finding {
    /// As the protocol has it.
    #[must_use]
    pub fn cause(self) -> (String, Cause) {
        let Self { mechanism, detail, evidence } = self;
        (detail, Cause { mechanism, certainty: Certainty::Inferred, evidence, candidates: Vec::new() })
    }
}

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

/// A number of /proc/sys/net of this thread's namespace.
fn sysctl(path: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?.trim().parse().ok()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ipv4" } else { "ipv6" }
}

/// Name of a device of this thread's namespace.
fn device_name(socket: &mut Socket, index: u32) -> String {
    let links = sockpath_kernel::link::list(socket).unwrap_or_default();
    links.into_iter().find(|l| l.index == index).map_or_else(|| format!("if{index}"), |l| l.name)
}
