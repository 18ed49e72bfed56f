//! The helper's half of `trace` on the real kernel: requests on its stdin, packets on its stdout.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};
use sockpath_protocol::lab::Overlay;
use sockpath_protocol::message::{Counters, EndReason, Message, Probed};
use sockpath_protocol::packet::{Direction, Incident, IncidentKind, Outcome, Packet, PacketKind, Place};
use sockpath_protocol::request::{Node, Pod, ProbeRequest, Protocol, Request, TraceRequest};
use sockpath_tests::lab::Lab;
use sockpath_tests::{program_or_skip, root_or_skip};

/// A helper that traces.
struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    said: Vec<Message>,
}

/// What a trace has said.
struct Said {
    packets: Vec<Packet>,
    places: Vec<Place>,
    incidents: Vec<Incident>,
    counters: Counters,
    probed: Vec<Probed>,
    end: EndReason,
}

fn request(lab: &Lab, source: &str, target: &str) -> TraceRequest {
    let status = lab.status();
    let pod = |name: &str| Pod::from(status.pods.iter().find(|p| p.name == name).unwrap());
    TraceRequest {
        source: pod(source),
        targets: vec![pod(target)],
        addresses: Vec::new(),
        services: status.services.iter().map(|s| status.service(s)).collect(),
        port: None,
        nodes: status.nodes.iter().map(Node::from).collect(),
        every_packet: false,
        packets_per_second: 0,
        count: None,
    }
}

impl Session {
    /// Starts a helper and waits until it is armed.
    fn start(lab: &Lab, request: TraceRequest) -> Self {
        let mut child = lab.helper().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut session = Self { child, stdin, stdout, said: Vec::new() };
        session.ask(&Request::Trace(Box::new(request)));
        session.wait_for(|m| matches!(m, Message::Armed(_)));
        session
    }

    fn ask(&mut self, request: &Request) {
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        self.stdin.as_mut().unwrap().write_all(&line).unwrap();
    }

    /// Reads until a message of that kind; it and what came before stay for `finish`.
    fn wait_for(&mut self, wanted: impl Fn(&Message) -> bool) {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the helper ended: {:?}", self.said.last());
            let message: Message = serde_json::from_str(&line).unwrap();
            assert!(!matches!(message, Message::Error { .. }), "{line}");
            let found = wanted(&message);
            self.said.push(message);
            if found {
                return;
            }
        }
    }

    fn probe(&mut self, protocol: Protocol, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        self.ask(&Request::Probe(ProbeRequest { protocol, to, timeout_ms: 3000, http: true, requests: 0 }));
        self.wait_for(|m| matches!(m, Message::Probed(_)));
    }

    fn finish(mut self) -> Said {
        self.ask(&Request::Finish);
        self.wait_for(|m| matches!(m, Message::End(_)));
        assert!(self.child.wait().unwrap().success());
        let mut said = Said {
            packets: Vec::new(),
            places: Vec::new(),
            incidents: Vec::new(),
            counters: Counters::default(),
            probed: Vec::new(),
            end: EndReason::Failed,
        };
        for message in self.said {
            match message {
                Message::Packet(p) => said.packets.push(*p),
                Message::Place(p) => said.places.push(p),
                Message::Incident(i) => said.incidents.push(i),
                Message::Counters(c) => said.counters = c,
                Message::Probed(p) => said.probed.push(p),
                Message::End(e) => said.end = e.reason,
                _ => {}
            }
        }
        said.packets.sort_by_key(|p| p.id);
        said
    }
}

/// Traces one probe.
fn traced(lab: &Lab, source: &str, target: &str, protocol: Protocol, to: &str) -> Said {
    let mut session = Session::start(lab, request(lab, source, target));
    session.probe(protocol, to);
    session.finish()
}

impl Said {
    /// The first packet of a kind in a direction.
    fn packet(&self, direction: Direction, kind: PacketKind) -> &Packet {
        let found = self.packets.iter().find(|p| p.direction == direction && p.kind == kind);
        found.unwrap_or_else(|| panic!("no {kind:?} in {:#?}", self.packets))
    }

    /// What holds for every trace of a probe that was answered.
    fn assert_sound(&self) {
        assert!(self.probed.iter().all(|p| p.answered), "{:?}", self.probed);
        assert_eq!(self.end, EndReason::Finished);
        assert_eq!((self.counters.lost_events, self.counters.untracked), (0, 0));
        assert_eq!(self.counters.recorded, self.packets.iter().filter(|p| p.id <= u64::from(u32::MAX)).count() as u64);
        for p in &self.packets {
            assert_eq!(p.outcome, Outcome::Delivered, "{p:#?}");
            assert!(p.hops.windows(2).all(|h| h[0].at_ns <= h[1].at_ns), "{p:#?}");
            assert!(p.hops.iter().all(|h| self.places.iter().any(|place| place.index == h.place)));
        }
        let conversations: BTreeSet<u64> = self.packets.iter().map(|p| p.conversation).collect();
        assert_eq!(conversations.len(), 1, "request and reply are one conversation: {:#?}", self.packets);
    }
}

fn stages(packet: &Packet) -> Vec<&'static str> {
    packet.hops.iter().map(|h| h.stage.key()).collect()
}

const OUT: [&str; 5] = ["nf-local-out", "nf-post-routing", "link-header", "send-stack-done", "device-xmit"];
const IN: [&str; 9] = [
    "device-handover",
    "receive-stack",
    "nf-pre-routing",
    "route-in",
    "nf-local-in",
    "receive-transport",
    "socket-lookup",
    "reader-woken",
    "dequeued",
];

/// The way of a data segment: written, out, between, in, read.
fn way(between: &[&'static str]) -> Vec<&'static str> {
    ["socket-write"].iter().chain(&OUT).chain(between).chain(&IN).chain(&["copied"]).copied().collect()
}

const BRIDGED: [&str; 9] = [
    "veth-cross",
    "node-receive",
    "node-pre-routing",
    "bridge-in",
    "node-forward",
    "node-post-routing",
    "bridge-forward",
    "node-queue",
    "node-xmit",
];

#[test]
fn in_a_pod() {
    if !root_or_skip("in_a_pod") {
        return;
    }
    let lab = Lab::up();
    for to in ["127.0.0.1:8081", "[::1]:8081"] {
        let said = traced(&lab, "curl", "curl", Protocol::Tcp, to);
        said.assert_sound();
        let data = said.packet(Direction::Request, PacketKind::Data);
        let stages: Vec<_> = stages(data).into_iter().filter(|s| *s != "released").collect();
        assert_eq!(stages, way(&[]), "{data:#?}");
        assert!(data.hops.iter().all(|h| said.places[h.place as usize].pod.as_deref() == Some("default/curl")));
    }
}

#[test]
fn on_one_node() {
    if !root_or_skip("on_one_node") {
        return;
    }
    let lab = Lab::up();
    for to in ["10.42.1.3:8080", "[fd00:10:42:1::3]:8080"] {
        // Neighbours are known after the first exchange.
        traced(&lab, "curl", "httpbin", Protocol::Tcp, to).assert_sound();
        let said = traced(&lab, "curl", "httpbin", Protocol::Tcp, to);
        said.assert_sound();
        for direction in [Direction::Request, Direction::Reply] {
            let data = said.packet(direction, PacketKind::Data);
            // The sk_buff may be freed before the reader's call returns, or later.
            let stages: Vec<_> = stages(data).into_iter().filter(|s| *s != "released").collect();
            assert_eq!(stages, way(&BRIDGED), "{data:#?}");
        }
        let data = said.packet(Direction::Request, PacketKind::Data);
        let place = |stage: &str| &said.places[data.hops.iter().find(|h| h.stage.key() == stage).unwrap().place as usize];
        let veth = place("veth-cross").device.as_ref().unwrap();
        assert_eq!((veth.peer.as_deref(), veth.bridge.as_deref()), (Some("eth0@default/curl"), Some("cni0")));
        assert_eq!(place("device-handover").pod.as_deref(), Some("default/httpbin"));
        assert!(matches!(data.hops[0].context, sockpath_protocol::packet::Context::Process { .. }));
        assert!(data.hops.iter().any(|h| h.note.as_deref().is_some_and(|n| n.contains("cached route"))));
    }
}

#[test]
fn between_nodes() {
    if !root_or_skip("between_nodes") {
        return;
    }
    let lab = Lab::up();
    for to in ["10.42.2.2:8080", "[fd00:10:42:2::2]:8080"] {
        traced(&lab, "curl", "httpbin-remote", Protocol::Tcp, to).assert_sound();
        let said = traced(&lab, "curl", "httpbin-remote", Protocol::Tcp, to);
        said.assert_sound();
        let data = said.packet(Direction::Request, PacketKind::Data);
        let stages = stages(data);
        for stage in ["bridge-in", "node-route", "node-forward", "node-link-header", "node-xmit", "wire", "device-handover", "copied"] {
            assert!(stages.contains(&stage), "no {stage}: {stages:?}");
        }
        let nodes: Vec<&str> = data.hops.iter().map(|h| said.places[h.place as usize].node.as_str()).collect();
        let crossing = stages.iter().position(|s| *s == "wire").unwrap();
        assert!(nodes[..crossing].iter().all(|n| *n == "node-1") && nodes[crossing..].iter().all(|n| *n == "node-2"), "{nodes:?}");
    }
}

#[test]
fn through_a_tunnel() {
    if !root_or_skip("through_a_tunnel") {
        return;
    }
    let lab = Lab::up_with(Overlay::Vxlan);
    let said = traced(&lab, "curl", "httpbin-remote", Protocol::Tcp, "10.42.2.2:8080");
    said.assert_sound();
    let data = said.packet(Direction::Request, PacketKind::Data);
    let stages = stages(data);
    let at = |stage: &str| stages.iter().position(|s| *s == stage).unwrap_or_else(|| panic!("no {stage}: {stages:?}"));
    assert!(at("tunnel-encap") < at("node-local-out") && at("node-local-out") < at("wire"));
    assert!(at("wire") < at("node-local-in") && at("node-local-in") < at("tunnel-decap"));
    assert!(data.hops.iter().all(|h| h.rewritten.is_none()), "an outer header is no rewrite: {data:#?}");
}

#[test]
fn through_a_service() {
    if !root_or_skip("through_a_service") {
        return;
    }
    let lab = Lab::up();
    for (target, to, backend) in [
        ("httpbin", "10.96.0.10:80", "10.42.1.3:8080"),
        ("httpbin", "[fd00:10:96::a]:80", "[fd00:10:42:1::3]:8080"),
        ("httpbin-remote", "10.96.0.11:80", "10.42.2.2:8080"),
    ] {
        let said = traced(&lab, "curl", target, Protocol::Tcp, to);
        said.assert_sound();
        let (to, backend): (SocketAddr, SocketAddr) = (to.parse().unwrap(), backend.parse().unwrap());
        let there = said.packet(Direction::Request, PacketKind::Data);
        let back = said.packet(Direction::Reply, PacketKind::Data);
        assert_eq!(there.flow.to, to);
        let rewrites = |p: &Packet| p.hops.iter().filter_map(|h| Some((h.rewritten?, h.note.clone()?))).collect::<Vec<_>>();
        let [(rewritten, note)] = &rewrites(there)[..] else { panic!("{there:#?}") };
        assert_eq!(rewritten.to, backend);
        assert!(note.contains("PRE_ROUTING rewrote destination") && note.contains(&format!("Service default/{target}")), "{note}");
        let rule = there.hops.iter().find_map(|h| h.rule.as_deref()).unwrap_or_else(|| panic!("{there:#?}"));
        assert!(rule.chain.starts_with("KUBE-SEP-") && rule.handle.is_some(), "{rule:?}");
        assert!(rule.comment.as_deref().is_some_and(|c| c == format!("default/{target}:http")), "{rule:?}");
        assert!(matches!(&rule.via[..], [a, b, c] if a == "PREROUTING" && b == "KUBE-SERVICES" && c.starts_with("KUBE-SVC-")), "{rule:?}");
        let [(rewritten, note)] = &rewrites(back)[..] else { panic!("{back:#?}") };
        assert_eq!(rewritten.from, to);
        assert!(note.contains("rewrote source"), "{note}");
    }
}

#[test]
fn datagrams_and_echoes() {
    if !root_or_skip("datagrams_and_echoes") {
        return;
    }
    let lab = Lab::up();
    for (protocol, to, there, back) in [
        (Protocol::Udp, "10.42.1.3:8080", PacketKind::Data, PacketKind::Data),
        (Protocol::Udp, "[fd00:10:42:1::3]:8080", PacketKind::Data, PacketKind::Data),
        (Protocol::Icmp, "10.42.1.3:0", PacketKind::EchoRequest, PacketKind::EchoReply),
        (Protocol::Icmp, "[fd00:10:42:1::3]:0", PacketKind::EchoRequest, PacketKind::EchoReply),
    ] {
        let said = traced(&lab, "curl", "httpbin", protocol, to);
        said.assert_sound();
        let (there, back) = (said.packet(Direction::Request, there), said.packet(Direction::Reply, back));
        assert_eq!(stages(there).first(), Some(&"socket-write"), "{there:#?}");
        if protocol == Protocol::Udp {
            for p in [there, back] {
                assert_eq!(stages(p).last(), Some(&"copied"), "{p:#?}");
            }
        }
        assert_eq!((there.protocol, back.protocol), (protocol, protocol));
    }
}

#[test]
fn a_datagram_in_fragments() {
    if !root_or_skip("a_datagram_in_fragments") {
        return;
    }
    let lab = Lab::up();
    let mut session = Session::start(&lab, request(&lab, "curl", "httpbin-remote"));
    lab.inside("curl", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(&[7; 4000], "10.42.2.2:8080").unwrap();
        assert_eq!(socket.recv(&mut [0; 8192]).unwrap(), 4000);
    });
    session.wait_for(|m| matches!(m, Message::Packet(p) if p.direction == Direction::Reply));
    let said = session.finish();
    let there = said.packet(Direction::Request, PacketKind::Data);
    assert_eq!((there.payload, &there.outcome), (4000, &Outcome::Delivered), "{there:#?}");
    let notes: Vec<&str> = there.hops.iter().filter_map(|h| h.note.as_deref()).collect();
    assert!(notes.iter().any(|n| n.contains("first fragment")) && notes.iter().any(|n| n.contains("put together")), "{notes:?}");
}

#[test]
fn drops_are_named() {
    if !root_or_skip("drops_are_named") || !program_or_skip("drops_are_named", "nft", "nftables") {
        return;
    }
    let lab = Lab::up();
    let said = traced(&lab, "curl", "httpbin", Protocol::Tcp, "10.42.1.3:9");
    let Outcome::Dropped(drop) = &said.packet(Direction::Request, PacketKind::Syn).outcome else { panic!("{:#?}", said.packets) };
    assert_eq!(drop.reason, "NO_SOCKET");
    assert!(drop.location.as_deref().is_some_and(|l| l.starts_with("tcp_v4_rcv")), "{drop:?}");
    assert!(said.incidents.iter().any(|i| i.what == IncidentKind::ResetSent));
    assert!(said.incidents.iter().any(|i| i.what == IncidentKind::ResetReceived));

    lab.run("node-1", ["nft", "add", "table", "ip", "planted"]);
    lab.run("node-1", ["nft", "add", "chain", "ip", "planted", "f", "{ type filter hook forward priority 0; }"]);
    lab.run("node-1", ["nft", "add", "rule", "ip", "planted", "f", "ip", "daddr", "10.42.1.3", "drop"]);
    let mut session = Session::start(&lab, request(&lab, "curl", "httpbin"));
    let to = "10.42.1.3:8080".parse().unwrap();
    session.ask(&Request::Probe(ProbeRequest { protocol: Protocol::Tcp, to, timeout_ms: 500, http: false, requests: 0 }));
    session.wait_for(|m| matches!(m, Message::Packet(_)));
    let said = session.finish();
    let Outcome::Dropped(drop) = &said.packet(Direction::Request, PacketKind::Syn).outcome else { panic!("{:#?}", said.packets) };
    assert_eq!((drop.reason.as_str(), drop.stage.key()), ("NETFILTER_DROP", "node-forward"));
    assert_eq!(said.places[drop.place as usize].node, "node-1");
}

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
    assert!(whole * 10 >= said.packets.len() * 9, "{whole} of {} have their whole way", said.packets.len());
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
        stop.store(true, Ordering::Relaxed);
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

#[test]
fn a_count_ends_the_trace() {
    if !root_or_skip("a_count_ends_the_trace") {
        return;
    }
    let lab = Lab::up();
    let mut session = Session::start(&lab, TraceRequest { count: Some(1), ..request(&lab, "curl", "httpbin") });
    session.probe(Protocol::Tcp, "10.42.1.3:8080");
    session.wait_for(|m| matches!(m, Message::End(_)));
    assert!(session.child.wait().unwrap().success());
}

/// Ids of the BPF objects that a process holds, as the kernel shows them.
fn held(pid: u32) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten() {
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        // A link names its program as well, so only the first id of a descriptor is its own.
        let own = info.lines().find_map(|l| l.split_once(":\t").filter(|(k, _)| ["link_id", "map_id", "prog_id"].contains(k)));
        held.extend(own.map(|(kind, id)| format!("{kind} {id}")));
        if let Some((_, id)) = info.lines().find_map(|l| l.split_once(":\t").filter(|(k, _)| *k == "link_id")) {
            held.insert(format!("link_id {id}"));
        }
    }
    held
}

fn existing() -> BTreeSet<String> {
    let programs = ProgInfoIter::default().map(|p| format!("prog_id {}", p.id));
    let maps = MapInfoIter::default().map(|m| format!("map_id {}", m.id));
    programs.chain(maps).chain(LinkInfoIter::default().map(|l| format!("link_id {}", l.id))).collect()
}

#[test]
fn nothing_is_left_behind_not_even_by_sigkill() {
    if !root_or_skip("nothing_is_left_behind_not_even_by_sigkill") {
        return;
    }
    let lab = Lab::up();
    for way in ["finish", "stdin", "kill"] {
        let mut session = Session::start(&lab, request(&lab, "curl", "httpbin"));
        session.probe(Protocol::Tcp, "10.42.1.3:8080");
        let held = held(session.child.id());
        assert!(held.iter().any(|h| h.starts_with("prog_id")) && held.iter().any(|h| h.starts_with("link_id")), "{held:?}");
        match way {
            "finish" => drop(session.finish()),
            "stdin" => {
                session.stdin = None;
                session.wait_for(|m| matches!(m, Message::End(e) if e.reason == EndReason::StdinClosed));
                assert!(session.child.wait().unwrap().success());
            }
            _ => {
                session.child.kill().unwrap();
                session.child.wait().unwrap();
            }
        }
        // The kernel frees BPF objects a grace period after the last reference.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            let left: Vec<String> = held.intersection(&existing()).cloned().collect();
            if left.is_empty() {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "left by {way}: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // The rules of the namespaces are as before: a new trace finds the same places free.
    traced(&lab, "curl", "httpbin", Protocol::Tcp, "10.42.1.3:8080").assert_sound();
}

#[test]
fn two_traces_at_once() {
    if !root_or_skip("two_traces_at_once") {
        return;
    }
    let lab = Lab::up();
    let mut first = Session::start(&lab, request(&lab, "curl", "httpbin"));
    let mut second = Session::start(&lab, request(&lab, "curl", "httpbin"));
    first.probe(Protocol::Tcp, "10.42.1.3:8080");
    second.wait_for(|m| matches!(m, Message::Packet(p) if p.kind == PacketKind::Data && p.direction == Direction::Reply));
    for session in [first, second] {
        let said = session.finish();
        assert_eq!(stages(said.packet(Direction::Request, PacketKind::Data)).last(), Some(&"copied"));
    }
}

#[test]
fn a_node_sees_its_half() {
    if !root_or_skip("a_node_sees_its_half") {
        return;
    }
    let lab = Lab::up();
    let both = request(&lab, "curl", "httpbin-remote");
    let half = |node: &str| TraceRequest { nodes: both.nodes.iter().filter(|n| n.name == node).cloned().collect(), ..both.clone() };
    let mut near = Session::start(&lab, half("node-1"));
    let far = Session::start(&lab, half("node-2"));
    near.probe(Protocol::Tcp, "10.42.2.2:8080");
    let mut far = far;
    far.wait_for(|m| matches!(m, Message::Packet(p) if p.kind == PacketKind::Data && p.direction == Direction::Request));
    let (near, far) = (near.finish(), far.finish());
    let (left, came) = (near.packet(Direction::Request, PacketKind::Data), far.packet(Direction::Request, PacketKind::Data));
    assert_eq!(left.outcome, Outcome::Left, "{left:#?}");
    assert_eq!(came.outcome, Outcome::Delivered, "{came:#?}");
    assert_eq!((left.flow, left.seq, left.payload), (came.flow, came.seq, came.payload));
    assert_eq!(stages(left).last(), Some(&"node-xmit"));
    assert_eq!(stages(came).first(), Some(&"wire"));
    let back = near.packet(Direction::Reply, PacketKind::Data);
    assert_eq!((stages(back).first(), stages(back).last()), (Some(&"wire"), Some(&"copied")));
}
