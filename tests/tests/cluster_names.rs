//! What can be named on a real cluster, and the errors for what cannot be traced.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sockpath_tests::cluster::{Cluster, NAMESPACE, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};

const ELSEWHERE: &str = "sockpath-e2e-names";

/// A namespace that admits every pod, and nodes that are none; they go with this.
struct Extra<'a> {
    cluster: &'a Cluster,
    nodes: Vec<&'static str>,
}

impl<'a> Extra<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let extra = Self { cluster, nodes: Vec::new() };
        let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        extra.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE, "labels": labels}}));
        cluster.eventually("the namespace has its service account", std::time::Duration::from_secs(20), |c| {
            output(c.kubectl().args(["-n", ELSEWHERE, "get", "serviceaccount", "default"])).status.success()
        });
        extra
    }

    fn apply(&self, object: &Value) {
        self.feed(&["apply", "-f", "-"], object);
    }

    fn feed(&self, args: &[&str], object: &Value) {
        let mut child = self.cluster.kubectl().args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}: {object}");
    }

    fn pod(&self, name: &str, spec: &Value) {
        let mut spec = spec.clone();
        for (field, value) in [("terminationGracePeriodSeconds", json!(0)), ("nodeName", json!(self.cluster.nodes()[0]))] {
            spec.as_object_mut().unwrap().entry(field).or_insert(value);
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ELSEWHERE}, "spec": spec}));
    }

    fn ready(&self, pod: &str) {
        run(self.cluster.kubectl().args(["-n", ELSEWHERE, "wait", "--for=condition=Ready", "pod", pod, "--timeout=60s"]));
    }

    fn waits(&self, pod: &str, path: &str, value: &str) {
        let path = format!("--for=jsonpath={{.status.{path}}}={value}");
        run(self.cluster.kubectl().args(["-n", ELSEWHERE, "wait", &path, &format!("pod/{pod}"), "--timeout=60s"]));
    }
}

impl Drop for Extra<'_> {
    fn drop(&mut self) {
        // Pods of a node without a kubelet go by force only.
        let _ = output(self.cluster.kubectl().args(["-n", ELSEWHERE, "delete", "pod", "--all", "--force", "--grace-period=0"]));
        let _ = output(self.cluster.kubectl().args(["delete", "namespace", ELSEWHERE, "--timeout=90s"]));
        for node in &self.nodes {
            let _ = output(self.cluster.kubectl().args(["delete", "node", node]));
        }
    }
}

fn container(name: &str, command: &str) -> Value {
    json!({"name": name, "image": Cluster::workload_image(), "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command]})
}

fn serves(port: u16) -> String {
    format!("mkdir -p /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p {port} -h /tmp/www")
}

fn tried(cluster: &Cluster, args: &[&str]) -> Output {
    output(cluster.plugin().arg("trace").args(args).args(["--probe", "-o", "json"]))
}

#[track_caller]
fn traced(cluster: &Cluster, args: &[&str]) -> Value {
    let out = tried(cluster, args);
    assert!(out.status.success(), "trace {}: {}", args.join(" "), text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[track_caller]
fn refused(cluster: &Cluster, args: &[&str], why: &[&str]) {
    let out = tried(cluster, args);
    let said = text(&out.stderr);
    assert!(!out.status.success() && said.contains("error: "), "trace {}: {said}", args.join(" "));
    for part in why {
        assert!(said.contains(part), "trace {}: no `{part}` in: {said}", args.join(" "));
    }
}

#[test]
fn every_kind_of_name_is_a_place() {
    let Some(cluster) = cluster_or_skip("every_kind_of_name_is_a_place", Setup::RoutesNftables) else { return };
    let extra = Extra::new(&cluster);
    let node = cluster.nodes().remove(0);
    let template = json!({"metadata": {"labels": {"app": "shop"}}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
        "containers": [container("app", &serves(8080))]}});
    extra.apply(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop", "namespace": ELSEWHERE},
        "spec": {"selector": {"matchLabels": {"app": "shop"}}, "template": template}}));
    run(cluster.kubectl().args(["-n", ELSEWHERE, "rollout", "status", "deployment/shop", "--timeout=60s"]));

    for target in ["web:8080", "pod/web:8080", &format!("{NAMESPACE}/web:8080")] {
        assert_eq!(traced(&cluster, &["client", target])["target"]["name"], "web", "{target}");
    }
    let ip = run(cluster.kubectl().args(["-n", NAMESPACE, "get", "pod", "web", "-o", "jsonpath={.status.podIP}"]));
    assert_eq!(traced(&cluster, &["client", &format!("{ip}:8080")])["target"]["name"], "web", "by its address");
    let out = output(cluster.plugin_anywhere().args([
        "-n",
        ELSEWHERE,
        "trace",
        &format!("{NAMESPACE}/client"),
        "deploy/shop:8080",
        "--probe",
        "-o",
        "json",
    ]));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)));
    assert!(report["target"]["name"].as_str().unwrap().starts_with("shop-"), "{}", report["target"]);
    let from = output(cluster.plugin_anywhere().args([
        "-n",
        ELSEWHERE,
        "trace",
        "deploy/shop",
        &format!("{NAMESPACE}/web:8080"),
        "--probe",
        "-o",
        "json",
    ]));
    let report: Value = serde_json::from_slice(&from.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&from.stderr)));
    assert!(report["source"]["name"].as_str().unwrap().starts_with("shop-"), "{}", report["source"]);

    // A pod in the node's own namespace, by name and by the node's address.
    extra.pod("host", &json!({"hostNetwork": true, "containers": [container("app", &serves(18080))]}));
    extra.ready("host");
    let host = traced(&cluster, &["client", &format!("{ELSEWHERE}/host:18080")]);
    assert_eq!(host["target"]["name"], "host");
    let out = output(cluster.plugin_anywhere().args(["-n", ELSEWHERE, "accelerate", "host", "--dry-run"]));
    let said = text(&out.stderr);
    assert!(said.contains("uses the node's network namespace and is excluded"), "{said}");
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let address = run(cluster.kubectl().args(["get", "node", &node, "-o", path]));
    let host = traced(&cluster, &["client", &format!("{address}:18080")]);
    assert!(host["seen"]["requests"].as_u64() > Some(0), "{:#}", host["seen"]);

    // Init containers that go on, and ephemeral ones, are containers of the pod.
    let mut sidecar = container("sidecar", &serves(8081));
    sidecar["restartPolicy"] = "Always".into();
    extra.pod("several", &json!({"initContainers": [sidecar], "containers": [container("app", "sleep 1000000")]}));
    extra.ready("several");
    let image = Cluster::workload_image();
    run(cluster.kubectl().args(["-n", ELSEWHERE, "debug", "several", "--image", &image, "-c", "guest", "--profile=general", "--"]).args([
        "sh",
        "-c",
        &serves(8082),
    ]));
    for (container, port) in [("sidecar", 8081), ("guest", 8082)] {
        cluster.eventually("it listens", std::time::Duration::from_secs(20), |c| {
            let ask = ["-n", ELSEWHERE, "exec", "several", "-c", "app", "--", "wget", "-qO-"];
            output(c.kubectl().args(ask).arg(format!("http://127.0.0.1:{port}/"))).status.success()
        });
        let args = [&format!("{ELSEWHERE}/several"), &format!("localhost:{port}")];
        let report = traced(&cluster, &[args[0], args[1], "-c", container]);
        assert_eq!(report["scenario"], "in-pod", "{container}");
    }
    refused(&cluster, &[&format!("{ELSEWHERE}/several"), "localhost:8081", "-c", "none"], &["none", "sidecar"]);
    cluster.assert_no_helpers();
}

#[test]
fn what_cannot_be_traced_is_reported_with_the_reason() {
    let Some(cluster) = cluster_or_skip("what_cannot_be_traced_is_reported_with_the_reason", Setup::RoutesNftables) else { return };
    let extra = Extra::new(&cluster);
    extra.pod("done", &json!({"restartPolicy": "Never", "containers": [container("app", "true")]}));
    extra.pod("begins", &json!({"initContainers": [container("first", "sleep 1000000")], "containers": [container("app", "true")]}));
    let mut unknown = container("app", "true");
    unknown["image"] = "127.0.0.1:1/none:v1".into();
    extra.pod("waits", &json!({"containers": [unknown]}));
    let nowhere = json!({"nodeName": null, "nodeSelector": {"e2e": "none"}, "containers": [container("app", "true")]});
    extra.pod("nowhere", &nowhere);
    extra.waits("done", "phase", "Succeeded");
    extra.waits("nowhere", "conditions[?(@.type==\"PodScheduled\")].status", "False");
    cluster.eventually("the image is not there", std::time::Duration::from_secs(60), |c| {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        run(c.kubectl().args(["-n", ELSEWHERE, "get", "pod", "waits", "-o", path])).contains("Image")
    });
    let to = |name: &str| format!("{ELSEWHERE}/{name}:8080");
    refused(&cluster, &["client", &to("done")], &["done", "it has completed"]);
    refused(&cluster, &["client", &to("waits")], &["container app is waiting (", "Image"]);
    refused(&cluster, &["client", &to("nowhere")], &["it is not scheduled yet", "available"]);
    refused(&cluster, &["client", &to("missing")], &["missing"]);
    refused(&cluster, &["client", "svc/none"], &["none"]);
    refused(&cluster, &["client", "deploy/none"], &["none"]);
    // Its first container runs, so there is something to look at.
    traced(&cluster, &[&format!("{ELSEWHERE}/begins"), &format!("{NAMESPACE}/web:8080")]);
    // The kubeconfig's flags are kubectl's.
    refused(&cluster, &["client", "web:8080", "--context", "no-such-context"], &["no-such-context"]);
    refused(&cluster, &["client", "web:8080", "--user", "no-such-user"], &["no-such-user"]);
    refused(&cluster, &["client", "web:8080", "--cluster", "no-such-cluster"], &["no-such-cluster"]);
    refused(&cluster, &["client", "web:8080", "--kubeconfig", "/none"], &["/none"]);
    cluster.assert_no_helpers();
}

#[test]
fn nodes_without_a_kernel_to_share_are_reported() {
    // Node objects without a machine are created, which is done only to a cluster of our own.
    let Some(cluster) = own_cluster_or_skip("nodes_without_a_kernel_to_share_are_reported") else { return };
    let mut extra = Extra::new(&cluster);
    let nodes = [
        ("e2e-windows", json!({"kubernetes.io/os": "windows"}), "runs windows"),
        ("e2e-virtual", json!({"type": "virtual-kubelet"}), "virtual-kubelet"),
        ("e2e-fargate", json!({"eks.amazonaws.com/compute-type": "fargate"}), "Fargate"),
    ];
    for (node, labels, why) in nodes {
        extra.nodes.push(node);
        extra.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}));
        let tolerations = json!([{"operator": "Exists"}]);
        extra.pod(node, &json!({"nodeName": node, "tolerations": tolerations, "containers": [container("app", "true")]}));
        refused(&cluster, &["client", &format!("{ELSEWHERE}/{node}:80")], &[node, why]);
    }
    let doctor = output(cluster.plugin().args(["doctor", "-o", "json"]));
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&doctor.stderr)));
    for (node, why) in [("e2e-windows", "windows"), ("e2e-virtual", "virtual"), ("e2e-fargate", "Fargate")] {
        let told = |c: &&Value| c["scope"] == format!("node {node}") && c["found"].to_string().contains(why);
        assert!(report["checks"].as_array().unwrap().iter().any(|c| told(&c)), "{node}: {report:#}");
    }
    cluster.assert_no_helpers();
}
