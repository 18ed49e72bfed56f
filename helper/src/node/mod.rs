//! Pods and namespaces of this node, found without a runtime socket and without Kubernetes credentials.
//!
//! The plugin resolved the names; what arrives here is a pod's UID and the runtime ids of its containers. The kubelet names
//! a pod's cgroup after its UID, the cgroup lists the processes, and `/proc/PID/ns/net` of one of them is the pod's network
//! namespace. That needs the node's cgroup file system (a hostPath mount) and the node's PID namespace (`hostPID`).

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sockpath_kernel::netns::inside;
use sockpath_protocol::pod::{Locate, Node, Pod};

use crate::site::Site;

mod hierarchy;
mod process;
pub mod programs;

pub use hierarchy::Hierarchies;
pub use process::{Process, memberships};

/// Where the cgroup hierarchies of a node are mounted by convention.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A network namespace that is held open: it stays even if its last process ends.
#[derive(Debug)]
pub struct Netns {
    /// The open namespace file, for `setns(2)` and netlink.
    pub file: File,
    /// Its inode, which is how BPF programs tell namespaces apart (`net->ns.inum`).
    pub inode: u32,
    /// The file it was opened from.
    pub path: PathBuf,
}

impl Netns {
    /// Opens a namespace file such as `/proc/1/ns/net` or `/run/netns/NAME`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).with_context(|| {
            format!("cannot open the network namespace {} (for another process this needs CAP_SYS_PTRACE and hostPID)", path.display())
        })?;
        let inode = file.metadata().with_context(|| format!("cannot examine {}", path.display()))?.ino();
        // Namespace inodes come from proc_alloc_inum(), which hands out 32-bit numbers.
        let inode = u32::try_from(inode).with_context(|| format!("{} is not a namespace file", path.display()))?;
        Ok(Self { file, inode, path })
    }

    /// Its cookie, which no other namespace gets while the machine runs: how programs at the root of cgroup v2 tell namespaces apart.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn cookie(&self) -> Result<u64> {
        inside(&self.file, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
            let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
            // SAFETY: the kernel writes at most `len` bytes of an integer.
            let r = unsafe {
                libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
            };
            if r < 0 {
                return Err(std::io::Error::last_os_error()).context("cannot get SO_NETNS_COOKIE");
            }
            Ok(cookie)
        })
        .with_context(|| format!("cannot identify the network namespace {}", self.path.display()))
    }
}

/// A network namespace that is not held open: with its last process, or its name, it goes, and its devices with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsRef {
    inode: u32,
    path: PathBuf,
}

impl NetnsRef {
    /// Opens it, unless it is gone. The file that it was found by may be that of a process that has ended: `others` are the files of all
    /// namespaces, and only asked for then.
    pub fn open<'a>(&self, others: impl FnOnce() -> &'a HashMap<u32, PathBuf>) -> Option<Netns> {
        let open = |path: &Path| Netns::open(path).ok().filter(|netns| netns.inode == self.inode);
        open(&self.path).or_else(|| open(others().get(&self.inode)?))
    }
}

impl From<&Netns> for NetnsRef {
    fn from(netns: &Netns) -> Self {
        Self { inode: netns.inode, path: netns.path.clone() }
    }
}

/// A directory in the cgroup v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The directory; a pod's containers are the directories below it.
    pub dir: PathBuf,
    /// Its id as `bpf_get_current_cgroup_id()` and its relatives say it: the inode of the directory.
    pub id: u64,
}

impl Cgroup {
    fn open(dir: PathBuf) -> Result<Self> {
        let id = fs::metadata(&dir).with_context(|| format!("cannot read the cgroup {}", dir.display()))?.ino();
        Ok(Self { dir, id })
    }
}

/// Where in cgroup v2 programs have to be to see what a pod's processes do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// At the pod's own directory.
    Own(Cgroup),
    /// At the root, which all tasks of the node are below: the pod's processes are in none of its directories (old runtimes).
    Root(Cgroup),
    /// The node has cgroup v1 only.
    Nowhere,
}

impl Placement {
    /// Of processes that are in hierarchies of cgroup v1 only.
    ///
    /// # Errors
    /// When the root of the v2 hierarchy cannot be examined.
    pub fn outside(hierarchies: &Hierarchies) -> Result<Self> {
        hierarchies.v2().map_or(Ok(Self::Nowhere), |root| Cgroup::open(root.to_owned()).map(Self::Root))
    }
}

/// A pod as this node has it.
#[derive(Debug)]
pub struct FoundPod {
    /// Its network namespace; that of the node for a hostNetwork pod.
    pub netns: Netns,
    /// Where programs of cgroup v2 see what it does.
    pub cgroup: Placement,
    /// Its processes, the oldest of each container first.
    pub processes: Vec<Process>,
}

impl FoundPod {
    /// The control group that its sockets belong to: the directory in cgroup v2 of the first process of a container. `None` without a process
    /// or without cgroup v2.
    #[must_use]
    pub fn group_of_sockets(&self) -> Option<PathBuf> {
        let process = self.processes.iter().find(|p| p.container.is_some()).or(self.processes.first())?;
        match &self.cgroup {
            Placement::Own(_) => Some(process.cgroup.clone()),
            Placement::Root(root) => process.below(&root.dir),
            Placement::Nowhere => None,
        }
    }

    /// Whether it still has a cgroup, in whichever hierarchy its processes are.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match &self.cgroup {
            Placement::Own(cgroup) => cgroup.dir.exists(),
            Placement::Root(_) | Placement::Nowhere => self.processes.iter().any(|p| p.cgroup.exists()),
        }
    }
}

/// Finds a pod on this node.
///
/// # Errors
/// In words, when a path locates it outside of the lab, or when there is no cgroup of that UID, no process in it, or its namespace cannot be opened.
pub fn find(site: &Site, pod: &Pod) -> Result<FoundPod> {
    match &pod.locate {
        Locate::Path { netns, cgroup } => {
            site.admit_paths("pod", &pod.name)?;
            let dir = PathBuf::from(cgroup);
            let processes = process::of_pod(&dir, pod, Path::new("/proc"))?;
            let cgroup = if hierarchy::is_v2_dir(&dir) {
                Placement::Own(Cgroup::open(dir)?)
            } else {
                Placement::outside(&Hierarchies::mounted(Path::new(CGROUPS))?)?
            };
            Ok(FoundPod { netns: Netns::open(netns)?, cgroup, processes })
        }
        Locate::Node { netns } => {
            let node = Node { name: pod.node.clone(), ips: pod.ips.clone(), netns: netns.clone() };
            let cgroup = Placement::outside(&Hierarchies::mounted(Path::new(CGROUPS))?)?;
            Ok(FoundPod { netns: node_netns(site, &node)?, cgroup, processes: Vec::new() })
        }
        Locate::Uid => find_by_uid(pod, &Hierarchies::mounted(Path::new(CGROUPS))?, Path::new("/proc")),
    }
}

/// Opens the network namespace of a node: the named file in the lab, that of process 1 on a real node.
///
/// # Errors
/// When a path locates it outside of the lab, or it cannot be opened.
pub fn node_netns(site: &Site, node: &Node) -> Result<Netns> {
    match &node.netns {
        Some(path) => {
            site.admit_paths("node", &node.name)?;
            Netns::open(path)
        }
        None => {
            if std::process::id() == 1 {
                bail!("the helper runs in its own PID namespace, so the node's network namespace cannot be found: the pod needs hostPID")
            }
            Netns::open("/proc/1/ns/net")
        }
    }
}

/// A file of each network namespace that the helper can see, by inode: of a process in it, or a name in /run/netns.
pub fn all_netns() -> HashMap<u32, PathBuf> {
    let inode = |path: PathBuf| Some((u32::try_from(fs::metadata(&path).ok()?.ino()).ok()?, path));
    netns_files().filter_map(inode).collect()
}

/// A network namespace by its inode, found through any process in it that the helper can see, or by a name in /run/netns.
pub fn netns_by_inode(inode: u32) -> Option<Netns> {
    netns_files().filter_map(|path| Netns::open(path).ok()).find(|netns| netns.inode == inode)
}

/// Files of the network namespaces that the helper can see; several may be of one.
fn netns_files() -> impl Iterator<Item = PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten();
    let processes = entries("/proc").filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    processes.map(|e| e.path().join("ns/net")).chain(entries("/run/netns").map(|e| e.path()))
}

fn find_by_uid(pod: &Pod, hierarchies: &Hierarchies, proc: &Path) -> Result<FoundPod> {
    let name = format!("{}/{}", pod.namespace, pod.name);
    check_uid(&pod.uid).with_context(|| format!("pod {name}"))?;
    let dirs = hierarchies.pod_dirs(&pod.uid)?;
    if dirs.is_empty() {
        bail!(
            "pod {name} has no cgroup on this node (UID {}): it may have ended or moved, or the kubelet keeps pods under a cgroup root \
             that is none of the known ones; looked for kubepods and *kubepods.slice below {}",
            pod.uid,
            hierarchies.root().display()
        );
    }
    let mut inhabited = None;
    for dir in &dirs {
        let processes = process::of_pod(dir, pod, proc)?;
        if !processes.is_empty() {
            inhabited = Some((dir.clone(), processes));
            break;
        }
    }
    let Some((dir, processes)) = inhabited else {
        bail!(
            "pod {name} has no process that the helper can see: either it is not running, or the helper pod lacks hostPID \
             (looked in {})",
            dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    };
    // A directory that the kubelet created and into which the runtime put no process shows nothing about the pod's sockets.
    let cgroup = if hierarchies.is_v2(&dir) { Placement::Own(Cgroup::open(dir)?) } else { Placement::outside(hierarchies)? };
    let netns = pod_netns(&name, &processes, proc)?;
    Ok(FoundPod { netns, cgroup, processes })
}

/// The pod's namespace is the one its sandbox holds. A container may have made another for itself (`unshare`), so the
/// sandbox's process is tried first, then the first process of each container.
fn pod_netns(name: &str, processes: &[Process], proc: &Path) -> Result<Netns> {
    let mut last = None;
    let sandbox = processes.iter().filter(|p| p.container.is_none());
    for p in sandbox.chain(processes.iter().filter(|p| p.container.is_some())) {
        match Netns::open(proc.join(p.pid.to_string()).join("ns/net")) {
            // The id may have been given to a stranger since the cgroup was read; the file is open now, so look again.
            Ok(netns) if process::is_in(p.pid, &p.cgroup) => return Ok(netns),
            Ok(_) => {}
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("its processes end before they can be read")))
        .with_context(|| format!("cannot find the network namespace of pod {name}"))
}

/// UIDs become parts of paths, so nothing but the characters of a UID is let in. Static pods have a hash without dashes.
fn check_uid(uid: &str) -> Result<()> {
    if uid.len() < 8 || uid.len() > 64 || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        bail!("'{uid}' is not the UID of a pod");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
