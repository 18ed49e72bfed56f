//! Rows 16 and 17: what would be slower than TCP is left to TCP. How fast everything is, `make bench` says.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use sockpath_protocol::accel::{Pair, PairState, Reason};
use sockpath_tests::state::SetAtEnd;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, assert_untouched, await_accelerated, exchange, pair};

/// Bytes of a stream at a time.
const PIECE: u64 = 16 << 20;

/// A connection on which one side only writes.
struct Stream<'a> {
    ends: [&'a Remote; 2],
    id: u64,
    at: u64,
}

impl Stream<'_> {
    fn go_on(&mut self) {
        let (from, to) = (self.at, self.at + PIECE);
        let [writer, reader] = self.ends;
        let writing = writer.start_on(1, Op::SendContent { id: self.id, from, len: usize::try_from(PIECE).expect("a small number") });
        let reading = reader.start_on(1, Op::ReadContent { id: self.id, from, to, kind: ReaderKind::Poll, pause_us: 0 });
        let numbers = [PIECE, to].map(|n| i64::try_from(n).expect("a small number"));
        assert_eq!([writing.number(), reading.number()], numbers);
        self.at = to;
    }
}

/// What moves much in one direction never enters the map; a pair that turns to that leaves it, and comes back when it converses again.
#[test]
fn h16_slower_than_tcp() {
    let Some(fixture) = Fixture::new("h16_slower_than_tcp") else { return };
    let mut on = fixture.accelerate();
    let is_left = |p: &Pair| p.state != PairState::Accelerated && p.reason == Some(Reason::SlowerThanTcp);
    let (client, server) = fixture.connect(6000);
    let mut stream = Stream { ends: [&client, &server], id: 16, at: 0 };
    for _ in 0..3 {
        stream.go_on();
        assert_untouched(&mut on, &client);
    }
    assert!(pair(&mut on, &client).is_some_and(|p| is_left(&p)), "{:#?}", on.0.pairs);

    // On the same terms a conversation is redirected.
    let (client, server) = fixture.connect_accelerated(&mut on, 6001);
    let mut stream = Stream { ends: [&client, &server], id: 17, at: 0 };
    let end = Instant::now() + Duration::from_secs(15);
    while !pair(&mut on, &client).is_some_and(|p| is_left(&p)) {
        assert!(Instant::now() < end, "a stream stays in the map: {:#?}", on.0.pairs);
        stream.go_on();
    }
    let before = pair(&mut on, &client).map_or(0, |p| p.bypassed_messages);
    await_accelerated(&mut on, &client, &server);
    assert!(pair(&mut on, &client).is_some_and(|p| p.bypassed_messages > before), "{:#?}", on.0.pairs);
    on.finish().expect("end");
}

/// Connections of one request and one answer are tracked, and nothing else is done for them.
#[test]
fn h17_connection_churn() {
    const AT_ONCE: u64 = 30;
    let Some(fixture) = Fixture::new("h17_connection_churn") else { return };
    let mut on = fixture.accelerate();
    let listener = fixture.httpbin.listen(6000, &[]);
    for round in 1..=3 {
        let connections: Vec<_> = (0..AT_ONCE).map(|_| (fixture.curl.connect(fixture.httpbin_at(6000)), listener.accept())).collect();
        connections.iter().for_each(|(client, server)| exchange(client, server, 1));
        on.await_pairs(Duration::from_secs(10), |t| t.totals.open == AT_ONCE).expect("they are not tracked");
        for (client, server) in connections {
            client.close();
            server.close();
        }
        let table = on.await_pairs(Duration::from_secs(10), |t| t.totals.closed == round * AT_ONCE).expect("their end is not noticed");
        assert_eq!((table.totals.accelerated, table.totals.bypassed_messages), (0, 0), "{:#?}", table.totals);
    }
    // One that lasts is accelerated.
    let _last = fixture.connect_accelerated(&mut on, 6001);
    on.finish().expect("end");
}

/// Where connections come too fast for each of them to be tracked, one that lasts is found all the same, while they come and afterwards.
#[test]
fn h17_long_lived_connections_are_found_in_a_burst() {
    /// Far more than come until a connection burst is noticed.
    const ENOUGH: u64 = 10_000;
    let Some(fixture) = Fixture::new("h17_long_lived_connections_are_found_in_a_burst") else { return };
    let mut on = fixture.accelerate();
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            fixture.lab.inside("curl", || {
                while !stop.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect("10.42.1.3:8080").expect("the server accepts");
                    // Closed by a reset: no port stays taken.
                    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("SO_LINGER is set");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let _stop = SetAtEnd(&stop);
        let deadline = Instant::now() + Duration::from_secs(60);
        while count.load(Ordering::Relaxed) < ENOUGH {
            assert!(Instant::now() < deadline, "{} connections in a minute are not a burst", count.load(Ordering::Relaxed));
            std::thread::yield_now();
        }
        let (client, server) = fixture.connect(6000);
        await_accelerated(&mut on, &client, &server);
        fixture.connect(6001)
    });
    await_accelerated(&mut on, &last.0, &last.1);
    on.finish().expect("end");
}
