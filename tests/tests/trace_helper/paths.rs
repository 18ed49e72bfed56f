//! The path of a packet in every scenario: which stages, in which order, and where.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use sockpath_protocol::lab::Overlay;
use sockpath_protocol::message::Message;
use sockpath_protocol::packet::{Direction, IncidentKind, Outcome, Packet, PacketKind};
use sockpath_protocol::request::{ProbeRequest, Protocol, Request};
use sockpath_tests::lab::Lab;
use sockpath_tests::{program_or_skip, root_or_skip};

use super::session::{Session, request, stages, traced};

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

/// The path of a data segment: written, out, between, in, read.
fn path(between: &[&'static str]) -> Vec<&'static str> {
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
        assert_eq!(stages, path(&[]), "{data:#?}");
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
            assert_eq!(stages, path(&BRIDGED), "{data:#?}");
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
    assert!(data.hops.iter().all(|h| h.rewritten.is_none()), "an outer header is not a rewrite: {data:#?}");
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
