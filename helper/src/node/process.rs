//! The processes of a pod, by container.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use sockpath_protocol::pod::Pod;

use super::hierarchy::subdirs;

/// How deep below a container's cgroup processes are looked for; systemd in a container makes a few levels.
const MAX_DEPTH: usize = 6;

/// A process of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id in the PID namespace of the helper.
    pub pid: u32,
    /// Name of its container; `None` for the sandbox (`pause`) and for containers the API does not list.
    pub container: Option<String>,
    /// The cgroup directory it was listed in.
    pub cgroup: PathBuf,
}

impl Process {
    /// Its directory in the v2 hierarchy that is mounted at `root`.
    pub(super) fn below(&self, root: &Path) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        memberships(&text).find_map(|(controllers, path)| controllers.is_empty().then(|| root.join(path)))
    }
}

/// What `/proc/PID/cgroup` lists: the controllers of each hierarchy, none for v2, and the path below its mount. Paths that lead out of the
/// reader's cgroup namespace are left out.
pub fn memberships(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/');
        (!path.split('/').any(|part| part == "..")).then_some((controllers, path))
    })
}

/// All processes below a pod's cgroup. Within a container the oldest comes first, which is the container's first process.
pub(super) fn of_pod(pod_dir: &Path, pod: &Pod, proc: &Path) -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    // The lab and some runtimes put processes into the pod's own directory.
    collect(pod_dir, 0, None, proc, &mut processes);
    for dir in subdirs(pod_dir) {
        let id = container_id(dir.file_name().and_then(|n| n.to_str()).unwrap_or_default());
        let container = id.and_then(|id| pod.containers.iter().find(|c| c.id == id)).map(|c| c.name.clone());
        collect(&dir, MAX_DEPTH, container, proc, &mut processes);
    }
    Ok(processes)
}

/// Whether a process is (still) listed in a cgroup directory.
pub(super) fn is_in(pid: u32, cgroup: &Path) -> bool {
    pids(cgroup).contains(&pid)
}

/// The runtime id in the name of a container's cgroup: `ID`, `cri-containerd-ID.scope`, `crio-ID.scope`, `docker-ID.scope`,
/// `crio-ID`. CRI-O's monitor (`crio-conmon-ID`) belongs to the node, not to the pod, and has no id here.
pub(super) fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    if name.contains("conmon") {
        return None;
    }
    let id = name.rsplit('-').next().unwrap_or(name);
    (id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

fn collect(dir: &Path, depth: usize, container: Option<String>, proc: &Path, out: &mut Vec<Process>) {
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name.contains("conmon") {
        return;
    }
    let mut listed: Vec<(u64, u32)> = pids(dir).into_iter().map(|pid| (start_time(proc, pid), pid)).collect();
    listed.sort_unstable();
    out.extend(listed.into_iter().map(|(_, pid)| Process { pid, container: container.clone(), cgroup: dir.to_owned() }));
    if depth > 0 {
        for sub in subdirs(dir) {
            collect(&sub, depth - 1, container.clone(), proc, out);
        }
    }
}

/// Ids in `cgroup.procs`. A process outside the reader's PID namespace shows as 0 and is left out.
fn pids(dir: &Path) -> Vec<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.trim().parse().ok()).filter(|pid| *pid != 0).collect()
}

/// Field 22 of `/proc/PID/stat`: ticks between boot and the start of the process. The command name before it may hold
/// spaces and brackets, so fields are counted from the last bracket.
fn start_time(proc: &Path, pid: u32) -> u64 {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).and_then(|t| t.parse().ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::memberships;

    #[test]
    fn the_path_in_each_hierarchy_is_read() {
        let read = |text| memberships(text).collect::<Vec<_>>();
        assert_eq!(read("4:cpu,cpuacct:/a\n1:name=systemd:/b:c\n"), [("cpu,cpuacct", "a"), ("name=systemd", "b:c")]);
        assert_eq!(read("4:cpu:/a\n0::/kubepods/pod1/c\n"), [("cpu", "a"), ("", "kubepods/pod1/c")]);
        assert_eq!(read("0::/\n"), [("", "")], "the root");
        assert_eq!(read("0::/../outside\n"), []);
        assert!(read("4:cpu:/a\n").iter().all(|(controllers, _)| !controllers.is_empty()), "cgroup v1 only");
    }
}
