//! Flows whose source this node translates: what kube-proxy marks with KUBE-MARK-MASQ, and pods that dial addresses outside of the cluster.

use std::net::{IpAddr, SocketAddr};

use sockpath_protocol::Message;
use sockpath_protocol::accel::{AccelerateRequest, Pair, Reason, Via};
use sockpath_tests::torture::accelerator::{Choice, Session};

use crate::echo::{Flow, await_table, is_refused, is_short, serve};
use crate::fixture::{Family, Fixture};
use crate::packets::{arrived_from, compare, flows_to_all};
use crate::paths::{ECHO, SERVICE, services};

/// An address of node-1 with a port that leads to httpbin, as of a NodePort.
const NODE_PORT: &str = "10.199.0.1:30080";
/// Outside of the cluster.
const OUTSIDE: &str = "203.0.113.9";

/// Adds a rule to the table nat of node-1 as the first one of its chain.
fn nat(fixture: &Fixture, family: Family, chain: &str, rule: &str) {
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    fixture.lab.run("node-1", [program, "-w", "5", "-t", "nat", "-I", chain, "1"].into_iter().chain(rule.split(' ')));
}

/// Everything that curl begins is masqueraded on its node.
fn masquerade_curl(fixture: &Fixture) {
    for family in [Family::V4, Family::V6] {
        nat(fixture, family, "PREROUTING", &format!("-s {} -j KUBE-MARK-MASQ", fixture.ip("curl", family)));
    }
}

fn node_port(fixture: &Fixture) -> SocketAddr {
    let to = format!("{}:{ECHO}", fixture.ip("httpbin", Family::V4));
    for protocol in ["tcp", "udp"] {
        nat(fixture, Family::V4, "PREROUTING", &format!("-d 10.199.0.1 -p {protocol} --dport 30080 -j DNAT --to-destination {to}"));
        nat(fixture, Family::V4, "PREROUTING", &format!("-d 10.199.0.1 -p {protocol} --dport 30080 -j KUBE-MARK-MASQ"));
    }
    NODE_PORT.parse().expect("an address")
}

/// Directly, through Services and a NodePort, on one node and between nodes: carried, with both addresses translated in both directions.
#[test]
fn masqueraded_packets_arrive_as_by_the_stack() {
    let Some(fixture) = Fixture::new("masqueraded_packets_arrive_as_by_the_stack") else { return };
    fixture.without_checksum_offload();
    masquerade_curl(&fixture);
    let port = node_port(&fixture);
    let mut flows = flows_to_all(&fixture);
    for pod in ["curl", "httpbin-remote"] {
        flows.extend(Flow::both(&fixture.lab, pod, port));
    }
    let seen = compare(&fixture, &flows);
    for (pod, masqueraded) in [("httpbin", ["10.42.1.1", "fd00:10:42:1::1"]), ("httpbin-remote", ["10.199.0.1", "fd00:10:199::1"])] {
        for ip in masqueraded {
            assert!(arrived_from(&seen, pod, ip.parse().expect("an address")), "nothing arrived from {ip}: {seen:#?}");
        }
    }
    for (pod, family) in [("httpbin", Family::V4), ("httpbin", Family::V6), ("httpbin-remote", Family::V4)] {
        assert!(!arrived_from(&seen, pod, fixture.ip("curl", family)), "not masqueraded: {seen:#?}");
    }
}

/// Where the bridge does not pass packets to netfilter, the node routes what it translates, and lowers the TTL.
#[test]
fn a_bridge_without_netfilter_routes_what_is_translated() {
    let Some(fixture) = Fixture::new("a_bridge_without_netfilter_routes_what_is_translated") else { return };
    fixture.without_checksum_offload();
    masquerade_curl(&fixture);
    for name in ["iptables", "ip6tables"] {
        fixture.lab.run("node-1", ["sysctl", "-qw", &format!("net.bridge.bridge-nf-call-{name}=0")]);
    }
    let to_service = |family| Flow::tcp(&fixture.lab, "curl", SocketAddr::new(services(family)[0], SERVICE));
    let flows = [Family::V4, Family::V6].map(to_service);
    let seen = compare(&fixture, &flows);
    assert!(seen.iter().any(|(pod, seen)| *pod == "httpbin" && !seen.outgoing && seen.ttl == 63), "not routed: {seen:#?}");
}

/// The table of a dry run.
fn dry_run(fixture: &Fixture) -> Vec<Pair> {
    let choice = Choice { via: Via::Short, ..Choice::default() };
    let request = AccelerateRequest { dry_run_ms: Some(100), ..choice.request(&fixture.lab) };
    let mut session = Session::start(&fixture.lab).expect("a session");
    session.say(&sockpath_protocol::Request::Accelerate(Box::new(request))).expect("say");
    session.expect("a summary", |m| matches!(m, Message::Summary(_)).then_some(())).expect("a summary");
    session.pairs.pairs.clone()
}

/// A pod that dials an outside address, an outside client of a NodePort, and a pod that reaches itself through a Service take the stack:
/// a dry run shows the same reason as the run.
#[test]
fn masqueraded_flows_without_two_pods_are_refused() {
    let Some(fixture) = Fixture::new("masqueraded_flows_without_two_pods_are_refused") else { return };
    let outside: IpAddr = OUTSIDE.parse().expect("an address");
    fixture.lab.run("node-2", ["ip", "address", "add", OUTSIDE, "dev", "lo"]);
    fixture.lab.run("node-1", ["ip", "route", "add", OUTSIDE, "via", "10.199.0.2"]);
    nat(&fixture, Family::V4, "POSTROUTING", "-s 10.42.0.0/16 ! -d 10.42.0.0/16 -j MASQUERADE");
    let port = node_port(&fixture);
    let own = fixture.ip("curl", Family::V4);
    let itself: SocketAddr = "10.96.0.99:80".parse().expect("an address");
    let to_itself = format!("-d {} -p tcp --dport 80 -j DNAT --to-destination {own}:{ECHO}", itself.ip());
    nat(&fixture, Family::V4, "PREROUTING", &to_itself);
    nat(&fixture, Family::V4, "PREROUTING", &format!("-d {} -s {own} -j KUBE-MARK-MASQ", itself.ip()));
    let to = SocketAddr::new(outside, 7000);
    serve(&fixture.lab, "node-2", to);
    let refused = [("curl", to), ("node-2", port), ("curl", itself)].map(|(from, to)| Flow::tcp(&fixture.lab, from, to));
    let carried = Flow::tcp(&fixture.lab, "curl", SocketAddr::new(services(Family::V4)[0], SERVICE));
    let all: Vec<&Flow> = refused.iter().chain([&carried]).collect();
    all.iter().for_each(|flow| (0..20).for_each(|_| flow.ask(b"ping")));
    let have_reasons = |pairs: &[Pair]| {
        let reason = |flow: &Flow| if flow.dialled == itself { Reason::Hairpin } else { Reason::PeerNotChosen };
        refused.iter().all(|f| is_refused(&f.rows(pairs), reason(f)))
    };
    let dry = dry_run(&fixture);
    assert!(have_reasons(&dry), "{dry:#?}");
    let mut on = fixture.accelerate();
    let fine = |pairs: &[Pair]| have_reasons(pairs) && is_short(&carried.rows(pairs));
    let pairs = await_table(&mut on, &all, "refused, and the Service carried", fine);
    let bypassed = refused.iter().flat_map(|f| f.rows(&pairs)).map(|p| p.bypassed_messages).sum::<u64>();
    assert_eq!(bypassed, 0, "{pairs:#?}");
    on.finish().expect("end");
}
