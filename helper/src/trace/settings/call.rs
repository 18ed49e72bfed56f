//! Why a call of a socket fails before there is a packet.

use std::net::IpAddr;
use std::path::Path;

use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_protocol::packet::{Cause, Mechanism};

use super::control_group::{self, Call};
use super::drop::Finding;
use super::route;

/// What makes a call to a destination fail with this errno: in this thread's network namespace, or in the control group that the socket
/// belonged to, where that was the pod's.
#[must_use]
pub fn of_call(call: Call, to: IpAddr, errno: i32, group: Option<&Path>) -> Option<(String, Cause)> {
    let found = match errno {
        libc::EPERM => return Some(control_group::of_call(call, to, group)),
        libc::EADDRNOTAVAIL => Some(no_port(
            &std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default(),
            &std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
            &std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap_or_default(),
        )),
        libc::EACCES => route::of_errno(to, errno).or_else(|| broadcast(to)),
        errno => route::of_errno(to, errno),
    };
    found.map(Finding::cause)
}

/// That a destination is a broadcast address, which only sockets with SO_BROADCAST may send to.
fn broadcast(to: IpAddr) -> Option<Finding> {
    let is_one = sockpath_kernel::route::is_broadcast(&mut Socket::open(NETLINK_ROUTE).ok()?, to).ok()?;
    is_one.then(|| Finding {
        mechanism: Mechanism::Broadcast,
        detail: format!("{to} is a broadcast address"),
        evidence: vec!["the call fails with EACCES, and the route to the address is one for broadcasts".to_owned()],
    })
}

fn no_port(range: &str, reserved: &str, sockets: &str) -> Finding {
    let range = range.split_whitespace().collect::<Vec<_>>().join("-");
    let mut evidence = vec!["the call fails with EADDRNOTAVAIL".to_owned(), format!("net.ipv4.ip_local_port_range is {range}")];
    if !reserved.trim().is_empty() {
        evidence.push(format!("net.ipv4.ip_local_reserved_ports is {}", reserved.trim()));
    }
    let tcp = sockets.lines().find_map(|l| l.strip_prefix("TCP:"));
    evidence.extend(tcp.map(|tcp| format!("/proc/net/sockstat there: TCP{tcp} (tw: TIME_WAIT)")));
    Finding { mechanism: Mechanism::NoFreePort, detail: format!("no free port is left in {range}"), evidence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_used_up_are_counted() {
        let found = no_port("40000\t40001\n", "40000-40001\n", "sockets: used 5\nTCP: inuse 2 orphan 0 tw 28000 alloc 3 mem 0\n");
        assert_eq!(found.detail, "no free port is left in 40000-40001");
        assert!(
            found.evidence.iter().any(|e| e.contains("tw 28000")) && found.evidence.iter().any(|e| e.contains("reserved")),
            "{found:?}"
        );
    }
}
