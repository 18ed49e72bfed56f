//! Addresses that were translated in transit: what, where, by which rule, and back again.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use sockpath_protocol::packet::{Direction, Flow, RewriteKind, Rule};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::journey::{Journey, is_netfilter};

/// A translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RewriteRow {
    /// Destination or source, there or back.
    pub kind: RewriteKind,
    /// Direction of the packets.
    pub direction: Direction,
    /// Protocol of the packets.
    pub protocol: Protocol,
    /// Address before.
    pub from: SocketAddr,
    /// Address after.
    pub to: SocketAddr,
    /// The stage in which it happened.
    pub stage: StageId,
    /// The hook that saw it first.
    pub hook: String,
    /// Node.
    pub node: String,
    /// Pod whose namespace it happened in.
    pub pod: Option<String>,
    /// Device there.
    pub device: Option<String>,
    /// Hook, chain and Service in words, as far as known.
    pub rule: Option<String>,
    /// Chain of the rule that did it.
    pub chain: Option<String>,
    /// That rule: table, chain, handle, comment, and the chains that lead there.
    pub by: Option<Rule>,
    /// Packets it was seen on.
    pub count: usize,
}

/// All translations, most frequent first within each direction.
pub(super) fn rewrites(journeys: &[Journey<'_>]) -> Vec<RewriteRow> {
    let mut rows: Vec<RewriteRow> = Vec::new();
    for journey in journeys {
        for row in of_journey(journey) {
            match rows.iter_mut().find(|r| same(r, &row)) {
                Some(known) => {
                    known.count += 1;
                    if known.rule.is_none() || (known.by.is_none() && row.by.is_some()) {
                        (known.rule, known.chain, known.by) = (row.rule, row.chain, row.by);
                    }
                }
                None => rows.push(row),
            }
        }
    }
    rows.sort_by_key(|r| (r.direction, std::cmp::Reverse(r.count)));
    rows
}

/// The client's port differs from connection to connection; its first one stands for all.
fn same(a: &RewriteRow, b: &RewriteRow) -> bool {
    let alike = |x: SocketAddr, y: SocketAddr| match a.kind {
        RewriteKind::Dnat | RewriteKind::UnDnat => x == y,
        RewriteKind::Snat | RewriteKind::UnSnat => x.ip() == y.ip(),
    };
    a.kind == b.kind
        && (a.direction, a.protocol) == (b.direction, b.protocol)
        && alike(a.from, b.from)
        && alike(a.to, b.to)
        && a.stage == b.stage
        && (&a.node, &a.pod, &a.device) == (&b.node, &b.pod, &b.device)
}

fn of_journey(journey: &Journey<'_>) -> Vec<RewriteRow> {
    let mut rows = Vec::new();
    let mut flow = journey.first().flow;
    let direction = journey.direction();
    for (at, step) in journey.steps.iter().enumerate() {
        for reference in &journey.hops[step.first_hop..step.first_hop + step.hops] {
            let hop = &journey.parts[reference.part].1.hops[reference.hop];
            let Some(after) = hop.rewritten.filter(|f| *f != flow) else { continue };
            // Seen at the first hop of a step, it happened in the netfilter hook before it.
            let first = reference.hop == journey.hops[step.first_hop].hop && reference.part == journey.hops[step.first_hop].part;
            let cause = match at.checked_sub(1).map(|i| &journey.steps[i]) {
                Some(before) if first && is_netfilter(before.stage) && !is_netfilter(step.stage) => before,
                _ => step,
            };
            for (kind, from, to) in changes(direction, flow, after) {
                rows.push(RewriteRow {
                    kind,
                    direction,
                    protocol: journey.first().protocol,
                    from,
                    to,
                    stage: cause.stage,
                    hook: hop.hook.clone(),
                    node: cause.spot.node.clone(),
                    pod: cause.spot.pod.clone(),
                    device: cause.spot.device.clone(),
                    rule: hop.note.as_deref().and_then(|note| rule(note, hop.rule.as_deref())),
                    chain: hop.rule.as_ref().map(|r| r.chain.clone()),
                    by: hop.rule.as_deref().cloned(),
                    count: 1,
                });
            }
            flow = after;
        }
    }
    rows
}

/// What is known of the rule: the hook and the Service from the helper's note (`PRE_ROUTING rewrote destination A to B (Service NS/NAME)`).
fn rule(note: &str, by: Option<&Rule>) -> Option<String> {
    let Some((before, after)) = note.split_once(" rewrote ") else { return Some(note.to_owned()).filter(|n| !n.is_empty()) };
    let hook = before.rsplit([' ', ',', ';']).next().filter(|h| h.contains("ROUTING") || h.contains("LOCAL"));
    let service = after.split_once('(').and_then(|(_, s)| s.split_once(')')).map(|(s, _)| s);
    let chain = by.map(|by| by.chain.as_str());
    let parts: Vec<&str> = hook.into_iter().chain(chain).chain(service).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn changes(direction: Direction, before: Flow, after: Flow) -> impl Iterator<Item = (RewriteKind, SocketAddr, SocketAddr)> {
    let (destination, source) = match direction {
        Direction::Request => (RewriteKind::Dnat, RewriteKind::Snat),
        Direction::Reply => (RewriteKind::UnSnat, RewriteKind::UnDnat),
    };
    let pairs = [(destination, before.to, after.to), (source, before.from, after.from)];
    pairs.into_iter().filter(|(_, from, to)| from != to)
}

/// Addresses that requests were translated to without being expected.
pub(super) fn strangers(rows: &[RewriteRow], expected: &[IpAddr]) -> Vec<RewriteRow> {
    rows.iter().filter(|r| r.kind == RewriteKind::Dnat && !expected.contains(&r.to.ip())).cloned().collect()
}

/// The service mesh whose proxy in the pod takes connections at this port, where that is known by convention.
pub(super) fn mesh(row: &RewriteRow, own: &[IpAddr]) -> Option<&'static str> {
    row.pod.as_ref().filter(|_| row.to.ip().is_loopback() || own.contains(&row.to.ip()))?;
    match row.to.port() {
        15_001 | 15_006 | 15_008 => Some("Istio"),
        4_140 | 4_143 => Some("Linkerd"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_out_of_notes() {
        for (note, expected) in [
            (
                "PRE_ROUTING rewrote destination 10.96.0.10:80 to 10.42.1.3:8080 (Service default/httpbin)",
                Some("PRE_ROUTING, Service default/httpbin"),
            ),
            ("cached neighbour, POST_ROUTING rewrote source 10.42.1.3:8080 to 10.96.0.10:80", Some("POST_ROUTING")),
            ("an unknown place rewrote source 1.2.3.4:1 to 1.2.3.5:1", None),
            ("KUBE-SEP-X", Some("KUBE-SEP-X")),
            ("", None),
        ] {
            assert_eq!(rule(note, None).as_deref(), expected, "{note}");
        }
    }
}
