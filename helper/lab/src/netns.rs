//! Network namespaces: making and entering them, and the processes in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
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
