//! The short path on a real cluster, as the default uses it. Every byte is checked.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use sockpath_tests::cluster::{Cluster, Held, NAMESPACE, Setup, cluster_or_skip, json, output, run, text};
use sockpath_tests::talk::{PORT, Running, Talk, end_all, pod_ip, with_servers};

/// How long a connection may take to get to a path, or a policy to be noticed.
const PATIENCE: Duration = Duration::from_secs(40);

fn cluster_or_none(test: &str) -> Option<Held> {
    cluster_or_skip(test, Setup::RoutesNftables).map(with_servers)
}

fn accelerate(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = cluster.plugin();
    command.args(["accelerate", "-l", "set=e2e"]).args(args);
    command
}

/// On one node, between nodes, and through a Service: the default puts all on the short path, whatever the programs are.
#[test]
fn connections_of_one_node_and_between_nodes_take_the_short_path() {
    let Some(cluster) = cluster_or_none("connections_of_one_node_and_between_nodes_take_the_short_path") else { return };
    let near = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 2);
    let far = Talk::start(&cluster, "client", &pod_ip(&cluster, "web-1"), PORT, 2);
    let service = run(cluster.kubectl().args(["-n", NAMESPACE, "get", "service", "talk", "-o", "jsonpath={.spec.clusterIP}"]));
    let mut running = Running::start(&mut accelerate(&cluster, &[]));
    running.expect_pairs(&[("client", "web"), ("client", "web-1")], "accelerated (short)");
    let through = Talk::start(&cluster, "client-1", &service, 90, 2);
    let is_through = |l: &str| l.contains("/client-1:") && l.contains(&format!("via {service}:90")) && l.contains("accelerated (short)");
    running.expect("a connection through the Service", PATIENCE, is_through);
    for talk in [&near, &far, &through] {
        talk.goes_on();
    }
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success() && said.contains("device to device"), "{said}");
    assert!(said.contains("bypassed: "), "what is bypassed is not shown: {said}");
    end_all([near, far, through]);
    cluster.assert_nothing_left();
}

/// Through a node port the pod's node translates: the connection goes on whole, whichever part of it is redirected.
#[test]
fn connections_through_a_node_port_go_on() {
    let Some(cluster) = cluster_or_none("connections_through_a_node_port_go_on") else { return };
    let port = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "talk-port", "namespace": NAMESPACE},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 90, "targetPort": PORT}]}});
    let file = std::env::temp_dir().join(format!("sockpath-node-port-{}.json", std::process::id()));
    std::fs::write(&file, port.to_string()).unwrap();
    run(cluster.kubectl().arg("apply").arg("-f").arg(&file));
    let _ = std::fs::remove_file(file);
    let get = |what: &[&str]| run(cluster.kubectl().args(what));
    let number = get(&["-n", NAMESPACE, "get", "service", "talk-port", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let nodes =
        get(&["get", "nodes", "-o", "jsonpath={range .items[*]}{.status.addresses[?(@.type==\"InternalIP\")].address}{\" \"}{end}"]);
    let talks: Vec<Talk> =
        nodes.split_whitespace().map(|ip| Talk::start(&cluster, "client", ip, number.trim().parse().unwrap(), 2)).collect();
    let direct = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &[]));
    running.expect_pair("client", "web", "accelerated (short)");
    talks.iter().for_each(Talk::goes_on);
    running.signal(Signal::SIGINT);
    assert!(running.end().0.success());
    end_all(talks.into_iter().chain([direct]));
    run(cluster.kubectl().args(["-n", NAMESPACE, "delete", "service", "talk-port"]));
    cluster.assert_nothing_left();
}

#[test]
fn a_network_policy_that_changes_puts_its_pods_back_on_the_stack() {
    let Some(cluster) = cluster_or_none("a_network_policy_that_changes_puts_its_pods_back_on_the_stack") else { return };
    let _ = output(cluster.kubectl().args(["-n", NAMESPACE, "delete", "networkpolicy", "e2e-short", "--ignore-not-found"]));
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &["--via", "short"]));
    running.expect_pair("client", "web", "accelerated (short)");
    let policy = serde_json::json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "e2e-short", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": PORT}]}]}});
    let file = std::env::temp_dir().join(format!("sockpath-policy-short-{}.json", std::process::id()));
    std::fs::write(&file, policy.to_string()).unwrap();
    run(cluster.kubectl().arg("apply").arg("-f").arg(&file));
    running.expect_pair("client", "web", "NetworkPolicy changed");
    talk.goes_on();
    run(cluster.kubectl().arg("delete").arg("-f").arg(&file));
    let _ = std::fs::remove_file(file);
    running.expect_pair("client", "web", "accelerated (short)");
    running.signal(Signal::SIGINT);
    assert!(running.end().0.success());
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn detached_it_goes_on_and_is_stopped() {
    let Some(cluster) = cluster_or_none("detached_it_goes_on_and_is_stopped") else { return };
    let near = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let far = Talk::start(&cluster, "client", &pod_ip(&cluster, "web-1"), PORT, 1);
    let out = output(&mut accelerate(&cluster, &["--detach", "--for", "10m"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    cluster.eventually("both are on the short path, as another command sees it", PATIENCE, |cluster| {
        let status = json(&output(cluster.plugin().args(["status", "-o", "json"])));
        let short = |server: &str| {
            let nodes = status["nodes"].as_array().into_iter().flatten();
            let mut pairs = nodes.flat_map(|n| n["pairs"]["pairs"].as_array().or(n["pairs"].as_array()).into_iter().flatten());
            pairs.any(|p| p["via"] == "short" && p["server_pod"].as_str().is_some_and(|name| name.ends_with(server)))
        };
        short("/web") && short("/web-1")
    });
    let stopped = output(cluster.plugin().args(["stop", "-o", "json"]));
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    end_all([near, far]);
    cluster.assert_nothing_left();
}
