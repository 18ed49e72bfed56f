//! Rows 15 and 18: whose socket it is.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sockpath_protocol::accel::Reason;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::converse;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, assert_left_alone, exchange};

#[test]
fn h15_another_owner() {
    let Some(fixture) = Fixture::new("h15_another_owner") else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 3);
    server.done(Op::IntoSockmap);
    let mut on = fixture.accelerate();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        exchange(&client, &server, 20);
    }
    assert_left_alone(&mut on, &client, Reason::ForeignOwner);
    on.finish().expect("end");
    // It is still the other owner's.
    exchange(&client, &server, 3);
}

#[test]
fn h18_cloned_identity() {
    const PAIRS: u16 = 20;
    let Some(fixture) = Fixture::new("h18_cloned_identity") else { return };
    let mut on = fixture.accelerate();
    let localhost = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let pods = [&fixture.curl, &fixture.httpbin];
    let listeners = pods.map(|pod| pod.listen(6000, &[]));
    let mut connections = Vec::new();
    for n in 0..PAIRS {
        // The same four numbers in two namespaces, at the same time.
        for (which, (pod, listener)) in pods.iter().zip(&listeners).enumerate() {
            let client = pod.connect_from(localhost(6000), Some(localhost(20_000 + n)));
            connections.push((u64::from(n) * 2 + which as u64, client, listener.accept()));
        }
    }
    let (mut at, end) = (0, Instant::now() + Duration::from_secs(4));
    while Instant::now() < end {
        for (id, client, server) in &connections {
            for (from, to) in [(client, server), (server, client)] {
                from.send_content(*id, at, 100);
                let read = to.number(Op::ReadContent { id: *id, from: at, to: at + 100, kind: ReaderKind::Poll, pause_us: 0 });
                assert_eq!(read, i64::try_from(at + 100).expect("a small number"), "connection {id}");
            }
        }
        at += 100;
    }
    let totals = on.next_pairs().expect("a table").totals;
    assert!(totals.bypassed_messages > 0, "none of them was accelerated: {totals:?}");
    on.finish().expect("end");
}

#[test]
fn h18_port_reuse() {
    let Some(fixture) = Fixture::new("h18_port_reuse") else { return };
    let mut on = fixture.accelerate();
    let to = fixture.httpbin_at(6000);
    let listener = fixture.httpbin.listen(6000, &[]);
    let from = SocketAddr::new(fixture.lab.pod("curl").ips.into_iter().find(|ip| ip.is_ipv4()).expect("no IPv4 address"), 21_000);
    for round in 0..40u64 {
        let client = fixture.curl.connect_from(to, Some(from));
        let server = listener.accept();
        converse(&client, &server, round);
        // A reset frees the pair of addresses at once.
        client.done(Op::Linger { seconds: Some(0) });
        client.close();
        server.close();
    }
    let _ = on.next_pairs();
    on.finish().expect("end");
}
