//! What a cluster that is not the tests' own had of manifests/ before the tests, to be restored afterwards.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::command::{output, run, text};
use super::kubectl::{HELPERS, Kubectl, NAMESPACE};

/// The manifests, which tests apply as manifests/render prints them.
const MANIFESTS: [&str; 5] = ["policy.yaml", "namespace.yaml", "quota.yaml", "network-policy.yaml", "rbac.yaml"];

/// Role bindings that tests make in the helpers' namespace.
const BINDINGS: [&str; 3] = ["e2e-alice", "e2e-bob", "e2e-carol"];

/// Fields the API server writes.
const OF_THE_SERVER: [&str; 5] = ["resourceVersion", "uid", "creationTimestamp", "managedFields", "generation"];

/// The objects that were there.
#[derive(Debug)]
pub struct Before(Vec<Value>);

impl Before {
    /// Looks at the cluster of this kubectl.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn of(kubectl: &Kubectl) -> Self {
        Self(present(kubectl))
    }

    /// Deletes what was not there and restores what was. Complains on stderr: it is called when the tests are over.
    pub fn restore(&self, kubectl: &Kubectl) {
        delete(kubectl, &["namespace", NAMESPACE]);
        let mut added: Vec<Value> = present(kubectl).into_iter().filter(|o| !self.0.iter().any(|b| identity(b) == identity(o))).collect();
        // What lies in the namespace goes with it; so it goes last, and alone.
        added.sort_by_key(|o| o["kind"] == "Namespace");
        let whole = added.iter().any(|o| o["kind"] == "Namespace");
        for object in added.iter().filter(|o| !whole || o["metadata"]["namespace"].is_null()) {
            let [kind, namespace, name] = identity(object);
            delete(kubectl, &[kind, name, "-n", if namespace.is_empty() { "default" } else { namespace }]);
        }
        for object in &self.0 {
            let mut object = object.clone();
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.retain(|field, _| !OF_THE_SERVER.contains(&field.as_str()));
            }
            replace(kubectl, &object);
        }
        if !whole {
            delete(kubectl, &[&["rolebinding", "-n", HELPERS][..], &BINDINGS].concat());
        }
    }
}

/// Kind, namespace and name.
fn identity(object: &Value) -> [&str; 3] {
    let metadata = &object["metadata"];
    [&object["kind"], &metadata["namespace"], &metadata["name"]].map(|v| v.as_str().unwrap_or_default())
}

/// The objects of [`MANIFESTS`] that the cluster has.
fn present(kubectl: &Kubectl) -> Vec<Value> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let mut found = Vec::new();
    for file in MANIFESTS {
        let out = run(kubectl.command().args(["get", "--ignore-not-found", "-o", "json", "-f"]).arg(dir.join(file)));
        if out.trim().is_empty() {
            continue;
        }
        let one: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
        match one["items"].as_array() {
            Some(items) => found.extend(items.iter().cloned()),
            None => found.push(one),
        }
    }
    found
}

fn delete(kubectl: &Kubectl, what: &[&str]) {
    // The next test program makes it again, which something that is still going would refuse.
    let out = output(kubectl.command().args(["delete", "--ignore-not-found", "--timeout=90s"]).args(what));
    if !out.status.success() {
        eprintln!("left in the cluster: {}: {}", what.join(" "), text(&out.stderr));
    }
}

fn replace(kubectl: &Kubectl, object: &Value) {
    let replaced = || -> std::io::Result<bool> {
        let mut child = kubectl.command().args(["replace", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(object.to_string().as_bytes())?;
        }
        Ok(child.wait()?.success())
    };
    if !replaced().unwrap_or(false) {
        eprintln!("not restored: {}", identity(object).join(" "));
    }
}
