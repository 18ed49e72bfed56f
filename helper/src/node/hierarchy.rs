//! Where the kubelet keeps pods in the cgroup file systems of this node.
//!
//! The layout depends on the cgroup version (v1, v2, or both: hybrid), on the kubelet's cgroup driver (`cgroupfs` writes
//! `kubepods/burstable/podUID`, `systemd` writes `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice` with
//! `_` for `-`), and on `cgroupRoot`, under which all of it may lie (`kubelet/kubepods` and
//! `kubelet.slice/kubelet-kubepods.slice` in kind).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// How deep below a hierarchy's root the kubelet's directory is looked for: `cgroupRoot` is one or two levels in practice,
/// nodes that are containers themselves add two.
const MAX_DEPTH: usize = 5;

/// The quality-of-service classes as parts of directory names; guaranteed pods lie beside the others.
const QOS: [&str; 3] = ["", "burstable", "besteffort"];

/// The cgroup hierarchies mounted on this node.
#[derive(Debug)]
pub struct Hierarchies {
    root: PathBuf,
    /// The v2 hierarchy, if there is one.
    v2: Option<PathBuf>,
    /// The v1 hierarchies.
    v1: Vec<PathBuf>,
}

impl Hierarchies {
    /// Looks at what is mounted at `root`, usually `/sys/fs/cgroup`.
    pub fn mounted(root: &Path) -> Result<Self> {
        let mut found = Self { root: root.to_owned(), v2: None, v1: Vec::new() };
        if is_v2_dir(root) {
            found.v2 = Some(root.to_owned());
            return Ok(found);
        }
        let entries =
            fs::read_dir(root).with_context(|| format!("cannot read {}: is the node's /sys/fs/cgroup mounted?", root.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", root.display()))?.path();
            if is_v2_dir(&path) {
                found.v2 = Some(path);
            } else if path.join("cgroup.procs").exists() {
                found.v1.push(path);
            }
        }
        found.v1.sort();
        if found.v2.is_none() && found.v1.is_empty() {
            bail!("no cgroup file system is mounted at {}", root.display());
        }
        Ok(found)
    }

    /// Where the hierarchies are mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Root of the v2 hierarchy, to which programs can be attached where a pod has no directory of its own.
    #[must_use]
    pub fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// Whether a directory lies in the v2 hierarchy.
    #[must_use]
    pub fn is_v2(&self, dir: &Path) -> bool {
        self.v2.as_deref().is_some_and(|v2| dir.starts_with(v2))
    }

    /// How this node is laid out, in a few words for `doctor`.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match (&self.v2, self.v1.is_empty()) {
            (Some(_), true) => "v2",
            (Some(_), false) => "hybrid (v1, and v2 without controllers)",
            (None, _) => "v1",
        }
    }

    /// The pod's directory in each hierarchy that has one, v2 first.
    ///
    /// # Errors
    /// When two directories of one hierarchy claim the UID at the same depth, because one of them must be false.
    pub fn pod_dirs(&self, uid: &str) -> Result<Vec<PathBuf>> {
        let mut dirs = Vec::new();
        for hierarchy in self.v2.iter().chain(&self.v1) {
            dirs.extend(pod_dir(hierarchy, uid)?);
        }
        Ok(dirs)
    }
}

/// Every directory of cgroup v2 has this file, no directory of v1 does. (statfs would say it too, but not of a test's tree.)
pub(super) fn is_v2_dir(dir: &Path) -> bool {
    dir.join("cgroup.controllers").exists()
}

/// Looks for the pod under the kubelet's directories, the one nearest to the root first. A process that may write cgroups inside a
/// container could make a directory that looks like a kubelet's; it would lie deeper than the real one, and pods' own directories are not entered.
fn pod_dir(hierarchy: &Path, uid: &str) -> Result<Option<PathBuf>> {
    let mut level = vec![hierarchy.to_owned()];
    for _ in 0..=MAX_DEPTH {
        let mut found: Vec<PathBuf> =
            level.iter().filter(|d| is_kubelet_dir(d)).flat_map(|d| candidates(d, uid)).filter(|d| d.is_dir()).collect();
        match found.len() {
            0 => {}
            1 => return Ok(found.pop()),
            _ => bail!("two cgroups claim to be that of pod UID {uid}: {} and {}", found[0].display(), found[1].display()),
        }
        level = level.iter().filter(|d| !is_kubelet_dir(d)).flat_map(|d| subdirs(d)).filter(|d| !is_pod_or_container(d)).collect();
    }
    Ok(None)
}

fn file_name(dir: &Path) -> &str {
    dir.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// `kubepods` (cgroupfs driver), `kubepods.slice` and, under a `cgroupRoot`, `PREFIX-kubepods.slice` (systemd driver).
fn is_kubelet_dir(dir: &Path) -> bool {
    let name = file_name(dir);
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

fn is_pod_or_container(dir: &Path) -> bool {
    let name = file_name(dir);
    name.ends_with(".scope")
        || name.ends_with(".service") && !name.starts_with("kubelet")
        || name.starts_with("pod")
        || name.contains("-pod")
}

/// The places a pod can have below the kubelet's directory: one for each quality-of-service class.
fn candidates(kubelet: &Path, uid: &str) -> Vec<PathBuf> {
    let name = file_name(kubelet);
    let Some(slice) = name.strip_suffix(".slice") else {
        return QOS.iter().map(|qos| kubelet.join(qos).join(format!("pod{uid}"))).collect();
    };
    let uid = uid.replace('-', "_");
    QOS.iter()
        .map(|qos| match *qos {
            "" => kubelet.join(format!("{slice}-pod{uid}.slice")),
            qos => kubelet.join(format!("{slice}-{qos}.slice")).join(format!("{slice}-{qos}-pod{uid}.slice")),
        })
        .collect()
}

/// Directories below `dir`; one that cannot be read (it may just have gone) has none.
pub(super) fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut dirs: Vec<PathBuf> =
        entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
    dirs.sort();
    dirs
}
