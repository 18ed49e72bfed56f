//! How a trace ends, what is left of it, and several at once.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};
use sockpath_protocol::message::{EndReason, Message};
use sockpath_protocol::packet::{Direction, Outcome, PacketKind};
use sockpath_protocol::request::{Protocol, TraceRequest};
use sockpath_tests::lab::Lab;
use sockpath_tests::root_or_skip;
use sockpath_tests::state::look;

use super::session::{Said, Session, request, stages, traced};

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
    for end in ["finish", "stdin", "kill"] {
        let mut session = Session::start(&lab, request(&lab, "curl", "httpbin"));
        session.probe(Protocol::Tcp, "10.42.1.3:8080");
        let held = held(session.child.id());
        assert!(held.intersection(&existing()).count() > 0, "what it holds is not found: {held:?}");
        assert!(held.iter().any(|h| h.starts_with("prog_id")) && held.iter().any(|h| h.starts_with("link_id")), "{held:?}");
        match end {
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
        let left = || held.intersection(&existing()).cloned().collect::<Vec<String>>();
        let gone = look(Duration::from_secs(5), || left().is_empty().then_some(()));
        assert!(gone.is_some(), "left by {end}: {:?}", left());
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

/// The last acknowledgements and the FIN of a reader have one sequence number; the far node sees them in memory that is used again.
#[test]
fn acknowledgements_that_arrive_in_the_same_memory_are_distinguished() {
    if !root_or_skip("acknowledgements_that_arrive_in_the_same_memory_are_distinguished") {
        return;
    }
    let lab = Lab::up();
    let both = request(&lab, "curl", "httpbin-remote");
    let half = |node: &str| TraceRequest { nodes: both.nodes.iter().filter(|n| n.name == node).cloned().collect(), ..both.clone() };
    let (mut near, far) = (Session::start(&lab, half("node-1")), Session::start(&lab, half("node-2")));
    near.probe(Protocol::Tcp, "10.42.2.2:8080");
    near.wait_for(|m| matches!(m, Message::Packet(p) if p.kind == PacketKind::Fin && p.direction == Direction::Request));
    let (near, far) = (near.finish(), far.finish());
    let names = |said: &Said| {
        let requests = said.packets.iter().filter(|p| p.direction == Direction::Request);
        requests.map(|p| (p.seq, p.ack, p.payload, format!("{:?}", p.kind))).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&near), names(&far));
    for packet in far.packets.iter().filter(|p| p.direction == Direction::Request) {
        assert_eq!(stages(packet).iter().filter(|s| **s == "device-handover").count(), 1, "{packet:#?}");
    }
}
