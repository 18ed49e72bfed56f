//! nginx with bodies of all sizes on kept-alive connections that were accelerated on small messages before: it asks FIONREAD for the first
//! time when a body fills its buffer, and hung there without end where the kernel answers 0 (hazard 8).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use sockpath_tests::lab::Lab;
use sockpath_tests::polled::Polled;
use sockpath_tests::services::{BODIES, Program, Service};
use sockpath_tests::torture::accelerator::Accelerator;
use sockpath_tests::torture::content::{Content, Direction};

/// Small requests before the first body: far more than a pair needs to be accelerated.
const SMALL: usize = 300;
/// Connections, one after the other.
const ROUNDS: usize = 4;

/// A proxy in httpbin before a server in curl.
struct Proxied {
    _proxy: Service,
    _server: Service,
    lab: Lab,
    proxy: SocketAddr,
}

fn proxied(test: &str) -> Option<Proxied> {
    if !sockpath_tests::root_or_skip(test) {
        return None;
    }
    if let Some(why) = Program::NginxProxy.missing() {
        sockpath_tests::skipped(test, &why);
        return None;
    }
    let lab = Lab::up();
    let at = |pod: &str, port| SocketAddr::new(lab.pod(pod).ips.iter().copied().find(IpAddr::is_ipv4).expect("no IPv4 address"), port);
    let (server, proxy) = (at("curl", Program::Nginx.port()), at("httpbin", Program::NginxProxy.port()));
    let running = Service::start(&lab, "curl", Program::Nginx).expect("the server does not start");
    let before = Service::start_before(&lab, "httpbin", Program::NginxProxy, Some(server)).expect("the proxy does not start");
    Some(Proxied { _proxy: before, _server: running, lab, proxy })
}

/// A client of HTTP/1.1 on one connection that stays open.
struct Client(BufReader<Polled<TcpStream>>);

impl Client {
    fn connect(proxied: &Proxied) -> Self {
        let stream = proxied.lab.inside("curl", || TcpStream::connect(proxied.proxy)).expect("connect");
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Self(BufReader::new(Polled(stream)))
    }

    /// The body of the answer; a request that is not answered within 30 s is an error of `Polled`.
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let what = format!("{method} {path} with {} bytes", body.len());
        let stream = self.0.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap_or_else(|e| panic!("{what} is not taken: {e}"));
        let mut length = 0;
        for first in [true].into_iter().chain(std::iter::repeat(false)) {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap_or_else(|e| panic!("{what} is not answered: {e}"));
            assert!(!first || line.starts_with("HTTP/1.1 200"), "{what}: {line}");
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer).unwrap_or_else(|e| panic!("the answer to {what} does not come: {e}"));
        answer
    }
}

#[test]
fn nginx_reads_bodies_after_small_requests() {
    let Some(proxied) = proxied("nginx_reads_bodies_after_small_requests") else { return };
    for _ in 0..ROUNDS {
        // This process is in no pod's control group, so its connections are found when acceleration starts.
        let mut client = Client::connect(&proxied);
        let on = Accelerator::start(&proxied.lab).expect("acceleration does not start");
        for size in BODIES {
            for _ in 0..SMALL {
                assert_eq!(client.ask("GET", "/ok", b""), b"ok\n");
            }
            let body = Content::new(size, 1, Direction::ToServer).bytes(0, usize::try_from(size).expect("a small number"));
            assert_eq!(client.ask("POST", "/post", &body), format!("{size}\n").as_bytes());
        }
        on.finish().expect("acceleration does not end");
    }
}

#[test]
fn nginx_proxies_bodies_after_small_answers() {
    let Some(proxied) = proxied("nginx_proxies_bodies_after_small_answers") else { return };
    for _ in 0..ROUNDS {
        // This process is in no pod's control group, so its connections are found when acceleration starts.
        let mut client = Client::connect(&proxied);
        let on = Accelerator::start(&proxied.lab).expect("acceleration does not start");
        for size in BODIES {
            for _ in 0..SMALL {
                assert_eq!(client.ask("GET", "/proxy/small", b""), [b's'; 1 << 10]);
            }
            let answer = client.ask("GET", &format!("/proxy/body-{size}"), b"");
            assert_eq!(answer.len() as u64, size);
            Content::new(size, 2, Direction::ToClient).check(0, &answer).expect("a body arrived altered");
        }
        on.finish().expect("acceleration does not end");
    }
}
