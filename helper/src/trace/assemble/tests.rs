//! The assembler on observations made by hand: a pod `curl` (namespace 1), its node (2) and a pod `httpbin` (3).

use std::net::{IpAddr, SocketAddr};

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::packet::{Device, DeviceKind, Direction, Flow, HeaderOffsets, Outcome, Packet, PacketKind};
use sockpath_protocol::request::{Frontend, Service};

use super::*;
use crate::trace::event::{Facts, Tracked, rules_of};
use crate::trace::places::{TracedDevice, TracedNetns};
use crate::trace::rules::{Found, Question, What};
use crate::trace::settings::KernelDrop;

const CURL: u32 = 1;
const NODE: u32 = 2;
const HTTPBIN: u32 = 3;
const MS: u64 = 1_000_000;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn flow(from: &str, to: &str) -> Flow {
    let socket = |text: &str| text.parse::<SocketAddr>().expect("an address with a port");
    Flow { from: socket(from), to: socket(to) }
}

fn direct() -> Flow {
    flow("10.42.1.2:40000", "10.42.1.3:8080")
}

/// A data segment of 100 bytes from curl to httpbin.
pub(super) fn event(id: u32, hook: Hook, netns: u32, ifindex: u32, at: u64) -> Event {
    Event {
        at,
        hook,
        object: u64::from(id) * 0x1000,
        id,
        netns,
        ifindex,
        len: 152,
        seq: 1000,
        ack: 1,
        payload: 100,
        arg: 0,
        location: 0,
        flow: direct(),
        protocol: Some(Protocol::Tcp),
        kind: ACK,
        flags: 0,
        shared: false,
        socket_state: 0,
        attach: None,
        cpu: 0,
        segments: 0,
        pid: 7,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        offsets: Some(HeaderOffsets { mac: Some(64), network: 78, transport: Some(98) }),
        facts: None,
    }
}

fn device(name: &str, ifindex: u32, kind: DeviceKind, peer: Option<&str>, bridge: Option<&str>) -> TracedDevice {
    let device = Device { name: name.into(), ifindex, kind, peer: peer.map(Into::into), bridge: bridge.map(Into::into) };
    TracedDevice { device, qdisc: "noqueue".into() }
}

fn places(in_pod: bool) -> Places {
    let traced =
        |netns, pod: Option<&str>, source, target| TracedNetns { netns, node: "node-1".into(), pod: pod.map(Into::into), source, target };
    let mut places = Places::new(
        [
            traced(CURL, Some("default/curl"), true, in_pod),
            traced(NODE, None, false, false),
            traced(HTTPBIN, Some("default/httpbin"), false, true),
        ],
        Box::new(|_| Vec::new()),
    );
    for pod in [CURL, HTTPBIN] {
        let peer = Some("veth@node-1");
        places.learn(pod, vec![device("lo", 1, DeviceKind::Loopback, None, None), device("eth0", 2, DeviceKind::Veth, peer, None)]);
    }
    places.learn(
        NODE,
        vec![
            device("cni0", 2, DeviceKind::Bridge, None, None),
            device("veth1", 3, DeviceKind::Veth, Some("eth0@default/curl"), Some("cni0")),
            device("veth2", 4, DeviceKind::Veth, Some("eth0@default/httpbin"), Some("cni0")),
            device("eth0", 5, DeviceKind::Veth, None, None),
        ],
    );
    places
}

fn assembler() -> Assembler {
    let frontend = Frontend { addr: "10.96.0.10:80".parse().expect("an address"), protocol: Protocol::Tcp };
    let pair = Pair {
        sources: vec![ip("10.42.1.2")],
        targets: vec![ip("10.42.1.3"), ip("10.96.0.10")],
        port: None,
        services: vec![Service { namespace: "default".into(), name: "httpbin".into(), frontends: vec![frontend], backends: vec![] }],
    };
    Assembler::new(pair, places(false), names())
}

fn names() -> Names {
    let reasons = [(2, "NOT_SPECIFIED"), (12, "NETFILTER_DROP"), (13, "OTHERHOST"), (58, "NEIGH_FAILED"), (104, "QUEUE_PURGE")];
    Names::new(reasons.map(|(n, name)| (n, name.to_owned())).into())
}

/// The path over veth, bridge and veth, 1 us for each hop, from `at` on: up to the target's socket.
fn same_node(id: u32, at: u64) -> Vec<Event> {
    let way = [
        (Hook::TRACE_NF_FIRST_LOCAL_OUT, CURL, 2),
        (Hook::TRACE_NF_FIRST_POST_ROUTING, CURL, 2),
        (Hook::TRACE_NF_LAST_POST_ROUTING, CURL, 2),
        (Hook::TRACE_DEV_QUEUE, CURL, 2),
        (Hook::TRACE_DEV_XMIT, CURL, 2),
        (Hook::TRACE_NETIF_RX, NODE, 3),
        (Hook::TRACE_RECEIVE_SKB, NODE, 3),
        (Hook::TRACE_NF_FIRST_PRE_ROUTING, NODE, 2),
        (Hook::TRACE_NF_LAST_PRE_ROUTING, NODE, 2),
        (Hook::TRACE_NF_FIRST_FORWARD, NODE, 2),
        (Hook::TRACE_NF_FIRST_POST_ROUTING, NODE, 2),
        (Hook::TRACE_NF_LAST_POST_ROUTING, NODE, 2),
        (Hook::TRACE_DEV_QUEUE, NODE, 4),
        (Hook::TRACE_DEV_XMIT, NODE, 4),
        (Hook::TRACE_NETIF_RX, HTTPBIN, 2),
        (Hook::TRACE_RECEIVE_SKB, HTTPBIN, 2),
        (Hook::TRACE_NF_FIRST_PRE_ROUTING, HTTPBIN, 2),
        (Hook::TRACE_NF_LAST_PRE_ROUTING, HTTPBIN, 2),
        (Hook::TRACE_NF_FIRST_LOCAL_IN, HTTPBIN, 2),
        (Hook::TRACE_NF_LAST_LOCAL_IN, HTTPBIN, 2),
    ];
    way.into_iter()
        .zip(0..)
        .map(|((hook, netns, ifindex), i)| {
            let mut s = event(id, hook, netns, ifindex, at + i * 1000);
            // FORWARD names the device out as well: the same bridge.
            s.arg = if hook == Hook::TRACE_NF_FIRST_FORWARD { 2 } else { 0 };
            s
        })
        .collect()
}

/// What a socket reports: addresses as it would send with.
fn socket(hook: Hook, netns: u32, flow: Flow, seq: u32, len: u32, at: u64) -> Event {
    Event { flow, seq, len, payload: 0, ack: 0, kind: 0, ..event(0, hook, netns, 0, at) }
}

fn packets(assembler: &mut Assembler) -> Vec<Packet> {
    let packet = |m| if let Message::Packet(p) = m { Some(*p) } else { None };
    assembler.take().into_iter().filter_map(packet).collect()
}

fn stages(packet: &Packet) -> Vec<&'static str> {
    packet.hops.iter().map(|h| h.stage.key()).collect()
}

fn see_all(assembler: &mut Assembler, events: impl IntoIterator<Item = Event>) {
    for event in events {
        assembler.see(event);
    }
}

#[test]
fn a_segment_from_write_to_read() {
    let mut a = assembler();
    a.see(socket(Hook::TRACE_TCP_SENDMSG, CURL, direct(), 1000, 100, 500));
    see_all(&mut a, same_node(1, 1000));
    a.see(event(1, Hook::TRACE_TCP_PROBE, HTTPBIN, 0, 22_000));
    a.see(socket(Hook::TRACE_DATA_READY, HTTPBIN, direct().reversed(), 1100, 0, 23_000));
    a.see(event(1, Hook::TRACE_COPY_DATAGRAM, 0, 0, 60_000));
    a.see(socket(Hook::TRACE_RECV_LENGTH, HTTPBIN, direct().reversed(), 1100, 100, 61_000));
    a.settle(61_000);
    assert!(packets(&mut a).is_empty(), "what follows on another CPU may still come");
    a.settle(10 * MS);
    let packets = packets(&mut a);
    let [p] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!(p.outcome, Outcome::Delivered);
    assert_eq!((p.direction, p.kind, p.payload, p.seq), (Direction::Request, PacketKind::Data, 100, 1000));
    assert_eq!(
        stages(p),
        [
            "socket-write",
            "nf-local-out",
            "nf-post-routing",
            "link-header",
            "send-stack-done",
            "device-xmit",
            "veth-cross",
            "node-receive",
            "node-pre-routing",
            "bridge-in",
            "node-forward",
            "node-post-routing",
            "bridge-forward",
            "node-queue",
            "node-xmit",
            "device-handover",
            "receive-stack",
            "nf-pre-routing",
            "route-in",
            "nf-local-in",
            "receive-transport",
            "socket-lookup",
            "reader-woken",
            "dequeued",
            "copied"
        ]
    );
    let ends = p.hops.last().map(|h| h.at_ns).unwrap_or(0) - p.hops[0].at_ns;
    let sum: u64 = p.hops.windows(2).map(|h| h[1].at_ns - h[0].at_ns).sum();
    assert_eq!(ends, sum);
    assert_eq!(a.delivered_requests(), 1);
    assert!(p.hops[1].note.as_deref().is_some_and(|n| n.contains("cached route")));
    assert!(p.hops[3].note.as_deref().is_some_and(|n| n.contains("cached neighbour")));
    assert!(p.hops[4].note.as_deref().is_some_and(|n| n.contains("noqueue")));
}

#[test]
fn a_rewrite_names_its_hook_and_keeps_the_conversation() {
    let mut a = assembler();
    let dialled = flow("10.42.1.2:40000", "10.96.0.10:80");
    let mut way = same_node(1, 1000);
    for s in &mut way[..8] {
        s.flow = dialled;
    }
    see_all(&mut a, way);
    // The answer begins at the target with the translated addresses, and is translated back on the node.
    let back = direct().reversed();
    let mut answer = Event { flow: back, ..event(2, Hook::TRACE_NF_FIRST_LOCAL_OUT, HTTPBIN, 2, 50_000) };
    a.see(answer.clone());
    answer = Event { flow: back, ..event(2, Hook::TRACE_NF_FIRST_POST_ROUTING, NODE, 2, 51_000) };
    a.see(answer.clone());
    a.see(Event { flow: dialled.reversed(), ..event(2, Hook::TRACE_NF_LAST_POST_ROUTING, NODE, 2, 52_000) });
    a.finish(100 * MS);
    let packets = packets(&mut a);
    let [there, back] = packets.as_slice() else { panic!("{packets:?}") };
    assert_eq!(there.conversation, back.conversation);
    assert_eq!((there.direction, back.direction), (Direction::Request, Direction::Reply));
    assert_eq!(there.flow, dialled);
    let rewrites: Vec<_> = there.hops.iter().filter(|h| h.rewritten.is_some()).collect();
    assert_eq!(rewrites.len(), 1);
    assert_eq!(rewrites[0].rewritten, Some(direct()));
    let note = rewrites[0].note.as_deref().unwrap_or_default();
    assert!(note.contains("PRE_ROUTING rewrote destination 10.96.0.10:80 to 10.42.1.3:8080 (Service default/httpbin)"), "{note}");
    let note = back.hops.last().and_then(|h| h.note.as_deref()).unwrap_or_default();
    assert!(note.contains("POST_ROUTING rewrote source 10.42.1.3:8080 to 10.96.0.10:80 (Service default/httpbin)"), "{note}");
}

#[test]
fn one_read_ends_every_segment_it_took() {
    let mut a = assembler();
    see_all(&mut a, same_node(1, 1000));
    let second = same_node(2, 30_000).into_iter().map(|s| Event { seq: 1100, ..s });
    see_all(&mut a, second);
    // 150 bytes read: the first segment whole, the second in part.
    a.see(socket(Hook::TRACE_RECV_LENGTH, HTTPBIN, direct().reversed(), 1150, 150, 80_000));
    a.settle(10 * MS);
    assert_eq!(packets(&mut a).len(), 1);
    a.see(socket(Hook::TRACE_RECV_LENGTH, HTTPBIN, direct().reversed(), 1200, 50, 11 * MS));
    a.settle(20 * MS);
    let packets = packets(&mut a);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].seq, 1100);
    assert_eq!(packets[0].outcome, Outcome::Delivered);
}

#[test]
fn a_drop_is_reported_with_its_stage_unless_it_was_a_clones() {
    let mut a = assembler();
    see_all(&mut a, same_node(1, 1000).into_iter().take(10));
    a.see(Event { arg: 12, ..event(1, Hook::TRACE_KFREE_SKB, NODE, 3, 12_000) });
    // The second goes on after the drop: a bridge had flooded it.
    let mut second = same_node(2, 30_000);
    second.insert(10, Event { arg: 13, shared: true, ..event(2, Hook::TRACE_KFREE_SKB, NODE, 2, 39_500) });
    see_all(&mut a, second);
    a.settle(10 * MS);
    let first = packets(&mut a);
    assert_eq!(first.len(), 1, "the second waits for its reader");
    let Outcome::Dropped(drop) = &first[0].outcome else { panic!("{:?}", first[0].outcome) };
    assert_eq!((drop.reason.as_str(), drop.stage.key()), ("NETFILTER_DROP", "node-forward"));
    a.finish(20 * MS);
    assert_eq!(packets(&mut a)[0].outcome, Outcome::Delivered);
}

#[test]
fn a_syn_that_a_socket_in_time_wait_took_was_dropped() {
    const NOT_SPECIFIED: u32 = 2;
    let syn = |id, at| {
        same_node(id, at).into_iter().take_while(|s| s.hook != Hook::TRACE_DATA_READY).map(|s| Event { kind: SYN, payload: 0, ..s })
    };
    let drop =
        |id, socket_state, at| Event { arg: NOT_SPECIFIED, socket_state, kind: SYN, ..event(id, Hook::TRACE_KFREE_SKB, HTTPBIN, 2, at) };
    let outcome = |state| {
        let mut a = assembler();
        see_all(&mut a, syn(1, 1000));
        a.see(drop(1, state, 40_000));
        a.finish(100 * MS);
        packets(&mut a)[0].outcome.clone()
    };
    // TCP_TIME_WAIT and TCP_LISTEN: a listener that has a request of this connection answers again.
    let Outcome::Dropped(dropped) = outcome(6) else { panic!("{:?}", outcome(6)) };
    assert_eq!((dropped.socket.as_deref(), dropped.reason.as_str()), (Some("TIME_WAIT"), "NOT_SPECIFIED"));
    assert_eq!(outcome(10), Outcome::Delivered);
    assert_eq!(outcome(0), Outcome::Delivered, "before Linux 6.11 the kernel names no socket");
}

#[test]
fn a_drop_of_a_packet_that_was_not_recorded_is_reported_too() {
    let mut a = assembler();
    a.see(Event { arg: 12, ..event(0, Hook::TRACE_KFREE_SKB, NODE, 3, 12_000) });
    let packets = packets(&mut a);
    assert_eq!(packets.len(), 1);
    assert!(matches!(&packets[0].outcome, Outcome::Dropped(d) if d.reason == "NETFILTER_DROP"));
    assert_eq!(packets[0].hops.len(), 1);
}

#[test]
fn a_packet_in_transit_when_the_trace_ends_has_not_vanished() {
    for (end, reported) in [(20 * MS, 0), (100 * MS, 1)] {
        let mut a = assembler();
        see_all(&mut a, same_node(1, 1000).into_iter().take(8));
        a.finish(end);
        assert_eq!(packets(&mut a).len(), reported, "{end} ns after it was seen last");
    }
}

#[test]
fn a_packet_that_is_seen_no_more_says_what_should_have_come() {
    let mut a = assembler();
    see_all(&mut a, same_node(1, 1000).into_iter().take(8));
    a.settle(500 * MS);
    assert!(packets(&mut a).is_empty());
    a.settle(1100 * MS);
    let Outcome::Vanished { expected } = packets(&mut a)[0].outcome else { panic!("not vanished") };
    assert_eq!(expected.key(), "node-forward");
}

#[test]
fn a_packet_that_left_through_a_device_has_left() {
    let mut a = assembler();
    see_all(&mut a, same_node(1, 1000).into_iter().take(12));
    a.see(event(1, Hook::TRACE_DEV_QUEUE, NODE, 5, 14_000));
    a.see(event(1, Hook::TRACE_DEV_XMIT, NODE, 5, 15_000));
    a.settle(100 * MS);
    assert_eq!(packets(&mut a)[0].outcome, Outcome::Left);
}

#[test]
fn an_acknowledgement_needs_no_reader() {
    let mut a = assembler();
    see_all(&mut a, same_node(1, 1000).into_iter().map(|s| Event { payload: 0, ..s }));
    a.settle(10 * MS);
    let packets = packets(&mut a);
    assert_eq!((packets[0].kind, &packets[0].outcome), (PacketKind::Ack, &Outcome::Delivered));
}

#[test]
fn waiting_for_a_neighbour_is_a_stage_of_its_own() {
    let mut a = assembler();
    let mut way = same_node(1, 1000);
    // Handed to the device 2 ms later, after the answer.
    for s in &mut way[3..] {
        s.at += 2 * MS;
    }
    see_all(&mut a, way);
    a.see(Event { arg: 0x02, protocol: None, ..event(0, Hook::TRACE_NEIGH_UPDATE, CURL, 2, MS) });
    // One that fails: dropped where it waited.
    see_all(&mut a, same_node(2, 10 * MS).into_iter().take(3));
    a.see(Event { arg: 58, ..event(2, Hook::TRACE_KFREE_SKB, CURL, 2, 12 * MS) });
    a.finish(20 * MS);
    let packets = packets(&mut a);
    assert_eq!(packets[0].hops[2].stage.key(), "neighbour-out");
    let Outcome::Dropped(drop) = &packets[1].outcome else { panic!("{:?}", packets[1].outcome) };
    assert_eq!((drop.reason.as_str(), drop.stage.key()), ("NEIGH_FAILED", "neighbour-out"));
}

#[test]
fn fragments_are_cut_and_put_together() {
    let mut a = assembler();
    let mut way = same_node(1, 1000);
    for s in &mut way {
        s.protocol = Some(Protocol::Udp);
    }
    for s in &mut way[3..8] {
        s.flags |= u8::try_from(trace_flag::TRACE_F_MORE_FRAGMENTS.0).expect("a flag");
    }
    see_all(&mut a, way);
    a.finish(100 * MS);
    let packet = &packets(&mut a)[0];
    assert_eq!(packet.hops[2].stage.key(), "segment");
    assert_eq!(packet.hops[3].note.as_deref(), Some("noqueue, first fragment"));
    assert_eq!(packet.hops[8].note.as_deref(), Some("fragments put together"));
}

#[test]
fn in_a_pod_the_one_who_asks_is_the_source_and_a_port_may_be_used_again() {
    let lo = [ip("127.0.0.1")];
    let pair = Pair { sources: lo.to_vec(), targets: lo.to_vec(), ..Pair::default() };
    let mut a = Assembler::new(pair, places(true), names());
    let there = flow("127.0.0.1:40000", "127.0.0.1:8081");
    let out = |id, seq, flow, kind, at| Event { seq, flow, kind, payload: 0, ..event(id, Hook::TRACE_NF_FIRST_LOCAL_OUT, CURL, 1, at) };
    a.see(out(1, 5, there, SYN, 1000));
    a.see(out(2, 9, there.reversed(), SYN | ACK, 2000));
    a.see(out(3, 5, there, SYN, 3000));
    a.see(out(4, 77, there, SYN, 4000));
    a.finish(100 * MS);
    let packets = packets(&mut a);
    let of: Vec<_> = packets.iter().map(|p| (p.conversation, p.direction)).collect();
    let (there, back) = (Direction::Request, Direction::Reply);
    assert_eq!(of, [(1, there), (1, back), (1, there), (2, there)]);
}

#[test]
fn without_netfilter_links_a_pod_that_receives_has_it() {
    let mut a = assembler().without_netfilter();
    let netfilter = |s: &Event| rules_of(s.hook).is_none();
    see_all(&mut a, same_node(1, 1000).into_iter().filter(netfilter));
    a.see(event(1, Hook::TRACE_TCP_PROBE, HTTPBIN, 0, 22_000));
    a.see(socket(Hook::TRACE_RCV_SPACE_ADJUST, HTTPBIN, direct().reversed(), 1100, 0, 61_000));
    a.settle(10 * MS);
    let packets = packets(&mut a);
    assert_eq!(packets[0].outcome, Outcome::Delivered);
    let stages = stages(&packets[0]);
    assert_eq!((stages.first(), stages.last()), (Some(&"send-stack-done"), Some(&"copied")));
}

#[test]
fn a_datagram_is_named_by_its_headers_not_by_the_call() {
    let mut a = assembler();
    let udp = |s: Event| Event { protocol: Some(Protocol::Udp), ..s };
    a.see(udp(Event { seq: 0, ..event(1, Hook::TRACE_WRITE_CALL, CURL, 0, 500) }));
    see_all(&mut a, same_node(1, 1000).into_iter().map(udp));
    a.finish(100 * MS);
    assert_eq!(packets(&mut a)[0].seq, 1000, "another node knows it by that");
}

#[test]
fn packets_of_two_cpus_may_come_in_the_other_order() {
    let mut a = assembler();
    let origin = u8::try_from(trace_flag::TRACE_F_ORIGIN.0).expect("a flag");
    for id in [2, 1] {
        a.see(Event { flags: origin, ..event(id, Hook::TRACE_NF_FIRST_LOCAL_OUT, CURL, 2, 1000) });
    }
    a.finish(100 * MS);
    assert_eq!(packets(&mut a).len(), 2);
}

#[test]
fn memory_stays_bounded_whatever_comes() {
    let mut a = assembler();
    let mut reported = 0;
    for id in 1..=20_000u32 {
        // None of them ends.
        see_all(&mut a, same_node(id, u64::from(id)).into_iter().take(8));
        if id % 500 == 0 {
            a.settle(u64::from(id));
            reported += packets(&mut a).len();
            assert!(a.events <= MAX_EVENTS + 500 * 8);
        }
    }
    a.finish(100 * MS);
    reported += packets(&mut a).len();
    assert_eq!(reported, 20_000);
    assert_eq!(a.events, 0);
    assert!(a.is_done_with(20_000));
}

/// The questions about a packet with these events, in order.
fn questions(events: impl IntoIterator<Item = Event>) -> (Vec<Packet>, Vec<Question>) {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = std::sync::Arc::clone(&asked);
    let rules = Rules::answered_by(move || {
        move |question: &Question| {
            note.lock().expect("a list").push(question.clone());
            let rule = sockpath_protocol::packet::Rule {
                table: "ip filter".to_owned(),
                chain: "FORWARD".to_owned(),
                handle: Some(7),
                comment: None,
                via: Vec::new(),
                policy: false,
                legacy: false,
                element: None,
                counter: None,
            };
            Found { rule: Some(rule), ..Found::default() }
        }
    });
    let mut a = assembler().with_rules(rules.expect("a thread"));
    see_all(&mut a, events);
    a.finish(100 * MS);
    let mut done = packets(&mut a);
    let messages = a.take_last(Duration::from_secs(10));
    done.extend(messages.into_iter().filter_map(|m| if let Message::Packet(p) = m { Some(*p) } else { None }));
    let asked = asked.lock().expect("a list").clone();
    (done, asked)
}

#[test]
fn the_rules_are_asked_with_what_the_hook_saw() {
    let connection = |mark| Some(Tracked { info: 2, status: 8, mark });
    let mut events = same_node(1, 1000);
    events.truncate(10);
    events[9].facts = Some(Facts { mark: 4, connection: connection(1), untracked: false });
    let dropped = Facts { mark: 5, connection: connection(1), untracked: false };
    events.push(Event { arg: 12, location: 1, facts: Some(dropped), ..event(1, Hook::TRACE_KFREE_SKB, NODE, 2, 12_000) });
    let (done, asked) = questions(events);
    let Outcome::Dropped(drop) = &done[0].outcome else { panic!("{:?}", done[0].outcome) };
    assert_eq!(drop.rule.as_ref().and_then(|r| r.handle), Some(7));
    let [Question { netns: NODE, at: 12_000, what: What::Drop(question) }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((question.hook, question.behind_rules), (sockpath_ruleset::Hook::Forward, false));
    assert_eq!(question.entered.facts.map(|f| f.mark), Some(4));
    assert_eq!(question.dropped.facts.map(|f| f.mark), Some(5));
    let name = |d: &Option<Option<(u32, Option<String>)>>| d.clone().flatten().map(|d| d.0);
    assert_eq!((name(&question.input), name(&question.output)), (Some(2), Some(2)));
    let facts = done[0].hops.last().and_then(|h| h.facts.clone()).expect("facts");
    assert_eq!((facts.mark, facts.connection), (4, sockpath_protocol::packet::ConnectionState::New));
}

#[test]
fn behind_the_last_rules_only_conntrack_is_left() {
    let mut events = same_node(1, 1000);
    events.truncate(12);
    events.push(Event { arg: 12, ..event(1, Hook::TRACE_KFREE_SKB, NODE, 2, 14_000) });
    let (_, asked) = questions(events);
    let [Question { what: What::Drop(question), .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((question.hook, question.behind_rules), (sockpath_ruleset::Hook::PostRouting, true));
}

#[test]
fn a_translation_is_asked_about_with_the_hook_it_happened_in() {
    let mut events = same_node(1, 1000);
    for event in &mut events[..8] {
        event.flow = flow("10.42.1.2:40000", "10.96.0.10:80");
    }
    let (done, asked) = questions(events);
    let [Question { netns: NODE, what: What::Translation(question), .. }] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(question.hook, Some(sockpath_ruleset::Hook::PreRouting));
    assert_eq!((question.before.to.port(), question.after.to.port()), (80, 8080));
    assert!(done[0].hops.iter().any(|h| h.rule.is_some()));
}

#[test]
fn a_reason_of_a_subsystem_is_named_later() {
    const REASON: u32 = 3 << 16 | 3;
    let mut events = same_node(1, 1000);
    events.truncate(7);
    events.push(Event { arg: REASON, ..event(1, Hook::TRACE_KFREE_SKB, NODE, 3, 9_000) });
    // Of the second packet only the drop is seen.
    events.push(Event { arg: REASON, ..event(0, Hook::TRACE_KFREE_SKB, NODE, 3, 10_000) });
    let rules = Rules::answered_by(|| {
        |question: &Question| match &question.what {
            What::Kernel(KernelDrop { unnamed: Some(REASON), .. }) => {
                Found { reason: Some("OVS_DROP_EXPLICIT".to_owned()), ..Found::default() }
            }
            other => panic!("{other:?}"),
        }
    });
    let mut a = assembler().with_rules(rules.expect("a thread"));
    see_all(&mut a, events);
    a.finish(100 * MS);
    let messages = a.take_last(Duration::from_secs(10));
    let reason = |m: &Message| match m {
        Message::Packet(p) => match &p.outcome {
            Outcome::Dropped(drop) => Some(drop.reason.clone()),
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    assert_eq!(messages.iter().filter_map(reason).collect::<Vec<_>>(), ["OVS_DROP_EXPLICIT"; 2]);
}

#[test]
fn about_a_packet_in_a_tunnel_no_rule_is_asked() {
    let mut events = same_node(1, 1000);
    events.truncate(10);
    events[9].flags = u8::try_from(trace_flag::TRACE_F_TUNNEL.0).expect("a byte");
    events.push(Event { arg: 12, ..event(1, Hook::TRACE_KFREE_SKB, NODE, 2, 12_000) });
    let (done, asked) = questions(events);
    assert!(asked.is_empty() && matches!(done[0].outcome, Outcome::Dropped(_)));
}
