//! Next hops whose link-layer address cannot be had.

use std::net::IpAddr;

use sockpath_kernel::link;
use sockpath_kernel::neighbour::{self, Neighbour};
use sockpath_kernel::netlink::Socket;
use sockpath_kernel::route;
use sockpath_protocol::packet::Mechanism;

use super::drop::{Finding, KernelDrop};
use super::sysctl::{self, family};

/// Why there is no address.
pub(super) fn unresolved(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let to = drop.flow.to.ip();
    let entries = neighbour::list(socket, to.is_ipv6()).unwrap_or_default();
    let most = sysctl::number(&format!("{}/neigh/default/gc_thresh3", family(to)));
    if let Some(full) = most.and_then(|most| full(&entries, most, &drop.reason)) {
        return Some(full);
    }
    let route = route::output(socket, to).ok()?;
    let hop = route.gateway.unwrap_or(to);
    let device = link::name(socket, route.device);
    let entry = entries.iter().find(|n| n.device == route.device && n.address == hop);
    Some(silent(hop, to, &device, entry))
}

fn full(entries: &[Neighbour], most: u32, reason: &str) -> Option<Finding> {
    let count = entries.iter().filter(|n| !n.is_permanent()).count();
    let is_full = reason == "NEIGH_CREATEFAIL" || u32::try_from(count).is_ok_and(|count| count >= most);
    is_full.then(|| Finding {
        mechanism: Mechanism::NeighbourTableFull,
        detail: "the neighbour table is full".to_owned(),
        evidence: vec![format!("{count} entries in this namespace; gc_thresh3 = {most} for the whole node")],
    })
}

fn silent(hop: IpAddr, to: IpAddr, device: &str, entry: Option<&Neighbour>) -> Finding {
    let what = if hop == to { format!("{hop}") } else { format!("the next hop {hop}") };
    let state = entry.map_or("no entry", Neighbour::state_name);
    Finding {
        mechanism: Mechanism::NeighbourSilent,
        detail: format!("{what} does not answer on {device}: its MAC address cannot be resolved"),
        evidence: vec![format!("`ip neigh show {hop} dev {device}` there: {state}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_not_a_silent_neighbour() {
        let entry = |state| Neighbour { address: [10, 0, 0, 1].into(), device: 2, state };
        let entries = vec![entry(0x02), entry(0x80)];
        assert!(full(&entries, 1, "NEIGH_FAILED").is_some());
        assert!(full(&entries, 2, "NEIGH_FAILED").is_none(), "permanent entries do not count");
        assert!(full(&entries, 2, "NEIGH_CREATEFAIL").is_some());
        let found = silent([10, 0, 0, 1].into(), [10, 9, 0, 1].into(), "eth0", Some(&entry(0x20)));
        assert!(found.detail.contains("the next hop 10.0.0.1") && found.evidence[0].ends_with("FAILED"), "{found:?}");
    }
}
