//! Rows 5 to 10: readers and sockets for which redirection does not work.

use std::time::{Duration, Instant};

use sockpath_protocol::accel::{Pair, PairState, Reason};
use sockpath_tests::torture::accelerator;
use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::content::{Content, Direction};
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, SOCKET, TCP, assert_left_alone, assert_untouched, exchange, pair};

#[test]
fn h05_splice_from_the_start() {
    let Some(fixture) = Fixture::new("h05_splice_from_the_start") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    for i in 0..100 {
        let message = format!("message {i}").into_bytes();
        client.send(&message);
        assert_eq!(server.start_on(0, Op::Splice { len: 4096, flags: 0 }).bytes(), message);
        server.send(b"!");
        assert_eq!(client.recv_exactly(1), b"!");
    }
    // The other direction may be redirected; this reader's may not.
    let writing = client.start_on(1, Op::SendContent { id: 5, from: 0, len: 300_000 });
    let read = server.number(Op::ReadContent { id: 5, from: 0, to: 300_000, kind: ReaderKind::Splice, pause_us: 0 });
    assert_eq!(read, 300_000);
    assert_eq!(writing.number(), 300_000);
    assert_left_alone(&mut on, &client, Reason::Splice);
    on.finish().expect("end");
}

/// A connection that was read by recv and whose redirected bytes are unread when its reader takes to splice, for good.
fn splice_later(test: &str, flags: u32) {
    let Some(fixture) = Fixture::new(test) else { return };
    let mut on = fixture.accelerate();
    for (port, unread) in [(6000, 1_000), (6001, 20_000), (6002, 30_000), (6003, 5), (6004, 1)] {
        let (client, server) = fixture.connect_accelerated(&mut on, port);
        // The smallest there is: it takes less than what is unread.
        client.set(SOCKET, libc::SO_SNDBUF, 1);
        let sndbuf = client.number(Op::Get { level: SOCKET, name: libc::SO_SNDBUF });
        for part in 0..5u64 {
            client.send_content(5, part * unread / 5, usize::try_from(unread / 5).expect("a small number"));
        }
        client.send_content(5, unread / 5 * 5, usize::try_from(unread % 5).expect("a small number"));
        let splice = || {
            if flags & libc::SPLICE_F_NONBLOCK != 0 {
                assert_ne!(server.poll(libc::POLLIN, 10_000) & libc::POLLIN, 0, "nothing to read");
            }
            match server.start_on(0, Op::Splice { len: 16 << 10, flags }).wait() {
                Answer::Bytes(bytes) => bytes,
                Answer::Errno(libc::EAGAIN) => Vec::new(),
                other => panic!("splice: {other:?}"),
            }
        };
        // The writer goes on while its bytes are moved from one queue to the other.
        let more = client.start_on(1, Op::SendContent { id: 5, from: unread, len: 20_000 });
        let (mut content, mut total) = (Vec::new(), unread + 20_000);
        while content.is_empty() {
            content = splice();
        }
        assert_eq!(more.number(), 20_000);
        let stream = client.start_on(1, Op::SendContent { id: 5, from: total, len: 300_000 });
        total += 300_000;
        while (content.len() as u64) < total {
            content.extend(splice());
        }
        assert_eq!(stream.number(), 300_000);
        assert!(content == Content::new(5, 0, Direction::ToServer).bytes(0, content.len()), "the content is not what was written");
        assert_eq!(client.number(Op::Get { level: SOCKET, name: libc::SO_SNDBUF }), sndbuf, "the program's send buffer was changed");
        server.send(b"!");
        assert_eq!(client.recv_exactly(1), b"!");
        client.close();
        assert_eq!(server.start_on(0, Op::Splice { len: 4096, flags: 0 }).bytes(), b"");
    }
    on.finish().expect("end");
}

#[test]
fn h05_splice_later() {
    splice_later("h05_splice_later", 0);
}

#[test]
fn h05_splice_later_without_blocking() {
    splice_later("h05_splice_later_without_blocking", libc::SPLICE_F_NONBLOCK);
}

#[test]
fn h05_splice_later_after_the_end() {
    const TEST: &str = "h05_splice_later_after_the_end";
    let Some(fixture) = Fixture::new(TEST) else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    client.send(b"last words");
    client.close();
    assert_ne!(server.poll(libc::POLLRDHUP, 5_000) & libc::POLLRDHUP, 0);
    let spliced = server.start_on(0, Op::Splice { len: 4096, flags: 0 }).bytes();
    if spliced.is_empty() {
        // Nothing can follow a FIN, so the bytes cannot be reinjected where splice looks. They are not lost.
        assert_eq!(server.recv_exactly(10), b"last words");
        sockpath_tests::deviation(TEST, "a reader that first splices after its writer has closed sees the end before redirected bytes");
    } else {
        assert_eq!(spliced, b"last words");
    }
    on.finish().expect("end");
}

#[test]
fn h05_splice_later_with_nothing_unread() {
    let Some(fixture) = Fixture::new("h05_splice_later_with_nothing_unread") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    for round in 0..20 {
        let from = round * 1_000;
        let reading = server.start_on(0, Op::ReadContent { id: 5, from, to: from + 1_000, kind: ReaderKind::Splice, pause_us: 0 });
        reading.await_sleep();
        client.send_content(5, from, 1_000);
        assert_eq!(reading.number(), i64::try_from(from + 1_000).expect("a small number"), "round {round}");
    }
    exchange(&client, &server, 20);
    on.finish().expect("end");
}

#[test]
fn h05_splice_finds_nothing_without_blocking() {
    let Some(fixture) = Fixture::new("h05_splice_finds_nothing_without_blocking") else { return };
    let on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    client.send(b"hello");
    assert_ne!(server.poll(libc::POLLIN, 5_000) & libc::POLLIN, 0);
    // The busy loop of proxies: readable, and nothing there.
    let got = server.start_on(0, Op::Splice { len: 4096, flags: libc::SPLICE_F_NONBLOCK }).wait();
    assert_eq!(got, Answer::Bytes(b"hello".to_vec()));
    on.finish().expect("end");
}

/// What MSG_WAITALL gives for ten bytes of which five come when the reader sleeps, and five when it sleeps again.
fn in_two_pieces(client: &Remote, server: &Remote) -> Answer {
    let whole = server.start_on(1, Op::Recv { len: 10, flags: libc::MSG_WAITALL });
    let first = whole.await_sleep();
    client.send(b"hello");
    match whole.sleep_after(Some(first)) {
        Ok(_) => {
            client.send(b"world");
            whole.wait()
        }
        Err(short) => short,
    }
}

#[test]
fn h06_msg_waitall() {
    let Some(fixture) = Fixture::new("h06_msg_waitall") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    for _ in 0..30 {
        assert_eq!(in_two_pieces(&client, &server), Answer::Bytes(b"helloworld".to_vec()));
    }
    assert_untouched(&mut on, &client);
    on.finish().expect("end");
}

#[test]
fn h06_msg_waitall_later() {
    let Some(fixture) = Fixture::new("h06_msg_waitall_later") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    for round in 0..20 {
        assert_eq!(in_two_pieces(&client, &server), Answer::Bytes(b"helloworld".to_vec()), "round {round}");
    }
    let what = "a reader's first MSG_WAITALL may return short when redirected bytes were unread before it";
    sockpath_tests::deviation("h06_msg_waitall_later", what);
    on.finish().expect("end");
}

/// Has the reader ask to be woken for 100 bytes, and sees that it is woken for no less.
fn wakes_after_100(client: &Remote, server: &Remote) {
    server.set(SOCKET, libc::SO_RCVLOWAT, 100);
    for _ in 0..5 {
        client.send(&[1; 5]);
        assert_eq!(server.poll(libc::POLLIN, 200), 0, "5 of 100 bytes woke the reader");
        client.send(&[2; 95]);
        assert_ne!(server.poll(libc::POLLIN, 5_000), 0);
        assert_eq!(server.recv(200).len(), 100);
    }
}

#[test]
fn h07_so_rcvlowat() {
    let Some(fixture) = Fixture::new("h07_so_rcvlowat") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect(6000);
    wakes_after_100(&client, &server);
    assert_untouched(&mut on, &client);
    on.finish().expect("end");
}

#[test]
fn h07_so_rcvlowat_later() {
    let Some(fixture) = Fixture::new("h07_so_rcvlowat_later") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    wakes_after_100(&client, &server);
    on.finish().expect("end");
}

#[test]
fn h08_fionread() {
    let Some(fixture) = Fixture::of_askers("h08_fionread") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    // A redirected message is in its reader's queue when the call that wrote it returns.
    client.send(&[1; 5]);
    for _ in 0..10 {
        client.send(&[1; 100]);
    }
    assert_eq!(server.unread(), 1_005, "eleven redirected messages");
    assert_eq!(server.recv_exactly(1_005).len(), 1_005);
    assert_eq!(server.unread(), 0);
    // It was seen to ask, so the pair leaves: in the map the kernel would not count what TCP carries (a deviation).
    let port = client.local().port();
    let left = |p: &Pair| p.client.port() == port && p.state == PairState::Returned && p.reason == Some(Reason::Fionread);
    on.await_pairs(Duration::from_secs(10), |t| t.pairs.iter().any(left)).expect("it stays in the map");
    on.finish().expect("end");
    for _ in 0..10 {
        client.send(&[1; 100]);
    }
    let end = Instant::now() + Duration::from_secs(10);
    while server.unread() != 1_000 {
        assert!(Instant::now() < end, "{} of 1000 bytes are counted after the end", server.unread());
    }
    assert_eq!(server.recv_exactly(1_000).len(), 1_000);
    assert_eq!(server.unread(), 0);
}

#[test]
fn h08_fionread_of_tcp_bytes_on_an_inserted_socket() {
    let Some(fixture) = Fixture::of_askers("h08_fionread_of_tcp_bytes_on_an_inserted_socket") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    // The helper stands still until the lease is over: the sockets stay in the sockmap and TCP carries the bytes.
    on.0.signal(nix::sys::signal::Signal::SIGSTOP).expect("stop the helper");
    accelerator::await_lease_end(&fixture.lab).expect("the lease ends");
    client.send(&[1; 77]);
    assert_ne!(server.poll(libc::POLLIN, 5_000) & libc::POLLIN, 0);
    let told = server.unread();
    if told == 0 {
        // The kernel counts TCP bytes of a socket in a sockmap only if that has a verdict program for its reader (fixed after 6.18.44).
        let what = "after a lease ran out without a helper, FIONREAD of this kernel does not count TCP bytes of sockets in the sockmap";
        sockpath_tests::deviation("h08_fionread_of_tcp_bytes_on_an_inserted_socket", what);
    } else {
        assert_eq!(told, 77);
    }
    assert_eq!(server.recv(100).len(), 77);
    on.0.signal(nix::sys::signal::Signal::SIGCONT).expect("go on");
    on.finish().expect("end");
}

#[test]
fn h09_ktls() {
    /// `TCP_ULP` of linux/tcp.h.
    const TCP_ULP: i32 = 31;
    let Some(fixture) = Fixture::new("h09_ktls") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    match client.call(Op::SetBytes { level: TCP, name: TCP_ULP, value: b"tls".to_vec() }) {
        Answer::Done => {
            // Until keys are set, a kTLS socket passes bytes as they are.
            exchange(&client, &server, 20);
            assert_left_alone(&mut on, &client, Reason::Ulp);
        }
        // The kernel refuses a ULP on a socket that a sockmap owns: what must not meet does not meet.
        Answer::Errno(libc::EBUSY | libc::EEXIST) => exchange(&client, &server, 20),
        Answer::Errno(libc::ENOENT) => sockpath_tests::skipped("h09_ktls", "this kernel has no ULP named tls"),
        other => panic!("{other:?}"),
    }
    on.finish().expect("end");
}

#[test]
fn h10_mptcp() {
    /// Of linux/tcp.h.
    const TCP_IS_MPTCP: i32 = 43;
    let Some(fixture) = Fixture::new("h10_mptcp") else { return };
    let mut on = fixture.accelerate();
    let listener = fixture.httpbin.listen_mptcp(6000);
    let client = fixture.curl.connect_mptcp(fixture.httpbin_at(6000));
    let server = listener.accept();
    exchange(&client, &server, 50);
    assert_eq!(client.number(Op::Get { level: TCP, name: TCP_IS_MPTCP }), 1, "it has fallen back to TCP");
    // Such connections are not tracked; one by TCP beside it is, and is redirected.
    let _other = fixture.connect_accelerated(&mut on, 6001);
    exchange(&client, &server, 50);
    let row = pair(&mut on, &client);
    assert!(row.as_ref().is_none_or(|p| p.bypassed_messages == 0), "{row:#?}");
    on.finish().expect("end");
}

#[test]
fn h10_msg_zerocopy() {
    let Some(fixture) = Fixture::new("h10_msg_zerocopy") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    client.set(SOCKET, libc::SO_ZEROCOPY, 1);
    for i in 0..30u8 {
        let data = vec![i; 5_000];
        assert_eq!(client.call(Op::Send { data: data.clone(), flags: libc::MSG_ZEROCOPY }), Answer::Number(5_000));
        assert_eq!(server.recv_exactly(5_000), data);
    }
    // Each of them is reported on the writer's error queue, as TCP does.
    assert_ne!(client.poll(0, 5_000) & libc::POLLERR, 0, "no notification came");
    on.finish().expect("end");
}

#[test]
fn h10_msg_oob() {
    let Some(fixture) = Fixture::new("h10_msg_oob") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    for _ in 0..5 {
        client.send(b"in band");
        assert_eq!(server.recv_exactly(7), b"in band");
        assert_eq!(client.call(Op::Send { data: b"!".to_vec(), flags: libc::MSG_OOB }), Answer::Number(1));
        assert_ne!(server.poll(libc::POLLPRI, 5_000) & libc::POLLPRI, 0, "no urgent data");
        assert_eq!(server.start_on(0, Op::Recv { len: 1, flags: libc::MSG_OOB }).bytes(), b"!");
        exchange(&client, &server, 3);
    }
    sockpath_tests::deviation("h10_msg_oob", "recv with MSG_OOB gives ordinary bytes while redirected ones are unread");
    on.finish().expect("end");
}
