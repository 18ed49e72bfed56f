//! What redirected packets look like where they arrive, which packets take the stack, and who counts them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::capture::{Capture, Seen};
use crate::echo::{Flow, await_short, known};
use crate::fixture::{Family, Fixture, PODS};
use crate::paths::{ECHO, SERVICE, services};

/// What the compared packets carry.
const PAYLOAD: &[u8] = b"a payload that no other packet has";
const ASKED: u64 = 3;
/// Expedited forwarding with "congestion experienced".
const TOS: u8 = 0xb8 | CE;
const CE: u8 = 3;
const ECT: u8 = 2;
const TTL: u8 = 61;

/// Flows from curl to both other pods, directly and through their Services, by TCP and UDP, of both families.
pub fn flows_to_all(fixture: &Fixture) -> Vec<Flow> {
    let of_family = |family| {
        let pods = ["httpbin", "httpbin-remote"].map(|pod| SocketAddr::new(fixture.ip(pod, family), ECHO));
        pods.into_iter().chain(services(family).map(|ip| SocketAddr::new(ip, SERVICE)))
    };
    [Family::V4, Family::V6].into_iter().flat_map(of_family).flat_map(|to| Flow::both(&fixture.lab, "curl", to)).collect()
}

/// Packets of both directions as tcpdump shows them at the pods' interfaces: all of them, on the short path as on the stack, and the same.
pub fn compare(fixture: &Fixture, flows: &[Flow]) -> BTreeSet<(&'static str, Seen)> {
    let captures = PODS.map(|pod| (pod, Capture::start(&fixture.lab, pod, "eth0")));
    let observe = || -> BTreeSet<(&'static str, Seen)> {
        captures.iter().for_each(|(_, capture)| drop(capture.take()));
        flows.iter().for_each(|flow| (0..ASKED).for_each(|_| flow.ask(PAYLOAD)));
        let seen = captures.iter().flat_map(|(pod, capture)| capture.take().into_iter().map(move |seen| (*pod, seen)));
        seen.filter(|(_, seen)| seen.payload == PAYLOAD).collect()
    };
    let by_stack = observe();
    let on = fixture.accelerate();
    let all: Vec<&Flow> = flows.iter().collect();
    let before = await_short(&fixture.lab, &all);
    let by_short = observe();
    let after = known(&fixture.lab);
    on.finish().expect("end");
    for flow in flows {
        let carried = |pairs| flow.rows(pairs).iter().map(|p| p.bypassed_messages).sum::<u64>();
        assert!(carried(&after) >= carried(&before) + 2 * ASKED, "to {}: {:#?}", flow.dialled, flow.rows(&after));
    }
    let differences: Vec<_> = by_short.symmetric_difference(&by_stack).collect();
    assert!(differences.is_empty(), "by one path only: {differences:#?}");
    assert!(by_short.iter().all(|(_, seen)| seen.is_sound), "wrong checksums: {by_short:#?}");
    // Both packets of an exchange leave one pod and arrive at another.
    assert_eq!(by_short.len(), flows.len() * 4, "a packet is not shown: {by_short:#?}");
    by_short
}

/// Addresses, ports, TTL, TOS, ECN, fragmentation bit, payload and checksums, and that tcpdump in both pods shows every packet.
#[test]
fn packets_arrive_as_by_the_stack() {
    let Some(fixture) = Fixture::new("packets_arrive_as_by_the_stack") else { return };
    fixture.without_checksum_offload();
    for pod in PODS {
        fixture.lab.run(pod, ["sysctl", "-qw", "net.ipv4.tcp_ecn=1"]);
    }
    let flows = flows_to_all(&fixture);
    for flow in &flows {
        let names = if flow.dialled.is_ipv4() {
            [(libc::IPPROTO_IP, libc::IP_TOS), (libc::IPPROTO_IP, libc::IP_TTL)]
        } else {
            [(libc::IPPROTO_IPV6, libc::IPV6_TCLASS), (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)]
        };
        for ((level, name), value) in names.into_iter().zip([TOS, TTL]) {
            flow.set(level, name, value.into());
        }
    }
    let seen = compare(&fixture, &flows);
    let arrived = |of: &dyn Fn(&Seen) -> bool| seen.iter().any(|(pod, seen)| *pod != "curl" && !seen.outgoing && of(seen));
    let is_udp = |seen: &Seen| i32::from(seen.protocol) == libc::IPPROTO_UDP;
    assert!(arrived(&|seen| is_udp(seen) && seen.tos == TOS), "no packet with a TOS");
    assert!(arrived(&|seen| !is_udp(seen) && seen.tos & CE == ECT), "no connection with ECN");
    // Not routed on one node, and routed by both nodes.
    assert!(arrived(&|seen| seen.ttl == TTL) && arrived(&|seen| seen.ttl == TTL - 2), "{seen:#?}");
}

/// IPv6 packets with extension headers, and fragments.
#[test]
fn packets_with_other_headers_take_the_stack() {
    let Some(fixture) = Fixture::new("packets_with_other_headers_take_the_stack") else { return };
    let targets = [("httpbin", Family::V4), ("httpbin", Family::V6), ("httpbin-remote", Family::V6)];
    let flows = targets.map(|(pod, family)| Flow::udp(&fixture.lab, "curl", SocketAddr::new(fixture.ip(pod, family), ECHO)));
    let all: Vec<&Flow> = flows.iter().collect();
    let on = fixture.accelerate();
    let carried = |pairs: &[_]| flows.each_ref().map(|f| f.rows(pairs).iter().map(|p| p.bypassed_messages).max().unwrap_or(0));
    let ask = |what: &[u8]| flows.iter().for_each(|flow| (0..10).for_each(|_| flow.ask(what)));
    let before = carried(&await_short(&fixture.lab, &all));
    ask(b"ping");
    let plain = carried(&known(&fixture.lab));
    assert_eq!(plain, before.map(|n| n + 20), "these packets are not carried: the test shows nothing");
    // Fragments in both directions.
    ask(&[1; 4000]);
    let fragments = carried(&known(&fixture.lab));
    assert_eq!(fragments, plain, "fragments were redirected");
    // Padding of six bytes: the answers have no such header and are carried.
    for flow in flows.iter().filter(|flow| flow.dialled.is_ipv6()) {
        flow.set_bytes(libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0]);
    }
    ask(b"ping");
    let options = carried(&known(&fixture.lab));
    assert_eq!(options, [fragments[0] + 20, fragments[1] + 10, fragments[2] + 10], "packets with destination options");
    for flow in flows.iter().filter(|flow| flow.dialled.is_ipv6()) {
        flow.set_bytes(libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[]);
    }
    await_short(&fixture.lab, &all);
    on.finish().expect("end");
}

/// Packets and bytes that a pod's eth0 has received and sent.
fn of_interface(fixture: &Fixture, pod: &str) -> [u64; 4] {
    let text = fixture.lab.inside(pod, || std::fs::read_to_string("/proc/thread-self/net/dev").expect("counters"));
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix("eth0:")).expect("eth0");
    let fields: Vec<u64> = line.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    [fields[1], fields[9], fields[0], fields[8]]
}

/// Packets that connection tracking of node-1 has counted for a connection; `None` on kernels without the file.
fn of_conntrack(fixture: &Fixture, flow: &Flow) -> Option<u64> {
    let text = fixture.lab.inside("node-1", || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")).ok()?;
    let port = format!("sport={} ", flow.local.port());
    let line = text.lines().find(|l| l.contains("tcp") && l.contains(&port)).expect("no entry");
    Some(line.split_whitespace().filter_map(|field| field.strip_prefix("packets=")?.parse::<u64>().ok()).sum())
}

/// The counters of the pods' interfaces, which cAdvisor reports, have every packet. Those of connection tracking have what took the stack.
#[test]
fn interfaces_count_redirected_packets_and_conntrack_does_not() {
    let Some(fixture) = Fixture::new("interfaces_count_redirected_packets_and_conntrack_does_not") else { return };
    fixture.lab.run("node-1", ["sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1"]);
    let flow = Flow::tcp(&fixture.lab, "curl", SocketAddr::new(fixture.ip("httpbin", Family::V4), ECHO));
    let pods = ["curl", "httpbin"];
    let interfaces = || pods.map(|pod| of_interface(&fixture, pod));
    let grown =
        |from: [[u64; 4]; 2], to: [[u64; 4]; 2]| -> [u64; 4] { std::array::from_fn(|i| (0..2).map(|pod| to[pod][i] - from[pod][i]).sum()) };
    // By the stack, connection tracking counts each packet.
    let before = of_conntrack(&fixture, &flow);
    (0..100).for_each(|_| flow.ask(PAYLOAD));
    let after = of_conntrack(&fixture, &flow);
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after >= before + 200, "connection tracking does not count: {before}, {after}");
    }
    let on = fixture.accelerate();
    let carried = |pairs: &[_]| {
        let rows = flow.rows(pairs);
        (rows.iter().map(|p| p.bypassed_messages).sum::<u64>(), rows.iter().map(|p| p.bypassed_bytes).sum::<u64>())
    };
    await_short(&fixture.lab, &[&flow]);
    // Of packets between two looks the interfaces have counted all that the table has.
    let (tracked, counted) = (of_conntrack(&fixture, &flow), interfaces());
    let (packets, bytes) = carried(&known(&fixture.lab));
    (0..1000).for_each(|_| flow.ask(PAYLOAD));
    let after = carried(&known(&fixture.lab));
    let (tracked_after, counted_after) = (of_conntrack(&fixture, &flow), interfaces());
    let (packets, bytes) = (after.0 - packets, after.1 - bytes);
    assert!(packets >= 2000, "{packets} packets were redirected");
    let [received, sent, received_bytes, sent_bytes] = grown(counted, counted_after);
    assert!(received >= packets && sent >= packets, "of {packets} packets the pods received {received} and sent {sent}");
    let bytes = bytes + 14 * packets;
    assert!(received_bytes >= bytes && sent_bytes >= bytes, "of {bytes} bytes the pods received {received_bytes} and sent {sent_bytes}");
    if let (Some(tracked), Some(tracked_after)) = (tracked, tracked_after) {
        assert!(tracked_after - tracked < packets / 10, "connection tracking has counted {} of {packets}", tracked_after - tracked);
    }
    on.finish().expect("end");
}

/// Whether packets with this payload arrived from this address.
pub fn arrived_from(seen: &BTreeSet<(&str, Seen)>, pod: &str, source: IpAddr) -> bool {
    seen.iter().any(|(at, seen)| *at == pod && !seen.outgoing && seen.source.ip() == source)
}
