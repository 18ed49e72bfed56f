//! What is in the cluster: nodes of which some are not well, and pods of the size that pods have.

use std::time::Duration;

use serde_json::{Value, json};

/// Nodes.
pub const NODES: usize = 300;
/// Pods on each.
pub const PODS: usize = 30;
/// Where no pod is admitted.
pub const REFUSED: &str = "node-013";
/// Where the image cannot be pulled.
pub const UNPULLED: &str = "node-107";
/// Which is not ready.
pub const UNREADY: &str = "node-200";

fn name_of(node: usize) -> String {
    format!("node-{node:03}")
}

/// An address of a pod.
pub fn address(node: usize, pod: usize) -> String {
    format!("10.{}.{}.{}", 100 + node / 256, node % 256, pod + 2)
}

/// The nodes, each with 50 images as kubelets report them.
pub fn nodes() -> Vec<Value> {
    let images: Vec<Value> = (0..50)
        .map(|i| json!({"names": [format!("registry.example/team/image-{i}@sha256:{i:064}")], "sizeBytes": 100_000_000 + i}))
        .collect();
    let node = |i: usize| {
        let name = name_of(i);
        let ready = if name == UNREADY { "Unknown" } else { "True" };
        json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
            "spec": {"podCIDR": format!("10.{}.{}.0/24", 100 + i / 256, i % 256)},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.{}.{}", i / 250, i % 250 + 1)}],
                "conditions": [{"type": "Ready", "status": ready, "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}],
                "images": images,
                "nodeInfo": {"bootID": "b", "architecture": "amd64", "containerRuntimeVersion": "containerd://2.1.9", "kernelVersion": "6.12.0",
                    "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": ""}}})
    };
    (0..NODES).map(node).collect()
}

/// The pods, each of some 8 KiB, of which the plugin reads little.
pub fn workloads() -> Vec<Value> {
    let env: Vec<Value> =
        (0..40).map(|i| json!({"name": format!("SETTING_{i}"), "value": format!("https://service-{i}.example.internal/path")})).collect();
    let managed = json!([{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": "x".repeat(3_000)}}}]);
    let pod = |node: usize, pod: usize| {
        let (name, ip) = (format!("web-{node:03}-{pod:02}"), address(node, pod));
        json!({"metadata": {"name": name, "namespace": format!("team-{}", pod % 10), "uid": format!("uid-{name}"), "labels": {"app": "web"}, "managedFields": managed},
            "spec": {"nodeName": name_of(node), "containers": [{"name": "app", "image": "registry.example/web:1", "env": env, "ports": [{"containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": format!("192.168.{}.{}", node / 250, node % 250 + 1),
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "app", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                    "containerID": format!("containerd://{node:032x}{pod:032x}"), "state": {"running": {}}}]}})
    };
    (0..NODES).flat_map(|n| (0..PODS).map(move |p| (n, p))).map(|(n, p)| pod(n, p)).collect()
}

/// How long a helper takes to run on a node.
pub fn start_of(node: &str) -> Duration {
    let number: u64 = node.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    Duration::from_millis(300 + number * 37 % 1_500)
}

/// What the kubelet of a node makes of a helper pod.
pub fn status_of(node: &str) -> Value {
    let container =
        |state: Value| json!([{"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}]);
    if node == UNPULLED {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
        return json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": container(waiting)});
    }
    json!({"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": container(json!({"running": {}}))})
}

/// Why a node's pod is not admitted.
pub fn refusal(node: &str, name: &str) -> Option<Value> {
    let message = format!("pods \"{name}\" is forbidden: exceeded quota: helpers, requested: pods=1, used: pods=12, limited: pods=12");
    (node == REFUSED).then(|| json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403, "reason": "Forbidden", "message": message}))
}

/// Everything else that is read.
pub fn other(path: &str) -> (u16, Value) {
    match path {
        "/version" => (
            200,
            json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": "linux/amd64"}),
        ),
        "/api/v1/namespaces/sockpath" => (
            200,
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "sockpath",
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
        ),
        _ => (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": []})),
    }
}

/// Reviews of rights: everything is allowed.
pub fn review(body: &[u8]) -> (u16, Value) {
    let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
    review["status"] = json!({"allowed": true});
    (201, review)
}
