//! Rows 11 and 12: ends of connections, the same as TCP's.

use std::time::{Duration, Instant};

use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, exchange};

const RESET: Answer = Answer::Errno(libc::ECONNRESET);
const BROKEN: Answer = Answer::Errno(libc::EPIPE);

fn recv(socket: &Remote) -> Answer {
    socket.call(Op::Read { kind: ReaderKind::Poll, len: 100 })
}

fn end_of_stream() -> Answer {
    Answer::Bytes(Vec::new())
}

/// Runs a scenario on an accelerated connection in both directions, and on a plain one before, which has to agree.
fn both_directions(test: &str, scenario: impl Fn(&Remote, &Remote)) {
    let Some(fixture) = Fixture::new(test) else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 3);
    scenario(&client, &server);
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6001);
    scenario(&client, &server);
    let (client, server) = fixture.connect_accelerated(&mut on, 6002);
    scenario(&server, &client);
    on.finish().expect("end");
}

#[test]
fn h11_peer_vanishes() {
    let Some(fixture) = Fixture::new("h11_peer_vanishes") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    exchange(&client, &server, 1);
    fixture.httpbin.kill();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match client.call(Op::Send { data: b"is it running?".to_vec(), flags: 0 }) {
            Answer::Number(14) if Instant::now() < deadline => {}
            answer if answer == RESET || answer == BROKEN => break,
            other => panic!("the writer sees {other:?}"),
        }
    }
    on.finish().expect("end");
}

#[test]
fn h11_peer_closes_while_written_to() {
    both_directions("h11_peer_closes_while_written_to", |a, b| {
        b.close();
        assert_eq!(recv(a), end_of_stream());
        a.send(b"too late");
        // The reset that answers has to arrive.
        assert_ne!(a.poll(0, 5_000) & libc::POLLHUP, 0);
        assert_eq!(a.call(Op::Send { data: b"?".to_vec(), flags: 0 }), BROKEN);
    });
}

#[test]
fn h12_fin_after_redirected_bytes() {
    both_directions("h12_fin_after_redirected_bytes", |a, b| {
        a.send(b"last words");
        a.close();
        assert_eq!(b.recv_exactly(10), b"last words");
        assert_eq!(recv(b), end_of_stream());
        assert_eq!(recv(b), end_of_stream());
    });
}

#[test]
fn h12_half_close() {
    both_directions("h12_half_close", |a, b| {
        a.send(b"request");
        a.done(Op::Shutdown { how: libc::SHUT_WR });
        assert_eq!(a.call(Op::Send { data: b"?".to_vec(), flags: 0 }), BROKEN);
        assert_eq!(b.recv_exactly(7), b"request");
        assert_eq!(recv(b), end_of_stream());
        for _ in 0..20 {
            b.send(b"answer");
            assert_eq!(a.recv_exactly(6), b"answer");
        }
        b.close();
        assert_eq!(recv(a), end_of_stream());
    });
}

#[test]
fn h12_half_close_wakes_a_sleeping_reader() {
    both_directions("h12_half_close_wakes_a_sleeping_reader", |a, b| {
        let asleep = b.start_on(1, Op::Recv { len: 100, flags: 0 });
        asleep.await_sleep();
        a.done(Op::Shutdown { how: libc::SHUT_WR });
        assert_eq!(asleep.wait(), end_of_stream());
    });
}

#[test]
fn h12_reset() {
    both_directions("h12_reset", |a, b| {
        a.done(Op::Linger { seconds: Some(0) });
        a.close();
        assert_eq!(recv(b), RESET);
        assert_eq!(recv(b), end_of_stream());
        assert_eq!(b.call(Op::Send { data: b"?".to_vec(), flags: 0 }), BROKEN);
    });
}

#[test]
fn h12_reset_after_unread_bytes() {
    both_directions("h12_reset_after_unread_bytes", |a, b| {
        a.send(b"last words");
        assert_ne!(b.poll(libc::POLLIN, 5_000) & libc::POLLIN, 0);
        a.done(Op::Linger { seconds: Some(0) });
        a.close();
        assert_ne!(b.poll(0, 5_000) & libc::POLLHUP, 0);
        // TCP gives what had arrived before it tells of the reset.
        assert_eq!(recv(b), Answer::Bytes(b"last words".to_vec()));
        assert_eq!(recv(b), RESET);
    });
}

#[test]
fn h12_reset_wakes_a_sleeping_reader() {
    both_directions("h12_reset_wakes_a_sleeping_reader", |a, b| {
        let asleep = b.start_on(1, Op::Recv { len: 100, flags: 0 });
        asleep.await_sleep();
        a.done(Op::Linger { seconds: Some(0) });
        a.close();
        let told = asleep.wait();
        if told == Answer::Errno(libc::EAGAIN) {
            // tcp_bpf_recvmsg() returns that whenever it is woken without data; such a reader is excluded from its first sleep on.
            assert_eq!(recv(b), RESET);
            let what = "a reader that polled so far and sleeps inside recv for the first time gets EAGAIN at a reset, then ECONNRESET";
            sockpath_tests::deviation("h12_reset_wakes_a_sleeping_reader", what);
        } else {
            assert_eq!(told, RESET);
        }
    });
}

#[test]
fn h12_answer_after_a_long_stream() {
    const TOTAL: usize = 24 << 20;
    both_directions("h12_answer_after_a_long_stream", |a, b| {
        // The writer fills every budget and buffer, half-closes and sleeps inside recv: room in its send buffer wakes it.
        let writing = a.start_on(1, Op::SendContent { id: 2, from: 0, len: TOTAL });
        let all = i64::try_from(TOTAL).unwrap_or(0);
        let reading = b.start_on(1, Op::ReadContent { id: 2, from: 0, to: u64::MAX, kind: ReaderKind::Poll, pause_us: 200 });
        assert_eq!(writing.number(), all);
        a.done(Op::Shutdown { how: libc::SHUT_WR });
        let answer = a.start_on(1, Op::Recv { len: 100, flags: 0 });
        assert_eq!(reading.number(), all);
        b.send(b"thank you");
        assert_eq!(answer.wait(), Answer::Bytes(b"thank you".to_vec()));
    });
}

#[test]
fn h12_close_with_unread_data() {
    const TEST: &str = "h12_close_with_unread_data";
    // Whether TCP's reset is certain: on the plain connection, which is the first.
    let plain = std::cell::Cell::new(true);
    both_directions(TEST, |a, b| {
        a.send(b"never read");
        assert_ne!(b.poll(libc::POLLIN, 5_000) & libc::POLLIN, 0);
        b.close();
        // The writer has to learn that bytes were discarded.
        let told = recv(a);
        if plain.replace(false) {
            assert_eq!(told, RESET);
        } else if told != RESET {
            // __tcp_close() looks only at sk_receive_queue, and no BPF hook may send a reset there: the next write causes
            // it, and the one after that fails.
            assert_eq!(told, end_of_stream());
            a.send(b"too late");
            assert_ne!(a.poll(0, 5_000) & libc::POLLHUP, 0);
            assert_eq!(a.call(Op::Send { data: b"?".to_vec(), flags: 0 }), BROKEN);
            sockpath_tests::deviation(
                TEST,
                "a peer that closes with redirected bytes unread sends FIN instead of RST; the next write causes the reset",
            );
        }
    });
}
