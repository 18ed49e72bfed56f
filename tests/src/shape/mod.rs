//! The rules of docs/architecture.md, checked against the sources: permitted imports, and no circles of modules.

mod graph;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use graph::Graph;

/// Crates of this workspace that a crate may use, and external ones that it must not.
struct Rule {
    /// Directory of the crate.
    dir: &'static str,
    /// Crates of this workspace.
    ours: &'static [&'static str],
    /// Crates of others.
    never: &'static [&'static str],
}

const BPF: &str = "libbpf-rs";
const KUBERNETES: [&str; 2] = ["kube", "k8s-openapi"];

/// The table of docs/architecture.md. Dependencies point down only.
const RULES: [Rule; 9] = [
    Rule { dir: "kubectl-sockpath", ours: &["protocol"], never: &[BPF, "nix"] },
    Rule { dir: "helper", ours: &["bpf", "kernel", "protocol", "ruleset"], never: &KUBERNETES },
    Rule { dir: "helper/kernel", ours: &["netlink"], never: &["kube", "k8s-openapi", "serde", "tokio"] },
    Rule { dir: "helper/lab", ours: &["helper", "protocol"], never: &KUBERNETES },
    Rule { dir: "helper/netlink", ours: &[], never: &[BPF, "kube", "k8s-openapi", "nix", "serde", "tokio"] },
    Rule { dir: "helper/protocol", ours: &[], never: &[BPF, "kube", "k8s-openapi", "libc", "nix", "tokio"] },
    Rule { dir: "helper/ruleset", ours: &["netlink"], never: &[BPF, "kube", "k8s-openapi", "tokio"] },
    Rule { dir: "bpf", ours: &[], never: &["kube", "k8s-openapi", "nix", "tokio"] },
    Rule { dir: "tests", ours: &["kernel", "protocol"], never: &KUBERNETES },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names in `[dependencies]`, for whatever system, of a manifest.
fn dependencies(dir: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap_or_else(|e| panic!("{dir}: {e}"));
    let mut of_ours = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            of_ours = line.ends_with("dependencies]") && !line.contains("dev-") && !line.contains("build-");
        } else if of_ours && let Some((name, _)) = line.split_once(['.', ' ', '=']).filter(|(name, _)| !name.starts_with('#')) {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn crates_use_what_lies_below_them_only() {
    for Rule { dir, ours, never } in RULES {
        let all = dependencies(dir);
        let used: BTreeSet<&str> = all.iter().filter_map(|d| d.strip_prefix("sockpath-")).collect();
        let above: Vec<&&str> = used.iter().filter(|d| !ours.contains(d)).collect();
        assert!(above.is_empty(), "{dir} depends on {above:?}, which docs/architecture.md does not allow");
        let foreign: Vec<&&str> = never.iter().filter(|d| all.contains(**d)).collect();
        assert!(foreign.is_empty(), "{dir} depends on {foreign:?}, which docs/architecture.md does not allow");
    }
    // That nothing is found would show nothing.
    assert!(dependencies("helper").contains("sockpath-kernel") && dependencies("kubectl-sockpath").contains("kube"));
}

#[test]
fn all_crates_have_rules() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let members = manifest.lines().find_map(|l| l.strip_prefix("members = [")).expect("members on one line");
    let members: BTreeSet<&str> = members.trim_end_matches(']').split(", ").map(|m| m.trim_matches('"')).collect();
    assert_eq!(members, RULES.iter().map(|rule| rule.dir).collect());
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let graphs = RULES.map(|rule| (rule.dir, Graph::of(&root().join(rule.dir).join("src"))));
    for (dir, graph) in &graphs {
        let circles = graph.circles();
        assert!(circles.is_empty(), "{dir}: modules import each other: {circles:?}");
    }
    // An empty graph has no circles either.
    let modules: usize = graphs.iter().map(|(_, graph)| graph.0.len()).sum();
    let imports: usize = graphs.iter().flat_map(|(_, graph)| graph.0.values()).map(BTreeSet::len).sum();
    assert!(modules > 400 && imports > 3 * modules, "{modules} modules with {imports} imports");
}

/// `cargo test` runs examples in documentation only on request; `tests/run-all` does not request it, as there are none.
#[test]
fn no_example_in_documentation_goes_untested() {
    fn examples(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                examples(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_default();
                let documentation = text.lines().filter_map(|l| l.trim_start().strip_prefix("///").or(l.trim_start().strip_prefix("//!")));
                let fences = documentation.filter_map(|l| l.trim_start().strip_prefix("```"));
                // Every second fence ends what the one before began.
                let rust = fences.step_by(2).any(|kind| kind.is_empty() || kind.starts_with("rust"));
                found.extend(rust.then(|| path.display().to_string()));
            }
        }
    }
    let mut found = Vec::new();
    RULES.iter().for_each(|rule| examples(&root().join(rule.dir).join("src"), &mut found));
    assert!(found.is_empty(), "examples that no test runs: {found:?}");
}

/// Cargo.toml says of these programs that they have no tests, which cargo believes.
#[test]
fn programs_without_tests_have_none() {
    for dir in RULES.map(|rule| root().join(rule.dir)) {
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest");
        for program in manifest.split("[[bin]]").skip(1).map(|p| p.split("\n[").next().unwrap_or_default()) {
            if program.contains("test = false") {
                let path = program.lines().find_map(|l| l.strip_prefix("path = ")).expect("its path").trim_matches('"');
                let text = fs::read_to_string(dir.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
                assert!(!text.contains("#[test]") && !text.contains("#[cfg(test)]"), "tests in {path} do not run");
            }
        }
    }
}
