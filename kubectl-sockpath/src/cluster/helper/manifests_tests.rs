//! manifests/ against what the plugin does.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cli::Seccomp;
use crate::cluster::helper::owner::Owner;
use crate::cluster::helper::pod::{HelperSpec, to_yaml};
use crate::cluster::helper::privilege::{MODES, capabilities};
use crate::mode::Mode;

const POLICY: &str = include_str!("../../../../manifests/policy.yaml");
const EXAMPLE: &str = include_str!("../../../../manifests/example/helper-pod.yaml");

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
        image: crate::cluster::DEFAULT_IMAGE.into(),
        deadline_seconds: crate::cluster::DEADLINE_SECONDS,
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

/// The value of a variable of the policy, which is CEL without anything but values.
fn variable(name: &str) -> Value {
    let policy = documents(POLICY).remove(0);
    let variables = policy["spec"]["variables"].as_array().unwrap();
    let expression = variables.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no variable {name}"))["expression"].as_str();
    let json = expression.unwrap().replace("dyn(", "").replace(')', "").replace('\'', "\"");
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("variable {name}: {e}: {json}"))
}

fn strings(list: &Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// Every pod that the plugin may create, as JSON.
fn pods() -> Vec<Value> {
    let mut pods = Vec::new();
    for mode in MODES {
        for seccomp in [Seccomp::RuntimeDefault, Seccomp::Unconfined] {
            for stays in [None, Some(std::time::Duration::from_secs(60))] {
                let owner = Owner { session: "s".into(), client: "c".into(), process: "1-1".into(), user: "u".into() };
                let (node, namespace, image) = ("node".into(), "sockpath".into(), crate::cluster::DEFAULT_IMAGE.into());
                let spec =
                    HelperSpec { mode, node, namespace, image, deadline_seconds: crate::cluster::DEADLINE_SECONDS, seccomp, stays, owner };
                pods.push(serde_json::to_value(spec.build()).unwrap());
            }
        }
    }
    pods
}

/// Checks that what an object has is what the policy says of it, or has a rule there; gives the fields that the policy alone knows.
fn compare(object: &Value, shape: &str, rules: &str) -> BTreeSet<String> {
    let (shape, ruled) = (variable(shape), variable(rules));
    let object = object.as_object().unwrap();
    for (field, value) in object {
        match shape.get(field) {
            Some(admitted) => assert_eq!(value, admitted, "{field}"),
            None => assert!(strings(&ruled).contains(field.as_str()), "the policy knows no {field}"),
        }
    }
    shape.as_object().unwrap().keys().filter(|k| !object.contains_key(*k)).cloned().collect()
}

/// The policy's values are the helper pod's; what it has beyond them is what the API server adds.
#[test]
fn the_policy_admits_the_pods_of_the_plugin() {
    let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
    let (volumes, mounts, labels) = (variable("volumes"), variable("mounts"), variable("labels"));
    for pod in pods() {
        let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
        let (container, context) = (&spec["containers"][0], &spec["containers"][0]["securityContext"]);
        let defaults = set(&["schedulerName", "securityContext", "serviceAccount", "serviceAccountName"]);
        assert_eq!(compare(spec, "pod", "podRules"), defaults);
        assert_eq!(compare(container, "container", "containerRules"), set(&["terminationMessagePath"]));
        assert_eq!(compare(context, "securityContext", "securityContextRules"), set(&[]));
        assert!(variable("seccompProfiles").as_array().unwrap().contains(&context["seccompProfile"]));
        assert_eq!(container["resources"], serde_json::json!({"requests": variable("requests"), "limits": variable("limits")}));
        for volume in spec["volumes"].as_array().unwrap() {
            assert!(volumes.as_array().unwrap().contains(volume), "{volume}");
        }
        for mount in container["volumeMounts"].as_array().unwrap() {
            let mut mount = mount.clone();
            // The API server drops what is false.
            mount.as_object_mut().unwrap().retain(|_, v| *v != false);
            assert!(mounts.as_array().unwrap().contains(&mount), "{mount}");
        }
        assert!(metadata.as_object().unwrap().keys().all(|k| strings(&variable("metadata")).contains(k.as_str())));
        assert!(metadata["annotations"].as_object().unwrap().keys().all(|k| strings(&variable("annotations")).contains(k.as_str())));
        for (label, value) in metadata["labels"].as_object().unwrap() {
            let pattern = labels[label].as_str().unwrap_or_else(|| panic!("the policy knows no label {label}"));
            let whole = format!("^{}$", value.as_str().unwrap());
            assert!(pattern.is_empty() || pattern.split('|').any(|p| p == whole), "{label}: {value} against {pattern}");
        }
    }
    let asked: BTreeSet<&str> = MODES.into_iter().flat_map(capabilities).map(|c| c.name()).collect();
    assert_eq!(asked, strings(&variable("capabilities")));
    assert!(POLICY.contains(&format!("activeDeadlineSeconds <= {}", crate::cluster::DEADLINE_SECONDS)));
}

#[test]
fn every_manifest_is_yaml_with_kind_and_name() {
    for text in [
        include_str!("../../../../manifests/namespace.yaml"),
        include_str!("../../../../manifests/quota.yaml"),
        include_str!("../../../../manifests/rbac.yaml"),
        include_str!("../../../../manifests/network-policy.yaml"),
        POLICY,
        EXAMPLE,
    ] {
        for document in documents(text) {
            assert!(document["kind"].is_string() && document["metadata"]["name"].is_string(), "{document}");
        }
    }
}

fn render(image: &str) -> std::process::Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/render");
    std::process::Command::new(script).arg(image).output().unwrap()
}

/// What the repository has cannot be applied: the namespace that admits privileged pods does not come without the policy.
#[test]
fn the_files_are_refused_by_themselves() {
    let namespace = documents(include_str!("../../../../manifests/namespace.yaml")).remove(0);
    let level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].as_str().unwrap();
    // The values a label may have: at most 63 of these characters.
    let may_be = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(level.len() > 63 && !level.chars().all(may_be) && level.contains("manifests/render NAME@sha256:DIGEST"), "{level}");
    let policy = documents(POLICY).remove(0);
    let images = &policy["spec"]["variables"][0];
    // An unknown name does not compile; the rest is a comment.
    assert_eq!(images["name"], "images");
    assert!(images["expression"].as_str().unwrap().starts_with("NOT_RENDERED // apply manifests.yaml of a release"), "{images}");
}

#[test]
fn rendered_the_policy_comes_first_and_admits_one_image_by_digest() {
    let image = format!("registry.example:5000/sockpath/helper@sha256:{}", "0a".repeat(32));
    let out = render(&image);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(!text.contains("RENDERED"), "{text}");
    let objects = documents(&text);
    let kinds: Vec<&str> = objects.iter().filter_map(|o| o["kind"].as_str()).collect();
    let namespace = kinds.iter().position(|k| *k == "Namespace").unwrap();
    let policies = kinds.iter().rposition(|k| k.starts_with("ValidatingAdmissionPolicy")).unwrap();
    assert!(policies < namespace && kinds[policies + 1] == "Namespace" && !kinds.contains(&"Pod"), "{kinds:?}");
    assert_eq!(objects[0]["spec"]["variables"][0]["expression"], format!("['{image}']"));
    assert_eq!(objects[namespace]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    // Every object of the files is there.
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yaml"));
    assert_eq!(files.map(|f| documents(&std::fs::read_to_string(f).unwrap()).len()).sum::<usize>(), objects.len());
    for no_digest in ["ghcr.io/sockpath/helper:v0.1.0", "", "helper@sha256:12"] {
        let refused = render(no_digest);
        assert!(refused.status.code() == Some(2) && refused.stdout.is_empty(), "{no_digest}");
    }
}
