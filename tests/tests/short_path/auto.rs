//! `--via auto`: every connection gets the short path, and those between proven programs go on to the socket path.

use std::time::{Duration, Instant};

use sockpath_protocol::Request;
use sockpath_protocol::accel::{Carrier, Pair, PairState, PauseReason, PauseRequest, PodName, Reason, ResumeRequest, Via};
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, await_rows, exchange, rows};

/// The file of the agents in the pods.
const AGENT: &str = "torture";

fn auto(programs: &[&str]) -> Choice {
    Choice { via: Via::Auto, socket_programs: programs.iter().map(|p| (*p).to_owned()).collect(), ..Choice::default() }
}

fn start(fixture: &Fixture, programs: &[&str]) -> Accelerator {
    Accelerator::start_with(&fixture.lab, &auto(programs)).expect("it does not start")
}

fn is_by(carrier: Carrier) -> impl Fn(&Pair) -> bool {
    move |p| {
        let carried = if carrier == Carrier::Socket { p.by_path.socket.units } else { p.by_path.short.units };
        p.via == carrier && p.state == PairState::Accelerated && carried >= 20
    }
}

fn await_by(on: &mut Accelerator, client: &Remote, server: &Remote, carrier: Carrier) -> Vec<Pair> {
    await_rows(on, client, server, carrier.text(), is_by(carrier))
}

#[test]
fn auto_keeps_programs_that_are_not_proven_on_the_short_path() {
    let Some(fixture) = Fixture::new("auto_keeps_programs_that_are_not_proven_on_the_short_path") else { return };
    let mut on = start(&fixture, &["another"]);
    let (client, server) = fixture.connect(6000);
    let fine = |p: &Pair| is_by(Carrier::Short)(p) && p.reason == Some(Reason::Unproven);
    let rows = await_rows(&mut on, &client, &server, "short and unproven", fine);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    // Messages enough for any program to be known by, several times.
    for _ in 0..3 {
        exchange(&client, &server, 200);
        let rows = crate::fixture::rows(&mut on, &client);
        assert!(rows.iter().all(|p| p.via == Carrier::Short && p.by_path.socket.units == 0), "{rows:#?}");
    }
    let summary = on.finish().expect("end");
    let by_path = summary.totals.by_path;
    assert!(by_path.short.connections == 1 && by_path.socket.connections == 0, "{summary:#?}");
}

#[test]
fn auto_takes_proven_programs_on_to_the_socket_path() {
    let Some(fixture) = Fixture::new("auto_takes_proven_programs_on_to_the_socket_path") else { return };
    let (old_client, old_server) = fixture.connect(6001);
    exchange(&old_client, &old_server, 5);
    let mut on = start(&fixture, &[AGENT]);
    let (client, server) = fixture.connect(6000);
    let rows = await_by(&mut on, &client, &server, Carrier::Socket);
    assert!(rows.len() == 1 && rows[0].reason.is_none(), "{rows:#?}");
    await_by(&mut on, &old_client, &old_server, Carrier::Socket);
    // Between nodes there is no socket path.
    let to = std::net::SocketAddr::new(fixture.ip("httpbin-remote", crate::fixture::Family::V4), 6002);
    let (far_client, far_server) = fixture.connect_to(&fixture.remote, 6002, to);
    let far = await_by(&mut on, &far_client, &far_server, Carrier::Short);
    assert!(far.iter().all(|p| p.reason == Some(Reason::OtherNode)), "{far:#?}");
    // Ends arrive, from the socket path as from the short one.
    for (client, server) in [(client, server), (old_client, old_server), (far_client, far_server)] {
        client.close();
        assert!(server.recv(1).is_empty());
    }
    let totals = on.finish().expect("end").totals;
    assert_eq!(totals.by_path.socket.connections, 2, "{totals:#?}");
    assert!(totals.by_path.short.connections >= 1, "{totals:#?}");
}

#[test]
fn auto_takes_pairs_back_and_on_again_when_policies_change() {
    let Some(fixture) = Fixture::new("auto_takes_pairs_back_and_on_again_when_policies_change") else { return };
    let mut on = start(&fixture, &[AGENT]);
    let (client, server) = fixture.connect(6000);
    await_by(&mut on, &client, &server, Carrier::Socket);
    let pods = vec![PodName { namespace: "default".into(), name: "httpbin".into() }];
    on.0.say(&Request::Pause(PauseRequest { pods: pods.clone(), reason: PauseReason::NetworkPolicy })).expect("say");
    let is_paused = |p: &Pair| p.via == Carrier::Stack && p.state == PairState::Paused && p.reason == Some(Reason::NetworkPolicy);
    let paused = await_rows(&mut on, &client, &server, "paused", is_paused);
    let still = await_rows(&mut on, &client, &server, "paused", is_paused);
    assert_eq!(paused[0].bypassed_messages, still[0].bypassed_messages);
    on.0.say(&Request::Resume(ResumeRequest { pods })).expect("say");
    let before = still[0].by_path.socket.units;
    await_rows(&mut on, &client, &server, "back", |p| is_by(Carrier::Socket)(p) && p.by_path.socket.units > before);
    on.finish().expect("end");
    exchange(&client, &server, 5);
}

/// Exchanges messages that the server takes in another manner than by poll and recv.
fn exchange_by(client: &Remote, server: &Remote, kind: ReaderKind, times: usize) {
    for _ in 0..times {
        let reading = server.start_on(1, Op::Read { kind, len: 4 });
        client.send(b"ping");
        assert_eq!(reading.bytes(), b"ping");
        server.send(b"pong");
        assert_eq!(client.recv_exactly(4), b"pong");
    }
}

/// What the socket path cannot do for proven programs either stays on the short path, with the reason.
#[test]
fn auto_keeps_what_sockets_cannot_do_on_the_short_path() {
    let Some(fixture) = Fixture::new("auto_keeps_what_sockets_cannot_do_on_the_short_path") else { return };
    let mut on = start(&fixture, &[AGENT]);
    for (port, kind, reasons) in
        // The program of a reader that makes no receive call stays unknown, so its calls are not observed.
        [
            (6000, ReaderKind::Splice, &[Reason::Splice, Reason::UnaccountedReads, Reason::Learning][..]),
            (6001, ReaderKind::Recv, &[Reason::BlockingReader]),
        ]
    {
        let (client, server) = fixture.connect(port);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            exchange_by(&client, &server, kind, 20);
            let rows = rows(&mut on, &client);
            let is_kept = |p: &Pair| is_by(Carrier::Short)(p) && p.reason.is_some_and(|r| reasons.contains(&r));
            if rows.iter().any(is_kept) {
                break;
            }
            assert!(Instant::now() < end, "{kind:?}: {rows:#?}");
        }
        // Exchanges enough for any pair to go on.
        exchange_by(&client, &server, kind, 200);
        let rows = rows(&mut on, &client);
        assert!(rows.iter().all(|p| p.via == Carrier::Short && p.by_path.socket.units == 0), "{kind:?}: {rows:#?}");
    }
    // A reader that takes to splice(2) on the socket path comes back to the short one.
    let (client, server) = fixture.connect(6003);
    await_by(&mut on, &client, &server, Carrier::Socket);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        exchange_by(&client, &server, ReaderKind::Splice, 20);
        let rows = rows(&mut on, &client);
        let is_back = |p: &Pair| p.via == Carrier::Short && matches!(p.reason, Some(Reason::Splice | Reason::UnaccountedReads));
        if !rows.is_empty() && rows.iter().all(is_back) {
            break;
        }
        assert!(Instant::now() < end, "{rows:#?}");
    }
    // A stream.
    let (client, server) = fixture.connect(6002);
    const BYTES: usize = 64 << 20;
    let writing = client.start_on(1, Op::SendContent { id: 1, from: 0, len: BYTES });
    let reading = server.start_on(1, Op::ReadContent { id: 1, from: 0, to: BYTES as u64, kind: ReaderKind::Poll, pause_us: 200 });
    on.await_pairs(Duration::from_secs(20), |t| {
        t.pairs.iter().any(|p| p.client.port() == client.local().port() && is_by(Carrier::Short)(p) && p.by_path.socket.units == 0)
    })
    .expect("the stream is not on the short path");
    let all = i64::try_from(BYTES).expect("a small number");
    assert_eq!((writing.number(), reading.number()), (all, all));
    on.finish().expect("end");
}

/// A bandwidth limit has to see every packet: the socket path does not bypass it by itself.
#[test]
fn auto_leaves_pods_with_a_bandwidth_limit_alone() {
    let Some(fixture) = Fixture::new("auto_leaves_pods_with_a_bandwidth_limit_alone") else { return };
    let device = fixture.lab.host_veth("httpbin", "node-1");
    fixture.lab.run("node-1", ["tc", "qdisc", "add", "dev", &device, "root", "tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms"]);
    let mut on = start(&fixture, &[AGENT]);
    let (client, server) = fixture.connect(6000);
    crate::fixture::await_refused(&mut on, &client, &server, Reason::QueueDiscipline);
    for _ in 0..3 {
        exchange(&client, &server, 100);
        let rows = rows(&mut on, &client);
        assert!(rows.iter().all(|p| p.bypassed_messages == 0), "{rows:#?}");
    }
    fixture.lab.run("node-1", ["tc", "qdisc", "del", "dev", &device, "root"]);
    await_by(&mut on, &client, &server, Carrier::Socket);
    on.finish().expect("end");
}

#[test]
fn auto_does_without_one_of_the_paths() {
    let Some(fixture) = Fixture::new("auto_does_without_one_of_the_paths") else { return };
    let (client, server) = fixture.connect(6000);
    let without = |what: &str| Choice { without: what.into(), ..auto(&[AGENT]) };
    let mut on = Accelerator::start_with(&fixture.lab, &without("sockmap")).expect("start");
    await_by(&mut on, &client, &server, Carrier::Short);
    let warnings = on.0.warnings.join("\n");
    assert!(warnings.contains("the socket path cannot be used") && warnings.contains("sk_msg"), "{warnings}");
    on.finish().expect("end");

    let mut on = Accelerator::start_with(&fixture.lab, &without("short")).expect("start");
    await_by(&mut on, &client, &server, Carrier::Socket);
    let warnings = on.0.warnings.join("\n");
    assert!(warnings.contains("the short path cannot be used"), "{warnings}");
    on.finish().expect("end");

    let neither = Accelerator::start_with(&fixture.lab, &without("sockmap,short")).expect_err("nothing is left");
    assert!(format!("{neither:#}").contains("neither the short path"), "{neither:#}");
    for (via, what) in [(Via::Socket, "sockmap"), (Via::Short, "short")] {
        let refused = Accelerator::start_with(&fixture.lab, &Choice { via, ..without(what) }).expect_err("it was asked for by name");
        assert!(!format!("{refused:#}").is_empty());
    }
    exchange(&client, &server, 5);
}

/// As `kubectl sockpath accelerate --detach` does by default.
#[test]
fn auto_detached_carries_by_both_paths() {
    let Some(fixture) = Fixture::new("auto_detached_carries_by_both_paths") else { return };
    let choice = Choice { detach: true, lease: Duration::from_secs(600), ..auto(&[AGENT]) };
    let on = Accelerator::start_with(&fixture.lab, &choice).expect("start");
    assert!(on.finish().expect("end").detached);
    let (client, server) = fixture.connect(6000);
    let to = std::net::SocketAddr::new(fixture.ip("httpbin-remote", crate::fixture::Family::V4), 6001);
    let (far_client, far_server) = fixture.connect_to(&fixture.remote, 6001, to);
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        exchange(&client, &server, 20);
        exchange(&far_client, &far_server, 20);
        let status = sockpath_tests::torture::accelerator::status(&fixture.lab).expect("a status");
        let by = |client: &Remote, carrier: Carrier| {
            let port = client.local().port();
            status.pairs.pairs.iter().any(|p| p.client.port() == port && is_by(carrier)(p))
        };
        if by(&client, Carrier::Socket) && by(&far_client, Carrier::Short) {
            break;
        }
        assert!(Instant::now() < end, "{status:#?}");
    }
    let summary = sockpath_tests::torture::accelerator::stop(&fixture.lab).expect("stop").expect("a summary");
    let by_path = summary.totals.by_path;
    assert!(by_path.socket.connections == 1 && by_path.short.connections >= 1 && summary.left_enrolled == 0, "{summary:#?}");
    exchange(&client, &server, 5);
    exchange(&far_client, &far_server, 5);
}
