//! Whether the container's seccomp profile refuses what we need.

use std::fs;
use std::io;

use crate::capability;

/// `CAP_SYS_ADMIN` and `CAP_BPF` as bits of `CapEff` (include/uapi/linux/capability.h); the kernel accepts either for bpf(2).
const BPF_RIGHTS: u64 = 1 << 21 | 1 << 39;

/// No command of bpf(2).
const NO_COMMAND: libc::c_int = 0x7fff_0000;

/// What to do when [`refuses_bpf`].
pub const ADVICE: &str = "run it with --seccomp Unconfined, or update the node's container runtime: current default profiles let bpf(2) \
    through for CAP_BPF and CAP_SYS_ADMIN";

/// Whether bpf(2) is refused although we have the capabilities for it: only a seccomp profile does that to every command.
#[must_use]
pub fn refuses_bpf() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_filtered(&status) && has_rights(&status) && {
        // SAFETY: a command that does not exist reads nothing through the null pointer: the kernel checks the size first, and a
        // profile that refuses it does so before.
        let r = unsafe { libc::syscall(libc::SYS_bpf, NO_COMMAND, std::ptr::null::<u8>(), 0) };
        r < 0 && io::Error::last_os_error().raw_os_error().is_some_and(is_refusal)
    }
}

/// What profiles answer with: containerd and CRI-O EPERM, or ENOSYS for what they do not know. The kernel itself says EINVAL.
fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES | libc::ENOSYS)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn is_filtered(status: &str) -> bool {
    field(status, "Seccomp") == Some("2")
}

fn has_rights(status: &str) -> bool {
    capability::effective_in(status).is_some_and(|effective| effective & BPF_RIGHTS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filter_that_refuses_in_spite_of_rights_counts() {
        let status = |seccomp: u8, caps: &str| format!("Name:\tx\nCapEff:\t{caps}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n");
        let verdict = |s: &str| (is_filtered(s), has_rights(s));
        assert_eq!(verdict(&status(2, "0000008000000000")), (true, true));
        assert_eq!(verdict(&status(0, "0000000000200000")), (false, true));
        assert_eq!(verdict(&status(2, "0000000000000400")), (true, false));
        assert!(is_refusal(libc::EPERM) && !is_refusal(libc::EINVAL));
    }
}
