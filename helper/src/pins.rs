//! What stays when the helper goes: the directory of pins of one instance.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::coded::Coded;
use crate::site::Site;

/// Where the kernel's BPF file system is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Name of the directory of a node, and of the lab without a name.
const SHARED: &str = "sockpath";

/// What the names of links to cgroups begin with; the number of the cgroup follows.
pub const ESTABLISHED: &str = "established-";

/// The pinned objects of one instance, by name.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
}

impl Pins {
    /// The directory of this node, or of a lab with a name of its own.
    pub fn of(site: &Site) -> Self {
        let name = match site {
            Site::Lab(lab) if !lab.as_str().is_empty() => format!("{SHARED}-{}", lab.as_str()),
            Site::Node | Site::Lab(_) => SHARED.to_owned(),
        };
        Self { dir: Path::new(BPFFS).join(name) }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one pin.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether they belong to a lab with a name of its own, and to nothing else.
    pub fn are_of_a_named_instance(&self) -> bool {
        self.dir.file_name().is_some_and(|name| name != SHARED)
    }

    /// The cgroups whose sockets the programs track, by number.
    pub fn attached_cgroups(&self) -> Result<Vec<u64>> {
        let entries = fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))?;
        let id = |name: &str| name.strip_prefix(ESTABLISHED)?.parse().ok();
        Ok(entries.flatten().filter_map(|e| id(&e.file_name().to_string_lossy())).collect())
    }

    /// Whether anything of this instance is there, or may be: most machines show their BPF file system to root only.
    pub fn exist(&self) -> bool {
        may_be(&self.dir)
    }

    /// Whether this pin is there, or may be.
    pub fn has(&self, name: &str) -> bool {
        may_be(&self.path(name))
    }

    /// Makes the directory on the BPF file system of the machine. Making it is the lock between two starters: `false` means that another
    /// was first. In the lab the file system is mounted where the machine has none.
    ///
    /// # Errors
    /// On a node whose BPF file system this process does not see: pins on another one would go with the helper's pod, and a socket that leaves
    /// the map with them loses what is unread.
    pub fn claim(&self, site: &Site) -> Result<bool> {
        let root = Path::new(BPFFS);
        let is_bpffs = statfs(root).with_context(|| format!("cannot examine {BPFFS}"))?.filesystem_type() == BPF_FS_MAGIC;
        if has_to_be_mounted(site, is_bpffs, is_of_the_node(root))? {
            mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount the BPF file system on {BPFFS} (needs CAP_SYS_ADMIN)"))?;
        }
        self.make()
    }

    /// Makes the directory, on whatever file system is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> Result<bool> {
        match fs::create_dir(&self.dir) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot make {}", self.dir.display())),
        }
    }

    /// Removes every pin and the directory; what nothing else holds is freed by the kernel. Returns how many there were.
    pub fn remove(&self) -> Result<usize> {
        let removed = self.unpin(|_| true)?;
        match fs::remove_dir(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("cannot remove {}", self.dir.display())),
            _ => Ok(removed),
        }
    }

    /// Removes the pins with these names and keeps the directory. Returns how many there were.
    pub fn unpin(&self, is_meant: impl Fn(&str) -> bool) -> Result<usize> {
        let mut removed = 0;
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            r => r.with_context(|| format!("cannot list {}", self.dir.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", self.dir.display()))?;
            if !is_meant(&entry.file_name().to_string_lossy()) {
                continue;
            }
            removed += usize::from(take_away(&entry.path())?);
        }
        Ok(removed)
    }
}

/// Removes one pin. Returns whether it was there: another process of this acceleration may remove it at the same time.
///
/// # Errors
/// When it stays.
pub fn take_away(pin: &Path) -> Result<bool> {
    match fs::remove_file(pin) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        r => r.map(|()| true).with_context(|| format!("cannot remove {}", pin.display())),
    }
}

/// Whether an operation failed because a pin or their directory was missing.
pub fn is_missing(e: &anyhow::Error) -> bool {
    let is_missing = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::NotFound)
            || e.downcast_ref::<libbpf_rs::Error>().is_some_and(|e| e.kind() == libbpf_rs::ErrorKind::NotFound)
    };
    e.chain().any(is_missing)
}

/// Whether a mount point here is the same file system as that of process 1; `None` where that is out of reach.
fn is_of_the_node(path: &Path) -> Option<bool> {
    let beneath = path.strip_prefix("/").ok()?;
    let of_the_node = fs::metadata(Path::new("/proc/1/root").join(beneath)).ok()?;
    Some(fs::metadata(path).ok()?.dev() == of_the_node.dev())
}

/// Whether the BPF file system has to be mounted first.
fn has_to_be_mounted(site: &Site, is_bpffs: bool, is_of_the_node: Option<bool>) -> Result<bool> {
    match (site, is_bpffs, is_of_the_node) {
        (Site::Lab(_), is_bpffs, _) => Ok(!is_bpffs),
        (Site::Node, true, Some(true) | None) => Ok(false),
        (Site::Node, ..) => Err(Coded::new(
            "bpffs",
            format!(
                "this node has no BPF file system at {BPFFS} that the helper shares: what is pinned would go with the helper's pod, and unread \
                 bytes with it; run `mount -t bpf bpf {BPFFS}` on the node (systemd does so at boot), and see that the helper pod mounts it as a hostPath"
            ),
        )),
    }
}

fn may_be(path: &Path) -> bool {
    !fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::LabName;

    #[test]
    fn pins_are_made_on_the_bpf_file_system_of_the_node_only() {
        for (is_bpffs, of_the_node) in [(false, Some(true)), (false, None), (true, Some(false))] {
            let refused = has_to_be_mounted(&Site::Node, is_bpffs, of_the_node).expect_err("pins would go with the pod");
            assert!(refused.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{refused}");
        }
        for of_the_node in [Some(true), None] {
            assert!(!has_to_be_mounted(&Site::Node, true, of_the_node).expect("it is the node's"));
        }
    }

    #[test]
    fn two_processes_may_remove_pins_at_once() {
        let dir = std::env::temp_dir().join(format!("sockpath-pins-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let pins = Pins { dir };
        for _ in 0..50 {
            assert!(pins.make().expect("a directory"));
            (0..100).for_each(|n| drop(fs::File::create(pins.path(&n.to_string())).expect("a file")));
            let removed: Vec<usize> = std::thread::scope(|scope| {
                let removers = [(); 2].map(|()| scope.spawn(|| pins.remove()));
                removers.map(|r| r.join().expect("no panic").expect("a removal")).into()
            });
            assert_eq!(removed.iter().sum::<usize>(), 100, "each pin was removed by one: {removed:?}");
            assert!(!pins.exist());
        }
    }

    #[test]
    fn a_missing_pin_is_recognised_below_its_context() {
        let pins = Pins { dir: PathBuf::from("/nonexistent/sockpath") };
        assert!(is_missing(&pins.attached_cgroups().expect_err("it is not there")));
        let map = libbpf_rs::MapHandle::from_pinned_path(pins.path("control")).map(drop).context("cannot open the control");
        assert!(is_missing(&map.expect_err("it is not there")));
        assert!(!is_missing(&anyhow::anyhow!("No such file or directory")));
    }

    #[test]
    fn a_lab_mounts_what_its_machine_lacks() {
        let lab = Site::Lab(LabName::new("").expect("the default lab"));
        assert!(has_to_be_mounted(&lab, false, None).expect("it is mounted"));
        assert!(!has_to_be_mounted(&lab, true, Some(true)).expect("it is there"));
    }
}
