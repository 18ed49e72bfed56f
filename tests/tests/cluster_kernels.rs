//! A cluster with a node of another kernel and another layout of control groups: a virtual machine beside a node of this machine. It is emulated,
//! so it is slow, too. Every byte is checked.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use sockpath_tests::cluster::{MACHINE, cluster_with_machine_or_skip, json, kernel_here, output, run, text};
use sockpath_tests::talk::{PORT, Running, Talk, end_all, pod_ip, with_servers};

/// How long a helper on the emulated node may take for each step.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn doctor_tells_nodes_of_different_kernels_apart() {
    let Some(cluster) = cluster_with_machine_or_skip("doctor_tells_nodes_of_different_kernels_apart") else { return };
    let out = output(cluster.plugin().args(["doctor", "-o", "json"]));
    let document = json(&out);
    let said = document.to_string();
    assert!(said.contains(MACHINE) && said.contains(&kernel_here()), "{document:#}");
    let page = text(&output(cluster.plugin().arg("doctor")).stdout);
    assert!(page.contains(MACHINE) && page.contains(&kernel_here()), "{page}");
    cluster.assert_nothing_left();
}

/// Between kernels, and on the other kernel alone: each half of the path comes from the node that it is on.
#[test]
fn a_packet_is_traced_from_one_kernel_to_another() {
    let Some(cluster) = cluster_with_machine_or_skip("a_packet_is_traced_from_one_kernel_to_another") else { return };
    for (source, crosses) in [("client", true), ("client-1", false)] {
        let out = output(cluster.plugin().args(["trace", source, "web-1:8080", "--probe", "--duration", "5s", "-o", "json"]));
        assert!(out.status.success(), "{}", text(&out.stderr));
        let report = json(&out);
        assert!(report["probes"].as_array().unwrap().iter().all(|p| p["answered"] == true), "{report:#}");
        let critical = |f: &&Value| f["severity"] == "critical";
        assert_eq!(report["findings"].as_array().unwrap().iter().find(critical), None, "{report:#}");
        let kernels: Vec<&str> = report["nodes"].as_array().unwrap().iter().filter_map(|n| n["kernel"].as_str()).collect();
        assert!(kernels.iter().any(|k| k.starts_with("6.12.")), "{kernels:?}");
        assert_eq!(kernels.iter().any(|k| *k == kernel_here()), crosses, "{kernels:?}");
    }
    cluster.assert_nothing_left();
}

/// On each node by what its kernel can do, and between them.
#[test]
fn connections_between_kernels_are_accelerated_and_put_back() {
    let test = "connections_between_kernels_are_accelerated_and_put_back";
    let Some(cluster) = cluster_with_machine_or_skip(test).map(with_servers) else { return };
    let (here, there) = (pod_ip(&cluster, "web"), pod_ip(&cluster, "web-1"));
    let talks = [("client", &here), ("client", &there), ("client-1", &there)].map(|(pod, ip)| Talk::start(&cluster, pod, ip, PORT, 1));
    let mut running = Running::start(cluster.plugin().args(["accelerate", "-l", "set=e2e", "--via", "short"]));
    let pairs = [("client", "web"), ("client", "web-1"), ("client-1", "web-1")];
    running.expect_pairs_within(PATIENCE, &pairs, "accelerated (short)");
    talks.iter().for_each(Talk::goes_on);
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert!(status.success(), "{said}");
    end_all(talks);
    cluster.assert_nothing_left();
}

/// The kernel really is another one, and its node has control groups of version 2 alone.
#[test]
fn the_machine_is_what_it_is_taken_for() {
    let Some(cluster) = cluster_with_machine_or_skip("the_machine_is_what_it_is_taken_for") else { return };
    let release = run(&mut cluster.in_node(MACHINE, &["uname", "-r"]));
    assert!(release.starts_with("6.12.") && release.trim() != kernel_here(), "{release}");
    let groups = run(&mut cluster.in_node(MACHINE, &["stat", "-f", "-c", "%T", "/sys/fs/cgroup"]));
    assert_eq!(groups.trim(), "cgroup2fs");
}
