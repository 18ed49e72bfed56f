//! Ends of connections: what connection tracking did not see must not keep a FIN or RST from arriving.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sockpath_kernel::conntrack::Update;
use sockpath_tests::torture::accelerator::Accelerator;
use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::pods::{Remote, converse};
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Family, Fixture, await_short, exchange, rows};

const MEGABYTES: usize = 48 << 20;

fn stream(from: &Remote, to: &Remote, id: u64) {
    let writing = from.start_on(1, Op::SendContent { id, from: 0, len: MEGABYTES });
    let reading = to.start_on(1, Op::ReadContent { id, from: 0, to: MEGABYTES as u64, kind: ReaderKind::Poll, pause_us: 0 });
    let all = i64::try_from(MEGABYTES).expect("a small number");
    assert_eq!((writing.number(), reading.number()), (all, all));
}

fn recv(socket: &Remote) -> Answer {
    socket.call(Op::Read { kind: ReaderKind::Poll, len: 100 })
}

#[test]
fn fin_after_megabytes() {
    let Some(fixture) = Fixture::new("fin_after_megabytes") else { return };
    let mut on = fixture.accelerate();
    for port in [6000, 6001] {
        let (client, server) = fixture.connect_short(&mut on, port);
        let (from, to) = if port == 6000 { (&client, &server) } else { (&server, &client) };
        stream(from, to, 1);
        from.done(Op::Shutdown { how: libc::SHUT_WR });
        assert_eq!(recv(to), Answer::Bytes(Vec::new()));
        // The other direction goes on, by the stack, and ends too.
        stream(to, from, 2);
        to.close();
        assert_eq!(recv(from), Answer::Bytes(Vec::new()));
    }
    on.finish().expect("end");
}

#[test]
fn reset_after_megabytes() {
    let Some(fixture) = Fixture::new("reset_after_megabytes") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    stream(&client, &server, 1);
    client.done(Op::Linger { seconds: Some(0) });
    client.close();
    assert_eq!(recv(&server), Answer::Errno(libc::ECONNRESET));
    on.finish().expect("end");
}

#[test]
fn fin_after_the_short_path_has_ended() {
    let Some(fixture) = Fixture::new("fin_after_the_short_path_has_ended") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    stream(&client, &server, 1);
    on.finish().expect("end");
    client.close();
    assert_eq!(recv(&server), Answer::Bytes(Vec::new()));
}

#[test]
fn ports_are_used_again_at_once() {
    let Some(fixture) = Fixture::new("ports_are_used_again_at_once") else { return };
    let mut on = fixture.accelerate();
    let to = SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000);
    let from = SocketAddr::new(fixture.ip("curl", Family::V4), 21_000);
    let listener = fixture.httpbin.listen(6000, &[]);
    let mut redirected = 0;
    for round in 0..40u64 {
        let client = fixture.curl.connect_from(to, Some(from));
        let server = listener.accept();
        converse(&client, &server, round);
        // Now and then the connection has every chance to be on the short path when it ends.
        if round % 10 == 0 {
            redirected += await_short(&mut on, &client, &server)[0].bypassed_messages;
        }
        // A reset frees the pair of addresses at once; an orderly end leaves TIME_WAIT at the server.
        if round % 2 == 0 {
            client.done(Op::Linger { seconds: Some(0) });
        } else {
            server.close();
            assert_eq!(recv(&client), Answer::Bytes(Vec::new()));
        }
        client.close();
    }
    assert!(redirected > 0);
    on.finish().expect("end");
}

#[test]
fn an_entry_that_is_deleted_ends_the_short_path() {
    let Some(fixture) = Fixture::new("an_entry_that_is_deleted_ends_the_short_path") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let tuple = Fixture::tuple(&client, SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000));
    let before = fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").expect("an entry");
    assert!(before.liberal, "{before:?}");
    assert!(fixture.conntrack(|c| c.delete(&tuple)).expect("ctnetlink"));
    // Its number says nothing: the kernel may give a new entry the memory of the old one, and the number with it.
    assert!(fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").is_none(), "the entry is still there");
    // Only packets through the stack make a new entry, which is approved again.
    exchange(&client, &server, 1);
    assert!(fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").is_some(), "no packet took the stack");
    await_short(&mut on, &client, &server);
    assert_eq!(rows(&mut on, &client).len(), 1);
    stream(&client, &server, 1);
    client.close();
    assert_eq!(recv(&server), Answer::Bytes(Vec::new()));
    on.finish().expect("end");
}

/// An entry that expires although packets are redirected, as when a helper that is stopped does not refresh it.
#[test]
fn an_entry_that_expires_ends_the_short_path() {
    let Some(fixture) = Fixture::new("an_entry_that_expires_ends_the_short_path") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let tuple = Fixture::tuple(&client, SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000));
    let closed = on.next_pairs().expect("a table").totals.closed;
    let end = Instant::now() + Duration::from_secs(20);
    let mut expires = Instant::now();
    // Now and then the helper refreshes the entry before it has expired.
    while on.next_pairs().expect("a table").totals.closed == closed {
        if Instant::now() >= expires {
            let update = Update { liberal: false, timeout: Some(1) };
            let changed = fixture.conntrack(|c| c.update_each(&[(tuple, update)])).expect("ctnetlink");
            assert!(matches!(changed[..], [Ok(true)]), "{changed:?}");
            expires = Instant::now() + Duration::from_secs(3);
        }
        exchange(&client, &server, 20);
        assert!(Instant::now() < end, "packets are redirected without an entry: {:#?}", rows(&mut on, &client));
    }
    fixture.await_short(&mut on, &client, &server);
    client.close();
    assert_eq!(recv(&server), Answer::Bytes(Vec::new()));
    on.finish().expect("end");
}

#[test]
fn entries_do_not_expire_under_traffic() {
    let Some(fixture) = Fixture::new("entries_do_not_expire_under_traffic") else { return };
    fixture.lab.run("node-1", ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=4"]);
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let tuple = Fixture::tuple(&client, SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000));
    let id = fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").expect("an entry").id;
    // Twice the time after which the entry would have gone.
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        exchange(&client, &server, 5);
        let rows = rows(&mut on, &client);
        assert!(rows.iter().all(|p| p.bypassed_messages > 0) && rows.len() == 1, "{rows:#?}");
    }
    let entry = fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").expect("the entry has expired");
    assert_eq!(entry.id, id);
    on.finish().expect("end");
}

/// So many connections are looked after by one list of all entries instead of a question for each.
#[test]
fn of_many_connections_those_end_whose_entries_are_deleted() {
    const MANY: u64 = 300;
    let Some(fixture) = Fixture::new("of_many_connections_those_end_whose_entries_are_deleted") else { return };
    let mut on = fixture.accelerate();
    let to = SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000);
    let listener = fixture.httpbin.listen(6000, &[]);
    let connections: Vec<_> = (0..MANY).map(|_| (fixture.curl.connect(to), listener.accept())).collect();
    // A port of the bridge that begins to forward sends all of them back to the stack for a moment.
    let await_all = |on: &mut Accelerator, connections: &[(Remote, Remote)]| {
        let end = Instant::now() + Duration::from_secs(30);
        while on.next_pairs().expect("a table").totals.accelerated < connections.len() as u64 {
            assert!(Instant::now() < end, "they are not accelerated");
            connections.iter().for_each(|(client, server)| exchange(client, server, 10));
        }
    };
    await_all(&mut on, &connections);
    // Longer than the time between two lists.
    let end = Instant::now() + Duration::from_secs(11);
    while Instant::now() < end {
        let totals = on.next_pairs().expect("a table").totals;
        assert_eq!((totals.open, totals.closed), (MANY, 0));
    }
    let (deleted, kept) = connections.split_at(2);
    for (client, _) in deleted {
        assert!(fixture.conntrack(|c| c.delete(&Fixture::tuple(client, to))).expect("ctnetlink"));
    }
    let fewer = on.await_pairs(Duration::from_secs(20), |p| p.totals.open < MANY).expect("their ends");
    assert_eq!(fewer.totals.open, MANY - 2);
    await_all(&mut on, kept);
    on.finish().expect("end");
}
