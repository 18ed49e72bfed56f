//! Accelerated connections as a table, as lines of change, and as a summary.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use sockpath_protocol::accel::{AccelSummary, Carried, Carrier, Pair, PairState, PairsSnapshot, Reason, Totals};

use super::columns;
use super::connection::{bytes, client, server, state_word, why, would_be};
use super::line::Line;
use crate::duration::{human, nanos};
use crate::output::Text;
use crate::terminal::{Paint, Style, fit};

/// The pairs of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct NodePairs {
    /// The node (or nodes, in the lab).
    pub node: String,
    /// Its pairs.
    #[serde(flatten)]
    pub snapshot: PairsSnapshot,
}

/// Sums over nodes.
#[must_use]
pub fn totals<'a>(all: impl IntoIterator<Item = &'a Totals>) -> Totals {
    let mut sum = Totals::default();
    for t in all {
        sum += t;
    }
    sum
}

/// Widest line of prose.
const PROSE: usize = 100;

/// The table, of at most `rows` pairs: those that moved the most bytes first, accelerated ones before others.
#[must_use]
pub fn table(nodes: &[NodePairs], style: &Style, rows: usize) -> Text {
    let mut pairs: Vec<(&str, &Pair)> = nodes.iter().flat_map(|n| n.snapshot.pairs.iter().map(|p| (n.node.as_str(), p))).collect();
    let mut out = headline(nodes, style);
    if pairs.is_empty() {
        return out;
    }
    pairs.sort_by_key(|(_, p)| (p.state != PairState::Accelerated, std::cmp::Reverse(p.bypassed_bytes)));
    let shown = pairs.len().min(rows.max(1));
    let lines = columns::fit(&pairs[..shown], nodes.len() > 1, style);
    for (i, line) in lines.rows.iter().enumerate() {
        let line = fit(line, style.width, style.unicode);
        match i.checked_sub(1).and_then(|i| pairs.get(i)).map(|(_, p)| p.state) {
            None => out.paint_columns(style, Paint::Dim, &line),
            Some(PairState::Accelerated) => out.paint_columns(style, Paint::Good, &line),
            Some(_) => out.push_columns(&line),
        }
        out.end_line();
    }
    for line in lines.legend.iter().flat_map(|text| crate::terminal::wrap(text, style.width)) {
        Line::new(style).paint(Paint::Dim, &line).end(&mut out);
    }
    if pairs.len() > shown {
        Line::new(style).paint(Paint::Dim, &format!(" and {} more, -o json lists all", pairs.len() - shown)).end(&mut out);
    }
    let reasons: BTreeSet<Reason> = pairs.iter().filter_map(|(_, p)| p.reason).collect();
    for (reason, advice) in reasons.iter().filter_map(|r| Some((r, r.advice()?))) {
        for line in crate::terminal::wrap(&format!("{}: {advice}", reason.text()), style.width.min(PROSE)) {
            Line::new(style).paint(Paint::Dim, &line).end(&mut out);
        }
    }
    out
}

/// One line of sums.
#[must_use]
pub fn headline(nodes: &[NodePairs], style: &Style) -> Text {
    let t = totals(nodes.iter().map(|n| &n.snapshot.totals));
    let mut out = Text::default();
    let pairs = || nodes.iter().flat_map(|n| &n.snapshot.pairs);
    let of = |is_meant: fn(&Pair) -> bool| {
        let via = |carrier: Carrier| pairs().filter(|p| is_meant(p) && p.via == carrier).count();
        (via(Carrier::Socket), via(Carrier::Short))
    };
    let text = match of(would_be) {
        (0, 0) => {
            let by = by_path(of(|p| p.state == PairState::Accelerated));
            format!("{} of {} connections accelerated{by}, {} redirected", t.accelerated, t.open, bytes(t.bypassed_bytes))
        }
        would => format!("{} of {} connections would be accelerated{}", would.0 + would.1, t.open, by_path(would)),
    };
    Line::new(style).paint(Paint::Heading, &text).end(&mut out);
    let others = others(nodes);
    if !others.is_empty() {
        for line in crate::terminal::wrap(&others, style.width.min(PROSE)) {
            Line::new(style).text(&line).end(&mut out);
        }
    }
    out
}

/// How many take which path, in brackets.
fn by_path(count: (usize, usize)) -> String {
    match count {
        (0, 0) => String::new(),
        (sockets, 0) => format!(" ({sockets} {})", Carrier::Socket.in_words()),
        (0, devices) => format!(" ({devices} {})", Carrier::Short.in_words()),
        (sockets, devices) => {
            format!(" ({sockets} {}, {devices} {})", Carrier::Socket.in_words(), Carrier::Short.in_words())
        }
    }
}

/// The others in words: `2 paused: NetworkPolicy changed, 1 excluded: other node`.
fn others(nodes: &[NodePairs]) -> String {
    let mut groups: BTreeMap<(&'static str, &'static str), usize> = BTreeMap::new();
    for pair in nodes.iter().flat_map(|n| &n.snapshot.pairs) {
        if let (Some(reason), false) = (pair.reason, pair.state == PairState::Accelerated || would_be(pair)) {
            *groups.entry((state_word(pair.state), reason.text())).or_default() += 1;
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    groups.iter().map(|((state, why), n)| format!("{n} {state}: {why}")).collect::<Vec<_>>().join(", ")
}

/// A pair: its node, the client and where it dialled.
type Key = (String, SocketAddr, SocketAddr);

/// What a line shows of a pair.
type Shown = (PairState, Carrier, Option<Reason>);

/// What changed since the last snapshot, one line per pair: for output that cannot be redrawn.
#[derive(Debug, Default)]
pub struct Changes {
    known: HashMap<Key, Shown>,
}

impl Changes {
    /// The lines that say what changed.
    pub fn lines(&mut self, nodes: &[NodePairs]) -> Text {
        let mut out = Text::default();
        let mut now = HashMap::new();
        for node in nodes {
            for pair in &node.snapshot.pairs {
                let key = (node.node.clone(), pair.client, pair.dialled);
                let state = (pair.state, pair.via, pair.reason);
                if self.known.get(&key) != Some(&state) {
                    let via = if pair.state == PairState::Accelerated { format!(" ({})", pair.via.text()) } else { String::new() };
                    let why = why(pair);
                    let why = if why.is_empty() { why } else { format!(": {why}") };
                    out.line(&format!("{} -> {}  {}{via}{why}", client(pair), server(pair), state_word(pair.state)));
                }
                now.insert(key, state);
            }
        }
        self.known = now;
        out
    }
}

/// What went by which path: `12 connections: 3 socket to socket (1.00 MiB in 90 messages), 9 device to device (8.00 MiB in 2000 packets)`.
fn carried(t: &Totals) -> String {
    let connections = t.open + t.closed;
    let of = |what: &Carried, path: Carrier, units: &str| {
        (what.units > 0).then(|| format!("{} {} ({} in {} {units})", what.connections, path.in_words(), bytes(what.bytes), what.units))
    };
    let paths = [of(&t.by_path.socket, Carrier::Socket, "messages"), of(&t.by_path.short, Carrier::Short, "packets")];
    let paths: Vec<String> = paths.into_iter().flatten().collect();
    match paths.is_empty() {
        true => format!("{connections} connections: none took another path than the network stack"),
        false => format!("{connections} connections: {}", paths.join(", ")),
    }
}

/// How much sooner answers come on another path, by the connections that were measured on both: the medians of their medians.
#[must_use]
pub fn gain(nodes: &[NodePairs], style: &Style) -> Text {
    let mut out = Text::default();
    for path in [Carrier::Socket, Carrier::Short] {
        let measured = |p: &Pair| Some((p.turnaround_before_ns?, p.turnaround_after_ns?));
        // Both nodes of a connection may have a row.
        let pairs = nodes.iter().flat_map(|n| &n.snapshot.pairs).filter(|p| p.via == path);
        let times: BTreeMap<_, (u64, u64)> = pairs.filter_map(|p| Some(((p.client, p.server), measured(p)?))).collect();
        let (Some(before), Some(after)) = (median(times.values().map(|t| t.0)), median(times.values().map(|t| t.1))) else { continue };
        let of = if times.len() == 1 { "of 1 connection".to_owned() } else { format!("medians of {} connections", times.len()) };
        let text = format!("{}: request to answer {} before, {} now ({of})", path.in_words(), nanos(before), nanos(after));
        for line in crate::terminal::wrap(&text, style.width) {
            Line::new(style).text(&line).end(&mut out);
        }
    }
    out
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable(middle).1)
}

/// What was achieved, in a few lines.
#[must_use]
pub fn summary(summaries: &[AccelSummary], style: &Style) -> Text {
    let t = totals(summaries.iter().map(|s| &s.totals));
    let ran = Duration::from_millis(summaries.iter().map(|s| s.ran_ms).max().unwrap_or(0));
    let mut out = Text::default();
    let detached = summaries.iter().any(|s| s.detached);
    let end = if detached { "goes on without this command" } else { "all connections are on the normal path" };
    let ran = if ran.as_secs() > 0 { Duration::from_secs(ran.as_secs()) } else { ran };
    Line::new(style).paint(Paint::Heading, &format!("after {}: {end}", human(ran))).end(&mut out);
    for line in crate::terminal::wrap(&carried(&t), style.width) {
        Line::new(style).text(&line).end(&mut out);
    }
    let mut passes: Vec<(&Reason, &u64)> = t.passes.iter().filter(|(_, n)| **n > 0).collect();
    passes.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    if !passes.is_empty() {
        let list: Vec<String> = passes.iter().take(6).map(|(reason, n)| format!("{n} {}", reason.text())).collect();
        for line in crate::terminal::wrap(&format!("not bypassed: {}", list.join(", ")), style.width) {
            Line::new(style).text(&line).end(&mut out);
        }
    }
    let left: u64 = summaries.iter().map(|s| s.left_enrolled).sum();
    if left > 0 {
        let text = format!("{left} sockets still have unread bytes; they use TCP, a later `stop` removes the rest");
        for line in crate::terminal::wrap(&text, style.width) {
            Line::new(style).paint(Paint::Warn, &line).end(&mut out);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::accel::ByPath;

    use super::*;

    fn pair(port: u16, state: PairState) -> Pair {
        Pair {
            client_pod: Some("default/curl".to_owned()),
            server_pod: Some("default/httpbin".to_owned()),
            client: SocketAddr::from(([10, 42, 1, 2], port)),
            dialled: SocketAddr::from(([10, 96, 0, 10], 80)),
            server: Some(SocketAddr::from(([10, 42, 1, 3], 8080))),
            via_service: port.is_multiple_of(2),
            via: if state == PairState::Accelerated { Carrier::Socket } else { Carrier::Stack },
            state,
            reason: None,
            live: false,
            bypassed_bytes: u64::from(port) * 1000,
            bypassed_messages: u64::from(port),
            passes: [(Reason::Order, 3), (Reason::Learning, 9)].into(),
            by_path: ByPath::default(),
            turnaround_before_ns: Some(23_000),
            turnaround_after_ns: (state == PairState::Accelerated).then_some(11_000),
        }
    }

    fn nodes() -> Vec<NodePairs> {
        let mut alone = pair(41_002, PairState::LeftAlone);
        (alone.reason, alone.bypassed_bytes, alone.client_pod) = (Some(Reason::OtherNode), 0, None);
        let pairs = vec![alone, pair(41_000, PairState::Accelerated), pair(41_001, PairState::Waiting)];
        let totals = Totals { open: 3, accelerated: 1, bypassed_bytes: 41_000_000, bypassed_messages: 41_000, ..Totals::default() };
        vec![NodePairs { node: "node-1".to_owned(), snapshot: PairsSnapshot { pairs, totals } }]
    }

    #[test]
    fn the_table_shows_what_moves_most_first() {
        let text = table(&nodes(), &Style::plain(160), 10);
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1 of 3 connections accelerated (1 socket to socket), 39.1 MiB redirected");
        assert_eq!(lines.remove(1), "1 excluded: other node");
        assert!(lines[1].contains("CLIENT") && !lines[1].contains("NODE"), "{text}");
        assert!(
            lines[2].contains("default/curl:41000") && lines[2].contains("23.0 us > 11.0 us") && lines[2].contains("via 10.96.0.10:80"),
            "{text}"
        );
        assert!(lines[3].contains("waiting") && lines[3].contains("profiling its reads (9)"), "{text}");
        assert!(lines[4].contains("10.42.1.2:41002") && lines[4].contains("other node"), "{text}");
        let two = [nodes(), nodes()].concat();
        assert!(table(&two, &Style::plain(160), 10).contains("NODE"));
        assert!(table(&two, &Style::plain(160), 1).contains("and 5 more"));
    }

    #[test]
    fn the_hint_for_a_reason_is_printed_once() {
        let mut nodes = nodes();
        for pair in &mut nodes[0].snapshot.pairs {
            (pair.state, pair.reason) = (PairState::LeftAlone, Some(Reason::BlockingReader));
        }
        let text = table(&nodes, &Style::plain(100), 10);
        assert_eq!(text.matches("--blocking-readers").count(), 1, "{text}");
        assert!(text.contains("EAGAIN") && text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }

    #[test]
    fn the_gain_of_each_path_is_that_of_what_was_measured_on_it() {
        let mut nodes = nodes();
        assert_eq!(
            gain(&nodes, &Style::plain(100)).lines().collect::<Vec<_>>(),
            ["socket to socket: request to answer 23.0 us before, 11.0 us now (of 1 connection)"]
        );
        let mut short = pair(41_003, PairState::Accelerated);
        (short.via, short.turnaround_after_ns) = (Carrier::Short, Some(17_000));
        let mut other = short.clone();
        other.client.set_port(41_004);
        nodes[0].snapshot.pairs.extend([short.clone(), other]);
        // The row of the other node.
        nodes.push(NodePairs { node: "node-2".to_owned(), snapshot: PairsSnapshot { pairs: vec![short], ..PairsSnapshot::default() } });
        let text = gain(&nodes, &Style::plain(100));
        assert!(text.contains("device to device: request to answer 23.0 us before, 17.0 us now (medians of 2 connections)"), "{text}");
        assert_eq!(gain(&[], &Style::plain(100)).lines().count(), 0);
    }

    #[test]
    fn the_table_fits_every_width() {
        for width in 40..=200 {
            for line in table(&nodes(), &Style::plain(width), 10).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    /// Many pods with long names, as Deployments have them.
    #[test]
    fn at_80_columns_rows_stay_different_and_addresses_whole() {
        let mut nodes = nodes();
        let pairs = &mut nodes[0].snapshot.pairs;
        for (pair, (client, server)) in pairs.iter_mut().zip([("a7x2z", "kx9qp"), ("b7x2z", "kx9qp"), ("a7x2z", "jx9qp")]) {
            pair.client_pod = Some(format!("production/checkout-frontend-6d4cf56db6-{client}"));
            pair.server_pod = Some(format!("production/checkout-backend-7f9c8d6b54-{server}"));
            pair.client.set_port(41_000);
        }
        pairs[2].client_pod = None;
        let text = table(&nodes, &Style::plain(80), 10);
        let rows: Vec<&str> = text.lines().filter(|l| l.contains(":8080")).collect();
        let distinct: BTreeSet<&str> = rows.iter().map(|r| r.split("  ").next().unwrap()).collect();
        assert_eq!((rows.len(), distinct.len()), (3, 3), "{text}");
        assert!(rows.iter().any(|r| r.starts_with("10.42.1.2:41000 ")) && rows.iter().all(|r| r.contains(":8080")), "{text}");
        assert!(text.contains("[1]") && text.contains("[1] "), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(
            table(&nodes, &Style::plain(1000), 10).contains("production/checkout-frontend-6d4cf56db6-a7x2z:41000"),
            "full where there is room"
        );
    }

    #[test]
    fn a_dry_run_says_what_would_take_which_path() {
        let mut nodes = nodes();
        let pairs = &mut nodes[0].snapshot.pairs;
        for (pair, via) in pairs.iter_mut().zip([Carrier::Stack, Carrier::Short, Carrier::Socket]) {
            (pair.state, pair.via) = (if via == Carrier::Stack { PairState::LeftAlone } else { PairState::Waiting }, via);
        }
        pairs[1].reason = Some(Reason::Unproven);
        let text = table(&nodes, &Style::plain(200), 10);
        let head = "2 of 3 connections would be accelerated (1 socket to socket, 1 device to device)\n1 excluded: other node\n";
        assert!(text.starts_with(head), "{text}");
        assert_eq!(text.matches("would be accelerated").count(), 3, "{text}");
    }

    #[test]
    fn only_changes_are_appended() {
        let mut changes = Changes::default();
        let mut nodes = nodes();
        assert_eq!(changes.lines(&nodes).lines().count(), 3);
        assert_eq!(changes.lines(&nodes), "");
        (nodes[0].snapshot.pairs[2].state, nodes[0].snapshot.pairs[2].via) = (PairState::Accelerated, Carrier::Socket);
        assert_eq!(changes.lines(&nodes), "default/curl:41001 -> default/httpbin:8080  accelerated (socket)\n");
        nodes[0].snapshot.pairs.clear();
        assert_eq!(changes.lines(&nodes), "");
    }

    #[test]
    fn the_summary_says_how_it_ended() {
        let totals = Totals {
            open: 1,
            closed: 2,
            bypassed_bytes: 1 << 20,
            bypassed_messages: 7,
            passes: [(Reason::Order, 3)].into(),
            by_path: ByPath { socket: Carried { connections: 2, bytes: 1 << 20, units: 7 }, ..ByPath::default() },
            ..Totals::default()
        };
        let one = AccelSummary { totals, ran_ms: 61_000, left_enrolled: 0, detached: false, stopped_by: None };
        let text = summary(&[one.clone(), one.clone()], &Style::plain(100));
        assert_eq!(
            text,
            "after 1m1s: all connections are on the normal path\n6 connections: 4 socket to socket (2.00 MiB in 14 messages)\nnot bypassed: 6 TCP bytes still unread\n"
        );
        let mut both = one.clone();
        both.totals.by_path.short = Carried { connections: 3, bytes: 1 << 10, units: 9 };
        let text = summary(&[both], &Style::plain(120));
        assert!(
            text.contains("3 connections: 2 socket to socket (1.00 MiB in 7 messages), 3 device to device (1.00 KiB in 9 packets)"),
            "{text}"
        );
        let text = summary(&[AccelSummary { totals: Totals { open: 2, ..Totals::default() }, ..one.clone() }], &Style::plain(100));
        assert!(text.contains("2 connections: none took another path"), "{text}");
        let text = summary(&[AccelSummary { left_enrolled: 2, detached: true, ..one }], &Style::plain(100));
        assert!(text.contains("goes on without this command") && text.contains("2 sockets still have"), "{text}");
    }
}
