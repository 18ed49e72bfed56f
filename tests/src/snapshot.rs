//! What exists in the kernel, to compare before and after: whatever a command made must be gone when it ends.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};

use crate::state::look;

/// The kernel frees BPF objects, cgroups and namespaces some time after the last reference is gone, without notification.
const SETTLE: Duration = Duration::from_secs(3);

/// Kernel objects by name and identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    scope: Scope,
    objects: BTreeSet<String>,
}

/// Which objects count. Other tests may run on the same machine at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Only named namespaces, cgroups, mounts, devices, processes and files with this in their names; all when empty.
    pub containing: String,
    /// BPF programs, maps and links as well, all of this machine.
    pub bpf: bool,
}

impl Snapshot {
    /// What there is now.
    #[must_use]
    pub fn take(scope: Scope) -> Self {
        let mut objects = BTreeSet::new();
        let mut add = |kind: &str, name: &str| {
            if name.contains(&scope.containing) {
                objects.insert(format!("{kind} {name}"));
            }
        };
        for name in names_in("/run/netns") {
            add("netns", &name);
        }
        for name in names_in("/run/sockpath") {
            add("state", &name);
        }
        // Devices in the machine's own namespace: there must never be one of sockpath.
        for name in names_in("/proc/sys/net/ipv4/conf") {
            add("device", &name);
        }
        if let Some(root) = cgroup_root() {
            walk(&root, &mut |dir| add("cgroup", &dir.display().to_string()));
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            // `ip netns` makes this directory a mount point once and for all, and so do we.
            if let Some(point) = line.split(' ').nth(4).filter(|p| *p != "/run/netns" && *p != "/var/run/netns") {
                add("mount", point);
            }
        }
        for pid in names_in("/proc").iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            if let Some(process) = helper_process(pid) {
                add("process", &format!("{pid} {process}"));
            }
        }
        if scope.bpf {
            objects.extend(ProgInfoIter::default().map(|p| format!("bpf program {} {}", p.id, p.name.to_string_lossy())));
            objects.extend(MapInfoIter::default().map(|m| format!("bpf map {} {}", m.id, m.name.to_string_lossy())));
            objects.extend(LinkInfoIter::default().map(|l| format!("bpf link {} of program {}", l.id, l.prog_id)));
        }
        Self { scope, objects }
    }

    /// Waits until nothing exists that did not exist in this snapshot; what is left after a while is returned.
    #[must_use]
    pub fn remaining(&self) -> Vec<String> {
        let mut left = Vec::new();
        let _ = look(SETTLE, || {
            left = Self::take(self.scope.clone()).objects.difference(&self.objects).cloned().collect();
            left.is_empty().then_some(())
        });
        left
    }

    /// Fails the test when something is left.
    ///
    /// # Panics
    /// Then.
    pub fn assert_nothing_left(&self) {
        let left = self.remaining();
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.objects.iter().map(String::as_str).collect::<Vec<_>>().join("\n"))
    }
}

fn names_in(dir: &str) -> Vec<String> {
    fs::read_dir(dir).map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()).unwrap_or_default()
}

fn cgroup_root() -> Option<PathBuf> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from).into_iter().find(|d| d.join("cgroup.procs").exists())
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// Programs whose processes count.
const OURS: [&str; 3] = ["sockpath-helper", "sockpath-lab", "sockpath-lab-test"];

/// A process of one of [`OURS`]: its arguments and the lab it belongs to. Zombies, whose command line is empty, do not count.
fn helper_process(pid: &str) -> Option<String> {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).map(|b| String::from_utf8_lossy(&b).replace('\0', " ")).ok();
    let is_ours = |program: &str| OURS.iter().any(|name| program.ends_with(name));
    let arguments = read("cmdline").filter(|c| c.split(' ').next().is_some_and(is_ours))?;
    let environment = read("environ").unwrap_or_default();
    let lab = environment.split(' ').find(|v| v.starts_with("SOCKPATH_LAB=")).unwrap_or_default();
    Some(format!("{arguments}{lab}"))
}
