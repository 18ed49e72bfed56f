//! Same node and two nodes, directly and through a Service, IPv4 and IPv6, TCP and UDP: packets are redirected, and arrive as by the stack.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use sockpath_protocol::accel::PairState;
use sockpath_protocol::lab::Overlay;
use sockpath_tests::torture::accelerator::Accelerator;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::{Pod, Remote};
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Family, Fixture, await_short, exchange};

/// Port of the Services, and of the pods behind them, whose built-in servers have it.
pub const SERVICE: u16 = 80;
pub const ECHO: u16 = 8080;
const MEGABYTES: usize = 24 << 20;

pub fn services(family: Family) -> [IpAddr; 2] {
    match family {
        Family::V4 => ["10.96.0.10", "10.96.0.11"],
        Family::V6 => ["fd00:10:96::a", "fd00:10:96::b"],
    }
    .map(|ip| ip.parse().expect("an address"))
}

/// Bytes in both directions, checked one by one.
pub fn carry(client: &Remote, server: &Remote, bytes: usize) {
    for (from, to, id) in [(client, server, 1), (server, client, 2)] {
        let writing = from.start_on(1, Op::SendContent { id, from: 0, len: bytes });
        let reading = to.start_on(1, Op::ReadContent { id, from: 0, to: bytes as u64, kind: ReaderKind::Poll, pause_us: 0 });
        let all = i64::try_from(bytes).expect("a small number");
        assert_eq!((writing.number(), reading.number()), (all, all));
    }
}

fn carries(fixture: &Fixture, on: &mut Accelerator, server: &Pod, port: u16, ip: IpAddr) {
    let (client, accepted) = fixture.connect_to(server, port, SocketAddr::new(ip, port));
    let before = await_short(on, &client, &accepted);
    carry(&client, &accepted, MEGABYTES);
    let after = await_short(on, &client, &accepted);
    for (before, after) in before.iter().zip(&after) {
        let moved = after.bypassed_bytes - before.bypassed_bytes;
        assert!(moved as usize > 2 * MEGABYTES * 9 / 10, "most bytes took the stack: {after:#?}");
    }
    client.close();
    assert!(accepted.recv(1).is_empty());
    accepted.close();
}

fn all_paths(test: &str, overlay: Overlay) {
    let Some(fixture) = Fixture::with(test, overlay) else { return };
    let mut on = fixture.accelerate();
    for (family, port) in [(Family::V4, 6000), (Family::V6, 6010)] {
        carries(&fixture, &mut on, &fixture.httpbin, port, fixture.ip("httpbin", family));
        carries(&fixture, &mut on, &fixture.remote, port + 1, fixture.ip("httpbin-remote", family));
    }
    on.finish().expect("end");
}

#[test]
fn between_pods_with_host_routes() {
    all_paths("between_pods_with_host_routes", Overlay::None);
}

#[test]
fn between_pods_with_vxlan() {
    all_paths("between_pods_with_vxlan", Overlay::Vxlan);
}

/// One request to a built-in HTTP server, whose answer has a body of 1,000 bytes.
fn ask(client: &Remote) {
    client.send(b"GET /bytes/1000 HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = Vec::new();
    let head = loop {
        let more = client.recv(4096);
        assert!(!more.is_empty(), "end of stream after {answer:?}");
        answer.extend(more);
        if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
    };
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let rest = (head + 1000).saturating_sub(answer.len());
    let _ = client.recv_exactly(rest);
}

/// The built-in HTTP servers behind the Services answer requests on one kept-alive connection.
#[test]
fn through_services() {
    let Some(fixture) = Fixture::new("through_services") else { return };
    let mut on = fixture.accelerate();
    for ip in [services(Family::V4), services(Family::V6)].concat() {
        let client = fixture.curl.connect(SocketAddr::new(ip, SERVICE));
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            for _ in 0..20 {
                ask(&client);
            }
            let rows = crate::fixture::rows(&mut on, &client);
            if !rows.is_empty() && rows.iter().all(|p| p.state == PairState::Accelerated && p.bypassed_messages > 20) {
                assert!(rows.iter().any(|p| p.via_service), "{rows:#?}");
                break;
            }
            assert!(Instant::now() < end, "not on the short path through {ip}: {rows:#?}");
        }
        client.close();
    }
    on.finish().expect("end");
}

/// What the receiver sees in a packet's TTL or hop limit: of the echo server's answer.
fn answers_ttl(socket: &UdpSocket) -> nix::Result<i32> {
    let mut buffer = [0; 64];
    let mut iov = [std::io::IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(i32);
    let message = recvmsg::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty())?;
    let ttl = |c| match c {
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => Some(ttl),
        _ => None,
    };
    Ok(message.cmsgs()?.find_map(ttl).expect("no TTL"))
}

/// Sends datagrams until so many were answered; of these, `losses` may get lost.
fn echo(socket: &UdpSocket, times: usize, mut losses: usize) -> nix::Result<i32> {
    let mut ttl = Err(Errno::EAGAIN);
    for _ in 0..times {
        ttl = loop {
            socket.send(b"ping").expect("send");
            match answers_ttl(socket) {
                Err(Errno::EAGAIN) if losses > 0 => losses -= 1,
                answered => break Ok(answered?),
            }
        };
    }
    ttl
}

/// UDP that both sides have sent is carried too, and its TTL is what routing would have made of it.
fn datagrams(test: &str, family: Family) {
    let Some(fixture) = Fixture::new(test) else { return };
    let pods = ["httpbin", "httpbin-remote"].map(|pod| SocketAddr::new(fixture.ip(pod, family), ECHO));
    // Before tcx links (6.6), a device drops what it sends while it gets the queue discipline of the filters.
    let losses = if fixture.links_at("curl").is_some() { 0 } else { 2 };
    for to in pods.into_iter().chain(services(family).map(|ip| SocketAddr::new(ip, SERVICE))) {
        let socket = fixture.lab.inside("curl", || {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0)).expect("a socket");
            socket.connect(to).expect("connect");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            match family {
                Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true),
                Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true),
            }
            .expect("an option");
            socket
        });
        let by_stack = echo(&socket, 3, 0).unwrap_or_else(|e| panic!("no answer from {to} by the stack: {e}"));
        let mut on = fixture.accelerate();
        let local = socket.local_addr().expect("an address");
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let answers = echo(&socket, 30, losses);
            let pairs = on.next_pairs().expect("a table").pairs;
            let rows: Vec<_> = pairs.into_iter().filter(|p| p.client == local && p.dialled == to).collect();
            let by_short = answers.unwrap_or_else(|e| panic!("no answer from {to}: {e}: {rows:#?}"));
            if !rows.is_empty() && rows.iter().all(|p| p.state == PairState::Accelerated && p.bypassed_messages > 40) {
                assert_eq!(by_short, by_stack, "TTL of answers from {to}");
                break;
            }
            assert!(Instant::now() < end, "not on the short path to {to}: {rows:#?}");
        }
        on.finish().expect("end");
    }
}

#[test]
fn datagrams_and_their_ttl() {
    datagrams("datagrams_and_their_ttl", Family::V4);
}

#[test]
fn datagrams_and_their_hop_limit() {
    datagrams("datagrams_and_their_hop_limit", Family::V6);
}

/// With checksums that the sender computes and the receiver verifies, rewritten packets are still right.
#[test]
fn checksums_are_right_without_offload() {
    let Some(fixture) = Fixture::new("checksums_are_right_without_offload") else { return };
    fixture.without_checksum_offload();
    let errors = |pod: &str| {
        let text = fixture.lab.run(pod, ["cat", "/proc/net/netstat", "/proc/net/snmp"]);
        let mut lines = text.lines();
        let mut total = 0u64;
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let columns = names.split_whitespace().zip(values.split_whitespace());
            total += columns.filter(|(name, _)| *name == "InCsumErrors").filter_map(|(_, v)| v.parse::<u64>().ok()).sum::<u64>();
        }
        total
    };
    let mut on = fixture.accelerate();
    for (port, pod, ip) in [(6000, &fixture.httpbin, "httpbin"), (6001, &fixture.remote, "httpbin-remote")] {
        carries(&fixture, &mut on, pod, port, fixture.ip(ip, Family::V4));
    }
    // Through a Service everything is rewritten: what was sent arrives only if the checksum is right.
    for ip in [services(Family::V4), services(Family::V6)].concat() {
        let client = fixture.curl.connect(SocketAddr::new(ip, SERVICE));
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            for _ in 0..20 {
                ask(&client);
            }
            if crate::fixture::rows(&mut on, &client).iter().any(|p| p.state == PairState::Accelerated && p.bypassed_messages > 20) {
                break;
            }
            assert!(Instant::now() < end, "not on the short path through {ip}");
        }
    }
    assert_eq!(["curl", "httpbin", "httpbin-remote"].map(errors), [0; 3], "checksum errors");
    on.finish().expect("end");
}

/// Both directions take the stack again when it ends, and the connection goes on.
#[test]
fn everything_goes_back() {
    let Some(fixture) = Fixture::new("everything_goes_back") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let summary = on.finish().expect("end");
    assert!(summary.totals.bypassed_messages > 20, "{summary:?}");
    exchange(&client, &server, 20);
    carry(&client, &server, 4 << 20);
    client.close();
    assert!(server.recv(1).is_empty());
}

/// A dry run reports which path a connection would take, and touches nothing.
#[test]
fn a_dry_run_touches_nothing() {
    use sockpath_protocol::Message;
    use sockpath_protocol::accel::{AccelerateRequest, Carrier, Via};
    use sockpath_tests::torture::accelerator::{Choice, Session};
    let Some(fixture) = Fixture::new("a_dry_run_touches_nothing") else { return };
    let (client, server) = fixture.connect(6000);
    exchange(&client, &server, 5);
    let choice = Choice { via: Via::Short, ..Choice::default() };
    let request = AccelerateRequest { dry_run_ms: Some(1_000), ..choice.request(&fixture.lab) };
    let mut session = Session::start(&fixture.lab).expect("a session");
    session.say(&sockpath_protocol::Request::Accelerate(Box::new(request))).expect("say");
    let summary = session.expect("a summary", |m| if let Message::Summary(s) = m { Some(s.clone()) } else { None }).expect("a summary");
    let rows: Vec<_> = session.pairs.pairs.iter().filter(|p| p.client.port() == client.local().port()).collect();
    assert!(rows.len() == 1 && rows[0].state == PairState::Waiting && rows[0].via == Carrier::Short, "{rows:#?}");
    assert_eq!(summary.totals.bypassed_messages, 0);
    let tuple = Fixture::tuple(&client, SocketAddr::new(fixture.ip("httpbin", Family::V4), 6000));
    assert!(!fixture.conntrack(|c| c.get(&tuple)).expect("ctnetlink").expect("an entry").liberal);
}
