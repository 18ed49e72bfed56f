//! Long streams, and programs that read in other manners than event loops do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sockpath_protocol::accel::Via;
use sockpath_tests::polled::Polled;
use sockpath_tests::services::Program;
use sockpath_tests::torture::content::{Content, Direction};
use sockpath_tests::torture::prng::Prng;

use super::stage::{LOAD, Stage, over, stage};

#[test]
fn ssh() {
    over(&[Via::Socket, Via::Short], "ssh", Program::Sshd, |stage| {
        let options = format!(
            "-i {} -p 5022 -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentityAgent=none",
            stage.server.dir.join("user").display()
        );
        let host = format!("root@{}", stage.service);
        // Bulk in both directions through one session, then many small round trips through another.
        let data = Content::new(3, 3, Direction::ToServer);
        let command = format!("ssh {options} {host} cat");
        let words = ["timeout", "90"].into_iter().chain(command.split(' '));
        let mut bulk = stage.lab.exec("curl", words);
        let mut child = bulk.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("ssh");
        let mut stdin = child.stdin.take().expect("stdin");
        let writer = std::thread::spawn(move || {
            for n in 0..64u64 {
                stdin.write_all(&data.bytes(n << 19, 1 << 19)).expect("ssh does not read");
            }
        });
        let out = child.wait_with_output().expect("ssh");
        writer.join().expect("the writing thread");
        assert!(out.status.success(), "{out:?}");
        assert_eq!(out.stdout.len(), 32 << 20);
        data.check(0, &out.stdout).expect("bytes came back altered");
        for n in 0..10 {
            assert_eq!(stage.client(&format!("ssh {options} {host} echo {n}")).trim(), n.to_string());
        }
    });
}

#[test]
fn iperf3() {
    let load = |stage: &Stage| {
        for how in ["", "-R", "--bidir", "-P 4", "-l 1000", "-Z"] {
            let text = stage.client(&format!("iperf3 -c {} -p 5201 -t 2 -J {how}", stage.pod));
            let json: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J");
            assert!(json.get("error").is_none(), "{text}");
            assert!(json["end"]["sum_received"]["bytes"].as_u64().is_some_and(|b| b > 0), "{text}");
        }
    };
    let Some(stage) = stage("iperf3", Program::Iperf) else { return };
    // The socket path leaves streams to TCP (hazard 16), so nothing need be carried; they have to go on undisturbed.
    stage.under_acceleration(Via::Socket, 1, || load(&stage));
    stage.toggled(Via::Short, || load(&stage));
}

#[test]
fn python_asyncio() {
    over(&[Via::Socket, Via::Short], "python_asyncio", Program::Asyncio, |stage| {
        let to = SocketAddr::new(stage.service, Program::Asyncio.port());
        echoes(6, 5, |connection, content| {
            let stream = stage.connect(to);
            echo(connection, content, (&mut Polled(&stream.0), &mut Polled(&stream.0)));
            stream.0.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(Polled(&stream.0).read(&mut [0; 1]).expect("end of stream"), 0);
        });
    });
}

/// A client whose threads sleep inside recv(2) and send(2), as those of Java's classic sockets do.
#[test]
fn clients_that_block() {
    over(&[Via::Short], "clients_that_block", Program::Asyncio, |stage| {
        let to = SocketAddr::new(stage.service, Program::Asyncio.port());
        echoes(6, 6, |connection, content| {
            let stream = stage.connect_blocking(to);
            echo(connection, content, (&mut &stream, &mut &stream));
            stream.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!((&stream).read(&mut [0; 1]).expect("end of stream"), 0);
        });
    });
}

/// A proxy that moves bytes by splice(2) between sockets that do not block, as Go's `io.Copy` does, before an echo server.
#[test]
fn proxies_that_splice() {
    const PORT: u16 = 5600;
    over(&[Via::Short], "proxies_that_splice", Program::Asyncio, |stage| {
        let listener = stage.lab.inside("httpbin-remote", || TcpListener::bind(("0.0.0.0", PORT))).expect("cannot listen");
        let proxy = SocketAddr::new(stage.lab.pod("httpbin-remote").ips[0], PORT);
        let upstream = SocketAddr::new(stage.pod, Program::Asyncio.port());
        let connections = 4;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for client in listener.incoming().take(connections) {
                    let client = client.expect("accept");
                    let server = stage.lab.inside("httpbin-remote", || TcpStream::connect(upstream)).expect("the upstream");
                    scope.spawn(move || {
                        std::thread::scope(|both| {
                            both.spawn(|| relay(&client, &server));
                            relay(&server, &client);
                        })
                    });
                }
            });
            echoes(connections as u64, 7, |connection, content| {
                let stream = stage.connect(proxy);
                echo(connection, content, (&mut Polled(&stream.0), &mut Polled(&stream.0)));
                stream.0.shutdown(Shutdown::Write).expect("shutdown");
                assert_eq!(Polled(&stream.0).read(&mut [0; 1]).expect("end of stream"), 0);
            });
        });
    });
}

/// Runs connections side by side, each with its content.
fn echoes(connections: u64, id: u64, run: impl Fn(u64, Content) + Sync) {
    std::thread::scope(|scope| {
        for connection in 0..connections {
            let run = &run;
            scope.spawn(move || run(connection, Content::new(connection, id, Direction::ToServer)));
        }
    });
}

/// Sends pieces of all sizes for a while and reads each back meanwhile.
fn echo(connection: u64, content: Content, (reader, writer): (&mut (impl Read + Send), &mut (impl Write + Send))) {
    let mut rng = Prng::new(5, connection);
    let mut at = 0;
    let start = Instant::now();
    while start.elapsed() < LOAD {
        let n = rng.log_between(1, 50_000);
        let data = content.bytes(at, usize::try_from(n).expect("a small number"));
        let mut got = vec![0; data.len()];
        std::thread::scope(|inner| {
            inner.spawn(|| writer.write_all(&data).expect("write"));
            reader.read_exact(&mut got).expect("read");
        });
        content.check(at, &got).expect("bytes came back altered");
        at += n;
    }
}

/// Moves bytes through a pipe until the sender ends, then ends the receiver's direction.
fn relay(from: &TcpStream, to: &TcpStream) {
    const MOST: usize = 64 << 10;
    from.set_nonblocking(true).and_then(|()| to.set_nonblocking(true)).expect("O_NONBLOCK");
    let (out, into) = nix::unistd::pipe().expect("pipe");
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        let mut held = when_ready(from, PollFlags::POLLIN, || splice(from, None, &into, None, MOST, flags));
        if held == 0 {
            return to.shutdown(Shutdown::Write).expect("shutdown");
        }
        while held > 0 {
            held -= when_ready(to, PollFlags::POLLOUT, || splice(&out, None, to, None, held, flags));
        }
    }
}

/// Tries again when the socket is ready, until it does not want to block.
fn when_ready(socket: &TcpStream, events: PollFlags, mut attempt: impl FnMut() -> nix::Result<usize>) -> usize {
    loop {
        match attempt() {
            Err(nix::errno::Errno::EAGAIN) => {
                let ready = poll(&mut [PollFd::new(socket.as_fd(), events)], PollTimeout::try_from(Duration::from_secs(30)).expect("30 s"));
                assert!(ready.expect("poll") > 0, "nothing for 30 s");
            }
            moved => return moved.expect("splice"),
        }
    }
}
