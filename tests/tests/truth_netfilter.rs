//! Does `trace` name the rule that drops packets, and no other? Each test plants a cause on the real kernel; its control run has the
//! same setting where it does no harm.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;
use sockpath_tests::lab::Lab;
use sockpath_tests::trace::{Traced, trace};
use sockpath_tests::{program_or_skip, root_or_skip};

/// Feeds a program in a pod or node.
fn feed(lab: &Lab, place: &str, command: &[&str], text: &str) {
    let mut child = lab.exec(place, command).stdin(Stdio::piped()).spawn().expect("cannot start a program");
    child.stdin.take().expect("stdin is piped").write_all(text.as_bytes()).expect("a program does not read");
    assert!(child.wait().expect("cannot wait for a program").success(), "{command:?} refused {text}");
}

fn iptables(lab: &Lab, rule: &str) {
    lab.run("node-1", ["iptables"].into_iter().chain(rule.split(' ')));
}

fn probe(lab: &Lab, target: &str) -> Traced {
    trace(lab, &["curl", target, "--probe", "--duration", "2s"])
}

/// The drop that the first finding is about.
fn first_drop(traced: &Traced) -> &Value {
    let finding = traced.list("findings").first().unwrap_or_else(|| panic!("no finding in\n{}", traced.dump()));
    assert_eq!(finding["id"], "dropped", "{}", traced.dump());
    let text = finding["text"].as_str().unwrap_or_default();
    let of = |d: &&Value| text.contains(d["reason"].as_str().unwrap_or("?")) && text.contains(d["detail"].as_str().unwrap_or("?"));
    traced.list("drops").iter().find(of).unwrap_or_else(|| panic!("the first finding is about no drop in\n{}", traced.dump()))
}

/// Nothing was dropped by netfilter, and an answer came.
fn assert_harmless(traced: &Traced) {
    let dropped = traced.list("drops").iter().any(|d| d["reason"] == "NETFILTER_DROP");
    assert!(!dropped && !traced.mentions("findings", "netfilter_drop"), "{}", traced.dump());
    assert!(traced.list("probes").iter().all(|p| p["answered"] == true), "{}", traced.dump());
}

fn assert_proven(traced: &Traced, drop: &Value, mechanism: &str) {
    assert_eq!(drop["mechanism"], mechanism, "{}", traced.dump());
    assert_eq!(drop["certainty"], "proven-by-counters", "{}", traced.dump());
    assert_eq!(traced.list("findings")[0]["certainty"], "proven-by-counters", "{}", traced.dump());
    let evidence = traced.list("findings")[0]["evidence"].to_string();
    assert!(evidence.contains("counter rose from"), "{}", traced.dump());
    let counter = &drop["rule"]["counter"];
    assert!(counter["after"].as_u64() > counter["before"].as_u64(), "{}", traced.dump());
}

#[test]
fn the_policy_of_forward_is_named() {
    if !root_or_skip("the_policy_of_forward_is_named") || !program_or_skip("the_policy_of_forward_is_named", "iptables", "iptables") {
        return;
    }
    let lab = Lab::up();
    iptables(&lab, "-P FORWARD DROP");
    let traced = probe(&lab, "httpbin:8080");
    let drop = first_drop(&traced);
    assert_proven(&traced, drop, "policy");
    assert_eq!((&drop["rule"]["table"], &drop["rule"]["chain"]), (&"ip filter".into(), &"FORWARD".into()), "{}", traced.dump());
    assert_eq!((&drop["rule"]["policy"], &drop["rule"]["handle"]), (&true.into(), &Value::Null), "{}", traced.dump());
    assert!(traced.list("findings")[0]["text"].as_str().is_some_and(|t| t.contains("no rule did it")), "{}", traced.dump());

    iptables(&lab, "-A FORWARD -s 10.42.1.0/24 -d 10.42.1.0/24 -j ACCEPT");
    assert_harmless(&probe(&lab, "httpbin:8080"));
}

#[test]
fn a_rule_of_iptables_legacy_is_named_and_none_of_nftables() {
    let name = "a_rule_of_iptables_legacy_is_named_and_none_of_nftables";
    if !root_or_skip(name) || !program_or_skip(name, "iptables-legacy", "iptables") {
        return;
    }
    let lab = Lab::up();
    let legacy = |rule: &str| lab.run("node-1", ["iptables-legacy"].into_iter().chain(rule.split(' ')));
    legacy("-A FORWARD -p tcp --dport 9090 -j DROP");
    assert_harmless(&probe(&lab, "httpbin:8080"));
    legacy("-A FORWARD -p tcp --dport 8080 -j DROP");
    let traced = probe(&lab, "httpbin:8080");
    let drop = first_drop(&traced);
    assert_proven(&traced, drop, "rule");
    assert_eq!((&drop["rule"]["legacy"], &drop["rule"]["chain"]), (&true.into(), &"FORWARD".into()), "{}", traced.dump());
    assert_eq!(drop["rule"]["handle"], 2, "{}", traced.dump());
    assert!(!traced.mentions("findings", "KUBE-FORWARD"), "{}", traced.dump());
}

fn verdict_map(address: &str) -> String {
    format!(
        "table ip kube-proxy {{
          map no-endpoint-services {{
           type ipv4_addr . inet_proto . inet_service : verdict
           elements = {{ {address} . tcp . 80 comment \"ns/ingress:web\" : drop }}
          }}
          chain filter-prerouting {{
           type filter hook prerouting priority -110; policy accept;
           ct state new ip daddr . meta l4proto . th dport vmap @no-endpoint-services
          }}
         }}"
    )
}

#[test]
fn the_element_of_a_verdict_map_is_named() {
    if !root_or_skip("the_element_of_a_verdict_map_is_named")
        || !program_or_skip("the_element_of_a_verdict_map_is_named", "nft", "nftables")
    {
        return;
    }
    let lab = Lab::up();
    feed(&lab, "node-1", &["nft", "-f", "-"], &verdict_map("10.96.0.99"));
    assert_harmless(&probe(&lab, "svc/httpbin-remote"));
    feed(&lab, "node-1", &["nft", "-f", "-"], &format!("delete table ip kube-proxy\n{}", verdict_map("10.96.0.11")));
    let traced = probe(&lab, "svc/httpbin-remote");
    let drop = first_drop(&traced);
    assert_eq!(drop["mechanism"], "rule", "{}", traced.dump());
    // Without a counter there is nothing to prove it with.
    assert_eq!(drop["certainty"], "inferred", "{}", traced.dump());
    let rule = &drop["rule"];
    assert_eq!((&rule["table"], &rule["chain"]), (&"ip kube-proxy".into(), &"filter-prerouting".into()), "{}", traced.dump());
    assert_eq!(rule["element"]["set"], "no-endpoint-services", "{}", traced.dump());
    assert_eq!(rule["element"]["comment"], "ns/ingress:web", "{}", traced.dump());
    assert!(traced.list("findings")[0]["text"].as_str().is_some_and(|t| t.contains("ns/ingress:web")), "{}", traced.dump());
}

/// Chains as Calico writes them for a pod; the policy lets one port pass.
fn policy_chains(port: u16) -> String {
    format!(
        "*filter
:cali-FORWARD - [0:0]
:cali-tw-x - [0:0]
:cali-pi-x - [0:0]
-A FORWARD -j cali-FORWARD
-A cali-FORWARD -d 10.42.1.3/32 -j cali-tw-x
-A cali-tw-x -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-x -m conntrack --ctstate INVALID -j DROP
-A cali-tw-x -j MARK --set-xmark 0x0/0x20000
-A cali-tw-x -j cali-pi-x
-A cali-tw-x -m mark --mark 0x20000/0x20000 -j RETURN
-A cali-tw-x -m mark --mark 0x0/0x20000 -m comment --comment \"no policy passed\" -j DROP
-A cali-pi-x -p tcp -m multiport --dports {port} -j MARK --set-xmark 0x20000/0x20000
COMMIT
"
    )
}

#[test]
fn the_last_rule_of_policy_chains_with_marks_is_named() {
    let name = "the_last_rule_of_policy_chains_with_marks_is_named";
    if !root_or_skip(name) || !program_or_skip(name, "iptables-restore", "iptables") {
        return;
    }
    let lab = Lab::up();
    feed(&lab, "node-1", &["iptables-restore", "--noflush"], &policy_chains(9999));
    let traced = probe(&lab, "httpbin:8080");
    let drop = first_drop(&traced);
    assert_proven(&traced, drop, "rule");
    let rule = &drop["rule"];
    assert_eq!((&rule["chain"], &rule["comment"]), (&"cali-tw-x".into(), &"no policy passed".into()), "{}", traced.dump());
    assert_eq!(rule["via"], serde_json::json!(["FORWARD", "cali-FORWARD"]), "{}", traced.dump());
    assert!(
        traced.list("findings")[0]["text"].as_str().is_some_and(|t| t.contains("FORWARD > cali-FORWARD > cali-tw-x")),
        "{}",
        traced.dump()
    );

    // The same chains with a policy that lets the port pass.
    feed(&lab, "node-1", &["iptables-restore", "--noflush"], "*filter\n-D FORWARD -j cali-FORWARD\nCOMMIT\n");
    feed(&lab, "node-1", &["iptables-restore", "--noflush"], &policy_chains(8080));
    assert_harmless(&probe(&lab, "httpbin:8080"));
}

#[test]
fn indistinguishable_rules_are_candidates() {
    let name = "indistinguishable_rules_are_candidates";
    if !root_or_skip(name) || !program_or_skip(name, "nft", "nftables") {
        return;
    }
    let lab = Lab::up();
    // Neither counts, and which of them gets a packet is a matter of chance.
    let rules = "table ip planted { chain forward { type filter hook forward priority 10; \
                 tcp dport 8080 numgen random mod 2 0 drop comment \"one\"; tcp dport 8080 drop comment \"other\"; tcp dport 9999 drop; }; }";
    feed(&lab, "node-1", &["nft", "-f", "-"], rules);
    let traced = probe(&lab, "httpbin:8080");
    let drop = first_drop(&traced);
    assert_eq!((&drop["rule"], &drop["mechanism"]), (&Value::Null, &"rules".into()), "{}", traced.dump());
    let comments: Vec<&str> = drop["candidates"].as_array().into_iter().flatten().filter_map(|c| c["comment"].as_str()).collect();
    assert_eq!(comments.len(), 2, "{}", traced.dump());
    assert!(comments.contains(&"one") && comments.contains(&"other"), "{}", traced.dump());
}

#[test]
fn without_rules_none_is_named_and_the_report_says_why() {
    if !root_or_skip("without_rules_none_is_named_and_the_report_says_why") {
        return;
    }
    let lab = Lab::up();
    iptables(&lab, "-P FORWARD DROP");
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe", "--no-rules", "--duration", "2s"]);
    let drop = traced.list("drops").iter().find(|d| d["reason"] == "NETFILTER_DROP");
    assert!(drop.is_some_and(|d| d["rule"].is_null() && d["mechanism"].is_null()), "{}", traced.dump());
    assert!(traced.mentions("findings", "--no-rules"), "{}", traced.dump());
    // The word of before is still accepted.
    let traced = trace(&lab, &["curl", "httpbin:8080", "--probe", "--name-rules", "--duration", "2s"]);
    assert_eq!(first_drop(&traced)["mechanism"], "policy", "{}", traced.dump());
}

/// The first finding says that replies were not translated back, and none says that a port has no listener.
fn assert_untranslated<'a>(traced: &'a Traced, why: &str) -> &'a Value {
    let first = traced.list("findings").first().unwrap_or_else(|| panic!("no finding in\n{}", traced.dump()));
    assert_eq!(first["id"], "untranslated-reply", "{}", traced.dump());
    let text = first["text"].as_str().unwrap_or_default();
    assert!(text.contains(why) && text.contains("node-1") && text.contains("10.42.1.3:8080"), "{}", traced.dump());
    assert!(!traced.mentions("findings", "nothing listens") && !traced.mentions("findings", "no listener"), "{}", traced.dump());
    first
}

#[test]
fn a_bridge_without_netfilter_is_named() {
    if !root_or_skip("a_bridge_without_netfilter_is_named") {
        return;
    }
    let lab = Lab::up();
    lab.run("node-1", ["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"]);
    let traced = probe(&lab, "svc/httpbin");
    assert_untranslated(&traced, "bridge-nf-call-iptables");
    // Without a translation there is nothing to undo.
    let traced = probe(&lab, "httpbin:8080");
    assert!(traced.list("findings").iter().all(|f| f["id"] != "untranslated-reply" && f["severity"] != "critical"), "{}", traced.dump());
}

/// One segment of an established connection, as the target's side would send it.
struct Segment {
    from: std::net::SocketAddrV4,
    to: std::net::SocketAddrV4,
    seq: u32,
    ack: u32,
}

/// Listens in a pod for a segment that comes to this port, and gives what would answer it.
fn answer_to_next(socket: &std::os::fd::OwnedFd, port: u16) -> Segment {
    use std::os::fd::AsRawFd;
    let mut buffer = [0; 4096];
    loop {
        let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()).expect("cannot listen");
        let packet = &buffer[..length];
        if packet.len() < 40 || packet[0] != 0x45 || packet[9] != 6 {
            continue;
        }
        let short = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let address = |at: usize| std::net::Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
        let payload = u32::from(short(2)) - 20 - u32::from(packet[32] >> 4) * 4;
        if short(22) != port || payload == 0 {
            continue;
        }
        let (from, to) = (std::net::SocketAddrV4::new(address(16), port), std::net::SocketAddrV4::new(address(12), short(20)));
        return Segment { from, to, seq: word(28), ack: word(24).wrapping_add(payload) };
    }
}

/// Sends a segment with a payload through a raw socket.
fn send_segment(segment: &Segment) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
    use std::os::fd::AsRawFd;
    let mut bytes = Vec::new();
    bytes.extend(segment.from.port().to_be_bytes());
    bytes.extend(segment.to.port().to_be_bytes());
    bytes.extend(segment.seq.to_be_bytes());
    bytes.extend(segment.ack.to_be_bytes());
    bytes.extend([0x50, 0x18, 2, 0, 0, 0, 0, 0]);
    bytes.extend([b'X'; 100]);
    let mut pseudo = [segment.from.ip().octets(), segment.to.ip().octets()].concat();
    pseudo.extend([0, 6]);
    pseudo.extend(u16::try_from(bytes.len()).expect("short").to_be_bytes());
    pseudo.extend(&bytes);
    let sum: u32 = pseudo.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Tcp).expect("no raw socket");
    sendto(raw.as_raw_fd(), &bytes, &SockaddrIn::from(segment.to), MsgFlags::empty()).expect("cannot send");
}

/// Traces a connection to the Service on which the target's side sends a segment far outside of the window.
fn out_of_window(lab: &Lab) -> Traced {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    use std::io::Read as _;
    let running = sockpath_tests::trace::Trace::start(lab, &["curl", "svc/httpbin", "--no-probe", "--duration", "6s"]);
    let listening = lab.inside("httpbin", || {
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), SockProtocol::EthIp).expect("no packet socket")
    });
    let mut connection = lab.inside("curl", || std::net::TcpStream::connect("10.96.0.10:80")).expect("cannot connect to the Service");
    connection.write_all(b"GET / HTTP/1.1\r\nHost: httpbin\r\n\r\n").expect("cannot write");
    let mut answer = [0; 1];
    connection.read_exact(&mut answer).expect("no answer");
    let mut segment = answer_to_next(&listening, 8080);
    segment.seq = segment.seq.wrapping_add(1 << 28);
    lab.inside("httpbin", || send_segment(&segment));
    // The node's answer to it, a reset, ends the connection of the target: then it has arrived.
    let _ = connection.set_read_timeout(Some(std::time::Duration::from_secs(1)));
    while connection.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
    running.interrupt();
    running.finish()
}

#[test]
fn a_reply_out_of_the_window_is_named_as_not_translated_back() {
    if !root_or_skip("a_reply_out_of_the_window_is_named_as_not_translated_back") {
        return;
    }
    let lab = Lab::up();
    // With kube-proxy's rule such a packet is dropped, and the report names that rule.
    let traced = out_of_window(&lab);
    let drop = first_drop(&traced);
    assert_eq!((&drop["rule"]["chain"], &drop["mechanism"]), (&"KUBE-FORWARD".into(), &"rule".into()), "{}", traced.dump());

    iptables(&lab, "-D KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
    let traced = out_of_window(&lab);
    let first = assert_untranslated(&traced, "invalid");
    assert!(first["evidence"].to_string().contains("outside of the window"), "{}", traced.dump());
}

#[test]
fn a_source_translation_without_a_free_port_is_named() {
    let name = "a_source_translation_without_a_free_port_is_named";
    if !root_or_skip(name) || !program_or_skip(name, "iptables", "iptables") {
        return;
    }
    let lab = Lab::up();
    iptables(&lab, "-t nat -I POSTROUTING -s 10.42.1.2 -d 10.42.2.2 -p tcp -j MASQUERADE --to-ports 40000-40000");
    // The first connection is fine.
    assert_harmless(&probe(&lab, "httpbin-remote:8080"));
    lab.run("node-1", ["iptables", "-t", "nat", "-D", "POSTROUTING", "1"]);
    iptables(&lab, "-t nat -I POSTROUTING -s 10.42.1.2 -d 10.42.2.2 -p tcp -j MASQUERADE --to-ports 41000-41000");
    let _held = lab.inside("curl", || std::net::TcpStream::connect("10.42.2.2:8080")).expect("the first connection is fine");
    let traced = probe(&lab, "httpbin-remote:8080");
    let drop = first_drop(&traced);
    assert_eq!((&drop["mechanism"], &drop["rule"]), (&"confirmation".into(), &Value::Null), "{}", traced.dump());
    assert_eq!(drop["certainty"], "proven-by-counters", "{}", traced.dump());
    let text = traced.list("findings")[0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("not by a rule") && text.contains("free port"), "{}", traced.dump());
    assert!(traced.list("findings")[0]["evidence"].to_string().contains("insert_failed"), "{}", traced.dump());
}

#[test]
fn a_bridge_port_without_hairpin_mode_is_named() {
    if !root_or_skip("a_bridge_port_without_hairpin_mode_is_named") {
        return;
    }
    let lab = Lab::up();
    let to_itself = |lab: &Lab| trace(lab, &["httpbin", "svc/httpbin", "--probe", "--duration", "2s"]);
    let traced = to_itself(&lab);
    assert!(traced.list("probes").iter().all(|p| p["answered"] == true), "{}", traced.dump());
    let veth = lab.host_veth("httpbin", "node-1");
    lab.run("node-1", ["ip", "link", "set", &veth, "type", "bridge_slave", "hairpin", "off"]);
    let traced = to_itself(&lab);
    let first = &traced.list("findings")[0];
    let text = first["text"].as_str().unwrap_or_default();
    assert!(text.contains("hairpin") && text.contains(&veth), "{}", traced.dump());
}
