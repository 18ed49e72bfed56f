//! `trace` of a pair whose bytes go socket to socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use sockpath_tests::lab::Lab;
use sockpath_tests::polled::Polled;
use sockpath_tests::root_or_skip;
use sockpath_tests::state::{SetAtEnd, eventually};
use sockpath_tests::torture::accelerator;
use sockpath_tests::trace::{Trace, Traced, trace};

fn ids(stages: &Value) -> Vec<&str> {
    stages.as_array().into_iter().flatten().filter_map(|s| s["id"].as_str()).collect()
}

fn assert_socket_path(traced: &Traced) {
    let short = &traced.document["accelerated"];
    let way = ["socket-write", "verdict", "ingress-queue", "reader-woken", "dequeued", "copied"];
    assert_eq!(ids(&short["stages"]), way, "{}", traced.dump());
    let seen: Vec<&str> = short["stages"].as_array().unwrap().iter().filter_map(|s| s["seen"].as_str()).collect();
    assert_eq!(seen, ["observed", "inferred", "inferred", "observed", "inferred", "observed"]);
    let sum: u64 = short["stages"].as_array().unwrap().iter().filter_map(|s| s["p50_ns"].as_u64()).sum();
    assert_eq!(Some(sum), short["end_to_end"]["p50_ns"].as_u64());
    assert!(traced.document["saving"]["share"].is_f64(), "{}", traced.dump());
}

/// No node's stack had the packets of the short path, and those of the request passed one.
fn assert_redirected(traced: &Traced) {
    let short = &traced.document["short"];
    assert_eq!((&short["packets_of"], &short["redirected"]), (&"data".into(), &true.into()), "{}", traced.dump());
    assert_eq!(traced.document["request"]["redirected"], false, "{}", traced.dump());
    let (short, request) = (ids(&short["stages"]), ids(&traced.document["stages"]));
    assert!(request.contains(&"node-forward") && !short.contains(&"node-forward"), "{}", traced.dump());
    assert!(short.starts_with(&["socket-write"]) && short.contains(&"copied"), "{}", traced.dump());
    let saving = &traced.document["short_saving"];
    assert_eq!(saving["accelerated_p50_ns"], traced.document["short"]["end_to_end"]["p50_ns"], "{}", traced.dump());
    assert!(saving["share"].is_f64(), "{}", traced.dump());
}

#[test]
fn between_nodes_the_short_path_is_compared_and_no_other() {
    if !root_or_skip("between_nodes_the_short_path_is_compared_and_no_other") {
        return;
    }
    let lab = Lab::up();
    let traced = trace(&lab, &["curl", "httpbin-remote", "--compare", "--probe", "--count", "20"]);
    assert_eq!(traced.code, 0, "{}", traced.dump());
    assert_redirected(&traced);
    assert!(ids(&traced.document["short"]["stages"]).contains(&"wire"), "{}", traced.dump());
    assert!(traced.document["accelerated"].is_null(), "{}", traced.dump());
    assert!(!traced.stderr.contains("on the socket path until"), "it waited for what cannot come: {}", traced.stderr);
}

#[test]
fn inside_a_pod_there_is_no_short_path() {
    if !root_or_skip("inside_a_pod_there_is_no_short_path") {
        return;
    }
    let lab = Lab::up();
    let traced = trace(&lab, &["httpbin", "httpbin:8080", "--compare", "--probe", "--count", "20"]);
    assert_eq!(traced.code, 0, "{}", traced.dump());
    assert!(traced.document["short"].is_null(), "{}", traced.dump());
    assert!(!traced.stderr.contains("on the short path until"), "it waited for what cannot come: {}", traced.stderr);
    assert_socket_path(&traced);
}

#[test]
fn compare_shows_all_three_paths_and_ends() {
    if !root_or_skip("compare_shows_all_three_paths_and_ends") {
        return;
    }
    let lab = Lab::up();
    for target in ["httpbin", "svc/httpbin"] {
        let traced = trace(&lab, &["curl", target, "--compare"]);
        assert_eq!(traced.code, 0, "{}", traced.dump());
        assert_eq!(traced.document["request"]["packets_of"], "data", "{}", traced.dump());
        assert!(ids(&traced.document["stages"]).contains(&"node-forward"), "{}", traced.dump());
        assert_redirected(&traced);
        assert_socket_path(&traced);
    }
    // The normal path is back.
    let traced = trace(&lab, &["curl", "httpbin", "--probe"]);
    assert!(traced.document["accelerated"].is_null() && traced.document["short"].is_null(), "{}", traced.dump());
}

#[test]
fn an_acceleration_of_others_is_noticed() {
    if !root_or_skip("an_acceleration_of_others_is_noticed") {
        return;
    }
    let lab = Lab::up();
    let stop = AtomicBool::new(false);
    let traced = std::thread::scope(|scope| {
        let (open, opened) = std::sync::mpsc::channel();
        let stop = &stop;
        let lab = &lab;
        scope.spawn(move || {
            lab.inside("curl", || {
                let stream = TcpStream::connect("10.42.1.3:8080").unwrap();
                stream.set_nonblocking(true).unwrap();
                let mut stream = Polled(stream);
                open.send(()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(b"not http, so it is echoed\n").unwrap();
                    let _ = stream.read(&mut [0; 64]).unwrap();
                }
            });
        });
        let _stop = SetAtEnd(stop);
        opened.recv().unwrap();
        // A connection that is open is found in the pod's network namespace; this one is not of its cgroup.
        let status = lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "--detach", "--for", "1m"]).status().unwrap();
        assert!(status.success());
        eventually("it is accelerated", Duration::from_secs(30), || {
            accelerator::status(lab).expect("a status").pairs.totals.accelerated > 0
        });
        Trace::start(lab, &["curl", "httpbin", "--no-probe", "--duration", "4s"]).finish()
    });
    let stopped = lab.plugin().args(["stop", "--lab"]).status().unwrap();
    assert!(stopped.success());
    let kinds = traced.list("packets").iter().filter(|p| p["kind"] == "bypass").count();
    assert!(kinds > 0, "{}", traced.dump());
}
