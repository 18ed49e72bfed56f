//! A cluster to test on: the one `KUBECONFIG` names, or two nodes on this machine from the binaries in `K8S_BIN`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::{programs, skipped, state};

mod command;
mod kubectl;
mod machine;
mod restore;

pub use command::{json, output, run, text};
use kubectl::Kubectl;
pub use kubectl::{HELPERS, NAMESPACE};
pub use machine::{MACHINE, kernel_here};
use restore::Before;

/// How long the API server may take to apply a policy that was changed.
pub const IN_FORCE: Duration = Duration::from_secs(30);

/// How the nodes of a cluster of our own are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Routes between nodes, kube-proxy with nftables.
    RoutesNftables,
    /// VXLAN between nodes, kube-proxy with iptables.
    VxlanIptables,
    /// As `RoutesNftables`, with a third node that is a virtual machine with a kernel of its own. The second half of the workloads is on it.
    OtherKernel,
}

/// A cluster with namespace, policies, helper image and workloads in place.
#[derive(Debug)]
pub struct Cluster {
    kubectl: Kubectl,
    /// Set when the cluster is ours, so that its daemons may be stopped and killed.
    setup: Option<Setup>,
    image: String,
    /// Of a cluster that is not ours: what it had of manifests/.
    before: Option<Before>,
}

static CURRENT: Mutex<Option<Cluster>> = Mutex::new(None);

/// The cluster in this setup for one test at a time; `None`, said as a skip, where there is none. A cluster that is not ours
/// is taken as it is, whatever the setup.
///
/// # Panics
/// When the cluster of our own does not come up, or the other cannot be reached.
#[must_use]
pub fn cluster_or_skip(test: &str, setup: Setup) -> Option<Held> {
    let mut held = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let foreign = env::var_os("KUBECONFIG").filter(|k| !k.is_empty());
    let own = env::var_os("K8S_BIN").filter(|k| !k.is_empty());
    let fits = held.as_ref().is_some_and(|c| c.setup.is_none_or(|s| s == setup));
    if !fits {
        // `up` takes down what was there, even if it fails.
        *held = None;
        let found = match (own, foreign) {
            (Some(_), _) if nix::unistd::geteuid().is_root() => Ok(Cluster::start(setup)),
            (_, Some(path)) => Cluster::foreign(PathBuf::from(path)),
            _ => Err("there is no cluster: set KUBECONFIG to any, or (as root) K8S_BIN to the binaries of one".to_owned()),
        };
        match found {
            Ok(cluster) => {
                // Kept before it is changed: what fails half-way is restored, too.
                let foreign = cluster.setup.is_none();
                let cluster = held.insert(cluster);
                if foreign {
                    cluster.prepare();
                }
            }
            Err(why) => {
                skipped(test, &why);
                return None;
            }
        }
    }
    Some(Held(held))
}

/// As [`cluster_or_skip`], for tests that stop and kill daemons of nodes, which is done only to a cluster of our own.
///
/// # Panics
/// When the cluster of our own does not come up.
#[must_use]
pub fn own_cluster_or_skip(test: &str) -> Option<Held> {
    let held = cluster_or_skip(test, Setup::RoutesNftables)?;
    if held.setup.is_none() {
        skipped(test, "it stops daemons of nodes, which is done only to a cluster of our own: set K8S_BIN");
        return None;
    }
    Some(held)
}

/// As [`cluster_or_skip`], with a node whose kernel is that of another Debian release.
///
/// # Panics
/// When the cluster of our own does not come up.
#[must_use]
pub fn cluster_with_machine_or_skip(test: &str) -> Option<Held> {
    const OWN: &str = "a node that is a virtual machine is added to a cluster of our own only: set K8S_BIN, as root";
    if env::var_os("K8S_BIN").is_none_or(|k| k.is_empty()) {
        skipped(test, OWN);
        return None;
    }
    if !machine::available_or_skip(test) {
        return None;
    }
    let held = cluster_or_skip(test, Setup::OtherKernel)?;
    if !held.is_own() {
        skipped(test, OWN);
        return None;
    }
    Some(held)
}

/// The cluster, for as long as one test uses it.
#[derive(Debug)]
pub struct Held(MutexGuard<'static, Option<Cluster>>);

impl std::ops::Deref for Held {
    type Target = Cluster;

    #[expect(clippy::unwrap_used, reason = "it is only made where there is a cluster")]
    fn deref(&self) -> &Cluster {
        self.0.as_ref().unwrap()
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

extern "C" fn take_down() {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).take();
    match current {
        Some(foreign) if foreign.setup.is_none() => foreign.forget(),
        // One that did not come up has no owner, but is there all the same.
        _ => drop(Command::new(scripts().join("down")).stdin(Stdio::null()).status()),
    }
}

/// Waits until no other run has the cluster of this machine, and keeps it until this process ends: `up` takes down what it finds.
fn take_own() {
    static OWN: OnceLock<Flock<File>> = OnceLock::new();
    OWN.get_or_init(|| {
        // As in tests/cluster/env.
        let mut path = env::var_os("K8S_STATE").unwrap_or_else(|| env::temp_dir().join("sockpath-cluster").into_os_string());
        path.push(".in-use");
        let path = PathBuf::from(path);
        let file = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return lock,
            Err((file, _)) => file,
        };
        eprintln!("waiting for another run that has the cluster");
        Flock::lock(file, FlockArg::LockExclusive).unwrap_or_else(|(_, e)| panic!("{}: {e}", path.display()))
    });
}

/// Has the cluster go, or what we put on one that is not ours, when the tests end.
fn take_down_at_exit() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // SAFETY: the function is `extern "C"`, takes nothing and stays valid; the test harness ends with exit(3), which calls it.
        unsafe { libc::atexit(take_down) };
    });
}

impl Cluster {
    fn start(setup: Setup) -> Self {
        take_own();
        take_down_at_exit();
        let (mode, proxy) = match setup {
            Setup::RoutesNftables | Setup::OtherKernel => ("hostgw", "nftables"),
            Setup::VxlanIptables => ("vxlan", "iptables"),
        };
        let mut up = Command::new(scripts().join("up"));
        up.env_remove("MACHINE").env_remove("KERNEL");
        if setup == Setup::OtherKernel {
            up.env("MACHINE", MACHINE).env("KERNEL", machine::kernel_dir());
        }
        // The log goes to stderr; daemons must not hold a pipe of this process open.
        let out = up.env("MODE", mode).env("PROXYMODE", proxy).env_remove("KUBECONFIG").stdin(Stdio::null()).stderr(Stdio::inherit());
        let out = out.output().unwrap_or_else(|e| panic!("cannot run tests/cluster/up: {e}"));
        assert!(out.status.success(), "tests/cluster/up failed; its log is above");
        let kubeconfig = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
        let archive = env::temp_dir().join(format!("sockpath-helper-{}.tar", std::process::id()));
        let pinned = build_image(&archive);
        let image = by_digest(&pinned);
        run(Command::new(scripts().join("load-image")).arg(&archive).args([pinned.split('@').next().unwrap_or_default(), &image]));
        let _ = fs::remove_file(archive);
        let cluster = Self { kubectl: Kubectl { kubeconfig }, setup: Some(setup), image, before: None };
        cluster.prepare();
        cluster
    }

    /// A cluster that is not the tests' own, or why they do not touch it.
    fn foreign(kubeconfig: PathBuf) -> Result<Self, String> {
        // A KUBECONFIG that happens to be set does not permit changes to the cluster it names.
        let image = env::var("SOCKPATH_HELPER_IMAGE").map_err(|_| {
            "SOCKPATH_HELPER_IMAGE does not name the helper's image, without which nothing is done to the cluster of KUBECONFIG".to_owned()
        })?;
        if !image.contains("@sha256:") {
            return Err(format!("SOCKPATH_HELPER_IMAGE ({image}) is not named by digest, as manifests/ want it"));
        }
        let mut cluster = Self { kubectl: Kubectl { kubeconfig }, setup: None, image, before: None };
        let nodes = cluster.nodes();
        if nodes.len() < 2 {
            return Err(format!("two nodes are needed, the cluster of KUBECONFIG has {}", nodes.len()));
        }
        cluster.before = Some(Before::of(&cluster.kubectl));
        take_down_at_exit();
        Ok(cluster)
    }

    /// Manifests, workloads, and users.
    fn prepare(&self) {
        // A run that was cut short may have left a namespace half deleted on a disk that was kept.
        for namespace in [NAMESPACE, HELPERS] {
            let namespace = format!("namespace/{namespace}");
            let deleted = ["get", &namespace, "--ignore-not-found", "-o", "jsonpath={.metadata.deletionTimestamp}"];
            if !run(self.kubectl().args(deleted)).is_empty() {
                run(self.kubectl().args(["wait", "--for=delete", &namespace, "--timeout=300s"]));
            }
        }
        self.apply_manifests();
        let nodes = self.nodes();
        let image = Self::workload_image();
        let text = fs::read_to_string(scripts().join("workloads.yaml")).unwrap_or_else(|e| panic!("tests/cluster/workloads.yaml: {e}"));
        let second = if self.setup == Some(Setup::OtherKernel) { MACHINE } else { &nodes[1] };
        let text = text.replace("NODE1", &nodes[0]).replace("NODE2", second).replace("IMAGE", &image).replace("NAMESPACE", NAMESPACE);
        let file = env::temp_dir().join(format!("sockpath-workloads-{}.yaml", std::process::id()));
        fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // Those of an earlier run, on a disk that was kept, may be of another shape, and pods cannot be changed.
        run(self.kubectl().args(["-n", NAMESPACE, "delete", "pod", "--all", "--now"]));
        run(self.kubectl().arg("apply").arg("-f").arg(&file));
        let _ = fs::remove_file(file);
        run(self.kubectl().args(["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]));
    }

    /// Applies manifests/ with our image; comes back when the policy is in force and the quota counted.
    fn apply_manifests(&self) {
        let file = env::temp_dir().join(format!("sockpath-manifests-{}.yaml", std::process::id()));
        let rendered = run(Command::new(repository().join("manifests/render")).arg(&self.image));
        fs::write(&file, rendered).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        run(self.kubectl().arg("apply").arg("-f").arg(&file));
        let _ = fs::remove_file(file);
        let foreign = format!("registry.local/foreign@sha256:{}", "0".repeat(64));
        self.eventually("the policy is in force", IN_FORCE, |c| c.admitted(&c.image).is_ok() && c.admitted(&foreign).is_err());
    }

    /// Has the policy admit our image, and these.
    pub fn admit(&self, others: &[&str]) {
        let images: Vec<String> = std::iter::once(self.image.as_str()).chain(others.iter().copied()).map(|i| format!("'{i}'")).collect();
        self.set_policy_variable("images", &format!("[{}]", images.join(", ")));
    }

    /// Gives a variable of the policy another value, in CEL.
    ///
    /// # Panics
    /// When the policy has no such variable.
    pub fn set_policy_variable(&self, name: &str, value: &str) {
        let policy = ["get", "validatingadmissionpolicy", "sockpath-helper", "-o", "jsonpath={.spec.variables[*].name}"];
        let names = run(self.kubectl().args(policy));
        let index = names.split(' ').position(|n| n == name).unwrap_or_else(|| panic!("the policy has no variable {name}: {names}"));
        let patch = serde_json::json!([
            {"op": "test", "path": format!("/spec/variables/{index}/name"), "value": name},
            {"op": "replace", "path": format!("/spec/variables/{index}/expression"), "value": value},
        ]);
        run(self.kubectl().args(["patch", "validatingadmissionpolicy", "sockpath-helper", "--type=json", "-p", &patch.to_string()]));
    }

    /// A command in a node's namespaces, of our own cluster.
    #[must_use]
    pub fn in_node(&self, node: &str, args: &[&str]) -> Command {
        assert!(self.setup.is_some(), "only nodes of our own cluster are within reach");
        let mut command = Command::new(scripts().join("in-node"));
        command.arg(node).args(args).stdin(Stdio::null());
        command
    }

    /// Puts an image on the nodes of our own cluster whose `/sockpath-helper` is a shell script; gives its name by digest.
    ///
    /// # Panics
    /// When it cannot be built or loaded.
    #[must_use]
    pub fn load_fake_helper(&self, image: &str, script: &str) -> String {
        assert!(self.setup.is_some(), "only nodes of our own cluster are within reach");
        let dir = env::temp_dir().join(format!("sockpath-fake-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let (program, archive) = (dir.join("helper"), dir.join("image.tar"));
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let mut build = Command::new(scripts().join("mkimage"));
        build.arg(&archive).arg(image).arg("{}").args(["/bin/busybox=/bin/busybox", "link:/bin/sh=/bin/busybox"]);
        let built = run(build.arg(format!("{}=/sockpath-helper", program.display())));
        let pinned = by_digest(built.split_whitespace().next().unwrap_or_default());
        run(Command::new(scripts().join("load-image")).arg(&archive).args([image, &pinned]));
        let _ = fs::remove_dir_all(dir);
        pinned
    }

    /// A helper pod with this image as it would be admitted; the refusal if it would not be.
    ///
    /// # Errors
    /// What the API server says against it.
    pub fn admitted(&self, image: &str) -> Result<Value, String> {
        let pod = run(self.plugin_anywhere().args(["--helper-image", image, "trace", "a", "b", "--dry-run=client", "-o", "json"]));
        let file = env::temp_dir().join(format!("sockpath-admitted-{}.json", std::process::id()));
        fs::write(&file, pod).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let out = output(self.kubectl().args(["create", "--dry-run=server", "-o", "json", "-f"]).arg(&file));
        let _ = fs::remove_file(file);
        if !out.status.success() {
            return Err(text(&out.stderr));
        }
        Ok(serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{e}"))["spec"].take())
    }

    /// Image of the helpers, as the policy has it.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Leaves a cluster that is not ours as it was.
    fn forget(&self) {
        if let Some(before) = &self.before {
            before.restore(&self.kubectl);
        }
    }

    /// Names of the nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let out = run(self.kubectl().args(["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]));
        let mut nodes: Vec<String> = out.split_whitespace().map(str::to_owned).collect();
        nodes.sort();
        nodes
    }

    /// Whether it is our own: its nodes are on this machine.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.setup.is_some()
    }

    /// kubectl as administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        self.kubectl.command()
    }

    /// The plugin as administrator, in the workloads' namespace.
    #[must_use]
    pub fn plugin(&self) -> Command {
        let mut command = self.plugin_anywhere();
        command.args(["-n", NAMESPACE]);
        command
    }

    /// The plugin as administrator, in no namespace in particular.
    #[must_use]
    pub fn plugin_anywhere(&self) -> Command {
        let mut command = Command::new(programs::plugin());
        command
            .env("KUBECONFIG", &self.kubectl.kubeconfig)
            .env("SOCKPATH_HELPER_IMAGE", &self.image)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// The image of the workloads.
    #[must_use]
    pub fn workload_image() -> String {
        let own = env::var_os("K8S_BIN").is_some_and(|k| !k.is_empty());
        env::var("SOCKPATH_TEST_IMAGE").unwrap_or_else(|_| if own { "registry.local/busybox:test" } else { "busybox:1.37" }.to_owned())
    }

    /// Runs a command in a workload's first container.
    #[must_use]
    pub fn exec(&self, pod: &str, args: &[&str]) -> Command {
        let mut command = self.kubectl();
        command.args(["-n", NAMESPACE, "exec", pod, "-c", "app", "--"]).args(args);
        command
    }

    /// Helper pods there are, as JSON objects.
    #[must_use]
    pub fn helper_pods(&self) -> Vec<Value> {
        let out = run(self.kubectl().args(["-n", HELPERS, "get", "pods", "-l", "app.kubernetes.io/name=sockpath-helper", "-o", "json"]));
        let list: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// What is pinned in the BPF file systems of the nodes, as `NODE/NAME`; `None` on a cluster whose nodes are out of reach.
    #[must_use]
    pub fn pins(&self) -> Option<Vec<String>> {
        self.setup?;
        let mut pins = Vec::new();
        for node in self.nodes() {
            let out =
                run(Command::new(scripts().join("in-node")).args([&node, "find", "/sys/fs/bpf", "-mindepth", "1", "-name", "sockpath*"]));
            pins.extend(out.lines().map(|path| format!("{node}{path}")));
        }
        Some(pins)
    }

    /// Asserts that neither pods nor pins of sockpath are left, soon.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_nothing_left(&self) {
        self.assert_no_helpers();
        self.eventually("nothing is pinned", Duration::from_secs(10), |c| c.pins().is_none_or(|pins| pins.is_empty()));
    }

    /// Waits until a condition holds.
    ///
    /// # Panics
    /// When it does not within `patience`.
    pub fn eventually(&self, what: &str, patience: Duration, mut holds: impl FnMut(&Self) -> bool) {
        // The API server has no event for "no object of that kind"; asking again is all there is.
        state::eventually(what, patience, || holds(self));
    }

    /// Asserts that no helper pod is left, soon.
    ///
    /// # Panics
    /// When one is.
    pub fn assert_no_helpers(&self) {
        self.eventually("no helper pod is left", Duration::from_secs(20), |c| c.helper_pods().is_empty());
    }

    /// What happens to a daemon of a node of our own cluster: `stop`, `cont`, `kill` or `restart`.
    pub fn daemon(&self, action: &str, node: &str, name: &str) {
        assert!(self.setup.is_some(), "only daemons of our own cluster are touched");
        run(Command::new(scripts().join("daemon")).args([action, node, name]));
    }

    /// Waits until the API server answers again.
    pub fn wait_api(&self) {
        self.eventually("the API server answers", Duration::from_secs(60), |c| {
            c.kubectl().args(["get", "--raw", "/readyz"]).output().is_ok_and(|o| o.status.success() && o.stdout.starts_with(b"ok"))
        });
    }
}

/// `NAME:TAG@DIGEST` by digest alone, as the policy wants it and a release's plugin asks for it.
fn by_digest(pinned: &str) -> String {
    let (name, digest) = pinned.split_once('@').unwrap_or_else(|| panic!("no digest: {pinned}"));
    format!("{}@{digest}", name.rsplit_once(':').map_or(name, |(repository, _)| repository))
}

/// Builds the image out of the static helper; gives its name with the digest.
fn build_image(archive: &Path) -> String {
    let helper = programs::helper();
    let stripped = archive.with_extension("helper");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&helper));
    let tool = repository().join("target/release/oci-image");
    assert!(tool.is_file(), "{} is not there: make test-tools", tool.display());
    let out = run(Command::new(tool).arg(&stripped).arg(archive));
    let _ = fs::remove_file(stripped);
    out.trim().to_owned()
}
