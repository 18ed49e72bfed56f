//! Connections that break while the helpers live: an API server that restarts or goes, a network that stands still, a suspended plugin.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_tests::cluster::{Cluster, Held, Setup, cluster_or_skip, own_cluster_or_skip};
use sockpath_tests::talk::{PORT, Running, Talk, install, pod_ip, serve};

/// An acceleration on n1 with a connection that it has taken.
fn accelerated(cluster: &Held) -> (Running, Talk<'_>) {
    install(cluster, &["client", "web"]);
    serve(cluster, "web");
    let talk = Talk::start(cluster, "client", &pod_ip(cluster, "web"), PORT, 1);
    let mut running = Running::start(cluster.plugin().args(["accelerate", "--via", "socket", "client", "web"]));
    running.expect_pair("client", "web", "accelerated");
    (running, talk)
}

/// Ctrl-C; the acceleration was never given up, and ends in order.
fn ends_in_order(cluster: &Cluster, running: Running, talk: Talk<'_>) {
    talk.goes_on();
    running.signal(Signal::SIGINT);
    let (exit, said) = running.end();
    assert!(exit.success(), "{said}");
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

/// All helpers have ended.
fn all_ended(cluster: &Cluster) -> bool {
    cluster.helper_pods().iter().all(|p| p["status"]["phase"] == "Succeeded")
}

#[test]
fn an_acceleration_goes_on_when_the_api_server_restarts() {
    let Some(cluster) = own_cluster_or_skip("an_acceleration_goes_on_when_the_api_server_restarts") else { return };
    let (mut running, talk) = accelerated(&cluster);
    cluster.daemon("restart", "n1", "kube-apiserver");
    running
        .expect("the connection is restored", Duration::from_secs(30), |l| l.contains("was interrupted for") && l.contains("is restored"));
    cluster.wait_api();
    ends_in_order(&cluster, running, talk);
}

#[test]
fn a_trace_goes_on_when_the_api_server_restarts() {
    let Some(cluster) = own_cluster_or_skip("a_trace_goes_on_when_the_api_server_restarts") else { return };
    let traffic = ["sh", "-c", "while true; do wget -qO- http://$0:8080/ >/dev/null; done", &pod_ip(&cluster, "web")];
    let mut traffic = cluster.exec("client", &traffic).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut running = Running::start(cluster.plugin().args(["trace", "client", "web:8080", "-o", "jsonl"]));
    running.expect("packets", Duration::from_secs(30), |l| l.starts_with('{'));
    cluster.daemon("restart", "n1", "kube-apiserver");
    let line = running.expect("the connection is restored", Duration::from_secs(30), |l| l.contains("is restored"));
    assert!(line.contains("packets of this time are missing"), "{line}");
    // The exec went through the API server, too.
    let _ = traffic.kill();
    let _ = traffic.wait();
    cluster.wait_api();
    let one = output_of(&cluster);
    assert!(one, "the client reaches the server");
    running.expect("further packets", Duration::from_secs(30), |l| l.starts_with('{'));
    running.signal(Signal::SIGINT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(130), "{said}");
    cluster.assert_no_helpers();
}

fn output_of(cluster: &Cluster) -> bool {
    let ip = pod_ip(cluster, "web");
    let get = format!("for i in 1 2 3 4 5; do wget -qO- http://{ip}:8080/ >/dev/null || exit 1; done");
    cluster.exec("client", &["sh", "-c", &get]).status().is_ok_and(|s| s.success())
}

#[test]
fn an_api_server_that_goes_is_named_within_seconds() {
    let Some(cluster) = own_cluster_or_skip("an_api_server_that_goes_is_named_within_seconds") else { return };
    let (mut running, talk) = accelerated(&cluster);
    cluster.daemon("kill", "n1", "kube-apiserver");
    let line = running.expect("it is reported", Duration::from_secs(10), |l| l.contains("was lost and is being restored"));
    assert!(line.contains("the API server at https://127.0.0.1:16443 cannot be reached"), "{line}");
    running.expect("it is given up", Duration::from_secs(30), |l| l.contains("the connection to it was lost for"));
    // The pod of the helper, which has ended by then, is deleted once the API server is back.
    cluster.daemon("restart", "n1", "kube-apiserver");
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("fall back to TCP"), "{said}");
    cluster.wait_api();
    cluster.eventually("the node is ready", Duration::from_secs(60), |c| {
        c.kubectl().args(["wait", "--for=condition=Ready", "node/n1", "--timeout=2s"]).output().is_ok_and(|o| o.status.success())
    });
    talk.goes_on();
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

/// A process of this machine that stands still until this goes.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        Self(Pid::from_raw(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What passes the connections of this machine on to the API server.
fn relay() -> i32 {
    let state = std::env::var("K8S_STATE").unwrap_or_else(|_| std::env::temp_dir().join("sockpath-cluster").to_string_lossy().into_owned());
    fs::read_to_string(format!("{state}/run/relay.pid")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_network_that_stands_still_is_reported_and_the_acceleration_goes_on_after_it() {
    let Some(cluster) = own_cluster_or_skip("a_network_that_stands_still_is_reported_and_the_acceleration_goes_on_after_it") else {
        return;
    };
    let (mut running, talk) = accelerated(&cluster);
    let stopped = Stopped::new(relay());
    running.expect("it is reported", Duration::from_secs(12), |l| l.contains("was lost and is being restored") && l.contains("no answer"));
    drop(stopped);
    let line = running.expect("how it ends is reported", Duration::from_secs(20), |l| l.contains("is restored") || l.contains("error"));
    // The helper waits for 10 s: whether the connection is back by then is a matter of a second.
    if line.contains("is restored") {
        ends_in_order(&cluster, running, talk);
    } else {
        let (status, said) = running.end();
        assert!(status.code() == Some(1) && said.contains("fall back to TCP"), "{said}");
    }
}

#[test]
fn a_plugin_that_was_suspended_longer_than_its_helper_waits_says_so() {
    let test = "a_plugin_that_was_suspended_longer_than_its_helper_waits_says_so";
    let Some(cluster) = cluster_or_skip(test, Setup::RoutesNftables) else { return };
    let (running, talk) = accelerated(&cluster);
    running.signal(Signal::SIGSTOP);
    cluster.eventually("the helper has ended", Duration::from_secs(40), all_ended);
    talk.goes_on();
    running.signal(Signal::SIGCONT);
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("this machine or the plugin was suspended for"), "{said}");
    assert!(talk.end() > 0);
    cluster.assert_nothing_left();
}

#[test]
fn a_plugin_that_was_suspended_for_a_moment_goes_on() {
    let Some(cluster) = cluster_or_skip("a_plugin_that_was_suspended_for_a_moment_goes_on", Setup::RoutesNftables) else { return };
    let (running, talk) = accelerated(&cluster);
    running.signal(Signal::SIGSTOP);
    let before = talk.messages();
    cluster.eventually("the connection goes on meanwhile", Duration::from_secs(5), |_| talk.messages() > before + 100);
    running.signal(Signal::SIGCONT);
    ends_in_order(&cluster, running, talk);
}
