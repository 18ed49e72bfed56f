//! What this node offers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use libbpf_rs::MapType;
use libbpf_rs::query::MapInfoIter;
use nix::sys::statfs::{FsType, statfs};
use sockpath_protocol::Message;
use sockpath_protocol::message::{Check, CheckState, EndReason};

use crate::node::{Hierarchies, Netns};
use crate::session::Session;
use crate::site::Site;
use crate::trace::functions::Attach;
use crate::trace::hooks;
use crate::{accel, accel::Observed, capability, seccomp};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// Names of sockpath's socket maps, in bpf/src/accel.
const OURS: [&str; 2] = ["socks", "sockpath"];

/// Capabilities by bit (include/uapi/linux/capability.h) and what is missing without each.
const CAPABILITIES: [(u32, &str, &str); 6] = [
    (39, "BPF", "no program can be loaded"),
    (38, "PERFMON", "no tracepoint or iterator can be loaded"),
    (12, "NET_ADMIN", "no netfilter hook, no acceleration"),
    (19, "SYS_PTRACE", "pods' network namespaces cannot be opened"),
    (21, "SYS_ADMIN", "no netfilter hooks and no probes inside pods' network namespaces"),
    (34, "SYSLOG", "drops are shown without the kernel function that dropped"),
];

/// What this kernel offers, by name; cheap checks only, this is part of `hello`.
#[must_use]
pub fn features() -> BTreeMap<String, bool> {
    let mut features = BTreeMap::new();
    features.insert("btf".to_owned(), Path::new("/sys/kernel/btf/vmlinux").exists());
    // A perf event source of that name is registered where kprobes are compiled in.
    features.insert("kprobe".to_owned(), Path::new("/sys/bus/event_source/devices/kprobe").exists());
    features.extend(hooks::features().into_iter().map(|(name, has)| (name.to_owned(), has)));
    features
}

/// Answers `doctor`: one row for each thing that tracing and acceleration rest on.
pub fn run(session: &mut Session) -> Result<EndReason> {
    let mut rows: Vec<Message> = checks(session.site()).into_iter().map(Message::Check).collect();
    // The same checks that `accelerate` begins with.
    match accel::try_out() {
        Ok(trial) => {
            rows.push(Message::Check(row("mechanisms", CheckState::Ok, trial.mechanisms.to_string(), None)));
            rows.push(Message::Check(calls(&trial.observed)));
            rows.extend(trial.self_tests.into_iter().map(Message::Canary));
        }
        Err(e) => {
            let remedy = "accelerate is refused on this node; trace works without it";
            rows.push(Message::Check(row("acceleration", CheckState::Failed, format!("{e:#}"), Some(remedy))));
        }
    }
    session.send_all(&rows)?;
    Ok(EndReason::Done)
}

fn checks(site: &Site) -> Vec<Check> {
    let mut rows = vec![kernel(), btf(), lockdown(), seccomp(), process_view(site), cgroups(), bpffs(), hooks(), functions()];
    rows.extend(capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()));
    rows.push(socket_maps());
    rows
}

fn row(name: &str, state: CheckState, found: impl Into<String>, remedy: Option<&str>) -> Check {
    Check { name: name.to_owned(), state, found: found.into(), remedy: remedy.map(str::to_owned) }
}

fn kernel() -> Check {
    let release = nix::sys::utsname::uname().map(|u| format!("{} {}", u.release().to_string_lossy(), u.machine().to_string_lossy()));
    match release {
        Ok(release) => row("kernel", CheckState::Ok, release, None),
        Err(e) => row("kernel", CheckState::Failed, format!("uname: {e}"), None),
    }
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        row("BTF", CheckState::Ok, "/sys/kernel/btf/vmlinux", None)
    } else {
        let remedy = "the kernel must be built with CONFIG_DEBUG_INFO_BTF=y, as kernels of current distributions are";
        row("BTF", CheckState::Failed, "the kernel has no BTF type information", Some(remedy))
    }
}

/// Lockdown at level confidentiality refuses probe reads (security/lockdown, LOCKDOWN_BPF_READ_KERNEL).
fn lockdown() -> Check {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if text.contains("[confidentiality]") {
        let remedy = "boot with lockdown=integrity: at this level BPF programs may not read kernel memory";
        return row("lockdown", CheckState::Failed, "confidentiality", Some(remedy));
    }
    let level = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    row("lockdown", CheckState::Ok, level, None)
}

fn seccomp() -> Check {
    if seccomp::refuses_bpf() {
        return row("seccomp", CheckState::Failed, "the container's profile refuses bpf(2)", Some(seccomp::ADVICE));
    }
    row("seccomp", CheckState::Ok, "permits bpf(2)", None)
}

/// What a trace can see with; what is missing is shown as inferred.
fn hooks() -> Check {
    let features = hooks::features();
    let has = |wanted: bool| features.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let missing = has(false);
    if missing.is_empty() {
        return row("hooks", CheckState::Ok, has(true), None);
    }
    let remedy = "the stages these hooks show are inferred from their neighbours; netfilter links come with Linux 6.4, \
        tcp_sendmsg_locked with 6.16, sock_recv_length with 6.3";
    row("hooks", CheckState::Degraded, format!("missing: {missing}"), Some(remedy))
}

/// By which kind of hook functions of the kernel are seen, for the stages that no tracepoint shows.
fn functions() -> Check {
    let choice = match hooks::Offer::read() {
        Ok(offer) => offer.functions,
        Err(e) => return row("functions", CheckState::Degraded, format!("{e:#}"), Some("see the row BTF")),
    };
    let why = |kind: &str| choice.refused.get(kind).map(String::as_str).unwrap_or_default();
    match choice.attach_kind() {
        Some(Attach::Fentry) => row("functions", CheckState::Ok, format!("observed by fentry ({})", choice.chosen.len()), None),
        Some(Attach::Kprobe) => {
            row("functions", CheckState::Ok, format!("observed by kprobe ({}); fentry: {}", choice.chosen.len(), why("fentry")), None)
        }
        None => {
            let remedy = "stages that only functions show are inferred from their neighbours; trace marks them";
            let found = format!("not observed; fentry: {}; kprobe: {}", why("fentry"), why("kprobe"));
            row("functions", CheckState::Degraded, found, Some(remedy))
        }
    }
}

/// Where an acceleration observes the calls that redirected bytes would break.
fn calls(observed: &Observed) -> Check {
    let (state, remedy) = match observed {
        Observed::AtFunctions(_) => (CheckState::Ok, None),
        Observed::AtSystemCalls(_) => (
            CheckState::Degraded,
            Some("each system call of the node takes some 60 ns longer while pairs are accelerated; kernels with fentry avoid this"),
        ),
    };
    row("calls", state, observed.to_string(), remedy)
}

/// Whether processes of pods and of the node can be seen and their namespaces opened.
fn process_view(site: &Site) -> Check {
    if std::process::id() == 1 {
        return row("processes", CheckState::Failed, "only the helper's own are visible", Some("the helper pod needs hostPID: true"));
    }
    match Netns::open("/proc/1/ns/net") {
        Ok(netns) => row("processes", CheckState::Ok, format!("the node's are visible, its network namespace is {}", netns.inode), None),
        Err(e) if !site.is_lab() => {
            let remedy = "the helper pod needs CAP_SYS_PTRACE, and no AppArmor or SELinux profile that hides other processes";
            row("processes", CheckState::Failed, format!("{e:#}"), Some(remedy))
        }
        // The lab names its namespaces by path.
        Err(_) => row("processes", CheckState::Ok, "process 1 is not accessible here; the lab does not need it", None),
    }
}

fn cgroups() -> Check {
    match Hierarchies::mounted(Path::new("/sys/fs/cgroup")) {
        Ok(h) if h.v2().is_none() => {
            let remedy = "acceleration of chosen pods needs cgroup v2: boot with systemd.unified_cgroup_hierarchy=1; tracing works";
            row("cgroups", CheckState::Degraded, h.describe(), Some(remedy))
        }
        Ok(h) => row("cgroups", CheckState::Ok, h.describe(), None),
        Err(e) => row("cgroups", CheckState::Failed, format!("{e:#}"), Some("the helper pod needs the node's /sys/fs/cgroup mounted")),
    }
}

fn bpffs() -> Check {
    match statfs("/sys/fs/bpf") {
        Ok(s) if s.filesystem_type() == BPF_FS => row("bpffs", CheckState::Ok, "mounted at /sys/fs/bpf", None),
        _ => {
            let remedy = "mount -t bpf bpf /sys/fs/bpf on the node (systemd does so at boot); tracing works without";
            row("bpffs", CheckState::Degraded, "not mounted at /sys/fs/bpf", Some(remedy))
        }
    }
}

fn capabilities(status: &str) -> Vec<Check> {
    let Some(effective) = capability::effective_in(status) else {
        return vec![row("capabilities", CheckState::Degraded, "cannot be read", None)];
    };
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| effective & (1 << bit) == 0).collect();
    if missing.is_empty() {
        return vec![row("capabilities", CheckState::Ok, CAPABILITIES.map(|(_, name, _)| name).join(" "), None)];
    }
    let rows = missing.into_iter().map(|(bit, name, without)| {
        // Only trace requests SYSLOG, and only names of functions depend on it.
        let state = if matches!(bit, 21 | 34) { CheckState::Degraded } else { CheckState::Failed };
        row(
            &format!("capability {name}"),
            state,
            format!("missing: {without}"),
            Some("compare the helper pod with --dry-run=client -o yaml"),
        )
    });
    rows.collect()
}

/// Socket maps of others (Cilium, Istio ambient, OBI): their sockets are excluded, so the user should know them.
fn socket_maps() -> Check {
    let is_socket_map = |kind: &MapType| matches!(kind, MapType::Sockmap | MapType::Sockhash);
    let names: Vec<String> =
        MapInfoIter::default().filter(|m| is_socket_map(&m.ty)).map(|m| m.name.to_string_lossy().into_owned()).collect();
    let (ours, others): (Vec<String>, Vec<String>) = names.into_iter().partition(|n| OURS.contains(&n.as_str()));
    let mut others: Vec<String> = others;
    others.sort();
    others.dedup();
    if others.is_empty() {
        let found = if ours.is_empty() { "none".to_owned() } else { format!("{} of sockpath", ours.len()) };
        return row("socket maps", CheckState::Ok, found, None);
    }
    let remedy = "sockets in other programs' maps are excluded; they use TCP, or what their owner decides";
    row("socket maps", CheckState::Degraded, format!("others': {}", others.join(", ")), Some(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_reported_with_the_loss() {
        let all: u64 = CAPABILITIES.iter().map(|(bit, ..)| 1 << bit).sum();
        let rows = capabilities(&format!("Name:\tx\nCapEff:\t{all:016x}\n"));
        assert_eq!((rows.len(), rows[0].state), (1, CheckState::Ok));
        let rows = capabilities(&format!("CapEff:\t{:016x}\n", all & !(1 << 39) & !(1 << 34)));
        let shown: Vec<_> = rows.iter().map(|r| (r.name.as_str(), r.state)).collect();
        assert_eq!(shown, [("capability BPF", CheckState::Failed), ("capability SYSLOG", CheckState::Degraded)]);
        assert_eq!(capabilities("").len(), 1);
    }
}
