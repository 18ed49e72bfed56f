//! The life of an acceleration on a real kernel: who may start it, what it says, how it goes on and how it ends.

#![allow(missing_docs, reason = "tests")]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sockpath_protocol::accel::{AccelerateRequest, PairState, PodElsewhere, Reason, SelfTest};
use sockpath_protocol::pod::Locate;
use sockpath_protocol::{Message, Request};
use sockpath_tests::torture::accelerator::{self, Accelerator, Choice, HelperError, Session};
use sockpath_tests::torture::pods::Pod;

#[path = "hazards/fixture.rs"]
#[allow(dead_code, reason = "the hazards use the rest")]
mod fixture;

use fixture::{Fixture, exchange, pair};

fn pins(fixture: &Fixture) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("sockpath-{}", fixture.lab.instance()))
}

#[test]
fn the_kernel_is_tried_out_first() {
    let Some(fixture) = Fixture::new("the_kernel_is_tried_out_first") else { return };
    let mut session = Session::start(&fixture.lab).expect("the helper starts");
    session.say(&Request::Accelerate(Box::new(Choice::default().request(&fixture.lab)))).expect("the helper reads");
    let mut self_tests: Vec<SelfTest> = Vec::new();
    session
        .expect("a table of pairs", |m| {
            if let Message::Canary(c) = m {
                self_tests.push(c.clone());
            }
            matches!(m, Message::Pairs(p) if p.pairs.is_empty()).then_some(())
        })
        .expect("it starts");
    for name in ["redirect", "order", "fionread", "fin"] {
        assert!(self_tests.iter().any(|c| c.name == name && c.passed), "{self_tests:#?}");
    }
    assert!(pins(&fixture).exists(), "nothing is pinned");
    session.hang_up().expect("end");
    assert!(!pins(&fixture).exists(), "something is left behind");
}

#[test]
fn a_second_user_sees_who_holds_it() {
    let Some(fixture) = Fixture::new("a_second_user_sees_who_holds_it") else { return };
    let on = fixture.accelerate();
    let refused = Accelerator::start(&fixture.lab).expect_err("two at once");
    let refused = refused.downcast_ref::<HelperError>().expect("the helper's own words");
    assert_eq!(refused.code, "held");
    assert!(refused.text.contains("torture-"), "it does not say who: {refused}");
    assert!(refused.text.contains("`kubectl sockpath stop --lab`"), "what it says would end something else: {refused}");
    on.finish().expect("end");
}

#[test]
fn a_dry_run_touches_nothing() {
    let Some(fixture) = Fixture::new("a_dry_run_touches_nothing") else { return };
    let (client, server) = fixture.connect(6000);
    let request = AccelerateRequest { dry_run_ms: Some(1_500), ..Choice::default().request(&fixture.lab) };
    let mut session = Session::start(&fixture.lab).expect("the helper starts");
    session.say(&Request::Accelerate(Box::new(request))).expect("the helper reads");
    session.expect("a table of pairs", |m| matches!(m, Message::Pairs(_)).then_some(())).expect("it starts");
    exchange(&client, &server, 50);
    let summary = session.expect("a summary", |m| if let Message::Summary(s) = m { Some(s.clone()) } else { None }).expect("an end");
    assert_eq!(summary.totals.bypassed_messages, 0);
    assert!(summary.totals.open >= 1, "the connection was not seen: {summary:#?}");
    session.hang_up().expect("end");
    assert!(!pins(&fixture).exists(), "something is left behind");
}

#[test]
fn detached_it_goes_on_and_ends_by_itself() {
    let Some(fixture) = Fixture::new("detached_it_goes_on_and_ends_by_itself") else { return };
    let on = fixture.accelerate_with(&Choice { detach: true, lease: Duration::from_secs(12), ..Choice::default() });
    assert!(on.finish().expect("end").detached);
    // A connection that is made afterwards.
    let (client, server) = fixture.connect(6000);
    let end = Instant::now() + Duration::from_secs(8);
    loop {
        exchange(&client, &server, 50);
        let status = accelerator::status(&fixture.lab).expect("a status");
        assert!(status.active);
        if status.pairs.pairs.iter().any(|p| p.state == PairState::Accelerated && !p.live) {
            break;
        }
        assert!(Instant::now() < end, "{status:#?}");
    }
    let end = Instant::now() + Duration::from_secs(20);
    while pins(&fixture).exists() {
        exchange(&client, &server, 5);
        assert!(Instant::now() < end, "it did not end with its lease");
    }
    exchange(&client, &server, 5);
}

#[test]
fn cleanup_leaves_alone_what_is_in_use() {
    let Some(fixture) = Fixture::new("cleanup_leaves_alone_what_is_in_use") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    let removed = accelerator::cleanup(&fixture.lab).expect("cleanup");
    assert!(removed.is_empty() && pins(&fixture).exists(), "{removed:?}");
    exchange(&client, &server, 20);
    on.finish().expect("end");
    assert!(!pins(&fixture).exists(), "something is left behind");
}

#[test]
fn what_a_killed_helper_leaves_is_cleaned_up() {
    let Some(fixture) = Fixture::new("what_a_killed_helper_leaves_is_cleaned_up") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    on.0.kill().expect("kill");
    exchange(&client, &server, 20);
    assert!(pins(&fixture).exists());
    accelerator::cleanup(&fixture.lab).expect("cleanup");
    assert!(!pins(&fixture).exists(), "something is left behind");
    exchange(&client, &server, 20);
    // And the next one can start.
    let mut on = fixture.accelerate();
    fixture::await_accelerated(&mut on, &client, &server);
    assert!(pair(&mut on, &client).is_some_and(|p| p.live));
    on.finish().expect("end");
    assert!(!pins(&fixture).exists(), "something is left behind");
}

#[test]
fn status_says_that_the_helper_of_a_detached_run_is_gone() {
    let Some(fixture) = Fixture::new("status_says_that_the_helper_of_a_detached_run_is_gone") else { return };
    let mut on = fixture.accelerate_with(&Choice { detach: true, lease: Duration::from_secs(600), ..Choice::default() });
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    assert!(on.finish().expect("end").detached);
    let pid = accelerator::detached_helper(&fixture.lab).expect("the process that goes on");
    let before = accelerator::status(&fixture.lab).expect("a status");
    assert!(!before.helper_gone && before.lease_left_ms > 500_000, "{before:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
    // The kernel's lease is short, and what goes socket to socket ends with it.
    accelerator::await_lease_end(&fixture.lab).expect("the lease ends");
    let after = accelerator::status(&fixture.lab).expect("a status");
    assert!(after.active && after.helper_gone && after.lease_left_ms == 0, "{after:?}");
    exchange(&client, &server, 20);
    accelerator::stop(&fixture.lab).expect("stop");
    assert!(!pins(&fixture).exists(), "something is left behind");
    exchange(&client, &server, 20);
}

#[test]
fn lab_down_removes_the_pins_of_its_acceleration() {
    let Some(fixture) = Fixture::new("lab_down_removes_the_pins_of_its_acceleration") else { return };
    let mut on = fixture.accelerate_with(&Choice { detach: true, lease: Duration::from_secs(600), ..Choice::default() });
    let (client, _server) = fixture.connect_accelerated(&mut on, 6000);
    assert!(on.finish().expect("end").detached);
    // This stays unread.
    client.send(b"unread");
    let pins = pins(&fixture);
    assert!(pins.exists());
    let down = fixture.lab.down();
    assert!(down.status.success(), "{down:?}");
    assert!(!pins.exists(), "{} is left behind", pins.display());
}

/// An acceleration of all pods of the lab by one helper, or, as on a cluster, of one node's, which gets the addresses of the others.
fn across_nodes(test: &str, as_on_a_cluster: bool) {
    let Some(fixture) = Fixture::new(test) else { return };
    let remote = Pod::new(&fixture.lab, "httpbin-remote");
    let status = fixture.lab.status();
    let all = || status.pods.iter();
    let ip = all().find(|p| p.name == "httpbin-remote").and_then(|p| p.ips.iter().copied().find(IpAddr::is_ipv4)).expect("an address");
    let elsewhere: Vec<PodElsewhere> =
        all().filter(|p| as_on_a_cluster && p.node != "node-1").map(|p| PodElsewhere::from(&p.into())).collect();
    let pods = all().filter(|p| !as_on_a_cluster || p.node == "node-1").map(Into::into).collect();
    let request = AccelerateRequest { pods, elsewhere, ..Choice::default().request(&fixture.lab) };
    let mut session = Session::start(&fixture.lab).expect("the helper starts");
    session.say(&Request::Accelerate(Box::new(request))).expect("the helper reads");
    let mut on = Accelerator(session);
    on.next_pairs().expect("it starts");
    let listener = remote.listen(6000, &[]);
    let client = fixture.curl.connect(SocketAddr::new(ip, 6000));
    let server = listener.accept();
    exchange(&client, &server, 50);
    fixture::assert_left_alone(&mut on, &client, Reason::OtherNode);
    let row = pair(&mut on, &client).expect("a row");
    assert_eq!([row.client_pod.as_deref(), row.server_pod.as_deref()], [Some("default/curl"), Some("default/httpbin-remote")]);
    exchange(&client, &server, 50);
    fixture::assert_untouched(&mut on, &client);
    on.finish().expect("end");
}

#[test]
fn a_pair_across_nodes_is_shown_and_left_alone() {
    across_nodes("a_pair_across_nodes_is_shown_and_left_alone", false);
}

#[test]
fn a_peer_on_a_node_of_another_helper_is_reported() {
    across_nodes("a_peer_on_a_node_of_another_helper_is_reported", true);
}

/// As on nodes where the runtime puts pods into hierarchies of cgroup v1 only.
#[test]
fn pods_without_a_directory_in_cgroup_v2_are_taken() {
    let Some(fixture) = Fixture::new("pods_without_a_directory_in_cgroup_v2_are_taken") else { return };
    let v1 = std::env::temp_dir().join(format!("sockpath-{}-v1", fixture.lab.instance()));
    std::fs::create_dir_all(&v1).expect("a directory");
    let mut request = Choice::default().request(&fixture.lab);
    request.pods.retain(|p| matches!(p.name.as_str(), "curl" | "httpbin"));
    for pod in &mut request.pods {
        let Locate::Path { cgroup, .. } = &mut pod.locate else { panic!("the lab says where its pods are") };
        *cgroup = v1.to_string_lossy().into_owned();
    }
    let mut session = Session::start(&fixture.lab).expect("the helper starts");
    session.say(&Request::Accelerate(Box::new(request.clone()))).expect("the helper reads");
    let mut on = Accelerator(session);
    on.next_pairs().expect("it starts");
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    assert!(pair(&mut on, &client).is_some_and(|p| !p.live), "it was found by the iterator");
    // Sockets of other pods are not tracked.
    let others = Pod::new(&fixture.lab, "httpbin-remote");
    let listener = others.listen(6001, &[]);
    let stranger = others.connect(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 6001));
    let accepted = listener.accept();
    exchange(&stranger, &accepted, 50);
    assert_eq!(on.next_pairs().expect("a table").totals.open, 1, "a connection of a pod that was not chosen is known");
    exchange(&client, &server, 50);
    on.finish().expect("end");
    assert!(!pins(&fixture).exists(), "something is left behind");
    exchange(&client, &server, 20);
    std::fs::remove_dir(&v1).expect("an empty directory");
}
