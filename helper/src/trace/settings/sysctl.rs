//! Settings in /proc/sys/net of this thread's namespace.

use std::net::IpAddr;

/// A number by its path below /proc/sys/net.
pub(super) fn number(path: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?.trim().parse().ok()
}

/// The folder of an address family.
pub(super) fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ipv4" } else { "ipv6" }
}
