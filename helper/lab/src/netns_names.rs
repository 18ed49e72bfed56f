//! Names of network namespaces in `/run/netns`: giving, looking up and removing them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::links::Links;
use super::netns::Netns;
use super::plan::NETNS_DIR;

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

/// Gives the namespace its name: a bind mount in `/run/netns`, so that `ip netns` sees it.
pub fn publish(netns: &Netns, path: &Path) -> Result<()> {
    File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", netns.file().as_raw_fd()));
    mount(Some(&source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot mount the network namespace on {}", path.display()))
}

/// Says what `path` stands for.
pub async fn look_up(path: &Path, mark: &str) -> Result<Named> {
    let netns = match Netns::open(path) {
        Ok(n) => n,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Named::Free),
        Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
    };
    if !is_nsfs(netns.file())? {
        let meta = netns.file().metadata().with_context(|| format!("cannot examine {}", path.display()))?;
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

fn is_nsfs(file: &File) -> Result<bool> {
    let stat = nix::sys::statfs::fstatfs(file).context("cannot examine a namespace file")?;
    Ok(stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}
