//! The acceleration of a lab that goes away: it ends before its pods do, and its pins go after them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::existing::Existing;
use crate::pins::Pins;
use crate::site::Site;

/// How long queues may take to drain while the pods live; some never read.
const DRAIN: Duration = Duration::from_secs(1);

/// How long the kernel may take to let go of the sockets of killed pods.
const GONE: Duration = Duration::from_secs(5);

/// An acceleration of pods that are about to be removed.
#[derive(Debug)]
pub struct Released(Pins);

impl Released {
    /// The acceleration of this instance, if it is one of pods whose cgroups lie below `root`. An instance without a name shares
    /// its pins with the node itself, where they may be those of other pods.
    ///
    /// # Errors
    /// When pins or cgroups cannot be looked at.
    pub fn of_cgroups_below(site: &Site, root: &Path) -> Result<Option<Self>> {
        let pins = Pins::of(site);
        if !pins.exist() {
            return Ok(None);
        }
        if pins.are_of_a_named_instance() {
            return Ok(Some(Self(pins)));
        }
        let attached = pins.attached_cgroups()?;
        let is_of_it = has_one_of(root, &attached)? || Existing::open(&pins)?.is_in_other_namespaces()?;
        Ok(is_of_it.then_some(Self(pins)))
    }

    /// Puts connections back on their normal path as far as their readers let it. The pods may be killed then.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn drain(&self) -> Result<()> {
        Existing::open(&self.0)?.stop("", DRAIN).await?;
        Ok(())
    }

    /// Removes what is left once the pods are gone; the number of pins.
    ///
    /// # Errors
    /// When sockets are still in the map: a process outside the pods holds them.
    pub async fn remove(self) -> Result<usize> {
        let left = Existing::open(&self.0)?.stop("", GONE).await?.left_enrolled;
        if left > 0 {
            bail!("{left} sockets of the lab's pods are still open and hold unread bytes; the pins in {} stay", self.0.dir().display());
        }
        self.0.remove()
    }
}

/// Whether one of these cgroups, by the numbers of their inodes, is `dir` or below it.
fn has_one_of(dir: &Path, ids: &[u64]) -> Result<bool> {
    if !dir.exists() || ids.is_empty() {
        return Ok(false);
    }
    let id = fs::metadata(dir).with_context(|| format!("cannot examine {}", dir.display()))?.ino();
    if ids.contains(&id) {
        return Ok(true);
    }
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) && has_one_of(&entry.path(), ids)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_found_at_any_depth() {
        let root = std::env::temp_dir().join(format!("sockpath-abandon-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).expect("a directory");
        let id = fs::metadata(root.join("a/b")).expect("a directory").ino();
        assert!(has_one_of(&root, &[1, id]).expect("readable"));
        assert!(!has_one_of(&root, &[1]).expect("readable"));
        assert!(!has_one_of(&root.join("none"), &[id]).expect("readable"));
        fs::remove_dir_all(&root).expect("removable");
    }
}
