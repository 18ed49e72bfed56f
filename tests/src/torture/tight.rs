//! Scarce TCP memory.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::state::look;

/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup/memory";

/// How long processes that are ending may keep the group busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// A memory cgroup (v1) in which TCP buffers are scarce; removed when dropped.
#[derive(Debug)]
pub struct TightMemory(PathBuf);

impl TightMemory {
    /// TCP memory of the processes in it: little enough that a server is under pressure with the torture's concurrency.
    pub const TCP_BYTES: u64 = 512 << 10;

    /// Moves a process into a new group. Sockets that it makes from now on count.
    ///
    /// # Errors
    /// Where there is no such hierarchy.
    pub fn new(pid: u32) -> Result<Self> {
        let group = Path::new(ROOT).join(format!("sockpath-torture-{pid}"));
        std::fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let group = Self(group);
        std::fs::write(group.0.join("memory.kmem.tcp.limit_in_bytes"), Self::TCP_BYTES.to_string())
            .context("no limit of TCP memory here")?;
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).context("cannot move the server")?;
        Ok(group)
    }

    /// Most TCP memory that was in use; above the limit the kernel was under pressure and had to give a little more.
    #[must_use]
    pub fn most_used(&self) -> u64 {
        std::fs::read_to_string(self.0.join("memory.kmem.tcp.max_usage_in_bytes")).ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for TightMemory {
    fn drop(&mut self) {
        let removed = look(PATIENCE, || {
            // The server may outlive the group, which is removed only when it is empty. One that is about to end can neither be
            // moved nor waited for: it is not a child of this process.
            for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = std::fs::write(Path::new(ROOT).join("cgroup.procs"), pid);
            }
            std::fs::remove_dir(&self.0).map_or_else(|e| (e.kind() != ErrorKind::ResourceBusy).then_some(Err(e)), |()| Some(Ok(())))
        });
        match removed {
            Some(Ok(())) => {}
            Some(Err(e)) => eprintln!("warning: {} stays behind: {e}", self.0.display()),
            None => eprintln!("warning: {} stays behind: it is in use", self.0.display()),
        }
    }
}
