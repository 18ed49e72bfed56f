//! A cluster that is not wholly well: nodes that start slowly, hang or are not ready, pods that change, several users.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sockpath_tests::cluster::{Cluster, HELPERS, Held, NAMESPACE, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};
use sockpath_tests::talk::{PORT, Running, Talk, install, pod_ip, serve};

/// A daemon of node n2 that is frozen until this goes.
struct Frozen<'a> {
    cluster: &'a Cluster,
    daemon: &'static str,
    frozen: bool,
}

impl<'a> Frozen<'a> {
    fn new(cluster: &'a Cluster, daemon: &'static str) -> Self {
        cluster.daemon("stop", "n2", daemon);
        Self { cluster, daemon, frozen: true }
    }

    /// Makes the node not ready, as the node controller does when a kubelet has not reported for 50 s.
    fn unready(&self) {
        let condition =
            json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."});
        let patch = json!({"status": {"conditions": [condition]}}).to_string();
        run(self.cluster.kubectl().args(["patch", "node", "n2", "--subresource=status", "-p", &patch]));
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            self.cluster.daemon("cont", "n2", self.daemon);
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.thaw();
        let _ = output(self.cluster.kubectl().args(["wait", "--for=condition=Ready", "node/n2", "--timeout=90s"]));
        let _ = output(self.cluster.kubectl().args(["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"]));
    }
}

/// Traffic on n1, from `client` to `web`.
fn talking(cluster: &Held) -> Talk<'_> {
    install(cluster, &["client", "web"]);
    serve(cluster, "web");
    Talk::start(cluster, "client", &pod_ip(cluster, "web"), PORT, 1)
}

#[test]
fn a_runtime_that_hangs_on_one_node_delays_no_other_node() {
    let Some(cluster) = own_cluster_or_skip("a_runtime_that_hangs_on_one_node_delays_no_other_node") else { return };
    let talk = talking(&cluster);
    let frozen = Frozen::new(&cluster, "containerd");
    let began = Instant::now();
    let mut running = Running::start(cluster.plugin().args(["accelerate", "--via", "socket", "-l", "set=e2e", "--for", "60s"]));
    running.expect_pair("client", "web", "accelerated");
    assert!(began.elapsed() < Duration::from_secs(15), "n1 waited for n2: {:?}", began.elapsed());
    let line = running.expect("n2 is named", Duration::from_secs(40), |l| l.contains("on node n2 does not run after"));
    assert!(line.starts_with("warning: "), "{line}");
    // Well past the time after which a helper ends that hears nothing.
    talk.goes_on();
    let status: Value = serde_json::from_slice(&output(cluster.plugin().args(["status", "-o", "json"])).stdout).unwrap();
    assert_eq!(status["active"], true, "{status:#}");
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(1), "n2 took no part: {said}");
    assert!(!said.contains("received no heartbeat"), "{said}");
    drop(frozen);
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn a_node_that_is_not_ready_is_named_and_the_others_answer() {
    let Some(cluster) = own_cluster_or_skip("a_node_that_is_not_ready_is_named_and_the_others_answer") else { return };
    let mut frozen = Frozen::new(&cluster, "kubelet");
    frozen.unready();
    for (command, answer) in [("status", "n1: nothing is accelerated"), ("stop", ""), ("cleanup", "")] {
        let began = Instant::now();
        let out = output(cluster.plugin().arg(command));
        let (said, took) = (text(&out.stderr), began.elapsed());
        assert_eq!(out.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("node n2 is not ready (NodeStatusUnknown)") && said.contains("--wait-nodes"), "{command}: {said}");
        assert!(!said.contains("n1"), "{command}: {said}");
        assert!(text(&out.stdout).contains(answer), "{command}: {}", text(&out.stdout));
        assert!(took < Duration::from_secs(10), "{command}: {took:?}");
    }
    cluster.assert_no_helpers();
    // Waited for, it takes part once it is ready.
    let mut waiting = Running::start(cluster.plugin().args(["-v", "status", "--wait-nodes", "90s"]));
    waiting.expect("n1 answers meanwhile", Duration::from_secs(20), |l| l == "n1: nothing is accelerated");
    frozen.thaw();
    waiting.expect("n2 answers when it is ready", Duration::from_secs(90), |l| l == "n2: nothing is accelerated");
    let (status, said) = waiting.end();
    assert!(status.success(), "{said}");
    drop(frozen);
    cluster.assert_no_helpers();
}

#[test]
fn a_trace_between_nodes_names_the_one_it_did_not_see() {
    let Some(cluster) = own_cluster_or_skip("a_trace_between_nodes_names_the_one_it_did_not_see") else { return };
    let frozen = Frozen::new(&cluster, "containerd");
    let out = output(cluster.plugin().args(["trace", "client", "web-1:8080", "--probe", "-o", "json"]));
    let (said, report) = (text(&out.stderr), serde_json::from_slice::<Value>(&out.stdout).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("on node n2 does not run after 20s: "), "{said}");
    assert_eq!(report["nodes"].as_array().unwrap().len(), 1, "{}", report["nodes"]);
    let codes: Vec<&str> = report["findings"].as_array().unwrap().iter().filter_map(|f| f["id"].as_str()).collect();
    assert!(codes.contains(&"node-missing") && !codes.contains(&"half-missing"), "{codes:?}");
    drop(frozen);
    cluster.assert_no_helpers();
}

/// With the roles of manifests/rbac.yaml and nothing else.
#[test]
fn a_user_with_our_roles_sees_and_stops_what_another_accelerates() {
    let Some(cluster) = cluster_or_skip("a_user_with_our_roles_sees_and_stops_what_another_accelerates", Setup::RoutesNftables) else {
        return;
    };
    for (namespace, role) in [(HELPERS, "--role=sockpath-user"), (NAMESPACE, "--clusterrole=sockpath-lookup")] {
        let _ = output(cluster.kubectl().args(["-n", namespace, "create", "rolebinding", "e2e-alice", role, "--user=alice"]));
    }
    let alice = |command: &str| output(cluster.plugin().args(["--as", "alice", command]));
    for (command, answer) in [("status", "nothing is accelerated\n"), ("stop", "nothing was accelerated\n")] {
        let out = alice(command);
        assert!(out.status.success(), "nothing that runs is not an error: {}", text(&out.stderr));
        assert_eq!(text(&out.stdout), answer);
        assert!(text(&out.stderr).contains("you may not list nodes"), "{}", text(&out.stderr));
    }
    let doctor = output(cluster.plugin_anywhere().args(["--as", "alice", "doctor"]));
    assert!(doctor.status.success(), "the namespace of the context is not one she needs: {}", text(&doctor.stdout));

    let talk = talking(&cluster);
    let mut running = Running::start(cluster.plugin().args(["accelerate", "--via", "socket", "client", "web"]));
    running.expect_pair("client", "web", "accelerated");
    let status = alice("status");
    assert!(status.status.success() && text(&status.stdout).contains(": accelerated by "), "{}", text(&status.stdout));
    let stop = alice("stop");
    assert!(stop.status.success() && text(&stop.stdout).contains("on the normal path"), "{}", text(&stop.stdout));
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    assert!(said.lines().any(|l| l.starts_with("ended on ") && l.contains("by `stop` of ")), "{said}");
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

/// A pod that serves on n1 and goes with this.
struct Extra<'a>(&'a Cluster);

impl<'a> Extra<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let command = "mkdir -p /tmp/www && echo hello > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
        let node = cluster.nodes().remove(0);
        let container = json!({"name": "app", "image": Cluster::workload_image(), "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command], "ports": [{"containerPort": 8080, "name": "http"}]});
        let template = json!({"metadata": {"labels": {"app": "extra"}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}});
        let object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "extra", "namespace": NAMESPACE},
            "spec": {"serviceName": "extra", "replicas": 1, "selector": {"matchLabels": {"app": "extra"}}, "template": template}});
        let file = std::env::temp_dir().join(format!("sockpath-extra-{}.json", std::process::id()));
        std::fs::write(&file, object.to_string()).unwrap();
        run(cluster.kubectl().arg("apply").arg("-f").arg(&file));
        let _ = std::fs::remove_file(file);
        run(cluster.kubectl().args(["-n", NAMESPACE, "rollout", "status", "statefulset/extra", "--timeout=60s"]));
        Self(cluster)
    }
}

impl Drop for Extra<'_> {
    fn drop(&mut self) {
        let _ = output(self.0.kubectl().args(["-n", NAMESPACE, "delete", "statefulset", "extra", "--cascade=foreground", "--timeout=60s"]));
    }
}

#[test]
fn changed_pods_are_reported_and_end_the_trace_when_gone() {
    let Some(cluster) = cluster_or_skip("changed_pods_are_reported_and_end_the_trace_when_gone", Setup::RoutesNftables) else {
        return;
    };
    let _extra = Extra::new(&cluster);
    // By every name it has.
    for name in ["sts/extra:http", "app=extra:8080", "extra-0:http"] {
        let out = output(cluster.plugin().args(["trace", "client", name, "--probe", "-o", "json"]));
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
    }
    let mut running = Running::start(cluster.plugin().args(["trace", "client", "sts/extra:http", "--count", "1000", "--no-probe"]));
    running.expect("it watches", Duration::from_secs(30), |l| l.starts_with("watching "));
    run(cluster.kubectl().args(["-n", NAMESPACE, "delete", "pod", "extra-0", "--wait=false"]));
    running.expect("the deletion is printed", Duration::from_secs(30), |l| l.contains(&format!("pod {NAMESPACE}/extra-0 was ")));
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(3), "no packet was seen: {said}");
    assert!(said.contains("the trace ends"), "{said}");
    cluster.assert_no_helpers();
}

#[test]
fn ctrl_c_before_any_packet_says_what_was_watched() {
    let Some(cluster) = cluster_or_skip("ctrl_c_before_any_packet_says_what_was_watched", Setup::RoutesNftables) else { return };
    let mut running = Running::start(cluster.plugin().args(["trace", "client", "web:9", "--no-probe"]));
    running.expect("it watches", Duration::from_secs(30), |l| l.starts_with("watching "));
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("interrupted: client to web:9 was watched on ") && said.contains("no packet was observed"), "{said}");
    cluster.assert_no_helpers();
}

#[test]
fn addresses_and_names_of_dns_are_what_they_are() {
    let Some(cluster) = cluster_or_skip("addresses_and_names_of_dns_are_what_they_are", Setup::RoutesNftables) else { return };
    let nodes = cluster.nodes();
    let of_node = |node: &str| {
        run(cluster.kubectl().args(["get", "node", node, "-o", "jsonpath={.status.addresses[?(@.type=='InternalIP')].address}"]))
    };
    let web_1 = format!("web-1.{NAMESPACE}.svc.cluster.local");
    for (target, name, service) in [
        (format!("web.{NAMESPACE}"), "web", Some("web")),
        (web_1, "web-1", Some("web-1")),
        (format!("node/{}:10250", nodes[0]), nodes[0].as_str(), None),
        (format!("{}:10250", of_node(&nodes[0])), nodes[0].as_str(), None),
    ] {
        let out = output(cluster.plugin().args(["trace", "client", &target, "--probe", "-o", "json"]));
        let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{target}: {e}: {}", text(&out.stderr)));
        assert_eq!(report["target"]["name"], name, "{target}: {}", report["target"]);
        assert_eq!(report["via_service"].as_str(), service.map(|s| format!("{NAMESPACE}/{s}")).as_deref(), "{target}");
    }
    // A node asks as well.
    let out = output(cluster.plugin().args(["trace", &format!("node/{}", nodes[0]), "web:8080", "--probe", "-o", "json"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    cluster.assert_no_helpers();
}
