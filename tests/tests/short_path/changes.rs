//! Rules, policies, routes and devices that change under traffic, and helpers that die.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sockpath_kernel::conntrack::{Tuple, UDP};
use sockpath_protocol::Request;
use sockpath_protocol::accel::{Pair, PairState, PauseReason, PauseRequest, PodName, Reason, ResumeRequest};
use sockpath_tests::torture::accelerator;
use sockpath_tests::torture::agent::{Answer, Op};
use sockpath_tests::torture::reader::ReaderKind;

use crate::echo::{self, Flow, await_table, is_short};
use crate::fixture::{Family, Fixture, await_refused, await_rows, await_short, exchange};
use crate::paths::{ECHO, SERVICE, services};

#[test]
fn a_new_rule_takes_effect() {
    let Some(fixture) = Fixture::new("a_new_rule_takes_effect") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let rule = ["-p", "tcp", "--dport", "6000", "-j", "DROP"];
    let iptables = |verb: &[&str]| fixture.lab.run("node-1", [&["iptables", "-w", "5"][..], verb, &rule[..]].concat());
    iptables(&["-I", "FORWARD", "1"]);
    // Within a second nothing arrives any more: messages are sent until one does not come.
    let end = Instant::now() + Duration::from_secs(1);
    let blocked = loop {
        client.send(b"ping");
        let arrived = server.poll(libc::POLLIN, 200) & libc::POLLIN != 0;
        if !arrived {
            break true;
        }
        assert_eq!(server.recv_exactly(4), b"ping");
        if Instant::now() > end {
            break false;
        }
    };
    assert!(blocked, "the rule does not bite");
    iptables(&["-D", "FORWARD"]);
    // TCP sends what was dropped again, and the stack approves the connection again.
    assert_eq!(server.recv_exactly(4), b"ping");
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// Rules that limit, count or log packets have to see each of them: the connections that they are about are refused, others are not.
#[test]
fn rules_that_need_every_packet_are_respected() {
    let Some(fixture) = Fixture::new("rules_that_need_every_packet_are_respected") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let (other_client, other_server) = fixture.connect_short(&mut on, 6001);
    let iptables = |verb: &[&str], rule: &str| {
        let words = ["-p", "tcp", "--dport", "6000"].into_iter().chain(rule.split(' '));
        fixture.lab.run("node-1", ["iptables", "-w", "5"].into_iter().chain(verb.iter().copied()).chain(words));
    };
    for rule in [
        "-m limit --limit 10000/s -j ACCEPT",
        "-m connbytes --connbytes 100000 --connbytes-dir both --connbytes-mode bytes -j DROP",
        "-j LOG",
    ] {
        iptables(&["-I", "FORWARD", "1"], rule);
        await_refused(&mut on, &client, &server, Reason::PacketRule);
        await_short(&mut on, &other_client, &other_server);
        iptables(&["-D", "FORWARD"], rule);
        await_short(&mut on, &client, &server);
    }
    // Of packets in mid-connection this one sees none.
    iptables(&["-I", "FORWARD", "1"], "-m conntrack --ctstate NEW -j LOG");
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

#[test]
fn a_policy_pauses_and_resumes() {
    let Some(fixture) = Fixture::new("a_policy_pauses_and_resumes") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let pods = vec![PodName { namespace: "default".into(), name: "httpbin".into() }];
    on.0.say(&Request::Pause(PauseRequest { pods: pods.clone(), reason: PauseReason::NetworkPolicy })).expect("say");
    let paused = await_rows(&mut on, &client, &server, "paused", |p| p.state == PairState::Paused);
    assert_eq!(paused[0].reason, Some(Reason::NetworkPolicy));
    let still = await_rows(&mut on, &client, &server, "paused", |p| p.state == PairState::Paused);
    assert_eq!(still[0].bypassed_messages, paused[0].bypassed_messages);
    on.0.say(&Request::Resume(ResumeRequest { pods })).expect("say");
    let resumed = await_short(&mut on, &client, &server);
    assert!(resumed[0].bypassed_messages > still[0].bypassed_messages);
    on.finish().expect("end");
}

#[test]
fn a_changed_route_is_followed() {
    let Some(fixture) = Fixture::new("a_changed_route_is_followed") else { return };
    let mut on = fixture.accelerate();
    let ip = fixture.ip("httpbin-remote", crate::fixture::Family::V4);
    let (client, server) = fixture.connect_to(&fixture.remote, 6000, std::net::SocketAddr::new(ip, 6000));
    await_short(&mut on, &client, &server);
    // A route to nowhere for this pod alone: packets must not arrive any more.
    let route = |verb: &str| fixture.lab.run("node-1", ["ip", "route", verb, "blackhole", &format!("{ip}/32")]);
    route("add");
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        client.send(b"ping");
        if server.poll(libc::POLLIN, 200) & libc::POLLIN == 0 {
            break;
        }
        assert_eq!(server.recv_exactly(4), b"ping");
        assert!(Instant::now() < end, "packets go on past the route");
    }
    route("del");
    assert_eq!(server.recv_exactly(4), b"ping");
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

#[test]
fn a_bandwidth_limit_ends_it() {
    let Some(fixture) = Fixture::new("a_bandwidth_limit_ends_it") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let device = fixture.lab.host_veth("httpbin", "node-1");
    let add = ["tc", "qdisc", "add", "dev", &device, "root", "tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms"];
    fixture.lab.run("node-1", add);
    await_refused(&mut on, &client, &server, Reason::QueueDiscipline);
    fixture.lab.run("node-1", ["tc", "qdisc", "del", "dev", &device, "root"]);
    await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// Limits of another kind, at the device that packets from other nodes pass before the pod's, and before the start.
#[test]
fn bandwidth_limits_at_pod_and_bridge_are_respected() {
    const TBF: &str = "tbf rate 500mbit burst 64kb latency 50ms";
    const HTB: &str = "htb default 1";
    let Some(fixture) = Fixture::new("bandwidth_limits_at_pod_and_bridge_are_respected") else { return };
    let device = fixture.lab.host_veth("httpbin", "node-1");
    let tc = |verb: &str, device: &str, what: &str| {
        let words = ["tc", "qdisc", verb, "dev", device, "root"];
        fixture.lab.run("node-1", words.into_iter().chain(what.split(' ').filter(|w| !w.is_empty())));
    };
    let [near, far] =
        ["httpbin", "httpbin-remote"].map(|pod| Flow::tcp(&fixture.lab, "curl", SocketAddr::new(fixture.ip(pod, Family::V4), ECHO)));
    let flows = [&near, &far];
    let is_limited = |rows: &[&Pair]| rows.iter().any(|p| p.state == PairState::LeftAlone && p.reason == Some(Reason::QueueDiscipline));
    let mut on = fixture.accelerate();
    echo::await_short(&fixture.lab, &flows);
    tc("add", &device, HTB);
    let only_near = |pairs: &[Pair]| is_limited(&near.rows(pairs)) && is_short(&far.rows(pairs));
    await_table(&mut on, &flows, "limited at the pod", only_near);
    tc("del", &device, "");
    tc("add", "cni0", TBF);
    let only_far = |pairs: &[Pair]| is_short(&near.rows(pairs)) && is_limited(&far.rows(pairs));
    await_table(&mut on, &flows, "limited at the bridge", only_far);
    on.finish().expect("end");
    tc("add", &device, HTB);
    let mut on = fixture.accelerate();
    let both = |pairs: &[Pair]| flows.iter().all(|f| is_limited(&f.rows(pairs)));
    await_table(&mut on, &flows, "limited from the start", both);
    tc("del", &device, "");
    tc("del", "cni0", "");
    echo::await_short(&fixture.lab, &flows);
    on.finish().expect("end");
}

/// The link address of the next hop is the kernel's own for each packet.
#[test]
fn a_changed_neighbour_is_followed() {
    let Some(fixture) = Fixture::new("a_changed_neighbour_is_followed") else { return };
    let mut on = fixture.accelerate();
    let ip = fixture.ip("httpbin-remote", Family::V4);
    let (client, server) = fixture.connect_to(&fixture.remote, 6000, SocketAddr::new(ip, 6000));
    fixture.await_short(&mut on, &client, &server);
    let mac = fixture.lab.run("node-2", ["cat", "/sys/class/net/eth0/address"]);
    let neighbour = |mac: &str| {
        fixture.lab.run("node-1", ["ip", "neigh", "replace", "10.199.0.2", "lladdr", mac, "dev", "eth0", "nud", "permanent"]);
    };
    neighbour("02:00:00:00:00:99");
    client.send(b"ping");
    assert_eq!(server.poll(libc::POLLIN, 200) & libc::POLLIN, 0, "the packet went to the old neighbour");
    neighbour(mac.trim());
    assert_eq!(server.recv_exactly(4), b"ping");
    fixture.await_short(&mut on, &client, &server);
    on.finish().expect("end");
}

/// As kube-proxy removes the last endpoint of a Service: connections go on, and are carried again; datagrams and new connections are rejected.
#[test]
fn a_removed_endpoint_gets_no_datagrams() {
    let Some(fixture) = Fixture::new("a_removed_endpoint_gets_no_datagrams") else { return };
    let service = SocketAddr::new(services(Family::V4)[0], SERVICE);
    let [connection, datagrams] = Flow::both(&fixture.lab, "curl", service);
    let on = fixture.accelerate();
    echo::await_short(&fixture.lab, &[&connection, &datagrams]);
    let to = format!("{}/32", service.ip());
    let iptables = |words: &[&str]| fixture.lab.run("node-1", [&["iptables", "-w", "5"], words].concat());
    iptables(&["-t", "nat", "-I", "KUBE-SERVICES", "1", "-d", &to, "-j", "RETURN"]);
    iptables(&["-I", "KUBE-SERVICES", "1", "-d", &to, "-j", "REJECT"]);
    // What is tracked goes on.
    datagrams.ask(b"ping");
    let tuple = Tuple { protocol: UDP, source: datagrams.local, destination: service };
    assert!(fixture.conntrack(|c| c.delete(&tuple)).expect("ctnetlink"), "the datagrams are not tracked");
    // Packets of one tick of the kernel's clock may still be redirected.
    let end = Instant::now() + Duration::from_secs(2);
    while datagrams.try_ask(b"ping").is_ok() {
        assert!(Instant::now() < end, "datagrams go on to the endpoint");
    }
    let refused = datagrams.try_ask(b"ping").expect_err("an answer");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    echo::await_short(&fixture.lab, &[&connection]);
    let another = fixture.lab.inside("curl", || std::net::TcpStream::connect(service)).expect_err("a connection");
    assert_eq!(another.kind(), std::io::ErrorKind::ConnectionRefused);
    on.finish().expect("end");
}

#[test]
fn a_smaller_mtu_ends_it() {
    let Some(fixture) = Fixture::new("a_smaller_mtu_ends_it") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let device = fixture.lab.host_veth("httpbin", "node-1");
    fixture.lab.run("node-1", ["ip", "link", "set", &device, "mtu", "1400"]);
    await_refused(&mut on, &client, &server, Reason::MtuDiffers);
    exchange(&client, &server, 5);
    on.finish().expect("end");
}

/// A transfer goes on, byte for byte, when the helper dies. Links end with it; filters, before 6.6, stay until `stop`.
#[test]
fn the_helper_is_killed_under_load() {
    const BYTES: usize = 128 << 20;
    let Some(fixture) = Fixture::new("the_helper_is_killed_under_load") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let before = on.next_pairs().expect("a table").totals.bypassed_bytes;
    let writing = client.start_on(1, Op::SendContent { id: 1, from: 0, len: BYTES });
    // Slower than the writer, so that the transfer outlasts several tables.
    let reading = server.start_on(1, Op::ReadContent { id: 1, from: 0, to: BYTES as u64, kind: ReaderKind::Poll, pause_us: 1_000 });
    on.await_pairs(Duration::from_secs(10), |t| t.totals.bypassed_bytes >= before + (4 << 20)).expect("nothing is redirected");
    let device = fixture.lab.host_veth("curl", "node-1");
    let filters = || fixture.lab.run("node-1", ["tc", "filter", "show", "dev", &device, "ingress"]).matches("short_").count();
    let links = || fixture.links_at("curl").unwrap_or(0);
    let stay = filters() > 0;
    assert!(stay || links() > 0, "no program at {device}: the test shows nothing");
    on.0.kill().expect("kill");
    let all = i64::try_from(BYTES).expect("a small number");
    assert_eq!((writing.number(), reading.number()), (all, all));
    assert_eq!((filters() > 0, links()), (stay, 0), "what is left at {device}");
    exchange(&client, &server, 5);
    if stay {
        accelerator::stop(&fixture.lab).expect("stop");
        assert_eq!(filters(), 0, "filters are left at {device}");
        exchange(&client, &server, 5);
    }
    client.close();
    assert_eq!(server.call(Op::Read { kind: ReaderKind::Poll, len: 1 }), Answer::Bytes(Vec::new()));
}

#[test]
fn a_signal_ends_it_in_order() {
    let Some(fixture) = Fixture::new("a_signal_ends_it_in_order") else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_short(&mut on, 6000);
    let summary = on.terminate(Signal::SIGTERM).expect("end");
    assert!(summary.totals.bypassed_messages > 0);
    exchange(&client, &server, 5);
}
