use serde_json::{Value, json};
use sockpath_protocol::request::Protocol;

use super::*;

fn pod(mut change: Value) -> ApiPod {
    let mut base = json!({
        "metadata": {"name": "api", "namespace": "prod", "uid": "u-1"},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "app", "ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}, {"name": "sidecar"}]},
        "status": {"phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}], "hostIPs": [{"ip": "192.0.2.1"}],
            "containerStatuses": [status("app", json!({"running": {}})), status("sidecar", json!({"running": {}}))]}
    });
    merge(&mut base, &mut change);
    serde_json::from_value(base).unwrap()
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "ready": true, "restartCount": 0, "image": "", "imageID": "", "containerID": format!("containerd://id-{name}"), "state": state})
}

fn merge(base: &mut Value, change: &mut Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (k, v) in change {
                merge(base.entry(k.clone()).or_insert(Value::Null), v);
            }
        }
        (base, change) => *base = change.take(),
    }
}

fn node(change: Value) -> NodeFacts {
    let mut base = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]}});
    merge(&mut base, &mut change.clone());
    NodeFacts::of(&serde_json::from_value(base).unwrap())
}

#[test]
fn a_running_pod() {
    let info = pod_info(&pod(json!({})), Some(&node(json!({}))));
    assert_eq!(info.unusable, None);
    let p = &info.pod;
    assert_eq!((p.namespace.as_str(), p.name.as_str(), p.uid.as_str(), p.node.as_str()), ("prod", "api", "u-1", "n1"));
    assert_eq!(p.ips, ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    assert_eq!(p.containers[0], Container { name: "app".into(), id: "id-app".into() });
    let dns = Port { name: None, number: 53, protocol: Protocol::Udp };
    assert_eq!(
        info.containers,
        [ContainerInfo { name: "app".into(), ports: vec![8080.into(), dns] }, ContainerInfo { name: "sidecar".into(), ports: vec![] }]
    );
    assert_eq!(host_ips(&pod(json!({}))), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn sidecars_and_ephemeral_containers_count_finished_init_containers_do_not() {
    let info = pod_info(
        &pod(json!({"status": {
            "initContainerStatuses": [status("setup", json!({"terminated": {"exitCode": 0}})), status("mesh", json!({"running": {}}))],
            "ephemeralContainerStatuses": [status("debug", json!({"running": {}}))]}})),
        None,
    );
    let names: Vec<_> = info.pod.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["app", "sidecar", "mesh", "debug"]);
}

#[test]
fn static_pods_are_found_by_the_hash_the_kubelet_uses() {
    let info = pod_info(&pod(json!({"metadata": {"annotations": {"kubernetes.io/config.hash": "0a1b"}}})), None);
    assert_eq!(info.pod.uid, "0a1b");
}

#[test]
fn what_cannot_be_used_says_why() {
    let waiting = json!([status("app", json!({"waiting": {"reason": "CrashLoopBackOff"}}))]);
    let cases = [
        (json!({"status": {"phase": "Succeeded"}}), "has completed"),
        (json!({"status": {"phase": "Failed", "reason": "Evicted"}}), "failed (Evicted)"),
        (
            json!({"spec": {"nodeName": null}, "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]}}),
            "not scheduled yet: 0/2 nodes",
        ),
        (json!({"status": {"phase": "Pending", "containerStatuses": waiting}}), "container app is waiting (CrashLoopBackOff)"),
        (json!({"spec": {"os": {"name": "windows"}}}), "Windows"),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), "being deleted"),
    ];
    for (change, expected) in cases {
        let why = pod_info(&pod(change), None).unusable.unwrap_or_default();
        assert!(why.contains(expected), "'{expected}' is missing in '{why}'");
    }
}

#[test]
fn init_containers_that_hold_a_pod_up_are_named() {
    let info = pod_info(
        &pod(json!({"status": {"phase": "Pending",
            "containerStatuses": [status("app", json!({"waiting": {"reason": "PodInitializing"}}))],
            "initContainerStatuses": [status("migrate", json!({"waiting": {"reason": "ImagePullBackOff"}}))]}})),
        None,
    );
    assert_eq!(info.unusable.unwrap(), "it is Pending: container migrate is waiting (ImagePullBackOff)");
}

#[test]
fn nodes_without_a_kernel_of_ours() {
    let cases = [
        (json!({"metadata": {"labels": {"kubernetes.io/os": "windows"}}}), "runs windows"),
        (json!({"metadata": {"labels": {"type": "virtual-kubelet"}}}), "virtual-kubelet"),
        (json!({"spec": {"taints": [{"key": "virtual-kubelet.io/provider", "effect": "NoSchedule"}]}}), "virtual-kubelet"),
        (json!({"metadata": {"labels": {"eks.amazonaws.com/compute-type": "fargate"}}}), "Fargate"),
    ];
    for (change, expected) in cases {
        let facts = node(change);
        assert!(facts.unusable.as_ref().is_some_and(|w| w.contains(expected)), "{facts:?}");
        assert_eq!(pod_info(&pod(json!({})), Some(&facts)).unusable, facts.unusable);
    }
    assert_eq!(node(json!({})).unusable, None);
    assert_eq!(node(json!({})).node.ips, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn host_network_is_noted() {
    assert!(pod_info(&pod(json!({"spec": {"hostNetwork": true}})), None).pod.host_network);
}
