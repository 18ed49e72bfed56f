//! Named network namespaces: making, marking, entering and removing them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::links::Links;
use super::plan::NETNS_DIR;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

/// What a name in `/run/netns` stands for.
#[derive(Debug)]
pub enum Named {
    /// Nothing of that name.
    Free,
    /// An empty file without a namespace: what a crash between making the file and mounting on it leaves.
    Stale,
    /// A namespace that carries the mark.
    Ours(Netns),
    /// Not the lab's.
    Foreign,
}

impl Netns {
    /// A new namespace without a name; it is gone with the last descriptor of it.
    pub fn create() -> Result<Self> {
        let before = Self::current()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let made = Self::current();
        before.enter_or_abort();
        made
    }

    /// The namespace this thread is in.
    pub fn current() -> Result<Self> {
        Ok(Self { file: File::open("/proc/thread-self/ns/net").context("cannot open this thread's network namespace")? })
    }

    /// Opens a namespace by its file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// The open file, to hand to netlink.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Moves this thread, and whatever it starts from now on, into the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")
    }

    /// Runs `f` on this thread inside the namespace. `f` must not wait on anything asynchronous: other tasks of this
    /// thread would run in the wrong namespace.
    pub fn run<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = Self::current()?;
        self.enter()?;
        let result = f();
        before.enter_or_abort();
        result
    }

    /// Going on in the wrong namespace could change the machine's own network.
    fn enter_or_abort(&self) {
        if let Err(e) = self.enter() {
            eprintln!("error: {e:#}; giving up");
            std::process::abort();
        }
    }

    /// Gives the namespace its name: a bind mount in `/run/netns`, so that `ip netns` sees it.
    pub fn publish(&self, path: &Path) -> Result<()> {
        File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
        let source = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot mount the network namespace on {}", path.display()))
    }
}

/// Says what `path` stands for.
pub async fn look_up(path: &Path, mark: &str) -> Result<Named> {
    let netns = match Netns::open(path) {
        Ok(n) => n,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Named::Free),
        Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
    };
    if !is_nsfs(&netns.file)? {
        let meta = netns.file.metadata().with_context(|| format!("cannot examine {}", path.display()))?;
        return Ok(if meta.is_file() && meta.len() == 0 { Named::Stale } else { Named::Foreign });
    }
    let links = Links::connect(&netns)?;
    Ok(if links.alias("lo").await?.as_deref() == Some(mark) { Named::Ours(netns) } else { Named::Foreign })
}

/// Takes a name back. The namespace itself lives on while a process is in it.
pub fn remove(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(e) => bail!("cannot unmount {}: {e}", path.display()),
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Makes `/run/netns` what `ip netns` makes of it: a shared mount point, so that names given or taken here are seen in other
/// mount namespaces too. Without it, the first `ip netns add` would mount over our names and hide them for good.
pub fn prepare_dir() -> Result<()> {
    let dir = Path::new(NETNS_DIR);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {NETNS_DIR}"))?;
    let share = || mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(nix::Error::EINVAL) => mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .and_then(|()| share())
            .with_context(|| format!("cannot make {NETNS_DIR} a shared mount")),
        Err(e) => Err(e).with_context(|| format!("cannot make {NETNS_DIR} a shared mount")),
    }
}

/// Processes in a network namespace, as `PID (name)`.
#[must_use]
pub fn inhabitants(netns: &Netns) -> Vec<String> {
    let Ok(own) = netns.file.metadata() else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let inside = processes.filter(|p| fs::metadata(p.path().join("ns/net")).is_ok_and(|m| m.dev() == own.dev() && m.ino() == own.ino()));
    let describe = |p: fs::DirEntry| {
        let name = fs::read_to_string(p.path().join("comm")).unwrap_or_default();
        format!("{} ({})", p.file_name().to_string_lossy(), name.trim())
    };
    inside.map(describe).collect()
}

fn is_nsfs(file: &File) -> Result<bool> {
    let stat = nix::sys::statfs::fstatfs(file).context("cannot examine a namespace file")?;
    Ok(stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}
