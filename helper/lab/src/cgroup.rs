//! The lab's part of the cgroup v2 hierarchy.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::plan::RUN_DIR;

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the labs mount cgroup v2 when the machine does not.
#[must_use]
pub fn private_mount() -> PathBuf {
    PathBuf::from(RUN_DIR).join("cgroup")
}

/// The cgroup v2 mount point of this machine, if there is one.
pub fn mounted() -> Result<Option<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(find_in(&table))
}

/// The cgroup v2 mount point; mounts one in a private place when there is none. Another lab may release that until a state names it:
/// `Locked::begin` keeps it from that.
pub fn ensure_mounted() -> Result<PathBuf> {
    if let Some(root) = mounted()? {
        return Ok(root);
    }
    let root = private_mount();
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    mount(Some("cgroup2"), &root, Some("cgroup2"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, None::<&str>)
        .context("cannot mount cgroup v2, which pods need; is CONFIG_CGROUPS set and may this process mount?")?;
    Ok(root)
}

/// Undoes the private mount. The caller knows that no lab uses it.
pub fn release_mount() {
    let root = private_mount();
    if root.is_dir() {
        // Not mounted is as good.
        let _ = umount2(&root, MntFlags::empty());
        let _ = fs::remove_dir(&root);
    }
}

/// Picks the mount of the whole hierarchy out of mountinfo (proc_pid_mountinfo(5)).
fn find_in(mountinfo: &str) -> Option<PathBuf> {
    let mut found = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if right.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let path = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(path);
        }
        found.get_or_insert(path);
    }
    found
}

/// Spaces and the like appear as three octal digits after a backslash.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(b) => {
                out.push(b.into());
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

/// Moves this process into a cgroup.
pub fn join(dir: &Path) -> Result<()> {
    fs::write(dir.join("cgroup.procs"), "0").with_context(|| format!("cannot join the cgroup {}", dir.display()))
}

/// Process ids directly in a cgroup.
#[must_use]
pub fn processes(dir: &Path) -> Vec<u32> {
    fs::read_to_string(dir.join("cgroup.procs")).map(|s| s.lines().filter_map(|l| l.parse().ok()).collect()).unwrap_or_default()
}

/// Whether this process is somewhere below `dir`.
#[must_use]
pub fn contains_self(root: &Path, dir: &Path) -> bool {
    let Ok(own) = fs::read_to_string("/proc/self/cgroup") else { return false };
    let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
    root.join(own).starts_with(dir)
}

/// Kills every process below `dir` and removes the directories. Nothing there is fine.
pub fn remove(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    while dir.exists() {
        kill(dir)?;
        wait_empty(dir, deadline)?;
        match remove_dirs(dir) {
            // A process that was just joining when the others were killed.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {}
            r => return r.with_context(|| format!("cannot remove the cgroup {}", dir.display())),
        }
    }
    Ok(())
}

fn kill(dir: &Path) -> Result<()> {
    match fs::write(dir.join("cgroup.kill"), "1") {
        Ok(()) => return Ok(()),
        // Before Linux 5.14 there is no such file: one by one.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::PermissionDenied => {}
        Err(e) => return Err(e).with_context(|| format!("cannot kill the processes in {}", dir.display())),
    }
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        dirs.extend(children(&dir));
        for pid in processes(&dir).into_iter().filter_map(|p| i32::try_from(p).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
    Ok(())
}

/// The kernel signals a change of `cgroup.events` as an exceptional condition (cgroup-v2.rst).
fn wait_empty(dir: &Path, deadline: Instant) -> Result<()> {
    let path = dir.join("cgroup.events");
    loop {
        let Ok(events) = fs::File::open(&path) else { return Ok(()) };
        let text = io::read_to_string(&events).unwrap_or_default();
        if !text.lines().any(|l| l == "populated 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("processes in {} survive SIGKILL; see its cgroup.procs files", dir.display());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout).context("cannot wait for a cgroup to be empty")?;
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|d| d.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
        .unwrap_or_default()
}

fn remove_dirs(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_dirs(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        r => r,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hierarchy_is_preferred() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                     90 31 0:38 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n\
                     41 31 0:38 / /sys/fs/my\\040cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_in(table), Some(PathBuf::from("/sys/fs/my cgroup")));
        assert_eq!(find_in("90 31 0:38 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n"), Some(PathBuf::from("/mnt/part")));
        assert_eq!(find_in("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }
}
