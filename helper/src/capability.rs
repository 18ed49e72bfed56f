//! Which capabilities this process has.

/// `CAP_NET_ADMIN` (include/uapi/linux/capability.h).
pub const NET_ADMIN: u32 = 12;

/// The effective set, a bit for each, out of the text of `/proc/PID/status`.
#[must_use]
pub fn effective_in(status: &str) -> Option<u64> {
    status.lines().find_map(|l| l.strip_prefix("CapEff:")).and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
}

/// Whether this process is known to lack one.
#[must_use]
pub fn is_missing(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_in(&status).is_some_and(|effective| effective & (1 << number) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(effective_in("Name:\tx\nCapPrm:\t00\nCapEff:\t0000000000001000\n"), Some(1 << NET_ADMIN));
        assert_eq!(effective_in("Name:\tx\n"), None);
    }
}
