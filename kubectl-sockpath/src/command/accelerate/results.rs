//! What helpers report about an acceleration, and how the command prints it at the end.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};
use serde::Serialize;
use sockpath_protocol::Message;
use sockpath_protocol::accel::{AccelSummary, Pair, PairState, Reason, SelfTest, Totals};
use sockpath_protocol::bypass::{Bypassed, gather};

use crate::exit::Exit;
use crate::output::{self, Machine};
use crate::render::bypassed;
use crate::render::pairs::{self, NodePairs};
use crate::session::{Event, Kept, SessionError, disconnected, reconnected};
use crate::terminal::Style;

/// The whole as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    detached: bool,
    totals: Totals,
    ran_ms: u64,
    left_enrolled: u64,
    nodes: &'a [NodePairs],
    canaries: &'a [SelfTest],
    bypassed: Vec<Bypassed>,
    warnings: &'a [String],
    lost: &'a [String],
}

/// Different warnings that are kept, for helpers that repeat themselves with other figures.
const WARNINGS_KEPT: usize = 100;

/// Things that would be bypassed: a node has some dozens.
const BYPASSED_KEPT: usize = 10_000;

/// Results of self-tests: each node has about ten.
const SELF_TESTS_KEPT: usize = 1_000;

/// What helpers have reported.
#[derive(Debug)]
pub struct Results {
    /// All pods of the cluster are chosen.
    every_pod: bool,
    /// The pairs by helper.
    pub nodes: Vec<NodePairs>,
    /// Helpers that sent a snapshot: they have started.
    pub started: BTreeSet<usize>,
    /// Helpers whose acceleration has ended.
    pub over: BTreeSet<usize>,
    /// Warnings, each once.
    pub warnings: Kept<String>,
    /// Helpers that went away, in words.
    pub lost: Vec<String>,
    /// What is bypassed, or would be, as each helper and the API server know it.
    pub bypassed: Kept<Bypassed>,
    /// Helpers that have reported what is bypassed on their nodes.
    pub reported_bypassed: BTreeSet<usize>,
    /// What a helper failed at.
    pub error: Option<String>,
    /// Nodes where another session ended the acceleration, and whose.
    pub stopped: Vec<(String, String)>,
    summaries: Vec<AccelSummary>,
    canaries: Kept<SelfTest>,
}

impl Default for Results {
    fn default() -> Self {
        Self {
            every_pod: false,
            nodes: Vec::new(),
            started: BTreeSet::new(),
            over: BTreeSet::new(),
            warnings: Kept::of(WARNINGS_KEPT),
            lost: Vec::new(),
            bypassed: Kept::of(BYPASSED_KEPT),
            reported_bypassed: BTreeSet::new(),
            error: None,
            stopped: Vec::new(),
            summaries: Vec::new(),
            canaries: Kept::of(SELF_TESTS_KEPT),
        }
    }
}

impl Results {
    /// Nothing yet, where all pods of the cluster are chosen or not.
    pub fn of(every_pod: bool) -> Self {
        Self { every_pod, ..Self::default() }
    }

    /// Takes in an event of the helper with this index and name; returns what to print at once.
    pub fn take(&mut self, helper: usize, name: &str, event: Event) -> Option<String> {
        match event {
            Event::Joined(_) => {}
            Event::Disconnected(why) => {
                return Some(disconnected(name, ", connections go on", &why));
            }
            Event::Reconnected(away) => return Some(reconnected(name, away, "")),
            Event::Said(message) => return self.hear(helper, name, *message),
            Event::Ended(_) => {
                self.over.insert(helper);
            }
            Event::Lost(error @ SessionError::Absent { .. }) => {
                self.over.insert(helper);
                let text = error.on(name);
                self.lost.push(text.clone());
                return Some(text);
            }
            Event::Lost(error) => {
                self.over.insert(helper);
                return Some(self.lose(format!("the helper on {name}: {error}")));
            }
        }
        None
    }

    fn hear(&mut self, helper: usize, name: &str, message: Message) -> Option<String> {
        match message {
            Message::Pairs(snapshot) => {
                if let Some(node) = self.nodes.get_mut(helper) {
                    node.snapshot = snapshot;
                }
                self.started.insert(helper);
            }
            Message::Bypassed { found } => {
                self.bypassed.extend(found);
                self.reported_bypassed.insert(helper);
            }
            // Each helper ends once.
            Message::Summary(summary) if self.summaries.len() < self.nodes.len() => {
                if let Some(by) = &summary.stopped_by {
                    self.stopped.push((name.to_owned(), by.clone()));
                }
                self.summaries.push(summary);
                self.over.insert(helper);
            }
            Message::Canary(test) if !self.canaries.contains(&test) => {
                self.canaries.push(test);
            }
            Message::Warning { text } => {
                let text = if self.nodes.len() > 1 { format!("{name}: {text}") } else { text };
                if !self.warnings.contains(&text) && self.warnings.push(text.clone()) {
                    return Some(text);
                }
            }
            Message::Error { text, .. } => {
                self.error.get_or_insert(format!("{name}: {text}"));
            }
            _ => {}
        }
        None
    }

    fn lose(&mut self, text: String) -> String {
        let text = format!("{text}; connections there fall back to TCP by themselves");
        self.lost.push(text.clone());
        text
    }

    /// Joins what the nodes of a connection know about it. Where all pods are chosen, an end that no node knows is not a pod; at the end of
    /// a run also one whose address another node may have translated, unless a helper is missing.
    pub fn join_halves(&mut self, is_end: bool) {
        join_halves(&mut self.nodes);
        let is_complete = is_end && self.lost.is_empty() && (0..self.nodes.len()).all(|helper| self.started.contains(&helper));
        let unknown = |p: &&mut Pair| p.reason == Some(Reason::PeerNotChosen) && (is_complete || p.server.is_some());
        if self.every_pod {
            self.nodes.iter_mut().flat_map(|n| &mut n.snapshot.pairs).filter(unknown).for_each(|p| p.reason = Some(Reason::PeerNotPod));
        }
    }

    /// Prints how it went and says how the command ends.
    pub fn conclude(mut self, form: &Form) -> Result<Exit> {
        self.join_halves(true);
        let pairs: usize = self.nodes.iter().map(|n| n.snapshot.pairs.len()).sum();
        if form.json {
            output::emit(&Machine::document(&self.document(form))?)?;
        } else if self.error.is_none() || !self.summaries.is_empty() {
            if form.dry_run || pairs > 0 {
                output::print(&pairs::table(&self.nodes, &form.style.for_table(form.wide), usize::MAX))?;
            }
            if form.dry_run {
                output::print(&bypassed::table(&gather(self.bypassed.iter().cloned()), &form.style))?;
            }
            if !form.dry_run && !self.summaries.is_empty() {
                output::print(&pairs::summary(&self.summaries, &form.style))?;
                output::print(&pairs::gain(&self.nodes, &form.style))?;
            }
        }
        for test in self.canaries.iter().filter(|c| !c.passed && form.sockets) {
            output::say(&format!("warning: this kernel fails the check `{}`: {}", test.name, test.detail));
        }
        if let Some(error) = self.error {
            bail!("{error}");
        }
        if !self.lost.is_empty() {
            bail!("{}", self.lost.join("\n"));
        }
        if form.dry_run && form.interrupted {
            return Ok(Exit::Interrupted);
        }
        let eligible = self.nodes.iter().flat_map(|n| &n.snapshot.pairs).any(|p| p.state != PairState::LeftAlone);
        if form.dry_run && !eligible {
            let what = if pairs == 0 { "no connection between the chosen pods was seen" } else { "no connection could be accelerated" };
            output::say(what);
            return Ok(Exit::Nothing);
        }
        Ok(Exit::Done)
    }

    fn document(&self, form: &Form) -> Document<'_> {
        Document {
            dry_run: form.dry_run,
            detached: form.detached,
            totals: if self.summaries.is_empty() {
                pairs::totals(self.nodes.iter().map(|n| &n.snapshot.totals))
            } else {
                pairs::totals(self.summaries.iter().map(|s| &s.totals))
            },
            ran_ms: self.summaries.iter().map(|s| s.ran_ms).max().unwrap_or(0),
            left_enrolled: self.summaries.iter().map(|s| s.left_enrolled).sum(),
            nodes: &self.nodes,
            canaries: &self.canaries,
            bypassed: gather(self.bypassed.iter().cloned()),
            warnings: &self.warnings,
            lost: &self.lost,
        }
    }
}

/// A connection through a Service to another node: its client's node knows only the Service's address. The server's node knows the
/// client's, where nothing hides it, so that both halves together tell who is at the other end.
fn join_halves(nodes: &mut [NodePairs]) {
    if nodes.len() < 2 {
        return;
    }
    let lone = |p: &&Pair| p.state == PairState::LeftAlone && !p.client.ip().is_loopback();
    let mut servers = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for pair in node.snapshot.pairs.iter().filter(lone) {
            if let (Some(pod), Some(addr), Some(Reason::OtherNode)) = (&pair.server_pod, pair.server, pair.reason) {
                servers.insert(pair.client, (index, pod.clone(), addr));
            }
        }
    }
    for (index, node) in nodes.iter_mut().enumerate() {
        for pair in &mut node.snapshot.pairs {
            let half = matches!(pair.reason, Some(Reason::PeerNotChosen | Reason::PeerNotPod)) && pair.server.is_none();
            if let Some((_, pod, addr)) = servers.get(&pair.client).filter(|(on, ..)| half && *on != index) {
                pair.reason = Some(Reason::OtherNode);
                pair.server_pod = Some(pod.clone());
                pair.via_service = pair.dialled != *addr;
            }
        }
    }
}

/// How the outcome is printed.
#[derive(Debug)]
pub struct Form {
    /// As JSON.
    pub json: bool,
    /// Names are not cut.
    pub wide: bool,
    /// Nothing was touched.
    pub dry_run: bool,
    /// It goes on without us.
    pub detached: bool,
    /// The user pressed Ctrl-C.
    pub interrupted: bool,
    /// The socket path was asked for: what the kernel fails there matters.
    pub sockets: bool,
    /// How text looks.
    pub style: Style,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_goes_away_is_reported_and_does_not_end_the_others() {
        let mut results = Results { nodes: vec![NodePairs::default(), NodePairs::default()], ..Results::default() };
        let lost = results.take(0, "n1", Event::Lost(SessionError::CutOff { detail: "evicted".into() })).unwrap();
        assert!(lost.contains("helper on n1") && lost.contains("evicted") && lost.contains("TCP by themselves"), "{lost}");
        assert!(results.error.is_none() && results.over.contains(&0) && !results.over.contains(&1));
        let drained = results.take(1, "n2", Event::Lost(SessionError::Terminated { detail: "drained".into() })).unwrap();
        assert!(drained.contains("n2: it was terminated: drained"), "{drained}");
        let form = Form {
            json: false,
            wide: false,
            dry_run: false,
            detached: false,
            interrupted: false,
            sockets: true,
            style: Style::of_stdout(crate::cli::ColorChoice::Never),
        };
        let end = results.conclude(&form).unwrap_err().to_string();
        assert!(end.contains("n1") && end.contains("n2"), "{end}");
    }

    #[test]
    fn both_halves_of_a_connection_through_a_service_tell_that_it_leaves_the_node() {
        let half = |client: &str, dialled: &str, pods: [Option<&str>; 2], server: Option<&str>, reason: Reason| Pair {
            client_pod: pods[0].map(str::to_owned),
            server_pod: pods[1].map(str::to_owned),
            client: client.parse().unwrap(),
            dialled: dialled.parse().unwrap(),
            server: server.map(|s| s.parse().unwrap()),
            via_service: false,
            via: Default::default(),
            by_path: Default::default(),
            state: PairState::LeftAlone,
            reason: Some(reason),
            live: false,
            bypassed_bytes: 0,
            bypassed_messages: 0,
            passes: Default::default(),
            turnaround_before_ns: None,
            turnaround_after_ns: None,
        };
        let (web, db) = ([Some("shop/web"), None], [Some("shop/web"), Some("shop/db")]);
        let snapshot = |pairs: Vec<Pair>| Message::Pairs(sockpath_protocol::accel::PairsSnapshot { pairs, totals: Totals::default() });
        let mut results = Results { nodes: vec![NodePairs::default(), NodePairs::default()], ..Results::default() };
        let clients = vec![
            half("10.42.1.2:40000", "10.96.0.11:80", web, None, Reason::PeerNotChosen),
            half("10.42.1.2:40001", "10.96.0.12:80", web, None, Reason::PeerNotChosen),
        ];
        results.take(0, "n1", Event::Said(Box::new(snapshot(clients))));
        assert_eq!(results.nodes[0].snapshot.pairs[0].reason, Some(Reason::PeerNotChosen));
        let servers = vec![half("10.42.1.2:40000", "10.42.2.3:8080", db, Some("10.42.2.3:8080"), Reason::OtherNode)];
        results.take(1, "n2", Event::Said(Box::new(snapshot(servers))));
        results.join_halves(false);
        let joined = &results.nodes[0].snapshot.pairs[0];
        assert_eq!((joined.reason, joined.via_service), (Some(Reason::OtherNode), true));
        assert_eq!(joined.server_pod.as_deref(), Some("shop/db"));
        assert_eq!(results.nodes[0].snapshot.pairs[1].reason, Some(Reason::PeerNotChosen), "no node knows where this one goes");
        results.every_pod = true;
        results.join_halves(false);
        assert_eq!(results.nodes[0].snapshot.pairs[1].reason, Some(Reason::PeerNotChosen), "the other node's table may be older");
        results.lost.push("n3".to_owned());
        results.join_halves(true);
        assert_eq!(results.nodes[0].snapshot.pairs[1].reason, Some(Reason::PeerNotChosen), "n3 may know it");
        results.lost.clear();
        results.started.remove(&1);
        results.join_halves(true);
        assert_eq!(results.nodes[0].snapshot.pairs[1].reason, Some(Reason::PeerNotChosen), "n2 may know it");
        results.started.insert(1);
        results.join_halves(true);
        assert_eq!(results.nodes[0].snapshot.pairs[0].reason, Some(Reason::OtherNode));
        assert_eq!(results.nodes[0].snapshot.pairs[1].reason, Some(Reason::PeerNotPod), "all pods are chosen, and it is none of them");
    }

    #[test]
    fn warnings_are_printed_once_and_name_the_node_where_there_are_several() {
        let warning = || Event::Said(Box::new(Message::Warning { text: "w".into() }));
        let mut results = Results { nodes: vec![NodePairs::default(), NodePairs::default()], ..Results::default() };
        assert_eq!(results.take(0, "n1", warning()).as_deref(), Some("n1: w"));
        assert_eq!(results.take(0, "n1", warning()), None);
        assert_eq!(results.take(1, "n2", warning()).as_deref(), Some("n2: w"));
    }
}
