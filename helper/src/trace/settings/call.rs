//! Why a call of a socket fails before there is a packet.

use std::net::IpAddr;

use sockpath_protocol::packet::Mechanism;

use super::{Finding, route};

/// What in this thread's namespace makes connect() or send() to a destination fail with this errno.
#[must_use]
pub fn of_call(to: IpAddr, errno: i32) -> Option<Finding> {
    match errno {
        libc::EPERM => Some(Finding {
            mechanism: Mechanism::SendRefused,
            detail: "a rule of the pod's OUTPUT, or a program, refuses it".to_owned(),
            evidence: vec!["the call fails with EPERM".to_owned()],
        }),
        libc::EADDRNOTAVAIL => Some(no_port(
            &std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default(),
            &std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
            &std::fs::read_to_string("/proc/thread-self/net/sockstat").unwrap_or_default(),
        )),
        errno => route::of_errno(to, errno),
    }
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
