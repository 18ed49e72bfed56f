//! CPU throttling of the pods (cpu.stat of their control groups), before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::node::{Process, memberships};

/// Where the hierarchies of control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A directory's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reading {
    periods: u64,
    /// In microseconds.
    waited_us: u64,
}

/// Control groups of the pods.
#[derive(Debug, Default)]
pub struct Throttles {
    /// By directory: the namespace of its pod, and how it stood.
    watched: BTreeMap<PathBuf, (u32, Reading)>,
}

impl Throttles {
    /// Watches the control groups of a pod's processes.
    pub fn watch(&mut self, netns: u32, processes: &[Process]) {
        for dir in processes.iter().filter_map(of_process) {
            if let Some(reading) = read(&dir) {
                self.watched.entry(dir).or_insert((netns, reading));
            }
        }
    }

    /// Namespaces whose pods were throttled since the last call: in how many periods, and for how many microseconds.
    pub fn rises(&mut self) -> Vec<(u32, u64, u64)> {
        let mut rises = Vec::new();
        for (dir, (netns, before)) in &mut self.watched {
            let Some(now) = read(dir) else { continue };
            if now.periods > before.periods {
                rises.push((*netns, now.periods - before.periods, now.waited_us.saturating_sub(before.waited_us)));
            }
            *before = now;
        }
        rises
    }
}

/// The directory with the CPU limit of a process.
fn of_process(process: &Process) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
    let named = candidates(&text).into_iter().map(|path| Path::new(CGROUPS).join(path));
    named.chain(beside(&process.cgroup)).find(|dir| read(dir).is_some())
}

/// Where it may be, below the mounts: the controller's own hierarchy first (cgroup v1), then cgroup v2, alone or beside v1.
fn candidates(text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (controllers, path) in memberships(text) {
        if controllers.split(',').any(|c| c == "cpu") {
            found.insert(0, Path::new(controllers).join(path));
            found.insert(1, Path::new("cpu").join(path));
        } else if controllers.is_empty() {
            found.extend([PathBuf::from(path), Path::new("unified").join(path)]);
        }
    }
    found
}

/// The same by a directory that a process was listed in: itself in cgroup v2, in v1 that of the same name in the hierarchy of the controller.
fn beside(dir: &Path) -> Vec<PathBuf> {
    let below = dir.strip_prefix(CGROUPS).ok().map(|rest| rest.components().skip(1).collect::<PathBuf>());
    let v1 = below.into_iter().flat_map(|rest| ["cpu", "cpu,cpuacct"].map(|c| Path::new(CGROUPS).join(c).join(&rest)));
    std::iter::once(dir.to_owned()).chain(v1).collect()
}

fn read(dir: &Path) -> Option<Reading> {
    parse(&fs::read_to_string(dir.join("cpu.stat")).ok()?)
}

/// `None` where no limit is counted: the controller is not on.
fn parse(text: &str) -> Option<Reading> {
    let number = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    let waited_us = number("throttled_usec ").or_else(|| number("throttled_time ").map(|ns| ns / 1000));
    Some(Reading { periods: number("nr_throttled ")?, waited_us: waited_us.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_the_file_are_read() {
        let v2 = "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 1200\n";
        let v1 = "nr_periods 9\nnr_throttled 4\nthrottled_time 1200000\n";
        assert_eq!(parse(v2), Some(Reading { periods: 4, waited_us: 1200 }));
        assert_eq!(parse(v1), parse(v2));
        assert_eq!(parse("usage_usec 5\n"), None, "without the controller");
    }

    #[test]
    fn the_directory_is_found_in_both_versions() {
        let paths = |text: &str| candidates(text).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(paths("0::/kubepods/pod1/c"), ["kubepods/pod1/c", "unified/kubepods/pod1/c"]);
        assert_eq!(paths("4:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c"), ["cpu,cpuacct/a", "cpu/a", "c", "unified/c"]);
        assert!(paths("0::/../outside").is_empty());
        assert!(beside(Path::new("/sys/fs/cgroup/memory/kubepods/pod1")).contains(&PathBuf::from("/sys/fs/cgroup/cpu/kubepods/pod1")));
    }
}
