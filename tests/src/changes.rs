//! Changes of a cluster that are undone when the test that made them ends, whatever its result.

use serde_json::{Value, json};

use crate::cluster::{Cluster, HELPERS, IN_FORCE, output, run, text};

/// kubectl commands that put things back, whatever becomes of the test.
#[derive(Debug)]
pub struct Undo<'a>(&'a Cluster, Vec<Vec<String>>);

impl<'a> Undo<'a> {
    /// The commands, each with its words separated by single spaces.
    #[must_use]
    pub fn by(cluster: &'a Cluster, commands: &[&str]) -> Self {
        Self(cluster, commands.iter().map(|c| c.split(' ').map(str::to_owned).collect()).collect())
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for args in &self.1 {
            let out = output(self.0.kubectl().args(args));
            if !out.status.success() {
                eprintln!("not undone: {}: {}", args.join(" "), text(&out.stderr));
            }
        }
    }
}

/// Our policy only audits until it is dropped, as in a namespace of another name, where changed pods are admitted.
#[derive(Debug)]
pub struct Unenforced<'a>(&'a Cluster);

impl<'a> Unenforced<'a> {
    /// Comes back when the policy is not enforced any more.
    ///
    /// # Panics
    /// When the binding cannot be changed.
    #[must_use]
    pub fn of(cluster: &'a Cluster) -> Self {
        let unenforced = Self(cluster);
        unenforced.bind("Audit");
        let foreign = Cluster::workload_image();
        cluster.eventually("the policy is not enforced", IN_FORCE, |c| c.admitted(&foreign).is_ok());
        unenforced
    }

    fn bind(&self, action: &str) {
        let patch = json!({"spec": {"validationActions": [action]}}).to_string();
        run(self.0.kubectl().args(["patch", "validatingadmissionpolicybinding", "sockpath-helper", "--type=merge", "-p", &patch]));
    }
}

impl Drop for Unenforced<'_> {
    fn drop(&mut self) {
        self.bind("Deny");
        let foreign = Cluster::workload_image();
        self.0.eventually("the policy is in force", IN_FORCE, |c| c.admitted(&foreign).is_err());
    }
}

/// Changes each pod of the helpers' namespace at admission, as a mutating webhook would, until it is dropped.
#[derive(Debug)]
pub struct Changing<'a>(&'a Cluster);

impl<'a> Changing<'a> {
    /// `patch` is a list of JSONPatch objects in CEL. Comes back when it is in force.
    ///
    /// # Panics
    /// When it cannot be applied.
    #[must_use]
    pub fn by(cluster: &'a Cluster, patch: &str) -> Self {
        let before = cluster.admitted(cluster.image()).unwrap_or_else(|e| panic!("the helper is refused before anything is changed: {e}"));
        let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
        let place = json!({"matchLabels": {"kubernetes.io/metadata.name": HELPERS}});
        let api = "admissionregistration.k8s.io/v1";
        apply(
            cluster,
            &json!({"apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "e2e-change"}, "spec": {
                    "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                    "matchConstraints": {"resourceRules": [rule], "namespaceSelector": place},
                    "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]}},
                {"apiVersion": api, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "e2e-change"},
                    "spec": {"policyName": "e2e-change"}}]}),
        );
        let changing = Self(cluster);
        cluster.eventually("the change is in force", IN_FORCE, |c| c.admitted(c.image()).ok() != Some(before.clone()));
        changing
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let changed = self.0.admitted(self.0.image()).ok();
        let kinds = ["mutatingadmissionpolicybinding/e2e-change", "mutatingadmissionpolicy/e2e-change"];
        run(self.0.kubectl().arg("delete").args(kinds));
        self.0.eventually("the change is not in force any more", IN_FORCE, |c| {
            let now = c.admitted(c.image()).ok();
            now.is_some() && now != changed
        });
    }
}

/// Applies an object.
///
/// # Panics
/// When the API server refuses it.
pub fn apply(cluster: &Cluster, object: &Value) {
    let file = std::env::temp_dir().join(format!("sockpath-apply-{}.json", std::process::id()));
    std::fs::write(&file, object.to_string()).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    run(cluster.kubectl().args(["apply", "-f"]).arg(&file));
    let _ = std::fs::remove_file(file);
}

/// A seccomp profile in the kubelet's directory of every node, until this is dropped.
#[derive(Debug)]
pub struct SeccompProfile<'a> {
    cluster: &'a Cluster,
    path: String,
}

impl<'a> SeccompProfile<'a> {
    /// `name` is a file name, `text` the profile.
    ///
    /// # Panics
    /// When a node cannot take it.
    #[must_use]
    pub fn named(cluster: &'a Cluster, name: &str, text: &str) -> Self {
        let profile = Self { cluster, path: format!("/var/lib/kubelet/seccomp/{name}") };
        for node in cluster.nodes() {
            run(&mut cluster.in_node(&node, &["sh", "-c", "mkdir -p ${0%/*} && echo \"$1\" > $0", &profile.path, text]));
        }
        profile
    }
}

impl Drop for SeccompProfile<'_> {
    fn drop(&mut self) {
        for node in self.cluster.nodes() {
            let _ = self.cluster.in_node(&node, &["rm", "-f", &self.path]).status();
        }
    }
}
