//! Pods, nodes and namespaces that change while a command runs: replaced, drained, cordoned, rebooted, deleted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sockpath_tests::cluster::{Cluster, HELPERS, NAMESPACE, Setup, cluster_or_skip, json, output, own_cluster_or_skip, run};
use sockpath_tests::talk::Running;

#[path = "../../kubectl-sockpath/tests/dir/mod.rs"]
mod dir;
use dir::Dir;

/// A Deployment of one pod that serves, and goes with this.
struct Serving<'a>(&'a Cluster);

impl<'a> Serving<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let command = "mkdir -p /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
        let container = json!({"name": "app", "image": Cluster::workload_image(), "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command], "ports": [{"containerPort": 8080, "name": "http"}]});
        let template = json!({"metadata": {"labels": {"app": "serving"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}});
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "serving", "namespace": NAMESPACE},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "serving"}}, "template": template}});
        apply(cluster, &object);
        run(cluster.kubectl().args(["-n", NAMESPACE, "rollout", "status", "deployment/serving", "--timeout=60s"]));
        Self(cluster)
    }

    /// Name and node of the pod.
    fn pod(&self) -> (String, String) {
        let path = "jsonpath={.items[0].metadata.name} {.items[0].spec.nodeName}";
        let out = run(self.0.kubectl().args(["-n", NAMESPACE, "get", "pods", "-l", "app=serving", "-o", path]));
        let (name, node) = out.split_once(' ').unwrap();
        (name.to_owned(), node.to_owned())
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ =
            output(self.0.kubectl().args(["-n", NAMESPACE, "delete", "deployment", "serving", "--cascade=foreground", "--timeout=60s"]));
    }
}

#[test]
fn a_trace_that_follows_goes_on_with_the_pod_that_replaces_another() {
    let test = "a_trace_that_follows_goes_on_with_the_pod_that_replaces_another";
    let Some(cluster) = cluster_or_skip(test, Setup::RoutesNftables) else { return };
    let serving = Serving::new(&cluster);
    let (first, _) = serving.pod();
    let files = Dir::new("parts");
    let [page, recording] = ["report.html", "packets.rec"].map(|name| files.join(name));
    let mut plugin = cluster.plugin();
    plugin.args(["trace", "client", "deploy/serving:http", "--follow", "--probe"]).arg("--html").arg(&page).arg("--record").arg(&recording);
    let mut running = Running::start(&mut plugin);
    running.expect("it watches", Duration::from_secs(30), |l| l.starts_with("watching client to deploy/serving:http for 1h"));
    run(cluster.kubectl().args(["-n", NAMESPACE, "delete", "pod", &first, "--wait=false"]));
    running.expect("the deletion is reported", Duration::from_secs(30), |l| l.contains(&format!("pod {NAMESPACE}/{first} was deleted")));
    let line = running.expect("its successor is named", Duration::from_secs(60), |l| l.starts_with("the trace continues: client on "));
    let (second, node) = serving.pod();
    assert!(second != first && line.ends_with(&format!("to {second} on {node}")), "{line}");
    running.expect("it watches again", Duration::from_secs(30), |l| l.starts_with("watching "));
    // A probe reaches the successor: its packets are in the second report.
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.matches("interrupted: client to deploy/serving:http was watched on").count() == 1, "{said}");
    // Each part has files of its own, with the pod of its time.
    for (file, pod, other) in [("report.html", &first, &second), ("report-2.html", &second, &first)] {
        let page = std::fs::read_to_string(files.join(file)).expect("a page of that part");
        assert!(page.contains(pod.as_str()) && !page.contains(&format!("to {other}")), "{file}");
    }
    for (file, pod) in [("packets.rec", &first), ("packets-2.rec", &second)] {
        // Whether packets were seen in time does not matter here.
        let replayed = json(&output(cluster.plugin().args(["trace", "-o", "json", "--replay"]).arg(files.join(file))));
        assert_eq!(replayed["target"]["name"], pod.as_str(), "{file}");
    }
    cluster.assert_no_helpers();
}

/// A node that is drained: pods and helper go at the same time.
#[test]
fn a_trace_that_follows_goes_on_when_the_node_is_drained() {
    let Some(cluster) = own_cluster_or_skip("a_trace_that_follows_goes_on_when_the_node_is_drained") else { return };
    // A pod that the scheduler places on n2, because n1 takes none.
    run(cluster.kubectl().args(["cordon", "n1"]));
    let serving = Serving::new(&cluster);
    run(cluster.kubectl().args(["uncordon", "n1"]));
    assert_eq!(serving.pod().1, "n2");
    let mut running = Running::start(cluster.plugin().args(["trace", "client", "deploy/serving:http", "--follow", "--no-probe"]));
    running.expect("it watches", Duration::from_secs(30), |l| l.starts_with("watching "));
    run(cluster.kubectl().args(["cordon", "n2"]));
    for (namespace, app) in [(HELPERS, "app.kubernetes.io/name=sockpath-helper"), (NAMESPACE, "app=serving")] {
        let pods =
            ["get", "pods", "-n", namespace, "-l", app, "--field-selector", "spec.nodeName=n2", "-o", "jsonpath={.items[*].metadata.name}"];
        for pod in run(cluster.kubectl().args(pods)).split_whitespace() {
            evict(&cluster, namespace, pod);
        }
    }
    let line = running.expect("its successor is named", Duration::from_secs(90), |l| l.starts_with("the trace continues: "));
    run(cluster.kubectl().args(["uncordon", "n2"]));
    assert!(line.contains("client on n1 to serving-") && line.ends_with(" on n1"), "{line}");
    running.expect("it watches again", Duration::from_secs(30), |l| l.starts_with("watching "));
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(130), "{said}");
    cluster.assert_no_helpers();
}

fn evict(cluster: &Cluster, namespace: &str, pod: &str) {
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}});
    let file = std::env::temp_dir().join(format!("sockpath-evict-{}.json", std::process::id()));
    std::fs::write(&file, eviction.to_string()).unwrap();
    run(cluster.kubectl().args(["create", "--raw", &format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction"), "-f"]).arg(&file));
    let _ = std::fs::remove_file(file);
}

fn apply(cluster: &Cluster, object: &Value) {
    let file = std::env::temp_dir().join(format!("sockpath-extra-{}.json", std::process::id()));
    std::fs::write(&file, object.to_string()).unwrap();
    run(cluster.kubectl().arg("apply").arg("-f").arg(&file));
    let _ = std::fs::remove_file(file);
}

#[test]
fn what_happens_to_nodes_and_namespaces_is_one_line_each() {
    let Some(cluster) = own_cluster_or_skip("what_happens_to_nodes_and_namespaces_is_one_line_each") else { return };
    let namespace = "sockpath-e2e-short-lived";
    apply(
        &cluster,
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
    );
    let container =
        json!({"name": "app", "image": Cluster::workload_image(), "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]});
    let account = || run(cluster.kubectl().args(["-n", namespace, "get", "serviceaccounts", "-o", "name"])).contains("/default");
    cluster.eventually("the namespace is complete", Duration::from_secs(20), |_| account());
    for (pod, node) in [("one", "n1"), ("two", "n2")] {
        apply(
            &cluster,
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": namespace, "labels": {"app": pod}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]}}),
        );
    }
    run(cluster.kubectl().args(["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]));
    let mut running = Running::start(cluster.plugin_anywhere().args(["accelerate", "--via", "socket", "-n", namespace]));
    running.expect("it works", Duration::from_secs(40), |l| l.starts_with("bypassed: "));
    let mut expect = |words: &str| running.expect(words, Duration::from_secs(40), |l| l.contains(words));
    run(cluster.kubectl().args(["cordon", "n2"]));
    expect("node n2 was cordoned: ");
    evict(&cluster, namespace, "two");
    expect("node n2 is being drained: ");
    run(cluster.kubectl().args(["uncordon", "n2"]));
    expect("node n2 was uncordoned");
    // The kubelet reports the real identifier again, which is another reboot.
    run(cluster.kubectl().args([
        "patch",
        "node",
        "n2",
        "--subresource=status",
        "-p",
        r#"{"status": {"nodeInfo": {"bootID": "another"}}}"#,
    ]));
    expect("node n2 was rebooted");
    run(cluster.kubectl().args(["delete", "namespace", namespace, "--wait=false"]));
    expect(&format!("namespace {namespace} is being deleted: "));
    run(cluster.kubectl().args(["wait", "--for=delete", &format!("namespace/{namespace}"), "--timeout=120s"]));
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    assert!(!said.contains(&format!("pod {namespace}/one was deleted")), "the namespace says it: {said}");
    for words in ["was cordoned", "being drained", "is being deleted"] {
        assert_eq!(said.matches(words).count(), 1, "{words}: {said}");
    }
    cluster.assert_nothing_left();
}
