use serde_json::{Value, json};

use super::*;

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "sockpath-trace-n1-abcde", "namespace": "sockpath"},
        "spec": {"nodeName": "n1", "containers": [{"name": "helper", "image": "r.test/helper:1"}]},
        "status": status
    }))
    .unwrap()
}

fn waiting(reason: &str, message: &str) -> Pod {
    pod(json!({"phase": "Pending", "containerStatuses": [
        {"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "",
         "state": {"waiting": {"reason": reason, "message": message}}}
    ]}))
}

fn event(kind: &str, reason: &str, message: &str) -> Event {
    serde_json::from_value(json!({"metadata": {}, "involvedObject": {}, "type": kind, "reason": reason, "message": message})).unwrap()
}

const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(20);

#[track_caller]
fn assert_fails(stage: &Stage, parts: &[&str]) {
    let Stage::Failed(text) = stage else { panic!("expected a failure, got {stage:?}") };
    for part in parts {
        assert!(text.contains(part), "'{part}' is missing in: {text}");
    }
    assert!(text.lines().count() >= 2, "no advice in: {text}");
}

#[test]
fn progress_is_named() {
    assert_eq!(assess(&pod(json!({})), &[], SOON), Stage::Waiting("waiting for the kubelet".into()));
    let creating = waiting("ContainerCreating", "");
    assert_eq!(assess(&creating, &[], LATE), Stage::Waiting("creating the helper's container".into()));
    assert_eq!(assess(&creating, &[event("Normal", "Pulling", "")], LATE), Stage::Waiting("pulling the image".into()));
    let running = pod(json!({"phase": "Running", "containerStatuses": [
        {"name": "helper", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}]}));
    assert_eq!(assess(&running, &[], SOON), Stage::Running);
}

#[test]
fn image_errors_end_at_once_where_waiting_cannot_help() {
    assert_fails(
        &assess(&waiting("ErrImagePull", "rpc error: r.test/helper:1: not found"), &[], SOON),
        &["r.test/helper:1", "n1", "--helper-image"],
    );
    assert_fails(&assess(&waiting("ErrImagePull", "401 Unauthorized"), &[], SOON), &["imagePullSecret", "namespace sockpath"]);
    assert_fails(&assess(&waiting("ErrImageNeverPull", "not present"), &[], SOON), &["load it there"]);
    assert_fails(&assess(&waiting("InvalidImageName", "bad"), &[], SOON), &["valid image reference"]);
    assert_fails(&assess(&waiting("ErrImagePull", "no match for platform in manifest"), &[], SOON), &["architecture"]);
    let network = waiting("ErrImagePull", "dial tcp: i/o timeout");
    assert!(matches!(assess(&network, &[], SOON), Stage::Waiting(_)), "a registry may answer the second time");
    assert_fails(&assess(&network, &[], LATE), &["cannot reach the registry"]);
}

#[test]
fn containers_that_cannot_be_made() {
    for (message, advice) in [
        ("failed to create containerd container: seccomp is not supported", "--seccomp Unconfined"),
        ("exec /sockpath-helper: exec format error", "a different architecture"),
        ("exec: \"/sockpath-helper\": stat /sockpath-helper: no such file or directory", "does not contain /sockpath-helper"),
        ("unable to apply caps: operation not permitted", "capability"),
    ] {
        assert_fails(&assess(&waiting("CreateContainerError", message), &[], SOON), &[message, advice]);
    }
    let started = pod(json!({"phase": "Failed", "containerStatuses": [
        {"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "",
         "state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "OCI runtime create failed: exec format error"}}}]}));
    assert_fails(&assess(&started, &[], SOON), &["exec format error", "a different architecture"]);
}

#[test]
fn kubelet_refusals_name_the_node() {
    for (reason, advice) in
        [("OutOfpods", "node is full"), ("Evicted", "lacks a resource"), ("DeadlineExceeded", "start the command again")]
    {
        let refused = pod(json!({"phase": "Failed", "reason": reason, "message": "why"}));
        assert_fails(&assess(&refused, &[], SOON), &[reason, "n1", advice]);
    }
}

#[test]
fn a_process_that_ended_is_reported_with_its_last_output() {
    let ended = |phase: &str, code: u8, message: &str| {
        pod(json!({"phase": phase, "containerStatuses": [{"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": code, "reason": "Error", "message": message}}}]}))
    };
    for phase in ["Running", "Failed"] {
        let stage = assess(&ended(phase, 64, "usage:\n  other tool\n"), &[], SOON);
        assert_fails(&stage, &["exit code 64 (Error): usage:; other tool", "is r.test/helper:1 a helper", "--helper-image"]);
    }
    assert_fails(&assess(&ended("Succeeded", 0, ""), &[], SOON), &["ended before it was used", "--helper-image"]);
}

#[test]
fn a_taint_that_the_kubelet_refuses_is_reported() {
    let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
    let refused = pod(json!({"phase": "Failed", "reason": "TaintToleration", "message": message}));
    assert_fails(
        &assess(&refused, &[], SOON),
        &["TaintToleration", "removed its tolerations", "kubectl get node n1 -o jsonpath='{.spec.taints}'"],
    );
}

#[test]
fn unschedulable_says_what_the_scheduler_says() {
    let unschedulable = |message: &str| {
        pod(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}),
        )
    };
    assert_fails(&assess(&unschedulable("0/2 nodes are available: 2 Insufficient cpu"), &[], SOON), &["Insufficient cpu", "10m CPU"]);
    assert_fails(&assess(&unschedulable("node(s) had untolerated taint {a: b}"), &[], SOON), &["tolerates every taint"]);
}

#[test]
fn warnings_of_the_kubelet_count_when_they_persist() {
    let creating = waiting("ContainerCreating", "");
    let mount = [event("Warning", "FailedMount", "hostPath type check failed: /sys/fs/bpf is not a directory")];
    assert!(matches!(assess(&creating, &mount, SOON), Stage::Waiting(_)));
    assert_fails(&assess(&creating, &mount, LATE), &["FailedMount", "mount -t bpf bpf /sys/fs/bpf"]);
    assert_fails(
        &assess(&creating, &[event("Warning", "FailedCreatePodSandBox", "plugin type=\"bridge\" failed")], LATE),
        &["network plugin"],
    );
}

#[test]
fn a_node_that_is_not_ready_is_named() {
    let node = |status: &str| -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n2"}, "status": {"conditions": [
            {"type": "Ready", "status": status, "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}]}}))
        .unwrap()
    };
    assert!(node_trouble(&node("Unknown")).unwrap().contains("node n2 is not ready (NodeStatusUnknown)"));
    assert_eq!(node_trouble(&node("True")), None);
}
