//! A helper as the plugin hears it: its messages, at the rate of a node with some dozen connections.

use serde_json::{Value, json};
use sockpath_protocol::Message;
use sockpath_protocol::accel::{AccelSummary, Totals};

use super::cluster::{PODS, address};

/// Connections on a node.
pub const PAIRS: usize = 40;

/// One session.
#[derive(Debug)]
pub struct Helper {
    node: usize,
    name: String,
    received: Vec<u8>,
    accelerates: bool,
    snapshots: u64,
    over: bool,
}

impl Helper {
    /// On this node.
    pub fn on(node: &str) -> Self {
        let number = node.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self { node: number, name: node.to_owned(), received: Vec::new(), accelerates: false, snapshots: 0, over: false }
    }

    /// Whether it has said `end`.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes in bytes of stdin; gives what it says to whole lines.
    pub fn hear(&mut self, bytes: &[u8]) -> String {
        self.received.extend_from_slice(bytes);
        let mut said = String::new();
        while let Some(end) = self.received.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            // Of thousands of pods, only their number matters here.
            if line.starts_with(b"{\"type\":\"accelerate\"") {
                said += &self.answer(&json!({"type": "accelerate"}));
            } else if let Ok(request) = serde_json::from_slice::<Value>(&line) {
                said += &self.answer(&request);
            }
        }
        said
    }

    fn answer(&mut self, request: &Value) -> String {
        match request["type"].as_str().unwrap_or_default() {
            "hello" => {
                line(&json!({"type": "hello", "protocol": 1, "version": env!("CARGO_PKG_VERSION"), "kernel": "6.12.0", "arch": "x86_64",
                "boot": self.name, "features": {"btf": true}, "monotonic_ns": 1, "realtime_ns": 1}))
            }
            "heartbeat" => line(&json!({"type": "heartbeat"})),
            "clock" => line(&json!({"type": "clock", "id": request["id"], "monotonic_ns": 1, "realtime_ns": 1})),
            "accelerate" => {
                self.accelerates = true;
                line(&json!({"type": "bypassed", "found": []})) + &self.tick()
            }
            "status" => line(&json!({"type": "status", "active": true, "owner": "me", "lease_left_ms": 5000, "pairs": self.pairs()})),
            "doctor" => (0..12)
                .map(|i| line(&json!({"type": "check", "name": format!("check {i}"), "state": "ok", "found": "as it should be"})))
                .collect(),
            "finish" => {
                self.over = true;
                let summary = serde_json::to_value(Message::Summary(AccelSummary::default())).unwrap_or_default();
                let summary = if self.accelerates { line(&summary) } else { String::new() };
                summary + &line(&json!({"type": "end", "reason": "finished"}))
            }
            _ => String::new(),
        }
    }

    /// What it says every second.
    pub fn tick(&mut self) -> String {
        if !self.accelerates {
            return String::new();
        }
        self.snapshots += 1;
        let mut pairs = self.pairs();
        pairs["type"] = json!("pairs");
        line(&pairs)
    }

    fn pairs(&self) -> Value {
        let pair = |i: usize| {
            let (client, server) = (i % PODS, (i + 1) % PODS);
            let pod = |p: usize| format!("team-{}/web-{:03}-{p:02}", p % 10, self.node);
            let to = format!("{}:8080", address(self.node, server));
            json!({"client_pod": pod(client), "server_pod": pod(server), "client": format!("{}:{}", address(self.node, client), 40_000 + i),
                "dialled": to, "server": to, "via_service": false, "state": "accelerated", "reason": null, "live": false,
                "bypassed_bytes": self.snapshots * 100_000, "bypassed_messages": self.snapshots * 100,
                "passes": {}, "turnaround_before_ns": 60_000, "turnaround_after_ns": 30_000})
        };
        json!({"pairs": (0..PAIRS).map(pair).collect::<Vec<_>>(), "totals": Totals::default()})
    }
}

fn line(message: &Value) -> String {
    format!("{message}\n")
}
