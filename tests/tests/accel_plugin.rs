//! The plugin accelerates pods of the lab: what it prints for scripts, and what happens when it, its helper or both are killed.

#![allow(missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use libbpf_rs::libbpf_sys as sys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sockpath_protocol::accel::{AccelStatus, PairState};
use sockpath_tests::lab::{Lab, output, succeed};
use sockpath_tests::planted::Planted;
use sockpath_tests::root_or_skip;
use sockpath_tests::state::{self, SetAtEnd};
use sockpath_tests::torture::accelerator;
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::Remote;
use sockpath_tests::torture::reader::ReaderKind;

#[path = "hazards/fixture.rs"]
#[allow(dead_code, reason = "the hazards use the rest")]
mod fixture;

use fixture::Fixture;

/// For anything that takes a moment.
const PATIENCE: Duration = Duration::from_secs(40);

fn pins(lab: &Lab) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("sockpath-{}", lab.instance()))
}

#[track_caller]
fn eventually(what: &str, holds: impl FnMut() -> bool) {
    state::eventually(what, PATIENCE, holds);
}

/// The plugin while it runs.
struct Plugin(Child);

impl Plugin {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the plugin does not start"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"))
    }

    /// Its helper.
    fn helper(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let find = || -> Option<i32> {
            std::fs::read_dir(format!("/proc/{}/task", self.0.id()))
                .ok()?
                .flatten()
                .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
                .find_map(|list| list.split_whitespace().next()?.parse().ok())
        };
        Pid::from_raw(find().unwrap_or_else(|| panic!("no child in {children}")))
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the plugin is gone");
    }

    /// Waits for its end.
    fn end(self) -> Output {
        self.0.wait_with_output().expect("the plugin cannot be waited for")
    }
}

/// Requests and answers of position-dependent content until `stop` is set.
struct Load<'a> {
    ends: [&'a Remote; 2],
    turns: AtomicU64,
    stop: AtomicBool,
}

impl<'a> Load<'a> {
    fn new(client: &'a Remote, server: &'a Remote) -> Self {
        Self { ends: [client, server], turns: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    /// One message; the content of each direction is one stream from the first turn to the last.
    fn carry(id: u64, from: &Remote, to: &Remote, at: u64, len: u64) {
        from.send_content(id, at, usize::try_from(len).expect("a small number"));
        let read = to.number(Op::ReadContent { id, from: at, to: at + len, kind: ReaderKind::Poll, pause_us: 0 });
        assert_eq!(u64::try_from(read).ok(), Some(at + len), "bytes of stream {id} are missing");
    }

    fn run(&self) {
        let ([client, server], mut at) = (self.ends, [0, 0]);
        while !self.stop.load(Ordering::Relaxed) {
            let turn = self.turns.load(Ordering::Relaxed);
            let lens = [1 + turn * 37 % 4_000, 1 + turn * 101 % 9_000];
            Self::carry(21, client, server, at[0], lens[0]);
            Self::carry(22, server, client, at[1], lens[1]);
            at = [at[0] + lens[0], at[1] + lens[1]];
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for many more turns.
    fn goes_on(&self) {
        let before = self.turns.load(Ordering::Relaxed);
        eventually("the connection goes on", || self.turns.load(Ordering::Relaxed) > before + 100);
    }
}

fn status(lab: &Lab) -> AccelStatus {
    accelerator::status(lab).expect("a status")
}

fn bypassed(lab: &Lab) -> u64 {
    status(lab).pairs.pairs.iter().map(|p| p.bypassed_messages).sum()
}

fn await_accelerated(lab: &Lab) {
    eventually("a pair is accelerated", || {
        pins(lab).exists() && status(lab).pairs.pairs.iter().any(|p| p.state == PairState::Accelerated && p.bypassed_messages >= 10)
    });
}

/// Has the plugin accelerate a connection under load, kills what `kill` says, and ends what is left with `remove`.
fn killed(test: &str, helper_dies: bool, plugin_dies: bool, remove: &str) {
    let Some(fixture) = Fixture::new(test) else { return };
    let (client, server) = fixture.connect(6000);
    let load = Load::new(&client, &server);
    std::thread::scope(|scope| {
        let _stop = SetAtEnd(&load.stop);
        scope.spawn(|| load.run());
        let plugin = Plugin::start(fixture.lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A"]));
        await_accelerated(&fixture.lab);
        let helper = plugin.helper();
        if plugin_dies {
            plugin.signal(Signal::SIGKILL);
        }
        if helper_dies {
            kill(helper, Signal::SIGKILL).expect("the helper is gone");
        }
        load.goes_on();
        let ended = plugin.end();
        if plugin_dies && !helper_dies {
            eventually("the helper puts everything back by itself", || !pins(&fixture.lab).exists());
        } else {
            if !plugin_dies {
                let said = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.code(), Some(1), "{said}");
                assert!(said.contains("fall back to TCP"), "it does not say what became of connections: {said}");
            }
            assert!(pins(&fixture.lab).exists(), "what holds the connections went with the helper");
            eventually("the lease runs out", || status(&fixture.lab).lease_left_ms == 0);
            let before = bypassed(&fixture.lab);
            load.goes_on();
            assert_eq!(bypassed(&fixture.lab), before, "messages bypass the network without a lease");
        }
        succeed(fixture.lab.plugin().args([remove, "--lab"]));
        assert!(!pins(&fixture.lab).exists(), "{remove} leaves {} behind", pins(&fixture.lab).display());
        load.goes_on();
    });
    assert!(!status(&fixture.lab).active);
}

#[test]
fn the_helper_is_killed_under_load() {
    killed("the_helper_is_killed_under_load", true, false, "stop");
}

#[test]
fn the_plugin_is_killed_under_load() {
    killed("the_plugin_is_killed_under_load", false, true, "stop");
}

#[test]
fn plugin_and_helper_are_killed_under_load() {
    killed("plugin_and_helper_are_killed_under_load", true, true, "stop");
}

#[test]
fn what_killed_plugin_and_helper_leave_is_cleaned_up() {
    killed("what_killed_plugin_and_helper_leave_is_cleaned_up", true, true, "cleanup");
}

/// The one JSON document a command printed.
fn document(out: &Output) -> Value {
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stdout)))
}

#[track_caller]
fn assert_has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "no {field} in {value:#}");
    }
}

fn assert_is_the_document(doc: &Value) {
    assert_has(doc, &["dry_run", "detached", "totals", "ran_ms", "left_enrolled", "nodes", "canaries", "warnings", "lost"]);
    assert_has(&doc["totals"], &["open", "accelerated", "closed", "bypassed_bytes", "bypassed_messages", "passes"]);
    assert!(doc["canaries"].as_array().is_some_and(|c| c.iter().any(|c| c["name"] == "order" && c["passed"] == true)), "{doc:#}");
    assert_eq!(doc["lost"], serde_json::json!([]));
    for node in doc["nodes"].as_array().expect("nodes") {
        assert_has(node, &["node", "pairs", "totals"]);
    }
}

fn pairs(doc: &Value) -> Vec<&Value> {
    doc["nodes"].as_array().into_iter().flatten().filter_map(|n| n["pairs"].as_array()).flatten().collect()
}

#[test]
fn json_of_an_acceleration_in_the_foreground() {
    let Some(fixture) = Fixture::new("json_of_an_acceleration_in_the_foreground") else { return };
    let (client, server) = fixture.connect(6000);
    let load = Load::new(&client, &server);
    let out = std::thread::scope(|scope| {
        let _stop = SetAtEnd(&load.stop);
        scope.spawn(|| load.run());
        let plugin = Plugin::start(fixture.lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "-o", "json"]));
        await_accelerated(&fixture.lab);
        // The plugin has the table of a second later when it ends.
        let seen = bypassed(&fixture.lab);
        eventually("more is bypassed", || bypassed(&fixture.lab) > seen + 200);
        plugin.signal(Signal::SIGINT);
        plugin.end()
    });
    let doc = document(&out);
    assert_is_the_document(&doc);
    assert_eq!((&doc["dry_run"], &doc["detached"], &doc["left_enrolled"]), (&false.into(), &false.into(), &0.into()));
    assert!(doc["ran_ms"].as_u64() > Some(0) && doc["totals"]["bypassed_messages"].as_u64() > Some(0), "{doc:#}");
    let pair = pairs(&doc).into_iter().find(|p| p["client_pod"] == "default/curl").expect("no pair of this test");
    assert_has(pair, &["client", "dialled", "server", "via_service", "state", "reason", "live", "bypassed_bytes", "passes"]);
    assert_has(pair, &["bypassed_messages", "turnaround_before_ns", "turnaround_after_ns"]);
    assert_eq!((&pair["server_pod"], &pair["live"]), (&"default/httpbin".into(), &true.into()));
    assert!(!pins(&fixture.lab).exists(), "something is left behind");
}

#[test]
fn json_of_an_acceleration_that_is_detached() {
    let Some(fixture) = Fixture::new("json_of_an_acceleration_that_is_detached") else { return };
    let (client, server) = fixture.connect(6000);
    let json = |args: &[&str]| document(&output(fixture.lab.plugin().args(args).args(["--lab", "-o", "json"])));
    let doc = json(&["accelerate", "--via", "socket", "-A", "--detach", "--for", "5m"]);
    assert_is_the_document(&doc);
    assert_eq!((&doc["dry_run"], &doc["detached"]), (&false.into(), &true.into()));
    fixture::exchange(&client, &server, 50);
    let state = json(&["status"]);
    assert_eq!(state["active"], true);
    let node = &state["nodes"][0];
    assert_has(node, &["node", "active", "owner", "lease_left_ms", "detached", "pairs"]);
    assert!(node["lease_left_ms"].as_u64().is_some_and(|left| left > 200_000), "{state:#}");
    let names = || String::from_utf8(output(fixture.lab.plugin().args(["status", "--lab", "-o", "name"])).stdout).expect("text");
    assert_eq!(names(), "node/node-1\nnode/node-2\n");
    let stop = json(&["stop"]);
    assert_eq!(names(), "");
    assert_has(&stop, &["nodes", "removed"]);
    assert_eq!(stop["nodes"][0]["summary"]["left_enrolled"], 0, "{stop:#}");
    assert!(!pins(&fixture.lab).exists(), "something is left behind");
    fixture::exchange(&client, &server, 20);
}

/// The row of a dry run of this kind whose words and place hold these texts.
#[track_caller]
fn bypassed_row<'d>(doc: &'d Value, kind: &str, what: &str, place: &str) -> &'d Value {
    let rows = doc["bypassed"].as_array().unwrap_or_else(|| panic!("{doc:#}"));
    let holds = |row: &Value, field: &str, text: &str| row[field].as_str().is_some_and(|s| s.contains(text));
    rows.iter()
        .find(|r| r["kind"] == kind && holds(r, "what", what) && holds(r, "place", place))
        .unwrap_or_else(|| panic!("no {kind} {what} at {place} in {rows:#?}"))
}

#[track_caller]
fn assert_known_in_full(doc: &Value) {
    let warnings = doc["warnings"].as_array().expect("warnings");
    assert!(warnings.iter().all(|w| !w.as_str().is_some_and(|w| w.contains("not known in full"))), "{warnings:#?}");
}

#[test]
fn a_dry_run_names_programs_that_would_be_bypassed() {
    if !root_or_skip("a_dry_run_names_programs_that_would_be_bypassed") {
        return;
    }
    let lab = Lab::up();
    let veth = lab.host_veth("httpbin", "node-1");
    let cgroup = lab.pod("httpbin").cgroup;
    lab.run("curl", "tc qdisc add dev eth0 clsact".split(' '));
    let tc = Planted::load(sys::BPF_PROG_TYPE_SCHED_CLS, "planted_tc", 0);
    let tcx = Planted::load(sys::BPF_PROG_TYPE_SCHED_CLS, "planted_tcx", 0);
    let xdp = Planted::load(sys::BPF_PROG_TYPE_XDP, "planted_xdp", 2);
    let skb = Planted::load(sys::BPF_PROG_TYPE_CGROUP_SKB, "planted_skb", 1);
    let msg = Planted::load(sys::BPF_PROG_TYPE_SK_MSG, "planted_msg", 1);
    lab.inside("curl", || tc.at_tc_egress("eth0"));
    lab.inside("node-1", || xdp.at_xdp(&veth));
    let attached = [lab.inside("curl", || tcx.at_tcx_ingress("eth0")), skb.at_cgroup_egress(Path::new(&cgroup)), msg.at_a_sockmap()];

    let out = output(lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "--dry-run", "-o", "json"]));
    drop(attached);
    // There are no connections here, which has its own exit code.
    assert_eq!(out.status.code(), Some(3), "{}", String::from_utf8_lossy(&out.stderr));
    let doc: Value = serde_json::from_slice(&out.stdout).expect("a document");
    let (curl, httpbin) = (serde_json::json!(["default/curl"]), serde_json::json!(["default/httpbin"]));
    assert_eq!(bypassed_row(&doc, "tc-program", "egress program planted_tc (id ", "eth0 in the pod")["pods"], curl);
    assert_eq!(bypassed_row(&doc, "tc-program", "ingress tcx program planted_tcx (id ", "eth0 in the pod")["pods"], curl);
    assert_eq!(bypassed_row(&doc, "xdp-program", "program planted_xdp (id ", &format!("{veth} on node-1"))["pods"], httpbin);
    assert_eq!(bypassed_row(&doc, "cgroup-program", "egress program planted_skb (id ", "control group")["pods"], httpbin);
    assert_eq!(bypassed_row(&doc, "sockmap-program", "sk_msg program planted_msg (id ", "sockmap")["pods"], serde_json::json!([]));
    assert_known_in_full(&doc);
    assert!(!pins(&lab).exists(), "something is left behind");
}

#[test]
fn a_dry_run_names_what_would_be_bypassed() {
    let Some(fixture) = Fixture::new("a_dry_run_names_what_would_be_bypassed") else { return };
    let (client, server) = fixture.connect(6000);
    let lab = &fixture.lab;
    let veth = lab.host_veth("curl", "node-1");
    let ip = lab.pod("curl").ips.into_iter().find(std::net::IpAddr::is_ipv4).expect("an address").to_string();
    let say = |place: &str, line: &str| drop(lab.run(place, line.split(' ')));
    say("node-1", &format!("tc qdisc add dev {veth} root tbf rate 800mbit burst 1mbit latency 50ms"));
    say("curl", "tc qdisc add dev eth0 clsact");
    drop(lab.run("curl", ["tc", "filter", "add", "dev", "eth0", "egress", "bpf", "bytecode", "1,6 0 0 4294967295"]));
    say("node-1", "nft add table inet planted");
    say("node-1", "nft add chain inet planted limits { type filter hook forward priority 0 ; }");
    say("node-1", &format!("nft add rule inet planted limits ip saddr {ip} limit rate 1000000/second counter comment \"slow\""));
    say("node-1", "nft add rule inet planted limits ip saddr 192.0.2.1 drop comment \"others\"");
    let load = Load::new(&client, &server);
    let (doc, table) = std::thread::scope(|scope| {
        let _stop = SetAtEnd(&load.stop);
        scope.spawn(|| load.run());
        let doc = document(&output(lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "--dry-run", "-o", "json"])));
        (doc, output(lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "--dry-run"]).env("COLUMNS", "200")))
    });
    assert_is_the_document(&doc);
    let found = doc["bypassed"].as_array().unwrap_or_else(|| panic!("{doc:#}"));
    let row = |kind: &str, what: &str, place: &str| bypassed_row(&doc, kind, what, place);
    let of_curl = serde_json::json!(["default/curl"]);
    assert_eq!(row("qdisc", "tbf", &format!("{veth} on node-1"))["pods"], of_curl);
    assert!(row("qdisc", "800 Mbit/s", &veth)["what"].as_str().is_some_and(|w| w.starts_with("tbf 8")));
    assert_eq!(row("tc-program", "egress program in classic BPF", "eth0 in the pod")["pods"], of_curl);
    assert_eq!(row("netfilter-rule", "limit \"slow\"", "inet planted/limits on node-1")["pods"], of_curl);
    assert!(!found.iter().any(|b| b["what"].as_str().is_some_and(|w| w.contains("others"))), "a rule about others: {found:#?}");
    assert_known_in_full(&doc);
    let text = String::from_utf8_lossy(&table.stdout);
    assert!(text.contains("would be bypassed") && text.contains("800 Mbit/s") && text.contains("planted/limits"), "{text}");
    // A table that was only looked at is empty; one with a rule, or that drops by default, may do anything.
    let legacy = |line: &str| {
        drop(lab.run("node-1", format!("iptables-legacy -w {line}").split(' ')));
        let doc = document(&output(lab.plugin().args(["accelerate", "--via", "socket", "--lab", "-A", "--dry-run", "-o", "json"])));
        let warnings = doc["warnings"].as_array().expect("warnings").iter().filter_map(|w| Some(w.as_str()?.to_owned()));
        warnings.filter(|w| w.contains("iptables-legacy-save")).collect::<Vec<_>>()
    };
    assert_eq!(legacy("-L"), Vec::<String>::new());
    let warnings = legacy("-A FORWARD -s 192.0.2.1 -j DROP");
    assert!(matches!(&warnings[..], [one] if one.contains("on node-1 there are 1 entry in filter of iptables-legacy,")), "{warnings:?}");
    let warnings = legacy("-P INPUT DROP");
    assert!(matches!(&warnings[..], [one] if one.contains("1 entry and a policy that drops in filter")), "{warnings:?}");
    assert!(!pins(lab).exists(), "something is left behind");
}
