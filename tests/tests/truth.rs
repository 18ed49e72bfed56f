//! Does `trace` tell the truth? Each test plants a cause on the real kernel and demands that it is found and named.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys as sys;
use serde_json::Value;
use sockpath_tests::lab::{Lab, succeed};
use sockpath_tests::planted::Planted;
use sockpath_tests::trace::{Trace, Traced, trace};
use sockpath_tests::{program_or_skip, root_or_skip};

/// A drop of the document with one of these reasons.
fn drop_with<'a>(traced: &'a Traced, reasons: &[&str]) -> &'a Value {
    traced
        .list("drops")
        .iter()
        .find(|d| reasons.iter().any(|r| d["reason"] == *r))
        .unwrap_or_else(|| panic!("no drop with a reason of {reasons:?} in\n{}", traced.dump()))
}

fn assert_advice(drop: &Value) {
    assert!(drop["advice"].as_str().is_some_and(|a| !a.is_empty()), "no advice on {drop}");
}

/// Runs `nft -f -` in a pod or node.
fn nft(lab: &Lab, place: &str, rules: &str) {
    let mut child = lab.exec(place, ["nft", "-f", "-"]).stdin(Stdio::piped()).spawn().expect("cannot run nft");
    child.stdin.take().expect("stdin is piped").write_all(rules.as_bytes()).expect("nft does not read its rules");
    assert!(child.wait().expect("cannot wait for nft").success(), "nft refused {rules}");
}

/// Starts a program in a pod and waits until it says that it is ready.
fn start_ready(lab: &Lab, pod: &str, command: &[&str]) -> Child {
    let mut child = lab.exec(pod, command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cannot start a program in a pod");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("cannot read from a program in a pod");
    assert_eq!(line.trim(), "ready", "{command:?} did not become ready");
    child
}

#[test]
fn an_nft_drop_in_forward_of_node_1() {
    if !root_or_skip("an_nft_drop_in_forward_of_node_1") || !program_or_skip("an_nft_drop_in_forward_of_node_1", "nft", "nftables") {
        return;
    }
    let lab = Lab::up();
    nft(&lab, "node-1", "table inet planted { chain forward { type filter hook forward priority 0; tcp dport 8080 drop; }; }");
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe", "--duration", "2s"]);
    let drop = drop_with(&traced, &["NETFILTER_DROP"]);
    assert_eq!(drop["node"], "node-1", "{}", traced.dump());
    assert_eq!(drop["stage"], "node-forward", "{}", traced.dump());
    assert_eq!((&drop["rule"]["table"], &drop["rule"]["chain"]), (&"inet planted".into(), &"forward".into()), "{}", traced.dump());
    assert!(drop["rule"]["handle"].is_u64(), "{}", traced.dump());
    assert_advice(drop);
}

#[test]
fn a_tbf_qdisc_carries_the_delay_it_makes() {
    if !root_or_skip("a_tbf_qdisc_carries_the_delay_it_makes")
        || !program_or_skip("a_tbf_qdisc_carries_the_delay_it_makes", "tc", "iproute2")
    {
        return;
    }
    let lab = Lab::up();
    let veth = lab.host_veth("httpbin", "node-1");
    lab.run("node-1", ["tc", "qdisc", "add", "dev", &veth, "root", "tbf", "rate", "1mbit", "burst", "1600", "latency", "400ms"]);
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--no-probe", "--duration", "3s"]);
    // 60 kB at 1 Mbit/s: the queue holds each segment for many milliseconds.
    let body = "x".repeat(60_000);
    succeed(&mut lab.exec("curl", ["curl", "-s", "-o", "/dev/null", "-d", &body, "http://10.42.1.3:8080/"]));
    running.interrupt();
    let traced = running.finish();
    let slowest = traced.slowest();
    assert_eq!(slowest["id"], "node-qdisc", "{}", traced.dump());
    assert!(slowest["p50_ns"].as_u64() > Some(3_000_000), "{}", traced.dump());
    assert_eq!(slowest["device"].as_str(), Some(veth.as_str()), "{}", traced.dump());
    assert!(traced.mentions("findings", "queue"), "{}", traced.dump());
}

#[test]
fn a_small_mtu_fragments_a_datagram() {
    if !root_or_skip("a_small_mtu_fragments_a_datagram") {
        return;
    }
    let lab = Lab::up();
    for pod in ["curl", "httpbin"] {
        lab.run(pod, ["ip", "link", "set", "eth0", "mtu", "1300"]);
    }
    // The neighbour is known before, so that nothing but the cutting happens.
    lab.run("curl", ["curl", "-s", "http://10.42.1.3:8080/"]);
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--protocol", "udp", "--no-probe", "--duration", "3s"]);
    lab.inside("curl", || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("cannot bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("cannot set a timeout");
        socket.send_to(&[7; 2000], "10.42.1.3:8080").expect("cannot send");
        let mut answer = [0; 4000];
        assert_eq!(socket.recv(&mut answer).expect("no echo"), 2000);
    });
    running.interrupt();
    let traced = running.finish();
    assert!(traced.stages("segment").any(|s| s["observed_by"].is_string()), "fragmentation was not observed: {}", traced.dump());
    assert!(traced.mentions("findings", "fragment"), "{}", traced.dump());
}

#[test]
fn a_neighbour_that_answers_late_holds_the_packet() {
    if !root_or_skip("a_neighbour_that_answers_late_holds_the_packet") {
        return;
    }
    let lab = Lab::up();
    lab.run("httpbin", ["ip", "link", "set", "eth0", "arp", "off"]);
    lab.run("curl", ["ip", "neigh", "flush", "all"]);
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--no-probe", "--duration", "8s"]);
    let request =
        lab.exec("curl", ["curl", "-s", "-m", "7", "http://10.42.1.3:8080/"]).stdout(Stdio::null()).spawn().expect("cannot start curl");
    // The first ARP request goes out at once and is not answered; the next comes a second later.
    while !lab.run("curl", ["ip", "neigh", "show", "10.42.1.3"]).contains("INCOMPLETE") {
        std::thread::yield_now();
    }
    lab.run("httpbin", ["ip", "link", "set", "eth0", "arp", "on"]);
    assert!(request.wait_with_output().expect("cannot wait for curl").status.success(), "the request failed");
    running.interrupt();
    let traced = running.finish();
    let held = traced
        .list("packets")
        .iter()
        .flat_map(|p| p["hops"].as_array().into_iter().flatten())
        .filter(|h| h["stage"] == "neighbour-out")
        .filter_map(|h| h["took_ns"].as_u64())
        .max();
    assert!(held > Some(200_000_000), "no packet was held at neighbour-out: {held:?}\n{}", traced.dump());
    assert!(traced.mentions("findings", "neighbour"), "{}", traced.dump());
}

#[test]
fn filters_at_the_pods_device_are_named() {
    if !root_or_skip("filters_at_the_pods_device_are_named") {
        return;
    }
    let lab = Lab::up();
    lab.run("curl", "tc qdisc add dev eth0 clsact".split(' '));
    let program = Planted::load(sys::BPF_PROG_TYPE_SCHED_CLS, "planted_truth", 0);
    lab.inside("curl", || program.at_tc_egress("eth0"));
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe"]);
    let stage = |id: &str| traced.list("stages").iter().find(|s| s["id"] == id).unwrap_or_else(|| panic!("no {id}: {}", traced.dump()));
    // Where the kernel lets functions be watched, they show that it ran.
    let (out, back) = (stage("tc-egress"), stage("tc-ingress"));
    assert!(out["seen"] == "observed" || out["note"].as_str().is_some_and(|n| n.contains("program planted_truth (id ")), "{out:#}");
    assert_eq!((&back["seen"], &back["note"]), (&"skipped".into(), &"no filter and no program at eth0".into()), "{back:#}");
}

#[test]
fn a_closed_port_is_named() {
    if !root_or_skip("a_closed_port_is_named") {
        return;
    }
    let lab = Lab::up();
    let traced = trace(&lab, &["curl", "httpbin:9", "--probe", "--duration", "2s"]);
    let drop = drop_with(&traced, &["NO_SOCKET"]);
    assert_eq!(drop["pod"], "default/httpbin", "{}", traced.dump());
    assert_advice(drop);
    assert!(traced.mentions("findings", "reset") || traced.mentions("findings", "listen"), "{}", traced.dump());
}

#[test]
fn a_service_without_endpoints_is_named() {
    if !root_or_skip("a_service_without_endpoints_is_named") {
        return;
    }
    let lab = Lab::up();
    let traced = trace(&lab, &["curl", "svc/empty:80", "--probe", "--duration", "2s"]);
    assert!(traced.mentions("findings", "endpoint") || traced.mentions("findings", "backend"), "{}", traced.dump());
    assert!(!traced.list("drops").is_empty(), "{}", traced.dump());
}

#[test]
fn a_full_backlog_is_named() {
    if !root_or_skip("a_full_backlog_is_named") {
        return;
    }
    let lab = Lab::up();
    let mut listener = start_ready(&lab, "httpbin", &[env!("CARGO_BIN_EXE_stuck-listener"), "9000"]);
    let traced = trace(&lab, &["curl", "httpbin:9000", "--probe", "--duration", "3s"]);
    drop(listener.stdin.take());
    let _ = listener.wait();
    assert!(traced.mentions("findings", "backlog"), "{}", traced.dump());
}

#[test]
fn a_rule_that_translates_elsewhere_is_shown() {
    if !root_or_skip("a_rule_that_translates_elsewhere_is_shown")
        || !program_or_skip("a_rule_that_translates_elsewhere_is_shown", "nft", "nftables")
    {
        return;
    }
    let lab = Lab::up();
    nft(
        &lab,
        "node-1",
        "table ip planted { chain pre { type nat hook prerouting priority -150; ip daddr 10.42.1.3 tcp dport 8080 dnat to 10.42.2.2:8080 comment \"elsewhere\"; }; }",
    );
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe", "--duration", "2s"]);
    let rewrite = traced.list("rewrites").iter().find(|r| r["to"] == "10.42.2.2:8080");
    assert!(rewrite.is_some_and(|r| r["from"] == "10.42.1.3:8080" && r["node"] == "node-1"), "{}", traced.dump());
    assert!(rewrite.is_some_and(|r| r["chain"] == "pre" && r["by"]["comment"] == "elsewhere"), "{}", traced.dump());
    assert!(traced.mentions("findings", "10.42.2.2"), "{}", traced.dump());
}

#[test]
fn no_route_is_named() {
    if !root_or_skip("no_route_is_named") {
        return;
    }
    let lab = Lab::up();
    lab.run("node-1", ["ip", "route", "del", "10.42.2.0/24"]);
    lab.run("node-1", ["ip", "route", "del", "default"]);
    let traced = trace(&lab, &["curl", "httpbin-remote:8080", "--probe", "--duration", "2s"]);
    let drop = drop_with(&traced, &["IP_INNOROUTES", "IP_OUTNOROUTES"]);
    assert_eq!(drop["node"], "node-1", "{}", traced.dump());
    assert_advice(drop);
}

#[test]
fn an_unresolvable_neighbour_is_named() {
    if !root_or_skip("an_unresolvable_neighbour_is_named") {
        return;
    }
    let lab = Lab::up();
    lab.run("httpbin", ["ip", "link", "set", "eth0", "arp", "off"]);
    lab.run("curl", ["ip", "neigh", "flush", "all"]);
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe", "--duration", "5s"]);
    let drop = drop_with(&traced, &["NEIGH_FAILED", "NEIGH_QUEUEFULL"]);
    assert_eq!(drop["pod"], "default/curl", "{}", traced.dump());
    assert_advice(drop);
}

#[test]
fn the_reverse_path_filter_is_named() {
    if !root_or_skip("the_reverse_path_filter_is_named") {
        return;
    }
    let lab = Lab::up();
    // The route back to curl's subnet is a blackhole, and node-2 checks reverse paths.
    lab.run("node-2", ["ip", "route", "replace", "blackhole", "10.42.1.0/24"]);
    lab.run("node-2", ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"]);
    let traced = trace(&lab, &["curl", "httpbin-remote:8080", "--probe", "--duration", "2s"]);
    let drop = drop_with(&traced, &["IP_RPFILTER"]);
    assert_eq!(drop["node"], "node-2", "{}", traced.dump());
    assert_advice(drop);
}

#[test]
fn a_ttl_that_runs_out_is_named() {
    if !root_or_skip("a_ttl_that_runs_out_is_named") {
        return;
    }
    let lab = Lab::up();
    lab.run("curl", ["sysctl", "-qw", "net.ipv4.ip_default_ttl=1"]);
    let traced = trace(&lab, &["curl", "httpbin-remote:8080", "--probe", "--duration", "2s"]);
    // The kernel's reason for "too many hops" is IP_INHDR (ip_forward); the advice has to say what that means.
    let drop = drop_with(&traced, &["IP_INHDR"]);
    assert_eq!(drop["node"], "node-1", "{}", traced.dump());
    assert!(drop["advice"].as_str().is_some_and(|a| a.contains("TTL")), "{}", traced.dump());
}

#[test]
fn a_wrong_checksum_is_named() {
    if !root_or_skip("a_wrong_checksum_is_named") {
        return;
    }
    let lab = Lab::up();
    // Else conntrack finds the packet invalid and kube-proxy's rule drops it on the node.
    lab.run("node-1", ["sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=0"]);
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--protocol", "udp", "--no-probe", "--duration", "3s"]);
    lab.inside("curl", || send_with_wrong_checksum([10, 42, 1, 2], [10, 42, 1, 3], 8080));
    running.interrupt();
    let traced = running.finish();
    let drop = drop_with(&traced, &["UDP_CSUM", "SKB_CSUM"]);
    assert_eq!(drop["pod"], "default/httpbin", "{}", traced.dump());
    assert_advice(drop);
}

/// Sends a UDP datagram with its checksum off by one through a raw socket.
fn send_with_wrong_checksum(from: [u8; 4], to: [u8; 4], port: u16) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
    let payload = b"wrong";
    let length = u16::try_from(8 + payload.len()).expect("short");
    let mut datagram = Vec::new();
    for field in [40_000, port, length, 0] {
        datagram.extend(u16::to_be_bytes(field));
    }
    datagram.extend(payload);
    let mut pseudo = [from, to].concat();
    pseudo.extend([0, 17]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend(&datagram);
    let sum: u32 = pseudo.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    let right = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("two carries at most");
    datagram[6..8].copy_from_slice(&right.wrapping_add(1).to_be_bytes());
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), nix::sys::socket::SockProtocol::Udp).expect("no raw socket");
    let target = SockaddrIn::new(to[0], to[1], to[2], to[3], 0);
    sendto(std::os::fd::AsRawFd::as_raw_fd(&socket), &datagram, &target, MsgFlags::empty()).expect("cannot send");
}

#[test]
fn a_full_queue_is_named() {
    if !root_or_skip("a_full_queue_is_named") || !program_or_skip("a_full_queue_is_named", "tc", "iproute2") {
        return;
    }
    let lab = Lab::up();
    let veth = lab.host_veth("httpbin", "node-1");
    lab.run("node-1", ["tc", "qdisc", "add", "dev", &veth, "root", "tbf", "rate", "100kbit", "burst", "1600", "limit", "3000"]);
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--protocol", "udp", "--no-probe", "--duration", "3s"]);
    lab.inside("curl", || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("cannot bind");
        for _ in 0..20 {
            socket.send_to(&[7; 1000], "10.42.1.3:8080").expect("cannot send");
        }
    });
    running.interrupt();
    let traced = running.finish();
    let drop = drop_with(&traced, &["QDISC_DROP", "QDISC_OVERLIMIT", "FULL_RING"]);
    assert_eq!(drop["device"].as_str(), Some(veth.as_str()), "{}", traced.dump());
    assert_advice(drop);
}

#[test]
fn a_vanished_packet_has_a_last_place() {
    if !root_or_skip("a_vanished_packet_has_a_last_place") || !program_or_skip("a_vanished_packet_has_a_last_place", "tc", "iproute2") {
        return;
    }
    let lab = Lab::up();
    // Connected before the queue is there, so that no neighbour has to be asked for through it.
    let mut connection =
        lab.inside("curl", || std::net::TcpStream::connect("10.42.1.3:8080")).expect("cannot connect to httpbin from inside curl");
    // One byte a second, and the burst is used up: what comes now sits in the queue for longer than the trace, and is not dropped.
    let veth = lab.host_veth("httpbin", "node-1");
    lab.run("node-1", ["tc", "qdisc", "add", "dev", &veth, "root", "tbf", "rate", "8bit", "burst", "1600", "limit", "100000"]);
    let filler = lab.inside("curl", || std::net::UdpSocket::bind("0.0.0.0:0")).expect("cannot bind inside curl");
    let deadline = Instant::now() + Duration::from_secs(30);
    while lab.run("node-1", ["tc", "-s", "qdisc", "show", "dev", &veth]).contains("backlog 0b 0p") {
        assert!(Instant::now() < deadline, "the queue of {veth} does not fill");
        filler.send_to(&[7; 1000], "10.42.1.3:8080").expect("cannot send");
    }
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--no-probe", "--duration", "3s"]);
    connection.write_all(b"GET / HTTP/1.1\r\nHost: httpbin\r\n\r\n").expect("cannot write the request");
    let traced = running.finish();
    assert!(traced.mentions("findings", "last seen"), "{}", traced.dump());
    assert!(traced.mentions("findings", "expected"), "{}", traced.dump());
}

/// In every packet of every scenario the stages partition the packet's time, and the report's stages add up to its end to end.
#[test]
fn stages_add_up_to_end_to_end() {
    if !root_or_skip("stages_add_up_to_end_to_end") {
        return;
    }
    let lab = Lab::up();
    for target in ["curl:8081", "httpbin:8080", "httpbin-remote:8080", "svc/httpbin:80", "svc/httpbin-remote:80"] {
        let running = Trace::start(&lab, &["curl", target, "--no-probe", "--count", "20", "--duration", "10s"]);
        let url = match target {
            "curl:8081" => "http://127.0.0.1:8081/[1-20]",
            "httpbin:8080" => "http://10.42.1.3:8080/[1-20]",
            "httpbin-remote:8080" => "http://10.42.2.2:8080/[1-20]",
            "svc/httpbin:80" => "http://10.96.0.10/[1-20]",
            _ => "http://10.96.0.11/[1-20]",
        };
        succeed(&mut lab.exec("curl", ["curl", "-s", url]));
        let traced = running.finish();
        let whole = traced.document["end_to_end"]["p50_ns"].as_f64().unwrap_or_else(|| panic!("no end to end\n{}", traced.dump()));
        let sum: f64 = traced.list("stages").iter().filter_map(|s| s["p50_ns"].as_f64()).sum();
        assert!((sum - whole).abs() <= whole / 100.0, "{target}: stages add up to {sum}, end to end is {whole}\n{}", traced.dump());
        for packet in traced.list("packets") {
            let hops = packet["hops"].as_array().map_or(&[][..], Vec::as_slice);
            let took: u64 = hops.iter().filter_map(|h| h["took_ns"].as_u64()).sum();
            let (Some(first), Some(last)) = (hops.first(), hops.last()) else { panic!("a packet without hops\n{}", traced.dump()) };
            let whole = last["at_ns"].as_u64().unwrap_or(0) - first["at_ns"].as_u64().unwrap_or(0);
            assert_eq!(took, whole, "the hops of packet {} do not partition its time", packet["id"]);
        }
    }
}
