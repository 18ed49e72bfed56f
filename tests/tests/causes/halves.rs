//! Two nodes with a helper each, as on a cluster: do the halves of packets come together, and is nothing called lost that was not?

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};

use serde_json::{Value, json};
use sockpath_tests::lab::{Lab, succeed};
use sockpath_tests::root_or_skip;

/// A helper that watches one node.
struct Helper {
    child: Child,
    stdout: BufReader<ChildStdout>,
    said: Vec<Value>,
}

impl Helper {
    /// Starts one and waits until it is armed.
    fn start(lab: &Lab, request: &Value, node: &str) -> Self {
        let mut child = lab.helper().arg("session").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cannot start a helper");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut helper = Self { child, stdout, said: Vec::new() };
        let mut request = request.clone();
        request["type"] = "trace".into();
        let nodes: Vec<Value> = request["nodes"].as_array().expect("nodes").iter().filter(|n| n["name"] == node).cloned().collect();
        request["nodes"] = nodes.into();
        helper.ask(&request);
        helper.wait_for("armed");
        helper
    }

    fn ask(&mut self, request: &Value) {
        writeln!(self.child.stdin.as_mut().expect("stdin is piped"), "{request}").expect("the helper does not read");
    }

    fn wait_for(&mut self, kind: &str) {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).expect("cannot read"), 0, "the helper ended: {:?}", self.said.last());
            let message: Value = serde_json::from_str(&line).expect("JSON");
            assert_ne!(message["type"], "error", "{line}");
            let found = message["type"] == kind;
            self.said.push(message);
            if found {
                return;
            }
        }
    }

    fn probe(&mut self, protocol: &str, to: &str) {
        self.ask(&json!({"type": "probe", "protocol": protocol, "to": to, "timeout_ms": 2000, "http": false, "requests": 1}));
        self.wait_for("probed");
    }

    fn finish(mut self) -> Vec<Value> {
        self.ask(&json!({"type": "finish"}));
        self.wait_for("end");
        let _ = self.child.wait();
        self.said
    }
}

/// The first line of a recording of curl to httpbin-remote.
fn origin(lab: &Lab, file: &PathBuf) -> Value {
    // It sees nothing, which is exit code 3.
    let mut plugin = lab.plugin();
    plugin.args(["trace", "--lab", "curl", "httpbin-remote:8080", "--no-probe", "--duration", "1s", "--record"]).arg(file);
    let _ = plugin.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("cannot start the plugin");
    let text = fs::read_to_string(file).expect("a recording");
    serde_json::from_str(text.lines().next().expect("a line")).expect("JSON")
}

/// The report of what two helpers have said.
fn report(lab: &Lab, head: &Value, file: &PathBuf, helpers: [Vec<Value>; 2]) -> Value {
    let mut head = head.clone();
    let hello = head["origin"]["helpers"][0]["hello"].clone();
    head["origin"]["helpers"] = json!([{"nodes": ["node-1"], "hello": hello}, {"nodes": ["node-2"], "hello": hello}]);
    let mut lines = vec![head];
    for (helper, said) in helpers.into_iter().enumerate() {
        lines.extend(said.into_iter().map(|message| json!({"helper": helper, "message": message})));
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(file, text).expect("cannot write a recording");
    let out = succeed(lab.plugin().args(["trace", "-o", "json", "--replay"]).arg(file));
    serde_json::from_slice(&out.stdout).expect("a document")
}

fn has_finding(report: &Value, id: &str) -> bool {
    report["findings"].as_array().into_iter().flatten().any(|f| f["id"] == id)
}

#[test]
fn halves_of_two_nodes_are_joined() {
    if !root_or_skip("halves_of_two_nodes_are_joined") {
        return;
    }
    let lab = Lab::up();
    let file = std::env::temp_dir().join(format!("sockpath-halves-{}.jsonl", std::process::id()));
    let head = origin(&lab, &file);
    for (protocol, to) in [("tcp", "10.42.2.2:8080"), ("udp", "10.42.2.2:8080"), ("icmp", "10.42.2.2:0"), ("udp", "10.96.0.11:80")] {
        let mut request = head["origin"]["plan"]["request"].clone();
        if protocol == "icmp" {
            request["port"] = Value::Null;
        }
        let mut one = Helper::start(&lab, &request, "node-1");
        let other = Helper::start(&lab, &request, "node-2");
        one.probe(protocol, to);
        let report = report(&lab, &head, &file, [one.finish(), other.finish()]);
        assert!(!has_finding(&report, "half-missing"), "{protocol} {to}: {:#}", report["findings"]);
        assert_eq!(report["scenario"], "cross-node", "{protocol} {to}");
        let whole = |p: &Value| {
            let on = |node: &str| p["hops"].as_array().into_iter().flatten().any(|h| h["node"] == node);
            on("node-1") && on("node-2")
        };
        let packets = report["packets"].as_array().expect("packets");
        assert!(
            !packets.is_empty() && packets.iter().filter(|p| p["kind"] != "ack" && p["kind"] != "fin" && p["kind"] != "rst").all(whole),
            "{protocol} {to}: {:#}",
            packets[0]
        );
    }
    let _ = fs::remove_file(file);
}

#[test]
fn packets_from_before_the_other_node_was_watched_are_not_lost() {
    if !root_or_skip("packets_from_before_the_other_node_was_watched_are_not_lost") {
        return;
    }
    let lab = Lab::up();
    let file = std::env::temp_dir().join(format!("sockpath-early-{}.jsonl", std::process::id()));
    let head = origin(&lab, &file);
    let request = &head["origin"]["plan"]["request"];
    let mut one = Helper::start(&lab, request, "node-1");
    one.probe("udp", "10.42.2.2:8080");
    let other = Helper::start(&lab, request, "node-2");
    let early = report(&lab, &head, &file, [one.finish(), other.finish()]);
    assert!(early["packets"].as_array().is_some_and(|p| !p.is_empty()), "nothing was seen");
    assert!(!has_finding(&early, "half-missing"), "{:#}", early["findings"]);

    // One that is lost while both are watched is reported.
    lab.run("node-2", ["ip", "link", "set", "eth0", "down"]);
    let mut one = Helper::start(&lab, request, "node-1");
    let other = Helper::start(&lab, request, "node-2");
    one.probe("udp", "10.42.2.2:8080");
    let lost = report(&lab, &head, &file, [one.finish(), other.finish()]);
    assert_eq!(lost["findings"][0]["severity"], "critical", "{:#}", lost["findings"]);
    let _ = fs::remove_file(file);
}
