//! What happens to an acceleration when something goes away in the middle: no byte is lost, nothing is left. Every byte is checked.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_tests::cluster::{Cluster, HELPERS, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};
use sockpath_tests::talk::{PORT, Running, Talk, end_all, pod_ip, with_servers};

/// An acceleration of both nodes, with a connection on each that it has taken.
struct Both<'a> {
    running: Running,
    near: Talk<'a>,
    far: Talk<'a>,
}

impl<'a> Both<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let near = Talk::start(cluster, "client", &pod_ip(cluster, "web"), PORT, 3);
        let far = Talk::start(cluster, "client-1", &pod_ip(cluster, "web-1"), PORT, 3);
        let mut running = Running::start(cluster.plugin().args(["accelerate", "--via", "socket", "-l", "set=e2e"]));
        running.expect_pairs(&[("client", "web"), ("client-1", "web-1")], "accelerated");
        Self { running, near, far }
    }

    /// Ctrl-C after a helper was lost, which is an error; the connections end with every byte in place, and nothing is left.
    fn end_after_a_loss(cluster: &Cluster, running: Running, near: Talk<'_>, far: Talk<'_>) {
        running.signal(Signal::SIGINT);
        let (status, said) = running.end();
        assert_eq!(status.code(), Some(1), "{said}");
        end_all([near, far]);
        cluster.assert_nothing_left();
    }
}

/// Name of the helper pod on a node.
fn helper_on(cluster: &Cluster, node: &str) -> String {
    let pods = cluster.helper_pods();
    let pod = pods.iter().find(|p| p["spec"]["nodeName"] == node).unwrap_or_else(|| panic!("no helper on {node}: {pods:?}"));
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Processes of a helper pod as this machine numbers them, by the UID in their cgroup.
fn processes(cluster: &Cluster, node: &str) -> Vec<i32> {
    let uid = cluster
        .helper_pods()
        .iter()
        .find(|p| p["spec"]["nodeName"] == node)
        .map(|p| p["metadata"]["uid"].as_str().unwrap().to_owned())
        .unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let is_helper = |pid: &i32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cgroup.contains(&uid) && command.starts_with("/sockpath-helper")
    };
    pids.filter(is_helper).collect()
}

/// Waits until a helper is reported that was deleted or evicted.
fn await_loss(running: &mut Running) -> String {
    running.expect("the loss of the helper", Duration::from_secs(30), |l| l.contains("it was terminated") || l.contains("ended early"))
}

#[test]
fn a_killed_helper_loses_nothing() {
    let Some(cluster) = own_cluster_or_skip("a_killed_helper_loses_nothing").map(with_servers) else { return };
    let Both { mut running, near, far } = Both::start(&cluster);
    let nodes = cluster.nodes();
    for pid in processes(&cluster, &nodes[0]) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let loss = running.expect("the loss is printed", Duration::from_secs(20), |l| l.contains("ended early"));
    assert!(loss.contains("killed by signal 9") || loss.contains("stream to node"), "{loss}");
    // The other node goes on.
    near.goes_on();
    far.goes_on();
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(1), "what was lost is an error: {said}");
    // What the killed one left in the kernel waits for the next command.
    let pins = cluster.pins().unwrap();
    assert!(pins.iter().all(|p| p.starts_with(&nodes[0])), "{pins:?}");
    let cleaned = run(cluster.plugin().arg("cleanup"));
    assert!(cleaned.contains("/sys/fs/bpf/sockpath"), "{cleaned}");
    end_all([near, far]);
    cluster.assert_nothing_left();
}

#[test]
fn a_deleted_helper_pod_puts_everything_back() {
    let Some(cluster) = cluster_or_skip("a_deleted_helper_pod_puts_everything_back", Setup::RoutesNftables).map(with_servers) else {
        return;
    };
    let Both { mut running, near, far } = Both::start(&cluster);
    let name = helper_on(&cluster, &cluster.nodes()[0]);
    run(cluster.kubectl().args(["-n", HELPERS, "delete", "pod", &name, "--wait=false"]));
    let loss = await_loss(&mut running);
    assert!(loss.contains("n1") || loss.contains(&cluster.nodes()[0]), "{loss}");
    Both::end_after_a_loss(&cluster, running, near, far);
}

#[test]
fn an_evicted_helper_puts_everything_back() {
    let Some(cluster) = cluster_or_skip("an_evicted_helper_puts_everything_back", Setup::RoutesNftables).map(with_servers) else { return };
    let Both { mut running, near, far } = Both::start(&cluster);
    let name = helper_on(&cluster, &cluster.nodes()[1]);
    let eviction = serde_json::json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": HELPERS}});
    let file = std::env::temp_dir().join(format!("sockpath-eviction-{}.json", std::process::id()));
    fs::write(&file, eviction.to_string()).unwrap();
    run(cluster.kubectl().args(["create", "--raw", &format!("/api/v1/namespaces/{HELPERS}/pods/{name}/eviction"), "-f"]).arg(&file));
    let _ = fs::remove_file(file);
    await_loss(&mut running);
    near.goes_on();
    Both::end_after_a_loss(&cluster, running, near, far);
}

#[test]
fn a_drained_node_puts_everything_back() {
    let Some(cluster) = own_cluster_or_skip("a_drained_node_puts_everything_back").map(with_servers) else { return };
    let Both { mut running, near, far } = Both::start(&cluster);
    let node = cluster.nodes()[1].clone();
    // Only the helper is evicted, so that there are connections left to look at.
    let drain = ["drain", &node, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
    run(cluster.kubectl().args(drain).args(["--pod-selector", "app.kubernetes.io/name=sockpath-helper"]));
    await_loss(&mut running);
    // A pod that changes does not bring the helper back to the node.
    run(cluster.kubectl().args(["-n", sockpath_tests::cluster::NAMESPACE, "annotate", "pod", "web-1", "e2e=1", "--overwrite"]));
    near.goes_on();
    assert_eq!(cluster.helper_pods().iter().filter(|p| p["spec"]["nodeName"] == node.as_str()).count(), 0);
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    run(cluster.kubectl().args(["uncordon", &node]));
    assert_eq!(status.code(), Some(1), "{said}");
    end_all([near, far]);
    cluster.assert_nothing_left();
}

#[test]
fn a_drained_node_ends_a_detached_acceleration() {
    let Some(cluster) = own_cluster_or_skip("a_drained_node_ends_a_detached_acceleration").map(with_servers) else { return };
    let far = Talk::start(&cluster, "client-1", &pod_ip(&cluster, "web-1"), PORT, 3);
    let out = output(cluster.plugin().args(["accelerate", "--via", "socket", "client-1", "web-1", "--detach", "--for", "10m"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
    far.goes_on();
    let node = cluster.nodes()[1].clone();
    let drain = ["drain", &node, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
    run(cluster.kubectl().args(drain).args(["--pod-selector", "app.kubernetes.io/name=sockpath-helper"]));
    run(cluster.kubectl().args(["uncordon", &node]));
    far.goes_on();
    assert!(far.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn a_killed_plugin_leaves_nothing_accelerated() {
    let Some(cluster) = cluster_or_skip("a_killed_plugin_leaves_nothing_accelerated", Setup::RoutesNftables).map(with_servers) else {
        return;
    };
    let Both { running, near, far } = Both::start(&cluster);
    running.signal(Signal::SIGKILL);
    drop(running);
    cluster.eventually("the helpers end by themselves", Duration::from_secs(20), |c| {
        c.helper_pods().iter().all(|p| p["status"]["phase"] == "Succeeded")
    });
    assert!(cluster.pins().is_none_or(|p| p.is_empty()), "{:?}", cluster.pins());
    // The objects go with the next command.
    run(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "-o", "json"]));
    end_all([near, far]);
    cluster.assert_nothing_left();
}

#[test]
fn a_kubelet_that_stops_does_not_hold_anything() {
    let Some(cluster) = own_cluster_or_skip("a_kubelet_that_stops_does_not_hold_anything").map(with_servers) else { return };
    let Both { mut running, near, far } = Both::start(&cluster);
    cluster.daemon("stop", "n2", "kubelet");
    // The helper misses the heartbeats and ends; the plugin misses the helper.
    running.expect("the silence is noticed", Duration::from_secs(30), |l| l.contains("n2: the connection to it was lost for"));
    near.goes_on();
    let pins = cluster.pins().unwrap();
    let began = Instant::now();
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    cluster.daemon("cont", "n2", "kubelet");
    assert!(pins.iter().all(|p| p.starts_with("n1")), "the helper behind the kubelet has put everything back: {pins:?}");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    end_all([near, far]);
    cluster.assert_nothing_left();
}
