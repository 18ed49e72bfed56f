//! A lab of a test's own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use sockpath_protocol::lab::{LabNode, LabPod, LabStatus, Overlay};

use crate::programs;

/// Start of the instance names that tests choose; what follows is the test process's id and a number.
const PREFIX: &str = "t";

/// An instance of the lab that is taken down when this is dropped. Several may be up at once.
#[derive(Debug)]
pub struct Lab {
    instance: String,
}

impl Lab {
    /// An instance that is not up yet. Takes down what killed test runs left behind.
    #[must_use]
    pub fn reserve() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_orphans();
        Self { instance: format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)) }
    }

    /// A lab with host routes between its nodes.
    ///
    /// # Panics
    /// When `lab up` fails.
    #[must_use]
    pub fn up() -> Self {
        Self::up_with(Overlay::None)
    }

    /// A lab with that overlay.
    ///
    /// # Panics
    /// When `lab up` fails.
    #[must_use]
    pub fn up_with(overlay: Overlay) -> Self {
        let lab = Self::reserve();
        let overlay = match overlay {
            Overlay::None => "none",
            Overlay::Vxlan => "vxlan",
        };
        succeed(lab.helper().args(["up", "--overlay", overlay]));
        lab
    }

    /// Name of the instance, for `SOCKPATH_LAB`.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A command of the lab's program in this instance; with `session` it is the helper of the lab.
    #[must_use]
    pub fn helper(&self) -> Command {
        self.command(&programs::lab())
    }

    /// The same of the program that has test switches.
    #[must_use]
    pub fn helper_with_test_switches(&self) -> Command {
        self.command(&programs::lab_with_test_switches())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("SOCKPATH_LAB", &self.instance).stdin(Stdio::null());
        command
    }

    /// A plugin command in this instance; `--lab` is the caller's to add.
    #[must_use]
    pub fn plugin(&self) -> Command {
        let mut command = programs::plugin_command();
        command.env("SOCKPATH_LAB", &self.instance).stdin(Stdio::null());
        command
    }

    /// `sockpath-lab exec TARGET -- COMMAND`, not yet started.
    #[must_use]
    pub fn exec<S: AsRef<OsStr>>(&self, target: &str, command: impl IntoIterator<Item = S>) -> Command {
        let mut exec = self.helper();
        exec.args(["exec", target, "--"]).args(command);
        exec
    }

    /// Runs a command in a pod or node and returns what it printed on stdout.
    ///
    /// # Panics
    /// When it fails.
    pub fn run<S: AsRef<OsStr>>(&self, target: &str, command: impl IntoIterator<Item = S>) -> String {
        String::from_utf8_lossy(&succeed(&mut self.exec(target, command)).stdout).into_owned()
    }

    /// The lab as `lab status -o json` has it.
    ///
    /// # Panics
    /// When it does not print that.
    #[must_use]
    pub fn status(&self) -> LabStatus {
        let out = succeed(self.helper().args(["status", "-o", "json"]));
        serde_json::from_slice(&out.stdout).expect("lab status -o json does not print a LabStatus")
    }

    /// A pod of the lab.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn pod(&self, name: &str) -> LabPod {
        self.status().pods.into_iter().find(|p| p.name == name).expect("no such pod")
    }

    /// A node of the lab.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> LabNode {
        self.status().nodes.into_iter().find(|n| n.name == name).expect("no such node")
    }

    /// The network namespace file of a pod or node.
    #[must_use]
    pub fn netns(&self, entity: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/sockpath-{}-{entity}", self.instance))
    }

    /// The node's end of the veth pair that is a pod's eth0.
    ///
    /// # Panics
    /// When the pod or the device is not there.
    #[must_use]
    pub fn host_veth(&self, pod: &str, node: &str) -> String {
        let peer: u32 = self.run(pod, ["cat", "/sys/class/net/eth0/iflink"]).trim().parse().expect("iflink is a number");
        let links = self.run(node, ["ip", "-o", "link"]);
        let line = links.lines().find(|l| l.starts_with(&format!("{peer}:"))).expect("no peer of eth0 on the node");
        line.split([' ', '@']).nth(1).expect("a link has a name").to_owned()
    }

    /// Runs `f` in a thread inside the network namespace (not the cgroup) of a pod or node. Sockets made there stay there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `f` panics.
    pub fn inside<T: Send>(&self, entity: &str, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.netns(entity)).expect("no such namespace");
        let enter_and_run = || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("cannot enter the namespace");
            f()
        };
        thread::scope(|scope| match scope.spawn(enter_and_run).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Takes the lab down and says how that went.
    #[must_use]
    pub fn down(&self) -> Output {
        output(self.helper().args(["down"]))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.down();
        if !down.status.success() && !thread::panicking() {
            panic!("lab down failed: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"))
}

/// Runs a command that has to succeed.
///
/// # Panics
/// When it does not; with what it said.
pub fn succeed(command: &mut Command) -> Output {
    let out = output(command);
    assert!(
        out.status.success(),
        "{command:?} failed with {}:\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    out
}

/// Takes down the labs of test processes that have ended.
fn remove_orphans() {
    let Ok(labs) = fs::read_dir("/run/sockpath") else { return };
    for lab in labs.flatten() {
        let name = lab.file_name().to_string_lossy().into_owned();
        let Some(instance) = name.strip_prefix("lab-") else { continue };
        let pid = instance.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new(programs::lab()).env("SOCKPATH_LAB", instance).arg("down").output();
        }
    }
}
