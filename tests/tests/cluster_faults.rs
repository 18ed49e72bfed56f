//! What happens to a trace when something goes away in the middle: the helper, the plugin, the kubelet, the API server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_tests::cluster::{Cluster, HELPERS, Setup, cluster_or_skip, output, own_cluster_or_skip, run, text};

/// A trace that streams until something ends it, with traffic it sees.
struct Running {
    plugin: Child,
    traffic: Child,
}

impl Running {
    /// Starts it and waits for its first packet.
    fn start(cluster: &Cluster) -> Self {
        let traffic = cluster
            .exec("client", &["sh", "-c", "while true; do wget -qO- http://$0:8080/ >/dev/null; done", &pod_ip(cluster, "web")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut plugin = cluster
            .plugin()
            .args(["trace", "client", "web:8080", "-o", "jsonl"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(plugin.stdout.as_mut().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut said = String::new();
            plugin.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
            panic!("no packet was shown: {said}");
        }
        Self { plugin, traffic }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.plugin.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the plugin's end; gives its exit code and stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = Vec::new();
        // A full pipe would hold the plugin up.
        let mut stdout = self.plugin.stdout.take().unwrap();
        let drain = std::thread::spawn(move || drop(stdout.read_to_end(&mut rest)));
        let mut said = String::new();
        self.plugin.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = self.plugin.wait().unwrap();
        drain.join().unwrap();
        (status.code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
        let _ = self.traffic.kill();
        let _ = self.traffic.wait();
    }
}

fn pod_ip(cluster: &Cluster, pod: &str) -> String {
    run(cluster.kubectl().args(["-n", sockpath_tests::cluster::NAMESPACE, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"]))
}

#[test]
fn every_signal_ends_in_order_and_leaves_nothing() {
    let Some(cluster) = cluster_or_skip("every_signal_ends_in_order_and_leaves_nothing", Setup::RoutesNftables) else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let running = Running::start(&cluster);
        running.signal(signal);
        let (code, said) = running.end();
        assert_eq!(code, Some(130), "{signal}: {said}");
        cluster.assert_no_helpers();
    }
}

#[test]
fn interrupted_while_the_helper_starts() {
    let Some(cluster) = cluster_or_skip("interrupted_while_the_helper_starts", Setup::RoutesNftables) else { return };
    let mut plugin =
        cluster.plugin().args(["-v", "trace", "client", "web:8080"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(plugin.stderr.take().unwrap()).lines();
    let created = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("creating the helper pod")));
    assert!(created.is_some());
    kill(Pid::from_raw(i32::try_from(plugin.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(plugin.wait().unwrap().code(), Some(130));
    cluster.assert_no_helpers();
}

#[test]
fn a_killed_plugin_is_noticed_by_its_helper_and_cleaned_up_by_the_next() {
    let Some(cluster) = cluster_or_skip("a_killed_plugin_is_noticed_by_its_helper_and_cleaned_up_by_the_next", Setup::RoutesNftables)
    else {
        return;
    };
    let running = Running::start(&cluster);
    running.signal(Signal::SIGKILL);
    drop(running);
    cluster.eventually("the helper ends by itself", Duration::from_secs(20), |c| {
        c.helper_pods().iter().all(|p| matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
    });
    assert_eq!(cluster.helper_pods().len(), 1, "the object stays until the next command");
    run(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "-o", "json"]));
    cluster.assert_no_helpers();
}

#[test]
fn cleanup_removes_only_what_is_not_in_use() {
    let Some(cluster) = cluster_or_skip("cleanup_removes_only_what_is_not_in_use", Setup::RoutesNftables) else { return };
    let running = Running::start(&cluster);
    let out = run(cluster.plugin().args(["cleanup"]));
    assert!(out.contains("kept") && out.contains("in use by "), "a running session is in use: {out}");
    assert_eq!(cluster.helper_pods().len(), 1);
    running.signal(Signal::SIGKILL);
    drop(running);
    let out = run(cluster.plugin().args(["cleanup"]));
    assert!(out.contains("removed pod sockpath/sockpath-trace-"), "{out}");
    cluster.assert_no_helpers();
}

#[test]
fn a_killed_helper_is_reported_as_such() {
    let Some(cluster) = cluster_or_skip("a_killed_helper_is_reported_as_such", Setup::RoutesNftables) else { return };
    let running = Running::start(&cluster);
    let name = cluster.helper_pods()[0]["metadata"]["name"].as_str().unwrap().to_owned();
    run(cluster.kubectl().args(["-n", HELPERS, "delete", "pod", &name, "--grace-period=0", "--force", "--wait=false"]));
    let (code, said) = running.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: ") && said.contains("its pod was deleted"), "{said}");
    cluster.assert_no_helpers();
}

#[test]
fn a_kubelet_that_stops_does_not_hold_the_plugin() {
    let Some(cluster) = own_cluster_or_skip("a_kubelet_that_stops_does_not_hold_the_plugin") else { return };
    let running = Running::start(&cluster);
    cluster.daemon("stop", "n1", "kubelet");
    let began = Instant::now();
    running.signal(Signal::SIGINT);
    let (code, said) = running.end();
    let took = began.elapsed();
    cluster.daemon("cont", "n1", "kubelet");
    // The helper cannot be reached through a frozen kubelet, so the report is incomplete and says so.
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("n1") && said.contains("did not end within"), "{said}");
    assert!(took < Duration::from_secs(6), "{took:?}: {said}");
    cluster.assert_no_helpers();
    let out = output(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "-o", "json"]));
    assert!(out.status.success(), "{}", text(&out.stderr));
}
