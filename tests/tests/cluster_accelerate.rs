//! Acceleration on a real cluster: who is chosen, how it goes on without us, what changes while it runs. Every byte is checked.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sockpath_tests::cluster::{Cluster, HELPERS, Held, NAMESPACE, Setup, cluster_or_skip, json, output, run, text};
use sockpath_tests::talk::{PORT, Running, Talk, end_all, install, pod_ip, serve, with_servers};

/// The cluster with servers on both nodes.
fn prepared(test: &str) -> Option<Held> {
    cluster_or_skip(test, Setup::RoutesNftables).map(with_servers)
}

fn accelerate(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = cluster.plugin();
    command.args(["accelerate", "--via", "socket"]).args(args);
    command
}

fn is_active(cluster: &Cluster) -> bool {
    json(&output(cluster.plugin().args(["status", "-o", "json"])))["active"] == true
}

#[test]
fn a_selector_over_both_nodes_takes_live_and_new_connections() {
    let Some(cluster) = prepared("a_selector_over_both_nodes_takes_live_and_new_connections") else { return };
    let live = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 3);
    let across = Talk::start(&cluster, "client", &pod_ip(&cluster, "web-1"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &["-l", "set=e2e"]));
    running.expect_pair("client", "web", "accelerated");
    let new = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 2);
    running.expect_pair("client-1", "web-1", "accelerated");
    let service = run(cluster.kubectl().args(["-n", NAMESPACE, "get", "service", "talk", "-o", "jsonpath={.spec.clusterIP}"]));
    let through = Talk::start(&cluster, "client", &service, 90, 2);
    running.expect("a pair through the Service is accelerated", Duration::from_secs(30), |l| {
        l.contains(&format!("via {service}:90")) && l.contains("accelerated")
    });
    // The one to the other node is excluded with a reason, which may have been printed long ago.
    let excluded = |l: &str| l.contains("/client:") && l.contains("/web-1:") && l.contains("other node");
    if !running.said.iter().any(|l| excluded(l)) {
        running.expect("the pair across nodes is excluded", Duration::from_secs(30), excluded);
    }
    for talk in [&live, &across, &new, &through] {
        talk.goes_on();
    }
    let began = Instant::now();
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    eprintln!("Ctrl-C to the end of the plugin: {:.2} s", began.elapsed().as_secs_f64());
    assert!(status.success(), "Ctrl-C is the normal end: {said}");
    assert!(!said.contains("client:") || !said.contains("web-1:9000  accelerated") || said.contains("client-1:"), "{said}");
    end_all([live, across, new, through]);
    cluster.assert_nothing_left();
}

#[test]
fn all_namespaces_for_a_while_as_json() {
    let Some(cluster) = prepared("all_namespaces_for_a_while_as_json") else { return };
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 2);
    // -A is about all namespaces, so the plugin's own -n is left out.
    let mut command = cluster.plugin_anywhere();
    let out = output(command.args(["accelerate", "--via", "socket", "-A", "--for", "6s", "-o", "json"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    let report = json(&out);
    assert!(report["totals"]["bypassed_messages"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(report["left_enrolled"], 0);
    let nodes: Vec<_> = report["nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap().to_owned()).collect();
    assert_eq!(nodes, cluster.nodes());
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn a_dry_run_tells_and_touches_nothing() {
    let Some(cluster) = prepared("a_dry_run_tells_and_touches_nothing") else { return };
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    policy(&cluster, "apply", PORT);
    let limit = |value: &str| run(cluster.kubectl().args(["-n", NAMESPACE, "annotate", "pod", "web", "--overwrite", value]));
    limit("kubernetes.io/egress-bandwidth=10G");
    let out = output(&mut accelerate(&cluster, &["client", "web", "--dry-run", "-o", "json"]));
    limit("kubernetes.io/egress-bandwidth-");
    policy(&cluster, "delete", PORT);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let report = json(&out);
    let bypassed = report["bypassed"].as_array().unwrap_or_else(|| panic!("{report:#}"));
    for (kind, what) in [("network-policy", "e2e"), ("bandwidth", "10G")] {
        let of_web = |b: &&Value| b["kind"] == kind && b["pods"].to_string().contains("/web\"");
        let found = bypassed.iter().find(of_web).unwrap_or_else(|| panic!("{kind}: {report:#}"));
        assert!(found["what"].to_string().contains(what), "{found}");
    }
    assert_eq!((&report["dry_run"], &report["totals"]["bypassed_messages"]), (&true.into(), &0.into()), "{report:#}");
    let pair = &report["nodes"][0]["pairs"][0];
    assert_eq!((&pair["client_pod"], &pair["server_pod"]), (&format!("{NAMESPACE}/client").into(), &format!("{NAMESPACE}/web").into()));
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn names_that_begin_alike_are_distinguished() {
    let Some(cluster) = prepared("names_that_begin_alike_are_distinguished") else { return };
    let talk = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 1);
    let other = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &["client", "web"]));
    running.expect_pair("client", "web", "accelerated");
    talk.goes_on();
    running.signal(Signal::SIGINT);
    let (_, said) = running.end();
    assert!(!said.contains("/client-1") && !said.contains("/web-1"), "{said}");
    assert!(talk.end() > 0 && other.end() > 0);
    cluster.assert_nothing_left();
}

/// Gives a user what manifests/rbac.yaml is for, and nothing else.
fn let_alice(cluster: &Cluster) {
    for (namespace, role) in [(HELPERS, "--role=sockpath-user"), (NAMESPACE, "--clusterrole=sockpath-lookup")] {
        let _ = output(cluster.kubectl().args(["-n", namespace, "create", "rolebinding", "e2e-alice", role, "--user=alice"]));
    }
}

#[test]
fn a_user_with_our_roles_may_accelerate() {
    let Some(cluster) = prepared("a_user_with_our_roles_may_accelerate") else { return };
    let_alice(&cluster);
    let near = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let far = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 1);
    let mut running = Running::start(cluster.plugin().args(["--as", "alice", "accelerate", "--via", "socket", "-l", "set=e2e"]));
    running.expect_pairs(&[("client", "web"), ("client-1", "web-1")], "accelerated");
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success() && !said.contains("not watched") && !said.contains("forbidden"), "{said}");
    assert!(near.end() > 0 && far.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn detached_it_goes_on_until_another_user_stops_it() {
    let Some(cluster) = prepared("detached_it_goes_on_until_another_user_stops_it") else { return };
    let_alice(&cluster);
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 2);
    let out = output(&mut accelerate(&cluster, &["-l", "set=e2e", "--detach", "--for", "10m"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(cluster.helper_pods().len(), 2, "a helper stays on each node");
    talk.goes_on();
    // New connections are redirected, too, because the event loop of the helper tracks them.
    let new = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 1);
    let accelerated = |status: &Value| -> u64 {
        status["nodes"].as_array().unwrap().iter().map(|n| n["pairs"]["totals"]["accelerated"].as_u64().unwrap()).sum()
    };
    cluster.eventually("live and new connections are accelerated", Duration::from_secs(30), |c| {
        accelerated(&json(&output(c.plugin().args(["--as", "alice", "status", "-o", "json"])))) == 3
    });
    // Each `status` says what a detached one does not do.
    let status = json(&output(cluster.plugin().args(["status", "-o", "json"])));
    assert!(status["nodes"].as_array().unwrap().iter().all(|n| n["detached"] == true), "{status:#}");
    assert!(status["note"].to_string().contains("NetworkPolicies that change"), "{status:#}");
    let mut names: Vec<String> =
        status["nodes"].as_array().unwrap().iter().map(|n| format!("node/{}", n["node"].as_str().unwrap())).collect();
    names.sort_unstable();
    let listed = |c: &Cluster| {
        let mut lines: Vec<String> = run(c.plugin().args(["status", "-o", "name"])).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(listed(&cluster), names);
    let said = run(cluster.plugin().arg("status"));
    assert_eq!(
        said.lines()
            .filter(|l| l.starts_with("note: a detached acceleration does not watch the cluster") && l.contains("run `stop`"))
            .count(),
        1,
        "{said}"
    );
    // Commands in between do not remove the helper.
    run(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "-o", "json"]));
    assert_eq!(cluster.helper_pods().len(), 2);
    // `cleanup` keeps it, too.
    let cleanup = run(cluster.plugin().arg("cleanup"));
    assert!(cleanup.contains("kept what") && cleanup.contains("in use by ") && !cleanup.contains("removed"), "{cleanup}");
    assert!(is_active(&cluster));
    // A second user sees who holds it.
    let second = output(&mut accelerate(&cluster, &["client", "web"]));
    let said = text(&second.stderr);
    assert!(!second.status.success() && said.contains("accelerates on this node already") && said.contains("stop"), "{said}");
    assert!(said.contains("(process "), "it does not say who: {said}");

    let stop = output(cluster.plugin().args(["--as", "alice", "stop"]));
    assert!(stop.status.success(), "{}", text(&stop.stderr));
    assert!(text(&stop.stdout).contains("removed pod sockpath/sockpath-accelerate-"), "{}", text(&stop.stdout));
    let status = json(&output(cluster.plugin().args(["status", "-o", "json"])));
    assert_eq!((&status["active"], &status["note"]), (&false.into(), &Value::Null), "{status:#}");
    assert!(listed(&cluster).is_empty());
    assert!(talk.end() > 0 && new.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn detached_it_ends_with_its_lease() {
    let Some(cluster) = prepared("detached_it_ends_with_its_lease") else { return };
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let out = output(&mut accelerate(&cluster, &["client", "web", "--detach", "--for", "5s"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    cluster.eventually("the helper ends with the lease", Duration::from_secs(30), |c| {
        c.helper_pods().iter().all(|p| p["status"]["phase"] == "Succeeded")
    });
    assert!(cluster.pins().is_none_or(|pins| pins.is_empty()), "{:?}", cluster.pins());
    assert!(talk.end() > 0);
    assert!(!is_active(&cluster));
    cluster.assert_nothing_left();
}

#[test]
fn stopped_by_another_user_in_the_foreground() {
    let Some(cluster) = prepared("stopped_by_another_user_in_the_foreground") else { return };
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &["client", "web"]));
    running.expect_pair("client", "web", "accelerated");
    run(cluster.plugin().arg("stop"));
    let (_, said) = running.end();
    assert!(said.contains("ended this acceleration with `stop`"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.contains("by `stop` of ") && last.contains("(process "), "the last line says who: {said}");
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

/// A pod that sleeps, on this node.
fn extra_pod(name: &str, node: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"set": "extra"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{"name": "app", "image": Cluster::workload_image(),
            "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}]}})
}

fn create(cluster: &Cluster, pods: &[Value]) {
    let file = std::env::temp_dir().join(format!("sockpath-pods-{}.json", std::process::id()));
    std::fs::write(&file, serde_json::json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string()).unwrap();
    run(cluster.kubectl().arg("apply").arg("-f").arg(&file));
    let _ = std::fs::remove_file(file);
    run(cluster.kubectl().args(["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "-l", "set=extra", "--timeout=180s"]));
}

fn delete_extra(cluster: &Cluster) {
    run(cluster.kubectl().args(["-n", NAMESPACE, "delete", "pod", "-l", "set=extra", "--now"]));
}

#[test]
fn pods_that_come_are_taken_in_and_those_that_vanish_are_let_go() {
    let Some(cluster) = prepared("pods_that_come_are_taken_in_and_those_that_vanish_are_let_go") else { return };
    let talk = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    // Only the first node has chosen pods at first, also after a run that was cut short.
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client", "web", "client-1", "web-1", "grows-"]));
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client", "web", "grows=yes", "--overwrite"]));
    let mut running = Running::start(&mut accelerate(&cluster, &["-l", "grows=yes"]));
    running.expect_pair("client", "web", "accelerated");
    assert_eq!(cluster.helper_pods().len(), 1);

    let mut pod = extra_pod("late", &cluster.nodes()[0]);
    pod["metadata"]["labels"]["grows"] = "yes".into();
    create(&cluster, &[pod]);
    install(&cluster, &["late"]);
    let late = Talk::start(&cluster, "late", &pod_ip(&cluster, "web"), PORT, 1);
    running.expect_pair("late", "web", "accelerated");
    drop(late);
    delete_extra(&cluster);

    // A second node joins.
    let far = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 1);
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client-1", "web-1", "grows=yes", "--overwrite"]));
    running.expect_pair("client-1", "web-1", "accelerated");
    // A pod that is no longer meant is let go though it runs on.
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client", "grows-"]));
    running.expect("it is let go", Duration::from_secs(30), |l| l.contains("/web:") && l.contains("returned: peer not chosen"));
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client", "grows=yes"]));
    running.expect_pair("client", "web", "accelerated");

    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    run(cluster.kubectl().args(["-n", NAMESPACE, "label", "pod", "client", "web", "client-1", "web-1", "grows-"]));
    assert!(talk.end() > 0 && far.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn fifty_pods_at_once() {
    let Some(cluster) = prepared("fifty_pods_at_once") else { return };
    let nodes = cluster.nodes();
    let pods: Vec<Value> = (0..50).map(|i| extra_pod(&format!("many-{i}"), &nodes[i % 2])).collect();
    create(&cluster, &pods);
    // Pairs on each node, between pods that are among the fifty.
    install(&cluster, &["many-0", "many-2", "many-1", "many-3"]);
    serve(&cluster, "many-2");
    serve(&cluster, "many-3");
    let talks = [
        Talk::start(&cluster, "many-0", &pod_ip(&cluster, "many-2"), PORT, 5),
        Talk::start(&cluster, "many-1", &pod_ip(&cluster, "many-3"), PORT, 5),
    ];
    let began = Instant::now();
    let mut running = Running::start(&mut accelerate(&cluster, &["-l", "set=extra"]));
    running.expect_pair("many-0", "many-2", "accelerated");
    eprintln!("command to the first accelerated pair of 50 pods: {:.2} s", began.elapsed().as_secs_f64());
    for talk in &talks {
        talk.goes_on();
    }
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success() && !said.contains("excluded:"), "{said}");
    for talk in talks {
        assert!(talk.end() > 0);
    }
    delete_extra(&cluster);
    cluster.assert_nothing_left();
}

/// Applies a policy that lets nothing but this port in.
fn policy(cluster: &Cluster, action: &str, port: u16) {
    let object = serde_json::json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "e2e", "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": port}]}]}});
    let file = std::env::temp_dir().join(format!("sockpath-policy-{}.json", std::process::id()));
    std::fs::write(&file, object.to_string()).unwrap();
    run(cluster.kubectl().arg(action).arg("-f").arg(&file));
    let _ = std::fs::remove_file(file);
}

#[test]
fn a_network_policy_that_changes_puts_its_pods_back_on_tcp() {
    let Some(cluster) = prepared("a_network_policy_that_changes_puts_its_pods_back_on_tcp") else { return };
    let _ = output(cluster.kubectl().args(["-n", NAMESPACE, "delete", "networkpolicy", "e2e", "--ignore-not-found"]));
    let touched = Talk::start(&cluster, "client", &pod_ip(&cluster, "web"), PORT, 1);
    let other = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 1);
    let mut running = Running::start(&mut accelerate(&cluster, &["-l", "set=e2e"]));
    running.expect_pairs(&[("client", "web"), ("client-1", "web-1")], "accelerated");

    policy(&cluster, "apply", PORT);
    running.expect_pair("client", "web", "NetworkPolicy changed");
    let status = json(&output(cluster.plugin().args(["status", "-o", "json"])));
    assert_eq!((&status["active"], &status["note"]), (&true.into(), &Value::Null), "the foreground watches: {status:#}");
    // A policy that is taken back leaves everything as it was at the start.
    policy(&cluster, "delete", PORT);
    running.expect_pair("client", "web", "accelerated");
    policy(&cluster, "apply", PORT);
    running.expect_pair("client", "web", "NetworkPolicy changed");
    touched.goes_on();
    other.goes_on();
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    let far = said.lines().any(|l| l.contains("web-1:") && l.contains("NetworkPolicy changed"));
    assert!(!far, "pairs that the policy is not about are left accelerated: {said}");

    // One that was there before is part of how things are, until it changes.
    let mut running = Running::start(&mut accelerate(&cluster, &["-l", "set=e2e"]));
    running.expect_pair("client", "web", "accelerated");
    policy(&cluster, "apply", PORT + 1);
    running.expect_pair("client", "web", "NetworkPolicy changed");
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success() && said.contains("NetworkPolicy sockpath-e2e/e2e was changed"), "{said}");
    policy(&cluster, "delete", PORT);
    assert!(touched.end() > 0 && other.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn without_the_right_to_watch_policies_that_is_said() {
    let Some(cluster) = prepared("without_the_right_to_watch_policies_that_is_said") else { return };
    let role = "sockpath-e2e-lookup-without-policies";
    let _ = output(cluster.kubectl().args([
        "-n",
        NAMESPACE,
        "create",
        "role",
        role,
        "--verb=get,list,watch",
        "--resource=pods,services,endpointslices.discovery.k8s.io",
    ]));
    for (namespace, role) in [(NAMESPACE, format!("--role={role}")), (HELPERS, "--role=sockpath-user".to_owned())] {
        let _ = output(cluster.kubectl().args(["-n", namespace, "create", "rolebinding", "e2e-carol", &role, "--user=carol"]));
    }
    let mut running = Running::start(accelerate(&cluster, &["client", "web", "--for", "20s"]).args(["--as", "carol"]));
    running.expect("it says that policies are not watched", Duration::from_secs(20), |l| l.contains("NetworkPolicies are not watched"));
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    assert_eq!(said.matches("NetworkPolicies are not watched").count(), 1, "{said}");
    cluster.assert_nothing_left();
}

#[test]
fn z_through_a_service_with_iptables_and_vxlan() {
    let Some(cluster) = cluster_or_skip("z_through_a_service_with_iptables_and_vxlan", Setup::VxlanIptables) else { return };
    install(&cluster, &["client", "web"]);
    serve(&cluster, "web");
    let service = run(cluster.kubectl().args(["-n", NAMESPACE, "get", "service", "talk", "-o", "jsonpath={.spec.clusterIP}"]));
    let live = Talk::start(&cluster, "client", &service, 90, 2);
    let mut running = Running::start(&mut accelerate(&cluster, &["client", "web"]));
    running.expect("the pair through the Service is accelerated", Duration::from_secs(30), |l| {
        l.contains(&format!("via {service}:90")) && l.contains("accelerated")
    });
    live.goes_on();
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    assert!(live.end() > 0);
    cluster.assert_nothing_left();
}
