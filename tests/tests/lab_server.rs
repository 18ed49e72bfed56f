//! The built-in server: HTTP, echo on TCP, echo on UDP, and many connections at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sockpath_tests::lab::Lab;
use sockpath_tests::root_or_skip;

/// httpbin, from the pod curl: directly and through the Service.
const DIRECT: &str = "10.42.1.3:8080";
const DIRECT_V6: &str = "[fd00:10:42:1::3]:8080";
const SERVICE: &str = "10.96.0.10:80";
const REMOTE: &str = "10.96.0.11:80";

const DEADLINE: Duration = Duration::from_secs(10);

fn connect(to: &str) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to.parse::<SocketAddr>().unwrap(), DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// One response: status line, headers in lower case, body of the length they say (none for `head`).
fn response(stream: &mut impl BufRead, head: bool) -> (String, Vec<String>, Vec<u8>) {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let status = line();
    let headers: Vec<String> = std::iter::repeat_with(|| line().to_lowercase()).take_while(|l| !l.is_empty()).collect();
    let length = headers.iter().find_map(|h| h.strip_prefix("content-length: ")).map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; if head { 0 } else { length }];
    stream.read_exact(&mut body).unwrap();
    (status, headers, body)
}

/// Bytes whose position in the stream is recognizable, so that loss and disorder show.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

#[test]
fn http_is_served_with_keep_alive() {
    if !root_or_skip("http_is_served_with_keep_alive") {
        return;
    }
    let lab = Lab::up();
    lab.inside("curl", || {
        for to in [DIRECT, DIRECT_V6, SERVICE, REMOTE] {
            let mut stream = BufReader::new(connect(to));
            let mut ask = |request: &[u8], head: bool| {
                stream.get_mut().write_all(request).unwrap();
                response(&mut stream, head)
            };
            // All on one connection.
            let (status, headers, body) = ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", false);
            assert_eq!(status, "HTTP/1.1 200 OK");
            assert!(headers.contains(&"connection: keep-alive".to_owned()), "{headers:?}");
            assert!(String::from_utf8(body).unwrap().starts_with("pod default/httpbin"));
            for n in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
                let (status, _, body) = ask(format!("GET /bytes/{n} HTTP/1.1\r\n\r\n").as_bytes(), false);
                assert_eq!((status.as_str(), body.len()), ("HTTP/1.1 200 OK", n));
                assert!(body.iter().enumerate().all(|(i, b)| *b == if i % 64 == 63 { b'\n' } else { b'0' + (i % 64) as u8 }));
            }
            let (_, headers, _) = ask(b"HEAD /bytes/12345 HTTP/1.1\r\n\r\n", true);
            assert!(headers.contains(&"content-length: 12345".to_owned()));
            for length in [0, 1, 5000, 300_000] {
                let body = pattern(length, 7);
                for method in ["POST", "PUT"] {
                    let mut request = format!("{method} /any HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").into_bytes();
                    request.extend(&body);
                    let (status, _, echoed) = ask(&request, false);
                    assert!(status.contains("200") && echoed == body, "{method} {length}");
                }
            }
            let started = Instant::now();
            assert!(ask(b"GET /delay/120 HTTP/1.1\r\n\r\n", false).0.contains("200"));
            assert!(started.elapsed() >= Duration::from_millis(120));
            assert!(ask(b"GET /nope HTTP/1.1\r\n\r\n", false).0.contains("404"));
            assert!(ask(b"GET /bytes/x HTTP/1.1\r\n\r\n", false).0.contains("400"));
            // Pipelined.
            stream
                .get_mut()
                .write_all(b"GET /bytes/3 HTTP/1.1\r\n\r\nGET /bytes/4 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                .unwrap();
            assert_eq!(response(&mut stream, false).2.len(), 3);
            assert_eq!(response(&mut stream, false).2.len(), 4);
            assert!(response(&mut stream, false).1.contains(&"connection: close".to_owned()));
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed as asked for");
        }
    });
}

#[test]
fn odd_http_is_answered_and_closed() {
    if !root_or_skip("odd_http_is_answered_and_closed") {
        return;
    }
    let lab = Lab::up();
    lab.inside("curl", || {
        for (request, status) in [
            (&b"GET / HTTP/2.0\r\n\r\n"[..], "400"),
            (b"GET /\r\n\r\n", "400"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "411"),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"),
            (b"GET / HTTP/1.0\r\n\r\n", "200"),
        ] {
            let mut stream = connect(DIRECT);
            stream.write_all(request).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        let mut stream = connect(DIRECT);
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
        let _ = stream.write_all(&[b'a'; 40_000]);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        // A request that comes byte by byte.
        let mut stream = connect(DIRECT);
        for byte in b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn anything_else_is_echoed() {
    if !root_or_skip("anything_else_is_echoed") {
        return;
    }
    let lab = Lab::up();
    lab.inside("curl", || {
        for (to, length) in [(DIRECT, 20_000_000), (DIRECT_V6, 3_000_000), (SERVICE, 3_000_000), (REMOTE, 3_000_000)] {
            let stream = connect(to);
            let sent = pattern(length, length as u64);
            let received = std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut received = Vec::new();
                    (&stream).read_to_end(&mut received).unwrap();
                    received
                });
                (&stream).write_all(&sent).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                reader.join().unwrap()
            });
            assert!(received == sent, "{to}: {} of {} bytes, or not the same", received.len(), sent.len());
        }
        // What could be the beginning of a request, and is not.
        for first in [&b"G"[..], b"GET", b"PO\n", b"GET x", b"HEAD", b"\0\xff", b"PUTT"] {
            let mut stream = connect(DIRECT);
            stream.write_all(first).unwrap();
            let mut echoed = vec![0; first.len()];
            stream.read_exact(&mut echoed).unwrap();
            assert_eq!(echoed, first);
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut echoed = [0; 18];
            stream.read_exact(&mut echoed).unwrap();
            assert_eq!(&echoed, b"GET / HTTP/1.1\r\n\r\n", "once data, always data");
        }
    });
}

#[test]
fn a_slow_reader_gets_everything_and_blocks_no_other() {
    if !root_or_skip("a_slow_reader_gets_everything_and_blocks_no_other") {
        return;
    }
    let lab = Lab::up();
    lab.inside("curl", || {
        let slow = connect(DIRECT);
        slow.set_nonblocking(true).unwrap();
        let chunk = pattern(1 << 20, 3);
        let mut sent: Vec<u8> = Vec::new();
        // Until both windows are full: the server can neither write nor, therefore, read.
        while let Ok(n) = (&slow).write(&chunk) {
            sent.extend(&chunk[..n]);
        }
        let mut other = connect(DIRECT);
        other.write_all(b"\x01hello").unwrap();
        let mut echoed = [0; 6];
        other.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"\x01hello");

        slow.set_nonblocking(false).unwrap();
        let mut received = vec![0; sent.len()];
        (&slow).read_exact(&mut received).unwrap();
        assert!(received == sent);
    });
}

#[test]
fn datagrams_are_echoed() {
    if !root_or_skip("datagrams_are_echoed") {
        return;
    }
    let lab = Lab::up();
    let exchange = |from: &str, to: &str, length: usize| {
        lab.inside(from, || {
            let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.connect(to).unwrap();
            let sent = pattern(length, 11);
            socket.send(&sent).unwrap();
            let mut buffer = vec![0; 65_536];
            let n = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..n] == sent, "{from} to {to}: {n} of {length}");
        });
    };
    for to in [DIRECT, DIRECT_V6, SERVICE, REMOTE, "[fd00:10:96::a]:80", "[fd00:10:96::b]:80", "127.0.0.1:8081", "[::1]:8080"] {
        for length in [0, 1, 1400, 9000] {
            exchange("curl", to, length);
        }
    }
    exchange("httpbin", SERVICE, 100);
    exchange("node-2", SERVICE, 100);
}

#[test]
fn thousands_of_connections_are_served() {
    if !root_or_skip("thousands_of_connections_are_served") {
        return;
    }
    const COUNT: usize = 5000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    if hard < COUNT as u64 + 100 {
        sockpath_tests::skipped("thousands_of_connections_are_served", "the limit of open files is too low");
        return;
    }
    let lab = Lab::up();
    let pid = lab.pod("httpbin").containers[0].pid;
    lab.inside("curl", || {
        let connections: Vec<TcpStream> = (0..COUNT).map(|_| connect(DIRECT)).collect();
        for (i, mut stream) in connections.iter().enumerate() {
            stream.write_all(&(i as u64 | 1 << 63).to_be_bytes()).unwrap();
        }
        for (i, mut stream) in connections.iter().enumerate() {
            let mut echoed = [0; 8];
            stream.read_exact(&mut echoed).unwrap();
            assert_eq!(u64::from_be_bytes(echoed), i as u64 | 1 << 63);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let kib: u64 = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 64 << 10, "the server takes {kib} KiB with {COUNT} connections");
    });
}
