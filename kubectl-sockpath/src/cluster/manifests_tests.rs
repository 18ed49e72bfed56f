//! manifests/ and krew.yaml against what the plugin does, and against krew's rules.

use std::collections::BTreeSet;

use serde_json::Value;

use super::helper_pod::{HelperSpec, to_yaml};
use super::owner::Owner;
use super::privilege::{MODES, capabilities};
use crate::backend::Mode;
use crate::cli::Seccomp;

const POLICY: &str = include_str!("../../../manifests/policy.yaml");
const EXAMPLE: &str = include_str!("../../../manifests/example/helper-pod.yaml");
const KREW: &str = include_str!("../../../krew.yaml");

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|d| serde_saphyr::from_str(d).unwrap_or_else(|e| panic!("{e}\n{d}"))).collect()
}

/// The example is what `accelerate --dry-run=client -o yaml` prints, the mode that asks for most.
#[test]
fn the_example_pod_is_what_a_dry_run_prints() {
    let owner =
        Owner { session: "example".into(), client: "0000000000000000".into(), process: "1-1".into(), user: "you@your-machine".into() };
    let spec = HelperSpec {
        mode: Mode::Accelerate,
        node: "node".into(),
        namespace: "sockpath".into(),
        image: super::DEFAULT_IMAGE.into(),
        deadline_seconds: super::DEADLINE_SECONDS,
        seccomp: Seccomp::default(),
        stays: None,
        owner,
    };
    let mut pod = spec.build();
    pod.metadata.name = Some("sockpath-accelerate-node-example".into());
    let text = to_yaml(&pod).unwrap();
    let (_, example) = EXAMPLE.split_once("\n\n").expect("a heading, an empty line, the pod");
    if std::env::var_os("SOCKPATH_BLESS").is_some() {
        let heading = EXAMPLE.split_once("\n\n").map_or("", |(heading, _)| heading);
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/example/helper-pod.yaml"), format!("{heading}\n\n{text}"))
            .unwrap();
        return;
    }
    assert_eq!(example, text, "run this test with SOCKPATH_BLESS=1 and look at the difference");
}

#[test]
fn the_policy_admits_exactly_the_capabilities_we_ask_for() {
    let asked: BTreeSet<&str> = MODES.into_iter().flat_map(capabilities).map(|c| c.name()).collect();
    let (_, list) = POLICY.split_once("cap in [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    let admitted: BTreeSet<&str> = list.split(',').map(|c| c.trim().trim_matches('\'')).collect();
    assert_eq!(asked, admitted);
    assert!(POLICY.contains(&format!("activeDeadlineSeconds <= {}", super::DEADLINE_SECONDS)));
}

#[test]
fn every_manifest_is_yaml_with_kind_and_name() {
    for text in [
        include_str!("../../../manifests/namespace.yaml"),
        include_str!("../../../manifests/rbac.yaml"),
        include_str!("../../../manifests/network-policy.yaml"),
        POLICY,
        EXAMPLE,
    ] {
        for document in documents(text) {
            assert!(document["kind"].is_string() && document["metadata"]["name"].is_string(), "{document}");
        }
    }
}

/// The rules of krew's internal/index/validation and cmd/validate-krew-manifest.
#[test]
fn the_krew_manifest_is_valid() {
    let manifest = documents(KREW).remove(0);
    assert_eq!(
        (manifest["apiVersion"].as_str(), manifest["kind"].as_str()),
        (Some("krew.googlecontainertools.github.com/v1alpha2"), Some("Plugin"))
    );
    assert_eq!(manifest["metadata"]["name"], "sockpath");
    let spec = &manifest["spec"];
    let short = spec["shortDescription"].as_str().unwrap();
    assert!(!short.is_empty() && !short.contains('\n'));
    assert_eq!(spec["version"].as_str().unwrap(), concat!("v", env!("CARGO_PKG_VERSION")), "semver with a leading v");
    let mut selectors = BTreeSet::new();
    for platform in spec["platforms"].as_array().unwrap() {
        let labels = platform["selector"]["matchLabels"].as_object().unwrap();
        assert!(labels.keys().all(|k| k == "os" || k == "arch") && !labels.is_empty());
        assert!(selectors.insert(platform["selector"].to_string()), "selectors may not overlap");
        let sum = platform["sha256"].as_str().unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{sum}");
        let uri = platform["uri"].as_str().unwrap();
        assert!(uri.starts_with("https://") && (uri.ends_with(".tar.gz") || uri.ends_with(".zip")), "{uri}");
        assert_eq!(platform["bin"], "kubectl-sockpath");
        assert!(platform.get("files").is_none(), "best left out: LICENSE lies beside the binary");
    }
}

/// `kubectl apply -f manifests/`, as every remedy says it: takes the files of that directory in this order, each of which may need
/// what those before it made, and none of which may start anything.
#[test]
fn the_directory_can_be_applied_as_it_is() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    files.sort();
    let mut kinds = Vec::new();
    for file in &files {
        kinds.extend(documents(&std::fs::read_to_string(file).unwrap()).iter().map(|d| d["kind"].as_str().unwrap_or_default().to_owned()));
    }
    assert_eq!(kinds.first().map(String::as_str), Some("Namespace"), "{files:?}");
    assert!(!kinds.iter().any(|k| k == "Pod"), "{files:?}");
}
