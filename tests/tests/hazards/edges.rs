//! Rows 13, 14 and 19: what lies around a pair.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use sockpath_kernel::conntrack::{self, Conntrack, Tuple};
use sockpath_protocol::Request;
use sockpath_protocol::accel::{Pair, PairState, PauseReason, PauseRequest, PodName, Reason, ResumeRequest};
use sockpath_tests::torture::accelerator;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::controller::forward_service_ports;
use sockpath_tests::torture::reader::ReaderKind;
use sockpath_tests::torture::tight::TightMemory;

use crate::fixture::{Fixture, await_accelerated, exchange, pair};

#[test]
fn h13_idle_nat_state_expires() {
    let Some(fixture) = Fixture::new("h13_idle_nat_state_expires") else { return };
    let status = fixture.lab.status();
    forward_service_ports(&fixture.lab, &status).expect("Service rules");
    fixture.lab.run("node-1", ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=4"]);
    let service = status.services.iter().find(|s| s.name == "httpbin").expect("no Service httpbin");
    let ip = service.cluster_ips.iter().copied().find(std::net::IpAddr::is_ipv4).expect("no IPv4 address");
    let mut on = fixture.accelerate();
    let listener = fixture.httpbin.listen(6000, &[]);
    let client = fixture.curl.connect(SocketAddr::new(ip, 6000));
    let server = listener.accept();
    await_accelerated(&mut on, &client, &server);
    let local = client.local();
    let source = SocketAddr::new(local.ip().to_canonical(), local.port());
    let tuple = Tuple { protocol: conntrack::TCP, source, destination: SocketAddr::new(ip, 6000) };
    let entry = || fixture.lab.inside("node-1", || Conntrack::open().and_then(|mut c| c.get(&tuple)).expect("connection tracking"));
    assert!(entry().is_some_and(|e| e.established), "no entry");
    // TCP carries nothing of this, and after four seconds the connection is forgotten.
    let end = Instant::now() + Duration::from_secs(30);
    while entry().is_some() {
        exchange(&client, &server, 5);
        assert!(pair(&mut on, &client).is_some_and(|p| p.state == PairState::Accelerated), "{:#?}", on.0.pairs);
        assert!(Instant::now() < end, "the entry does not expire: the test shows nothing");
    }
    // TCP has to be able to go on all the same.
    on.finish().expect("end");
    exchange(&client, &server, 20);
    client.send(b"bye");
    client.close();
    assert_eq!(server.recv_exactly(3), b"bye");
    assert_eq!(server.recv(1), b"");
}

#[test]
fn h14_policy_after_the_start() {
    const TEST: &str = "h14_policy_after_the_start";
    if !sockpath_tests::program_or_skip(TEST, "nft", "nftables") {
        return;
    }
    let Some(fixture) = Fixture::new(TEST) else { return };
    let mut on = fixture.accelerate();
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    let listener = fixture.curl.listen(6100, &[]);
    let own = fixture.curl.connect(SocketAddr::from(([127, 0, 0, 1], 6100)));
    let own_server = listener.accept();
    await_accelerated(&mut on, &own, &own_server);
    // What a network plugin does when a policy comes to forbid it. It sees no packet of the pair: that is the hazard.
    fixture.lab.run("node-1", ["nft", "add", "table", "ip", "guard"]);
    fixture.lab.run("node-1", ["nft", "add", "chain", "ip", "guard", "f", "{ type filter hook forward priority 0; }"]);
    fixture.lab.run("node-1", ["nft", "add", "rule", "ip", "guard", "f", "tcp", "dport", "6000", "drop"]);
    exchange(&client, &server, 10);

    let pods = vec![PodName { namespace: "default".to_owned(), name: "httpbin".to_owned() }];
    on.0.say(&Request::Pause(PauseRequest { pods: pods.clone(), reason: PauseReason::NetworkPolicy })).expect("pause");
    let paused = |p: &Pair| p.state == PairState::Paused && p.reason == Some(Reason::NetworkPolicy);
    let port = client.local().port();
    on.await_pairs(Duration::from_secs(2), |t| t.pairs.iter().any(|p| p.client.port() == port && paused(p))).expect("not paused");
    client.send(b"forbidden");
    assert_eq!(server.poll(libc::POLLIN, 1500), 0, "the rule does not bite");
    // Connections that are made meanwhile are kept away from it too, others stay as they are.
    let (late, late_server) = fixture.connect(6001);
    exchange(&late, &late_server, 100);
    let port = late.local().port();
    on.await_pairs(Duration::from_secs(4), |t| t.pairs.iter().any(|p| p.client.port() == port && paused(p))).expect("not kept away");
    exchange(&own, &own_server, 10);
    assert!(pair(&mut on, &own).is_some_and(|p| p.state == PairState::Accelerated), "{:#?}", on.0.pairs);
    let status = accelerator::status(&fixture.lab).expect("a status");
    assert_eq!(status.pairs.pairs.iter().filter(|p| paused(p)).count(), 2, "{status:#?}");

    // Allowed again: TCP has kept what was written, and nothing is lost when redirection resumes.
    fixture.lab.run("node-1", ["nft", "delete", "table", "ip", "guard"]);
    assert_eq!(server.recv_exactly(9), b"forbidden");
    on.0.say(&Request::Resume(ResumeRequest { pods })).expect("resume");
    let before = pair(&mut on, &client).map_or(0, |p| p.bypassed_messages);
    for (client, server) in [(&client, &server), (&late, &late_server)] {
        await_accelerated(&mut on, client, server);
    }
    assert!(pair(&mut on, &client).is_some_and(|p| p.bypassed_messages > before), "{:#?}", on.0.pairs);
    on.finish().expect("end");
}

#[test]
fn h20_memory_is_scarce() {
    const TEST: &str = "h20_memory_is_scarce";
    let Some(fixture) = Fixture::new(TEST) else { return };
    let tight = match TightMemory::new(fixture.httpbin.pid()) {
        Ok(tight) => tight,
        Err(e) => return sockpath_tests::skipped(TEST, &format!("{e:#}")),
    };
    let on = fixture.accelerate();
    // Many readers with a little unread each, so that memory runs out before any budget.
    let pairs: Vec<_> = (0..24).map(|_| fixture.connect(6000)).collect();
    for (client, server) in &pairs {
        exchange(client, server, 10);
    }
    let len = 256 << 10;
    let writing: Vec<_> = pairs.iter().map(|(client, _)| client.start_on(1, Op::SendContent { id: 1, from: 0, len })).collect();
    // The last writer waits for its reader.
    writing.last().expect("writers").await_sleep();
    let reading: Vec<_> = pairs
        .iter()
        .enumerate()
        .map(|(n, (_, server))| {
            let op = Op::ReadContent { id: 1, from: 0, to: len as u64, kind: ReaderKind::Poll, pause_us: 0 };
            server.start_on(u32::try_from(n).unwrap_or(0), op)
        })
        .collect();
    for (write, read) in writing.into_iter().zip(reading) {
        let len = i64::try_from(len).expect("a count");
        assert_eq!((write.number(), read.number()), (len, len));
    }
    assert!(tight.most_used() > TightMemory::TCP_BYTES / 2, "{} bytes of TCP memory in use at most", tight.most_used());
    on.finish().expect("end");
}

/// Helpers of sk_msg that the advisories of 2026 are about (CVE-2026-74589, -68284, -64548).
const UNUSED: [&str; 4] = ["bpf_msg_apply_bytes", "bpf_msg_cork_bytes", "bpf_msg_push_data", "bpf_msg_pop_data"];

#[test]
fn h19_helpers_of_known_advisories_are_unused() {
    // The programs as they were loaded; their source says what else might be loaded.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bpf/src");
    let mut looked_at = 0;
    let mut dirs = vec![sources];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("no BPF sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                looked_at += 1;
                for helper in UNUSED {
                    assert!(!text.contains(helper), "{} uses {helper}", path.display());
                }
            }
        }
    }
    assert!(looked_at > 2, "only {looked_at} BPF sources were found");
    let Some(fixture) = Fixture::new("h19_helpers_of_known_advisories_are_unused (loaded programs)") else { return };
    if !sockpath_tests::program_or_skip("h19_helpers_of_known_advisories_are_unused (loaded programs)", "bpftool", "bpftool") {
        return;
    }
    let on = fixture.accelerate();
    let list = Command::new("bpftool").args(["-j", "prog", "list"]).output().expect("bpftool");
    let programs: serde_json::Value = serde_json::from_slice(&list.stdout).expect("no list of programs");
    let verdicts: Vec<u64> =
        programs.as_array().into_iter().flatten().filter(|p| p["type"] == "sk_msg").filter_map(|p| p["id"].as_u64()).collect();
    assert!(!verdicts.is_empty(), "no sk_msg program is loaded: {programs}");
    for id in verdicts {
        let dump = Command::new("bpftool").args(["prog", "dump", "xlated", "id", &id.to_string()]).output().expect("bpftool");
        let text = String::from_utf8_lossy(&dump.stdout);
        for helper in UNUSED {
            assert!(!text.contains(helper), "program {id} calls {helper}");
        }
    }
    on.finish().expect("end");
}
