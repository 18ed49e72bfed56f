//! The parts of a program as a CycloneDX document: every crate that is compiled into it, from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// The parts of `cargo metadata` that count.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// The document for one package of this workspace, built for one target.
///
/// # Errors
/// When cargo fails or does not know the package.
pub fn of(workspace: &Path, package: &str, target: &str) -> Result<Value> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
        .current_dir(workspace)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    document(&serde_json::from_slice(&out.stdout).context("cannot read what cargo metadata prints")?, &checksums(&lock), package)
}

/// SHA-256 sums of the archives of crates, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |entry: &str, name: &str| {
        let line = entry.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix("= "))?;
        Some(line.trim_matches('"').to_owned())
    };
    lock.split("[[package]]").filter_map(|e| Some(((field(e, "name")?, field(e, "version")?), field(e, "checksum")?))).collect()
}

fn document(metadata: &Metadata, checksums: &BTreeMap<(String, String), String>, package: &str) -> Result<Value> {
    let packages: BTreeMap<&str, &Package> = metadata.packages.iter().map(|p| (p.id.as_str(), p)).collect();
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
    let root = metadata.packages.iter().find(|p| p.name == package).with_context(|| format!("no package {package}"))?;
    let linked = |id: &str| {
        let deps = nodes.get(id).map(|n| n.deps.as_slice()).unwrap_or_default();
        deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind.is_none())).map(|d| d.pkg.as_str()).collect::<Vec<_>>()
    };
    let (mut seen, mut ahead) = (BTreeSet::new(), vec![root.id.as_str()]);
    while let Some(id) = ahead.pop() {
        if seen.insert(id) {
            ahead.extend(linked(id));
        }
    }
    let reference = |p: &Package| format!("pkg:cargo/{}@{}", p.name, p.version);
    let component = |p: &Package| {
        let mut component = json!({
            "type": if p.id == root.id { "application" } else { "library" },
            "bom-ref": reference(p), "purl": reference(p), "name": p.name, "version": p.version,
        });
        if let Some(license) = &p.license {
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        if let Some(sum) = checksums.get(&(p.name.clone(), p.version.clone())).filter(|_| p.source.is_some()) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        component
    };
    let of = |id: &&str| packages.get(*id).copied();
    let components: Vec<Value> = seen.iter().filter(|id| **id != root.id).filter_map(of).map(component).collect();
    let dependencies: Vec<Value> = seen
        .iter()
        .filter_map(of)
        .map(|p| json!({ "ref": reference(p), "dependsOn": linked(&p.id).iter().filter_map(of).map(reference).collect::<BTreeSet<_>>() }))
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": component(root) },
        "components": components, "dependencies": dependencies,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let bom = of(workspace, "sockpath-helper", "x86_64-unknown-linux-gnu").expect("a document");
        let components = bom["components"].as_array().expect("components");
        let names: BTreeSet<&str> = components.iter().filter_map(|c| c["name"].as_str()).collect();
        assert!(names.contains("libbpf-rs") && names.contains("sockpath-protocol") && names.contains("tokio"), "{names:?}");
        // Of the plugin, of the build, and of tests.
        assert!(!names.contains("kube") && !names.contains("libbpf-cargo") && !names.contains("sockpath-tests"), "{names:?}");
        assert_eq!(bom["metadata"]["component"]["name"], "sockpath-helper");
        for component in components {
            let foreign = !component["name"].as_str().is_some_and(|n| n.starts_with("sockpath"));
            let sum = component["hashes"][0]["content"].as_str().unwrap_or_default();
            assert!(!foreign || sum.len() == 64, "no checksum: {component}");
            assert!(component["licenses"][0]["expression"].is_string(), "no licence: {component}");
        }
        let all = components.iter().chain([&bom["metadata"]["component"]]);
        let references: BTreeSet<&str> = all.filter_map(|c| c["bom-ref"].as_str()).collect();
        let is_listed = |reference: &Value| reference.as_str().is_some_and(|r| references.contains(r));
        for dependency in bom["dependencies"].as_array().expect("dependencies") {
            assert!(is_listed(&dependency["ref"]));
            assert!(dependency["dependsOn"].as_array().expect("a list").iter().all(is_listed), "{dependency}");
        }
    }
}
