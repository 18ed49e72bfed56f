//! The short path as other sessions see it: status, stop, cleanup, a second user, and a helper that was killed.

use std::time::{Duration, Instant};

use sockpath_protocol::accel::{AccelStatus, Carrier, Pair, PairState, StopRequest, Via};
use sockpath_protocol::{Message, Request};
use sockpath_tests::torture::accelerator::{self, Accelerator, Choice, HelperError, Session};
use sockpath_tests::torture::pods::Remote;

use crate::fixture::{Fixture, await_short, exchange};

const PATIENCE: Duration = Duration::from_secs(15);

fn short() -> Choice {
    Choice { via: Via::Short, ..Choice::default() }
}

fn status(fixture: &Fixture) -> AccelStatus {
    accelerator::status(&fixture.lab).expect("a status")
}

fn row(status: &AccelStatus, client: &Remote) -> Option<Pair> {
    let local = client.local();
    status.pairs.pairs.iter().find(|p| p.client.port() == local.port()).cloned()
}

/// Exchanges messages until another session sees this of the connection.
fn await_status(fixture: &Fixture, client: &Remote, server: &Remote, fine: impl Fn(&AccelStatus, &Pair) -> bool) -> AccelStatus {
    await_any_status(fixture, client, server, |status| row(status, client).is_some_and(|row| fine(status, &row)))
}

/// The same of the node, whether the connection is shown or not.
fn await_any_status(fixture: &Fixture, client: &Remote, server: &Remote, fine: impl Fn(&AccelStatus) -> bool) -> AccelStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        exchange(client, server, 20);
        let status = status(fixture);
        if fine(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{status:#?}");
    }
}

/// What tc shows of programs at the node's end of curl's device.
fn at_device(fixture: &Fixture) -> String {
    let device = fixture.lab.host_veth("curl", "node-1");
    let show = |words: &[&str]| fixture.lab.run("node-1", [&["tc"][..], words, &["dev", &device]].concat());
    let filters = |side: &str| fixture.lab.run("node-1", ["tc", "filter", "show", "dev", &device, side]);
    [show(&["qdisc", "show"]), filters("ingress"), filters("egress")].concat()
}

#[test]
fn detached_it_goes_on_until_another_session_stops_it() {
    let Some(fixture) = Fixture::new("detached_it_goes_on_until_another_session_stops_it") else { return };
    let choice = Choice { detach: true, lease: Duration::from_secs(600), ..short() };
    let on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    assert!(on.finish().expect("end").detached);
    let (client, server) = fixture.connect(6000);
    let carried = |_: &AccelStatus, row: &Pair| row.state == PairState::Accelerated && row.bypassed_messages >= 20;
    let seen = await_status(&fixture, &client, &server, carried);
    assert!(seen.active && seen.detached && !seen.helper_gone, "{seen:#?}");
    assert!(seen.owner.as_deref().is_some_and(|o| o.starts_with("torture-")), "{seen:#?}");
    assert!((500_000..=600_000).contains(&seen.lease_left_ms), "{seen:#?}");
    assert_eq!(row(&seen, &client).map(|p| p.via), Some(Carrier::Short));
    // What is in use is not cleaned up.
    assert_eq!(accelerator::cleanup(&fixture.lab).expect("cleanup"), Vec::<String>::new());
    assert!(status(&fixture).active);

    let summary = accelerator::stop(&fixture.lab).expect("stop").expect("a summary");
    assert!(summary.totals.by_path.short.connections >= 1 && summary.totals.by_path.short.units >= 20, "{summary:#?}");
    assert!(!status(&fixture).active);
    exchange(&client, &server, 20);
    let left = at_device(&fixture);
    assert!(!left.contains("short_"), "{left}");
    client.close();
    assert!(server.recv(1).is_empty());
}

#[test]
fn a_run_in_the_foreground_learns_who_has_stopped_it() {
    let Some(fixture) = Fixture::new("a_run_in_the_foreground_learns_who_has_stopped_it") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let mut other = Session::start(&fixture.lab).expect("a session");
    other.say(&Request::Stop(StopRequest { drain_ms: 10_000, by: "the test".into() })).expect("say");
    other.expect("what was removed", |m| matches!(m, Message::Removed { .. }).then_some(())).expect("stop");
    let summary = on.0.expect("a summary", |m| if let Message::Summary(s) = m { Some(s.clone()) } else { None }).expect("a summary");
    assert_eq!(summary.stopped_by.as_deref(), Some("the test"));
    assert!(summary.totals.bypassed_messages >= 20, "{summary:#?}");
    exchange(&client, &server, 20);
    assert!(!status(&fixture).active);
}

#[test]
fn a_second_user_is_refused() {
    let Some(fixture) = Fixture::new("a_second_user_is_refused") else { return };
    let mut on = fixture.accelerate();
    for via in [Via::Short, Via::Socket, Via::Auto] {
        let refused = Accelerator::start_with(&fixture.lab, &Choice { via, ..Choice::default() }).expect_err("two users");
        assert_eq!(refused.downcast_ref::<HelperError>().map(|e| e.code.as_str()), Some("held"), "{refused:#}");
    }
    let (client, server) = fixture.connect_short(&mut on, 6000);
    on.finish().expect("end");
    // The reverse.
    let on = match Accelerator::start(&fixture.lab) {
        Err(e) if e.to_string().contains("acceleration needs Linux") => {
            sockpath_tests::skipped("a_second_user_is_refused", &format!("beside the socket path: {e}"));
            return exchange(&client, &server, 5);
        }
        on => on.expect("the socket path"),
    };
    let refused = Accelerator::start_with(&fixture.lab, &short()).expect_err("two users");
    assert_eq!(refused.downcast_ref::<HelperError>().map(|e| e.code.as_str()), Some("held"), "{refused:#}");
    on.finish().expect("end");
    exchange(&client, &server, 5);
}

#[test]
fn a_helper_that_was_killed_is_reported_and_removed() {
    let Some(fixture) = Fixture::new("a_helper_that_was_killed_is_reported_and_removed") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    on.0.kill().expect("kill");
    // Filters, before 6.6, go on until the lease is over.
    let stay = at_device(&fixture).contains("short_");
    if stay {
        await_status(&fixture, &client, &server, |s, _| s.lease_left_ms == 0);
    }
    let carried = row(&status(&fixture), &client).expect("a row").bypassed_messages;
    let gone = await_status(&fixture, &client, &server, |s, _| s.helper_gone);
    let last = row(&gone, &client).expect("a row");
    // Without its process, or its lease, nothing is redirected: what was exchanged since took the stack.
    assert_eq!((last.via, last.bypassed_messages), (Carrier::Stack, carried), "{last:#?}");
    assert!(gone.active && gone.owner.is_some(), "{gone:#?}");
    assert!(!accelerator::cleanup(&fixture.lab).expect("cleanup").is_empty());
    assert!(!status(&fixture).active);
    // The node is free again.
    let mut on = fixture.accelerate();
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// Another version pins other maps of flows: its connections are not shown, but what it left is reported and removed.
#[test]
fn what_another_version_pinned_is_removed() {
    let Some(fixture) = Fixture::new("what_another_version_pinned_is_removed") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    on.0.kill().expect("kill");
    let pins = fixture.pins();
    for node in 0..2 {
        let pin = |map: &str| pins.join(format!("short-{map}-{node}"));
        std::fs::rename(pin("flows4"), pin("flows")).expect("a pin of flows over IPv4");
        std::fs::remove_file(pin("flows6")).expect("a pin of flows over IPv6");
    }
    let gone = await_any_status(&fixture, &client, &server, |status| status.helper_gone);
    assert!(gone.active && gone.owner.is_some() && gone.pairs.pairs.is_empty(), "{gone:#?}");
    assert!(!accelerator::cleanup(&fixture.lab).expect("cleanup").is_empty());
    assert!(!status(&fixture).active);
    let mut on = fixture.accelerate();
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// As on kernels before 6.6: filters of clsact.
#[test]
fn filters_and_their_queue_discipline_are_removed() {
    let Some(fixture) = Fixture::new("filters_and_their_queue_discipline_are_removed") else { return };
    let choice = Choice { without: "tcx".into(), ..short() };
    let (client, server) = fixture.connect(6000);
    let mut on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    await_short(&mut on, &client, &server);
    let there = at_device(&fixture);
    assert!(there.contains("clsact") && there.contains("short_from_pod") && there.contains("short_delivered"), "{there}");
    on.finish().expect("end");
    let left = at_device(&fixture);
    assert!(!left.contains("clsact") && !left.contains("short_"), "{left}");
    exchange(&client, &server, 5);

    // A helper that is killed leaves them: they pass everything once the lease is over, and `stop` removes them.
    let mut on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    await_short(&mut on, &client, &server);
    on.0.kill().expect("kill");
    let gone = await_status(&fixture, &client, &server, |s, _| s.lease_left_ms == 0);
    let carried = row(&gone, &client).expect("a row").bypassed_messages;
    exchange(&client, &server, 20);
    assert_eq!(row(&status(&fixture), &client).expect("a row").bypassed_messages, carried);
    assert!(at_device(&fixture).contains("short_from_pod"));
    accelerator::stop(&fixture.lab).expect("stop");
    let left = at_device(&fixture);
    assert!(!left.contains("clsact") && !left.contains("short_"), "{left}");

    // A queue discipline that was there before stays.
    let device = fixture.lab.host_veth("curl", "node-1");
    fixture.lab.run("node-1", ["tc", "qdisc", "add", "dev", &device, "clsact"]);
    let mut on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
    let left = at_device(&fixture);
    assert!(left.contains("clsact") && !left.contains("short_"), "{left}");
}

#[test]
fn lab_down_removes_its_pins() {
    let Some(fixture) = Fixture::new("lab_down_removes_its_pins") else { return };
    let choice = Choice { detach: true, lease: Duration::from_secs(600), ..short() };
    Accelerator::start_with(&fixture.lab, &choice).expect("start").finish().expect("end");
    let pins = fixture.pins();
    assert!(pins.exists());
    let down = fixture.lab.down();
    assert!(down.status.success() && !pins.exists(), "{down:?}");
}
