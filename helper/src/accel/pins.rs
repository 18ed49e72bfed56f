//! What stays when the helper goes: the directory of pins of one instance.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

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

    /// The cgroups whose sockets the programs meet, by number.
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

    /// Makes the directory, and mounts the BPF file system where a node has none. Making it is the lock between two starters:
    /// `false` means that somebody else was first.
    pub fn claim(&self) -> Result<bool> {
        let root = Path::new(BPFFS);
        if statfs(root).with_context(|| format!("cannot examine {BPFFS}"))?.filesystem_type() != BPF_FS_MAGIC {
            mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount the BPF file system on {BPFFS} (needs CAP_SYS_ADMIN; or mount it on the node)"))?;
        }
        match fs::create_dir(&self.dir) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot make {}", self.dir.display())),
        }
    }

    /// Removes every pin; what nothing else holds is freed by the kernel. Returns how many there were.
    pub fn remove(&self) -> Result<usize> {
        let mut removed = 0;
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            r => r.with_context(|| format!("cannot list {}", self.dir.display()))?,
        };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", self.dir.display()))?.path();
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            removed += 1;
        }
        fs::remove_dir(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        Ok(removed)
    }
}

fn may_be(path: &Path) -> bool {
    !fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}
