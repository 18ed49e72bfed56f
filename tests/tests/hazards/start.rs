//! Rows 1 to 4: the start of redirection, its end, its memory, and readers that were asleep before.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sockpath_protocol::accel::{Pair, PairState, Reason};
use sockpath_tests::state::look;
use sockpath_tests::torture::accelerator::{self, Choice};
use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, TCP, assert_left_alone, assert_untouched, exchange, pair};

/// Long enough for a connection to be inserted, if its readers need not be profiled before.
const PAUSE: Duration = Duration::from_millis(25);

/// Connections whose eight small writes arrive altered: `slow` ones pause between them, when the server has accepted.
fn corrupted(fixture: &Fixture, port: u16, connections: usize, options: &[(i32, i32, i32)], slow: bool) -> usize {
    let listener = fixture.httpbin.listen(port, options);
    let to = fixture.httpbin_at(port);
    let expected: Vec<u8> = (b'A'..=b'H').flat_map(|letter| [letter; 100]).collect();
    let mut corrupted = 0;
    for _ in 0..connections {
        let client = fixture.curl.connect(to);
        client.send(&[b'A'; 100]);
        let early = slow.then(|| listener.accept());
        for letter in b'B'..=b'H' {
            if slow {
                std::thread::sleep(PAUSE);
            }
            client.send(&[letter; 100]);
        }
        let server = early.unwrap_or_else(|| listener.accept());
        client.close();
        let mut got = Vec::new();
        loop {
            let more = server.recv(65_536);
            if more.is_empty() {
                break;
            }
            got.extend(more);
        }
        server.close();
        corrupted += usize::from(got != expected);
    }
    listener.close();
    corrupted
}

#[test]
fn h01_reordering_at_start_defer_accept() {
    let Some(fixture) = Fixture::new("h01_reordering_at_start_defer_accept") else { return };
    let on = fixture.accelerate();
    assert_eq!(corrupted(&fixture, 6000, 150, &[(TCP, libc::TCP_DEFER_ACCEPT, 5)], false), 0);
    assert_eq!(corrupted(&fixture, 6001, 150, &[], false), 0);
    assert_eq!(corrupted(&fixture, 6002, 15, &[(TCP, libc::TCP_DEFER_ACCEPT, 5)], true), 0);
    on.finish().expect("end");
}

#[test]
fn h01_reordering_at_start_mid_stream() {
    let Some(fixture) = Fixture::new("h01_reordering_at_start_mid_stream") else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 5);
    // Half of it is unread in the TCP queue when acceleration starts; the rest must not overtake it.
    client.send_content(1, 0, 20_000);
    let on = fixture.accelerate();
    client.send_content(1, 20_000, 20_000);
    let read = server.number(Op::ReadContent { id: 1, from: 0, to: 40_000, kind: ReaderKind::Poll, pause_us: 0 });
    assert_eq!(read, 40_000);
    exchange(&client, &server, 20);
    on.finish().expect("end");
}

/// The two tests above, against programs without the order gate: they have to fail there, or they show nothing.
#[test]
fn h01_fails_without_the_order_gate() {
    let Some(fixture) = Fixture::new("h01_fails_without_the_order_gate") else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 5);
    client.send_content(1, 0, 20_000);
    let mut on = fixture.accelerate_with(&Choice { without_order_gate: true, ..Choice::default() });
    let inserted = |p: &Pair| p.state == PairState::Waiting && p.reason.is_none();
    let port = client.local().port();
    on.await_pairs(Duration::from_secs(10), |t| t.pairs.iter().any(|p| p.client.port() == port && inserted(p))).expect("not inserted");
    client.send_content(1, 20_000, 20_000);
    let read = server.call(Op::ReadContent { id: 1, from: 0, to: 40_000, kind: ReaderKind::Poll, pause_us: 0 });
    assert!(matches!(&read, Answer::Fault(text) if text.contains("wrong byte")), "nothing was reordered: {read:?}");
    let altered = corrupted(&fixture, 6001, 15, &[(TCP, libc::TCP_DEFER_ACCEPT, 5)], true);
    assert!(altered > 0, "no connection with a deferred accept was reordered");
    on.finish().expect("end");
}

/// How an acceleration is ended under load.
fn end_under_load(test: &str, end: impl Fn(&Fixture, accelerator::Accelerator)) {
    const TOTAL: u64 = 24 << 20;
    let Some(fixture) = Fixture::new(test) else { return };
    let choice = Choice { lease: Duration::from_millis(1_200), ..Choice::default() };
    let mut on = fixture.accelerate_with(&choice);
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    // The reader is slower than the writer, so redirected bytes are always unread.
    let reading = server.start_on(1, Op::ReadContent { id: 7, from: 0, to: u64::MAX, kind: ReaderKind::Poll, pause_us: 2_000 });
    let writing = client.start_on(1, Op::SendContent { id: 7, from: 0, len: usize::try_from(TOTAL).expect("a small number") });
    // The writer is ahead by all that budget and buffers take.
    writing.await_sleep();
    end(&fixture, on);
    assert_eq!(writing.number(), i64::try_from(TOTAL).expect("a small number"));
    client.done(Op::Shutdown { how: libc::SHUT_WR });
    assert_eq!(reading.number(), i64::try_from(TOTAL).expect("a small number"), "bytes were lost");
    server.send(b"still there");
    assert_eq!(client.recv_exactly(11), b"still there");
    accelerator::stop(&fixture.lab).expect("stop");
    assert!(!accelerator::status(&fixture.lab).expect("status").active);
}

#[test]
fn h02_loss_at_the_end_stop() {
    end_under_load("h02_loss_at_the_end_stop", |_, on| {
        let summary = on.finish().expect("end");
        assert_eq!(summary.left_enrolled, 0);
    });
}

#[test]
fn h02_loss_at_the_end_sigterm() {
    end_under_load("h02_loss_at_the_end_sigterm", |_, on| {
        on.terminate(Signal::SIGTERM).expect("end");
    });
}

#[test]
fn h02_loss_at_the_end_helper_killed() {
    end_under_load("h02_loss_at_the_end_helper_killed", |fixture, on| {
        on.0.kill().expect("kill");
        accelerator::stop(&fixture.lab).expect("stop");
    });
}

#[test]
fn h02_loss_at_the_end_lease_runs_out() {
    end_under_load("h02_loss_at_the_end_lease_runs_out", |fixture, mut on| {
        on.0.signal(Signal::SIGSTOP).expect("stop the helper");
        accelerator::await_lease_end(&fixture.lab).expect("the lease ends");
        on.0.kill().expect("kill");
    });
}

#[test]
fn h02_loss_at_the_end_plugin_dies() {
    end_under_load("h02_loss_at_the_end_plugin_dies", |_, on| {
        on.0.hang_up().expect("end");
    });
}

#[test]
fn h02_loss_at_the_end_pod_dies() {
    let Some(fixture) = Fixture::new("h02_loss_at_the_end_pod_dies") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    // All of it was taken by the socket when the writer is killed; TCP delivers that, then the end.
    client.send_content(3, 0, 60_000);
    fixture.curl.kill();
    let read = server.number(Op::ReadContent { id: 3, from: 0, to: u64::MAX, kind: ReaderKind::Poll, pause_us: 500 });
    assert_eq!(read, 60_000);
    on.finish().expect("end");
}

#[test]
fn h03_no_backpressure() {
    /// Above what plain TCP queues with its default buffers; far below what an unbounded writer reaches.
    const MOST: i64 = 32 << 20;
    let Some(fixture) = Fixture::new("h03_no_backpressure") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    let queued = client.number(Op::Fill { id: 9, idle_ms: 500, limit: 256 << 20 });
    assert!(queued < MOST, "{queued} bytes were queued at a reader that does not read");
    // The writer blocks as it would on TCP.
    let blocked = client.start_on(1, Op::Send { data: vec![0; 1 << 20], flags: 0 });
    blocked.await_sleep();
    let to = u64::try_from(queued).expect("a count");
    assert_eq!(server.number(Op::ReadContent { id: 9, from: 0, to, kind: ReaderKind::Poll, pause_us: 0 }), queued);
    on.finish().expect("end");
}

/// A reader that is asleep when its connection is inserted, and goes on to read by the same call. Whether it is accelerated then is
/// `carried`: readers that sleep inside recv(2) are excluded by default, as a signal or reset would end that call with EAGAIN.
fn asleep_before(test: &str, kind: ReaderKind, choice: &Choice, carried: bool) {
    let Some(fixture) = Fixture::new(test) else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 3);
    let asleep = server.start_on(1, Op::Read { kind, len: 100 });
    asleep.await_sleep();
    let mut on = fixture.accelerate_with(choice);
    client.send(b"wake up");
    assert_eq!(asleep.bytes(), b"wake up");
    let patience = Duration::from_secs(if carried { 10 } else { 3 });
    let start = Instant::now();
    let mut bypassed = 0;
    while bypassed == 0 && start.elapsed() < patience {
        for i in 0..50 {
            let next = server.start_on(1, Op::Read { kind, len: 100 });
            let message = format!("message {i}").into_bytes();
            client.send(&message);
            assert_eq!(next.bytes(), message);
            server.send(b"!");
            assert_eq!(client.recv_exactly(1), b"!");
        }
        bypassed = pair(&mut on, &client).filter(|p| p.state == PairState::Accelerated).map_or(0, |p| p.bypassed_messages);
    }
    assert!(bypassed > 0 || !carried, "it never got accelerated: {:#?}", pair(&mut on, &client));
    if !carried {
        assert_left_alone(&mut on, &client, Reason::BlockingReader);
        assert_untouched(&mut on, &client);
    }
    on.finish().expect("end");
}

#[test]
fn h04_reader_blocked_before_insertion() {
    asleep_before("h04_reader_blocked_before_insertion", ReaderKind::Recv, &Choice::default(), false);
}

#[test]
fn h04_reader_in_poll_before_insertion() {
    asleep_before("h04_reader_in_poll_before_insertion", ReaderKind::Poll, &Choice::default(), true);
}

#[test]
fn h04_reader_blocked_before_insertion_on_request() {
    let choice = Choice { blocking_readers: true, ..Choice::default() };
    asleep_before("h04_reader_blocked_before_insertion_on_request", ReaderKind::Recv, &choice, true);
}

/// Many programs know from poll(2) that there is something, and then call recv on a socket that would block.
#[test]
fn h04_reader_in_poll_on_a_blocking_socket() {
    asleep_before("h04_reader_in_poll_on_a_blocking_socket", ReaderKind::PollRead, &Choice::default(), true);
}

/// A message for which its reader waits in poll(2) before it calls recv without `O_NONBLOCK`, and one for which it waits inside recv.
fn found_at_once(client: &Remote, server: &Remote, message: &[u8]) {
    let polled = server.start_on(1, Op::Poll { events: libc::POLLIN, ms: 10_000 });
    client.send(message);
    assert_ne!(polled.number() & i64::from(libc::POLLIN), 0, "nothing to read");
    assert_eq!(server.start_on(1, Op::Recv { len: 100, flags: 0 }).bytes(), message);
    server.send(b"!");
    assert_eq!(client.recv_exactly(1), b"!");
}

fn waited_for(client: &Remote, server: &Remote, message: &[u8]) {
    let asleep = server.start_on(1, Op::Recv { len: 100, flags: 0 });
    asleep.await_sleep();
    client.send(message);
    assert_eq!(asleep.bytes(), message);
    server.send(b"!");
    assert_eq!(client.recv_exactly(1), b"!");
}

#[test]
fn h04_reader_that_seldom_sleeps() {
    let Some(fixture) = Fixture::new("h04_reader_that_seldom_sleeps") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    for round in 0..6 {
        for i in 0..15 {
            found_at_once(&client, &server, format!("message {round} {i}").as_bytes());
        }
        waited_for(&client, &server, b"late");
    }
    assert_left_alone(&mut on, &client, Reason::BlockingReader);
    assert_untouched(&mut on, &client);
    on.finish().expect("end");
}

/// That there was something to read each time promises nothing for the next: a reader that never polls may sleep inside recv.
#[test]
fn h04_reader_that_finds_data_because_it_is_behind() {
    const MESSAGE: usize = 6_000;
    const PIECE: usize = 100;
    let Some(fixture) = Fixture::new("h04_reader_that_finds_data_because_it_is_behind") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    for turn in 0..20_u64 {
        client.send_content(8, turn * MESSAGE as u64, MESSAGE);
        let deadline = Instant::now() + Duration::from_secs(10);
        let peeked = || server.call(Op::Recv { len: MESSAGE, flags: libc::MSG_PEEK | libc::MSG_DONTWAIT });
        while !matches!(peeked(), Answer::Bytes(all) if all.len() == MESSAGE) {
            assert!(Instant::now() < deadline, "the message does not come");
        }
        for _ in 0..MESSAGE / PIECE {
            assert_eq!(server.start_on(0, Op::Recv { len: PIECE, flags: 0 }).bytes().len(), PIECE);
        }
        server.send(b"!");
        assert_eq!(client.recv_exactly(1), b"!");
        if turn % 5 == 0 {
            assert_untouched(&mut on, &client);
        }
    }
    // More than a thousand such calls, and not one wait in poll: it is not observed any longer.
    assert_left_alone(&mut on, &client, Reason::BlockingReader);
    assert_untouched(&mut on, &client);
    on.finish().expect("end");
}

#[test]
fn h04_reader_that_sleeps_for_the_first_time() {
    let Some(fixture) = Fixture::new("h04_reader_that_sleeps_for_the_first_time") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    let end = Instant::now() + Duration::from_secs(15);
    let accelerated = |p: &Pair| p.state == PairState::Accelerated && p.bypassed_messages > 0;
    while !pair(&mut on, &client).as_ref().is_some_and(accelerated) {
        assert!(Instant::now() < end, "never accelerated: {:#?}", pair(&mut on, &client));
        for i in 0..50 {
            found_at_once(&client, &server, format!("message {i}").as_bytes());
        }
    }
    // The message it waits for is still redirected and wakes it as it should; then the pair leaves, for good.
    waited_for(&client, &server, b"late");
    let left = |p: &Pair| p.state == PairState::Returned && p.reason == Some(Reason::BlockingReader);
    let port = client.local().port();
    on.await_pairs(Duration::from_secs(10), |t| t.pairs.iter().any(|p| p.client.port() == port && left(p))).expect("it stays");
    let before = pair(&mut on, &client).map(|p| p.bypassed_messages);
    for i in 0..100 {
        found_at_once(&client, &server, format!("message {i}").as_bytes());
        if i % 10 == 0 {
            waited_for(&client, &server, b"late");
        }
    }
    assert_eq!(pair(&mut on, &client).map(|p| p.bypassed_messages), before);
    on.finish().expect("end");
}

#[test]
fn h04_reader_in_epoll_before_insertion() {
    asleep_before("h04_reader_in_epoll_before_insertion", ReaderKind::EpollLevel, &Choice::default(), true);
    asleep_before("h04_reader_in_epoll_before_insertion", ReaderKind::EpollEdge, &Choice::default(), true);
}

#[test]
fn h04_reader_in_io_uring_before_insertion() {
    asleep_before("h04_reader_in_io_uring_before_insertion", ReaderKind::Uring, &Choice::default(), true);
}

#[test]
fn h04_several_readers_before_insertion() {
    let Some(fixture) = Fixture::new("h04_several_readers_before_insertion") else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 3);
    let read = |thread| server.start_on(thread, Op::Recv { len: 100, flags: 0 });
    let mut readers = [read(1), read(2), read(3)];
    let on = fixture.accelerate();
    for i in 0..200 {
        let message = format!("{i:03}");
        client.send(message.as_bytes());
        // Which of the three gets it is the kernel's choice.
        let first = look(Duration::from_secs(5), || readers.iter().enumerate().find_map(|(n, r)| r.ready().map(|a| (n, a))));
        let (thread, answer) = first.unwrap_or_else(|| panic!("message {i} reaches none of three readers"));
        assert_eq!(answer, Answer::Bytes(message.into_bytes()));
        readers[thread] = read(u32::try_from(thread + 1).expect("a small number"));
        server.send(b"!");
        assert_eq!(client.recv_exactly(1), b"!");
    }
    on.finish().expect("end");
}
