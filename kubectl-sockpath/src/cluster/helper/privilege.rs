//! What the helper pod may do on its node, by mode, each with the kernel check that asks for it.
//!
//! The one place for the set: the pod, the comments of `--dry-run=client -o yaml`, the manifests and the README follow from it.

use crate::mode::Mode;

/// All modes.
pub const MODES: [Mode; 4] = [Mode::Trace, Mode::TraceWithoutRules, Mode::Accelerate, Mode::Doctor];

/// A mode's name in labels and names of pods.
#[must_use]
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Trace | Mode::TraceWithoutRules => "trace",
        Mode::Accelerate => "accelerate",
        Mode::Doctor => "doctor",
    }
}

/// Whether a mode pins maps and programs in the node's BPF file system, or looks for what was pinned.
#[must_use]
pub fn uses_bpffs(mode: Mode) -> bool {
    !matches!(mode, Mode::Trace | Mode::TraceWithoutRules)
}

/// A mode's capabilities; everything else is dropped.
#[must_use]
pub fn capabilities(mode: Mode) -> Vec<Capability> {
    use Capability::{Bpf, NetAdmin, Perfmon, SysAdmin, SysPtrace, Syslog};
    match mode {
        // NET_ADMIN reads netfilter's rules; taken away, every hook of a trace still attaches (docs/cluster.md).
        Mode::TraceWithoutRules => vec![Bpf, Perfmon, SysPtrace, SysAdmin, Syslog],
        // doctor looks at everything that any mode needs.
        Mode::Trace | Mode::Doctor => vec![Bpf, Perfmon, NetAdmin, SysPtrace, SysAdmin, Syslog],
        Mode::Accelerate => vec![Bpf, Perfmon, NetAdmin, SysPtrace, SysAdmin],
    }
}

/// A Linux capability, spelled as Kubernetes spells it (without `CAP_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// `CAP_BPF`.
    Bpf,
    /// `CAP_PERFMON`.
    Perfmon,
    /// `CAP_NET_ADMIN`.
    NetAdmin,
    /// `CAP_SYS_PTRACE`.
    SysPtrace,
    /// `CAP_SYS_ADMIN`.
    SysAdmin,
    /// `CAP_SYSLOG`.
    Syslog,
}

impl Capability {
    /// Its name in the pod's spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "BPF",
            Self::Perfmon => "PERFMON",
            Self::NetAdmin => "NET_ADMIN",
            Self::SysPtrace => "SYS_PTRACE",
            Self::SysAdmin => "SYS_ADMIN",
            Self::Syslog => "SYSLOG",
        }
    }

    /// What asks for it.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Bpf => "bpf(2): loading programs and creating maps (kernel/bpf/syscall.c, bpf_capable)",
            Self::Perfmon => "programs that read kernel memory: tracepoints, iterators, probe reads (bpf_prog_load, perfmon_capable)",
            Self::NetAdmin => {
                "the loopback device of the self-tests' private namespace; conntrack entries, netfilter rules (SIOCSIFFLAGS, nfnetlink_rcv)"
            }
            Self::SysPtrace => "opening another process's /proc/PID/ns/net (proc_ns_get_link, ptrace_may_access)",
            Self::SysAdmin => "setns(2) into a pod's network namespace, for netfilter hooks and probes there (netns_install)",
            Self::Syslog => "addresses in /proc/kallsyms, to name the function that dropped a packet (kallsyms_show_value)",
        }
    }
}
