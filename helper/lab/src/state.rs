//! What an instance of the lab remembers on disk, and the lock that keeps two commands from changing it at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sockpath_protocol::lab::Overlay;

use super::cgroup;
use super::plan::{Container, Instance, Node, Pod, RUN_DIR};

/// The state file's content. It is written before the first thing is made, so that a crash leaves a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How far `up` got.
    pub phase: Phase,
    /// What it was asked for.
    pub overlay: Overlay,
    /// Mount point of the cgroup v2 hierarchy that was used.
    pub cgroup_root: PathBuf,
    /// Process id of each container's server, by `pod/container`.
    #[serde(default)]
    pub servers: BTreeMap<String, u32>,
}

/// How far `up` got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// In progress, or interrupted.
    Building,
    /// Done.
    Up,
}

impl State {
    /// Directory of the instance's cgroups.
    #[must_use]
    pub fn cgroup_dir(&self, instance: &Instance) -> PathBuf {
        self.cgroup_root.join(instance.cgroup_name())
    }

    /// Where commands run that `lab exec` starts on a node: `down` finds them there.
    #[must_use]
    pub fn node_cgroup(&self, instance: &Instance, node: &Node) -> PathBuf {
        self.cgroup_dir(instance).join(node.name).join("system.slice")
    }

    /// The cgroup of a container.
    #[must_use]
    pub fn container_cgroup(&self, instance: &Instance, pod: &Pod, container: &Container) -> PathBuf {
        self.cgroup_dir(instance).join(pod.cgroup(instance)).join(pod.container_id(instance, container))
    }
}

/// Reads the state; needs no lock and no privilege.
pub fn load(instance: &Instance) -> Result<Option<State>> {
    let path = file(&instance.state_dir());
    let text = match fs::read(&path) {
        Ok(t) => t,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_slice(&text).map(Some).with_context(|| format!("{} is damaged; run `{}`", path.display(), instance.command("down")))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// Whether an instance has its cgroups below that mount point. The directories there cannot tell: every mount of cgroup v2
/// shows the same.
fn any_uses(cgroup_root: &Path) -> bool {
    let labs = fs::read_dir(RUN_DIR).into_iter().flatten().flatten();
    let mut states = labs.filter_map(|lab| serde_json::from_slice::<State>(&fs::read(file(&lab.path())).ok()?).ok());
    states.any(|s| s.cgroup_root == cgroup_root)
}

/// Held while a lab takes the private mount of cgroup v2 into use, or finds out that no lab uses it. The directory exists as long as any
/// instance's does, and is removed by who holds it.
fn hold_mount() -> Result<Flock<File>> {
    let dir = File::open(RUN_DIR).with_context(|| format!("cannot open {RUN_DIR}"))?;
    Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| e).with_context(|| format!("cannot lock {RUN_DIR}"))
}

/// The instance's state directory, held exclusively.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Locked {
    /// Makes the directory if need be and waits until no other command holds it.
    pub fn acquire(instance: &Instance) -> Result<Self> {
        let dir = instance.state_dir();
        loop {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
            let opened = match File::open(&dir) {
                Ok(f) => f,
                // Removed by a `down` just now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).with_context(|| format!("cannot open {}", dir.display())),
            };
            let inode = opened.metadata().context("cannot examine the state directory")?.ino();
            let lock = match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                Ok(l) => l,
                Err((f, nix::Error::EWOULDBLOCK)) => {
                    eprintln!("waiting for another lab command to finish");
                    Flock::lock(f, FlockArg::LockExclusive).map_err(|(_, e)| e).context("cannot lock the lab's state")?
                }
                Err((_, e)) => return Err(e).context("cannot lock the lab's state"),
            };
            // Its previous holder may have removed the directory; a lock on a removed file locks nothing.
            if fs::metadata(&dir).is_ok_and(|m| m.ino() == inode) {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    /// Writes the first state, with the cgroup v2 mount point that it needs.
    ///
    /// # Errors
    /// When there is none and none can be made, or the state cannot be written.
    pub fn begin(&self, overlay: Overlay) -> Result<State> {
        let _held = hold_mount()?;
        let cgroup_root = cgroup::ensure_mounted()?;
        let state = State { phase: Phase::Building, overlay, cgroup_root, servers: BTreeMap::default() };
        self.save(&state)?;
        Ok(state)
    }

    /// Writes the state so that a crash leaves the old or the new one.
    pub fn save(&self, state: &State) -> Result<()> {
        let (new, path) = (self.dir.join("state.json.new"), file(&self.dir));
        let text = serde_json::to_vec(state).context("cannot encode the lab's state")?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets the instance. Servers watch this directory and take its end for theirs.
    pub fn remove(self) -> Result<()> {
        let _held = hold_mount()?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        if !any_uses(&cgroup::private_mount()) {
            cgroup::release_mount();
        }
        // Only the last lab's end empties it.
        let _ = fs::remove_dir(RUN_DIR);
        Ok(())
    }
}
