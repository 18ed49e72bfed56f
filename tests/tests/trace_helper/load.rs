//! Much traffic: sampling, every packet, and hooks that rest.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sockpath_protocol::message::Message;
use sockpath_protocol::packet::{Direction, Outcome, PacketKind};
use sockpath_protocol::request::TraceRequest;
use sockpath_tests::lab::Lab;
use sockpath_tests::root_or_skip;
use sockpath_tests::state::SetAtEnd;

use super::session::{Session, request, stages};

#[test]
fn hot_traffic_is_sampled_and_counted() {
    if !root_or_skip("hot_traffic_is_sampled_and_counted") {
        return;
    }
    let lab = Lab::up();
    let mut session = Session::start(&lab, TraceRequest { packets_per_second: 50, ..request(&lab, "curl", "httpbin") });
    // One reply for each request, 4000 times.
    lab.inside("curl", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect("10.42.1.3:8080").unwrap();
        for i in 0..4000u32 {
            socket.send(&i.to_le_bytes()).unwrap();
            assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 4);
        }
    });
    session.wait_for(|m| matches!(m, Message::Counters(c) if c.matched >= 8000));
    let said = session.finish();
    let c = &said.counters;
    assert_eq!(c.matched, 8000);
    assert_eq!(c.recorded + c.sampled_out + c.untracked, c.matched);
    let seconds = c.elapsed_ns / 1_000_000_000 + 1;
    assert!(c.recorded > 0 && c.recorded <= 50 * (seconds + 1), "{} in {seconds} s", c.recorded);
    assert_eq!(said.packets.len() as u64, c.recorded);
    let whole = said.packets.iter().filter(|p| p.outcome == Outcome::Delivered && stages(p).last() == Some(&"copied")).count();
    assert!(whole * 10 >= said.packets.len() * 9, "{whole} of {} have their whole path", said.packets.len());
    assert!(c.helper_rss_bytes < 64 << 20, "{} bytes", c.helper_rss_bytes);
}

#[test]
fn a_silent_pair_lets_busy_others_alone_and_is_seen_when_it_speaks() {
    if !root_or_skip("a_silent_pair_lets_busy_others_alone_and_is_seen_when_it_speaks") {
        return;
    }
    let lab = Lab::up();
    let mut session = Session::start(&lab, request(&lab, "curl", "httpbin"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.inside("httpbin-remote", || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                socket.connect("127.0.0.1:8080").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    socket.send(b"others").unwrap();
                    socket.recv(&mut [0; 16]).unwrap();
                }
            });
        });
        let _stop = SetAtEnd(&stop);
        session.wait_for(|m| matches!(m, Message::Counters(c) if c.rested_ns > 0));
        let get = || {
            lab.inside("curl", || {
                let mut stream = TcpStream::connect("10.42.1.3:8080").unwrap();
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
            });
        };
        get();
        // What wakes the hooks is recorded where netfilter sees it.
        session.wait_for(|m| matches!(m, Message::Packet(p) if p.kind == PacketKind::Syn && p.outcome == Outcome::Delivered));
        get();
        session.wait_for(|m| matches!(m, Message::Packet(p) if p.kind == PacketKind::Data && stages(p).last() == Some(&"copied")));
    });
    let said = session.finish();
    assert!(said.packets.iter().all(|p| p.outcome == Outcome::Delivered), "{:#?}", said.packets);
    let first = said.packet(Direction::Request, PacketKind::Syn);
    assert!(!stages(first).contains(&"send-stack-done") && stages(first).contains(&"node-forward"), "{:?}", stages(first));
}

#[test]
fn every_packet_when_asked() {
    if !root_or_skip("every_packet_when_asked") {
        return;
    }
    let lab = Lab::up();
    let mut session = Session::start(&lab, TraceRequest { every_packet: true, ..request(&lab, "curl", "httpbin") });
    lab.inside("curl", || {
        for _ in 0..50 {
            let mut stream = TcpStream::connect("10.42.1.3:8080").unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        }
    });
    session.wait_for(|m| matches!(m, Message::Counters(_)));
    let said = session.finish();
    assert_eq!(said.counters.recorded, said.counters.matched);
    assert_eq!(
        said.packets.len() as u64,
        said.counters.recorded + said.packets.iter().filter(|p| p.id > u64::from(u32::MAX)).count() as u64
    );
    let conversations: BTreeSet<u64> = said.packets.iter().map(|p| p.conversation).collect();
    assert_eq!(conversations.len(), 50);
}
