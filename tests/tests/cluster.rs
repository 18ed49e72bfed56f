//! End to end on a real cluster: traces in every scenario, and who may do what.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use serde_json::Value;
use sockpath_tests::cluster::{Cluster, HELPERS, NAMESPACE, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};
use sockpath_tests::skipped;

/// Traces one probe and gives the document.
fn trace(cluster: &Cluster, args: &[&str]) -> Value {
    let out = output(cluster.plugin().arg("trace").args(args).args(["--probe", "-o", "json"]));
    assert!(out.status.success(), "trace {}: {}\n{}", args.join(" "), out.status, text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("trace {}: {e}", args.join(" ")))
}

fn stages(report: &Value) -> Vec<&str> {
    report["stages"].as_array().unwrap().iter().filter(|s| s["count"].as_u64().unwrap_or(0) > 0).filter_map(|s| s["id"].as_str()).collect()
}

#[track_caller]
fn assert_sees(report: &Value, wanted: &[&str]) {
    let seen = stages(report);
    for stage in wanted {
        assert!(seen.contains(stage), "{stage} is not among {seen:?}");
    }
}

/// What kube-proxy writes. With nftables an endpoint is an element of a map, which no rule names.
#[derive(PartialEq)]
enum Proxy {
    Iptables,
    Other,
}

/// Every scenario of the article, through every kind of Service.
fn every_scenario(cluster: &Cluster, proxy: &Proxy) {
    let in_pod = trace(cluster, &["client", ":8081"]);
    assert_eq!(in_pod["scenario"], "in-pod");
    assert_sees(&in_pod, &["nf-local-out", "nf-local-in"]);

    let same_node = trace(cluster, &["client", "web:8080"]);
    assert_eq!((&same_node["scenario"], &same_node["via_service"]), (&"same-node".into(), &Value::Null));
    assert_sees(&same_node, &["nf-local-out", "veth-cross", "nf-local-in"]);
    assert!(same_node["end_to_end"]["p50_ns"].as_u64().unwrap() > 0);
    assert_eq!(same_node["nodes"].as_array().unwrap().len(), 1);

    let cluster_ip = trace(cluster, &["client", "svc/web"]);
    assert_eq!(cluster_ip["via_service"], format!("{NAMESPACE}/web"));
    let dnat = cluster_ip["rewrites"].as_array().unwrap().iter().any(|r| r["kind"] == "dnat");
    assert!(dnat, "the translation of the Service is shown: {}", cluster_ip["rewrites"]);
    // By which rule takes a right that can be left out.
    let unread = |report: &Value| report["findings"].as_array().unwrap().iter().find(|f| f["id"] == "rules-unread").cloned();
    let unnamed = trace(cluster, &["client", "svc/web", "--no-rules"]);
    let finding = unread(&unnamed).unwrap_or_else(|| panic!("{:#}", unnamed["findings"]));
    assert!(finding["text"].to_string().contains("--no-rules"), "{finding}");
    let named = &cluster_ip;
    if *proxy == Proxy::Iptables {
        let rewrites = named["rewrites"].as_array().unwrap();
        let by = rewrites.iter().find(|r| r["kind"] == "dnat").map(|r| &r["by"]).unwrap_or_else(|| panic!("{rewrites:#?}"));
        assert!(by["chain"].as_str().is_some_and(|c| c.starts_with("KUBE-SEP-")), "{rewrites:#?}");
    }
    assert_eq!(unread(named), None);

    let cross_node = trace(cluster, &["client", "web-1:8080"]);
    assert_eq!(cross_node["scenario"], "cross-node");
    assert_eq!(cross_node["nodes"].as_array().unwrap().len(), 2, "a helper on each node");
    assert_sees(&cross_node, &["nf-local-out", "node-xmit", "nf-local-in"]);
    let clock = &cross_node["clocks"][0];
    let (offset, doubt) = (clock["offset_ns"].as_i64().unwrap(), clock["uncertainty_ns"].as_u64().unwrap());
    assert!(clock["round_trips"].as_u64().unwrap() > 0 && doubt > 0, "{clock}");
    // Nodes of our own cluster read one clock, so the measured offset has to be 0 within its uncertainty.
    assert!(!cluster.is_own() || offset.unsigned_abs() <= doubt, "{clock}");
    assert_eq!(same_node["clocks"].as_array().unwrap().len(), 0, "one node, one clock");

    let node_port = run(cluster.kubectl().args(["-n", NAMESPACE, "get", "service", "web-1", "-o", "jsonpath={.spec.ports[0].nodePort}"]));
    let first = cluster.nodes().remove(0);
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let node_ip = run(cluster.kubectl().args(["get", "node", &first, "-o", path]));
    let through_cluster_ip = trace(cluster, &["client", "svc/web-1:80"]);
    assert_eq!(through_cluster_ip["scenario"], "cross-node");
    let through_node_port = trace(cluster, &["client", &format!("{node_ip}:{node_port}")]);
    assert_eq!(through_node_port["via_service"], format!("{NAMESPACE}/web-1"), "a node port belongs to its Service");
    let headless = trace(cluster, &["client", "svc/headless:8080"]);
    assert_eq!(headless["scenario"], "cross-node");
    assert!(headless["rewrites"].as_array().unwrap().is_empty(), "nothing is translated: {}", headless["rewrites"]);
    cluster.assert_no_helpers();
}

#[test]
fn every_scenario_with_routes_and_nftables() {
    let Some(cluster) = cluster_or_skip("every_scenario_with_routes_and_nftables", Setup::RoutesNftables) else { return };
    every_scenario(&cluster, &Proxy::Other);
}

/// Named so that it runs last: it needs the cluster in another shape.
#[test]
fn z_every_scenario_with_vxlan_and_iptables() {
    let test = "z_every_scenario_with_vxlan_and_iptables";
    let Some(cluster) = cluster_or_skip(test, Setup::VxlanIptables) else { return };
    if !cluster.is_own() {
        return skipped(test, "a cluster that is not ours is as it is: `every_scenario_with_routes_and_nftables` has traced it");
    }
    every_scenario(&cluster, &Proxy::Iptables);
}

#[test]
fn names_that_begin_alike_are_distinguished() {
    let Some(cluster) = cluster_or_skip("names_that_begin_alike_are_distinguished", Setup::RoutesNftables) else { return };
    let report = trace(&cluster, &["client", "web:8080"]);
    assert_eq!(report["target"]["name"], "web");
    let missing = output(cluster.plugin().args(["trace", "client", "we:8080"]));
    let said = text(&missing.stderr);
    assert!(!missing.status.success() && said.contains("`we` is not in namespace"), "{said}");
}

#[test]
fn a_trace_of_one_packet_ends_by_itself() {
    let Some(cluster) = cluster_or_skip("a_trace_of_one_packet_ends_by_itself", Setup::RoutesNftables) else { return };
    let out = output(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "--count", "1", "-o", "jsonl"]));
    assert!(out.status.success() && !out.stdout.is_empty(), "{}", text(&out.stderr));
}

#[test]
fn only_users_with_our_roles_may_trace() {
    let Some(cluster) = cluster_or_skip("only_users_with_our_roles_may_trace", Setup::RoutesNftables) else { return };
    let bind = |namespace: &str, role: &str| {
        let args = ["-n", namespace, "create", "rolebinding", "e2e-alice", role, "--user=alice"];
        let _ = output(cluster.kubectl().args(args));
    };
    bind(HELPERS, "--role=sockpath-user");
    bind(NAMESPACE, "--clusterrole=sockpath-lookup");
    let alice = output(cluster.plugin().args(["--as", "alice", "trace", "client", "web:8080", "--probe", "-o", "json"]));
    assert!(alice.status.success(), "{}", text(&alice.stderr));
    let across = output(cluster.plugin().args(["--as", "alice", "trace", "client", "web-1:8080", "--probe", "-o", "json"]));
    assert!(across.status.success(), "{}", text(&across.stderr));

    let eve = output(cluster.plugin().args(["--as", "eve", "trace", "client", "web:8080"]));
    let said = text(&eve.stderr);
    assert!(!eve.status.success() && said.contains("cannot read pod") && said.contains("eve"), "{said}");
    // A user who may read pods but not start helpers sees which role is missing.
    let args = ["-n", NAMESPACE, "create", "rolebinding", "e2e-bob", "--clusterrole=sockpath-lookup", "--user=bob"];
    let _ = output(cluster.kubectl().args(args));
    let bob = output(cluster.plugin().args(["--as", "bob", "trace", "client", "web:8080"]));
    let said = text(&bob.stderr);
    assert!(said.contains("kubectl create rolebinding -n sockpath") && said.contains("--role=sockpath-user"), "{said}");
    cluster.assert_no_helpers();
}

#[test]
fn a_namespace_that_refuses_the_helper_is_reported_with_the_remedy() {
    let Some(cluster) = cluster_or_skip("a_namespace_that_refuses_the_helper_is_reported_with_the_remedy", Setup::RoutesNftables) else {
        return;
    };
    // The workloads' namespace enforces baseline, as a cluster's default may.
    let refused = output(cluster.plugin().args(["--helper-namespace", NAMESPACE, "trace", "client", "web:8080"]));
    let said = text(&refused.stderr);
    let remedy = format!("kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged");
    assert!(!refused.status.success() && said.contains("violates PodSecurity") && said.contains(&remedy), "{said}");
    let absent = output(cluster.plugin().args(["--helper-namespace", "no-such-namespace", "trace", "client", "web:8080"]));
    let said = text(&absent.stderr);
    assert!(said.contains("kubectl create namespace no-such-namespace"), "{said}");
}

#[test]
fn where_restricted_is_the_default_the_helpers_namespace_admits_them() {
    // Our own API server enforces `restricted` in namespaces without labels of their own (tests/cluster/node).
    let Some(cluster) = own_cluster_or_skip("where_restricted_is_the_default_the_helpers_namespace_admits_them") else { return };
    let refused = output(cluster.plugin().args(["--helper-namespace", "default", "trace", "client", "web:8080"]));
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("violates PodSecurity \"restricted:"), "{said}");
    assert!(said.contains("kubectl label namespace default pod-security.kubernetes.io/enforce=privileged"), "{said}");
    trace(&cluster, &["client", "web:8080"]);
    cluster.assert_no_helpers();
}

#[test]
fn an_image_that_cannot_be_pulled_is_reported() {
    let Some(cluster) = cluster_or_skip("an_image_that_cannot_be_pulled_is_reported", Setup::RoutesNftables) else { return };
    let image = format!("127.0.0.1:1/none@sha256:{}", "0".repeat(64));
    cluster.admit(&[&image]);
    cluster.eventually("the list of images is in force", Duration::from_secs(20), |c| {
        let out = output(c.plugin().args(["--helper-image", &image, "trace", "client", "web:8080"]));
        let said = text(&out.stderr);
        let told = said.contains("cannot be pulled on node") && said.contains("--helper-image");
        assert!(told || said.contains("ValidatingAdmissionPolicy"), "{said}");
        told
    });
    cluster.admit(&[]);
    cluster.assert_no_helpers();
}

#[test]
fn doctor_finds_nothing_wrong_and_says_so_of_every_node() {
    let Some(cluster) = cluster_or_skip("doctor_finds_nothing_wrong_and_says_so_of_every_node", Setup::RoutesNftables) else { return };
    let out = output(cluster.plugin().args(["doctor", "-o", "json"]));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out.stderr)));
    let checks = report["checks"].as_array().unwrap();
    for node in cluster.nodes() {
        let scope = format!("node {node}");
        let state = |name: &str| checks.iter().find(|c| c["scope"] == scope && c["name"] == name).map(|c| c["state"].clone());
        for name in ["kernel", "BTF", "seccomp", "processes", "cgroups", "bpffs", "hooks", "canary redirect", "canary order", "canary fin"]
        {
            assert_eq!(state(name), Some("ok".into()), "{name} on {node}: {report:#}");
        }
        assert!(state("socket maps").is_some(), "{report:#}");
    }
    assert_eq!(report["ok"], true, "{report:#}");
    for unwell in checks.iter().filter(|c| c["state"] != "ok") {
        assert!(unwell["remedy"].is_string(), "each row that is not well ends in what to do: {unwell:#}");
    }
    cluster.assert_nothing_left();
}
