//! Connections whose packets conntrack had tracked, and that it does not know any more when the answer comes.

use std::collections::HashMap;

use sockpath_protocol::message::ConntrackCounts;
use sockpath_protocol::packet::{Certainty, ConnectionState, Direction, Flow, Outcome, PacketKind};

use super::document::NodeRow;
use super::journey::{Journey, is_before_conntrack, is_netfilter};
use super::untranslated::{Untranslated, Why, is_reply};
use super::wording::packets;
use crate::duration::nanos;

/// Answers that conntrack on one node did not recognise, and that did not arrive as they should have.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Forgotten {
    /// How many.
    pub(super) count: usize,
    /// The node.
    pub(super) node: String,
    /// Addresses of these packets and of what they answer, before and after translations.
    pub(super) flows: Vec<Flow>,
    /// Whether the table gave up entries because it was full.
    pub(super) early: bool,
    /// What speaks for it.
    pub(super) evidence: Vec<String>,
}

impl Forgotten {
    /// What it is, in words.
    pub(super) fn text(&self) -> String {
        let why = if self.early {
            "gave up the entry of the connection, because its table was full"
        } else {
            "had no entry of the connection any more"
        };
        format!("conntrack on {} {why}: {} not recognised as an answer", self.node, packets(self.count, Direction::Reply))
    }

    /// How sure the reason is: that the entry is gone is observed, what removed it is not.
    pub(super) fn certainty(&self) -> Certainty {
        if self.early { Certainty::Inferred } else { Certainty::Observed }
    }
}

/// What conntrack on a node made of a packet.
struct Seen<'a> {
    node: &'a str,
    hook: &'a str,
    /// Conversation in the helper of this node.
    conversation: (usize, u64),
    state: ConnectionState,
    reply: bool,
    at_ns: u64,
}

/// A connection as it was tracked first.
struct Known {
    direction: Direction,
    flow: Flow,
    last_ns: u64,
}

/// All of them, by node.
pub(super) fn forgotten(journeys: &[Journey<'_>], untranslated: &[Untranslated], nodes: &[NodeRow]) -> Vec<Forgotten> {
    let mut known: HashMap<(&str, (usize, u64)), Known> = HashMap::new();
    let mut found: Vec<Forgotten> = Vec::new();
    for journey in journeys {
        for seen in by_node(journey) {
            let key = (seen.node, seen.conversation);
            let Some(before) = known.get_mut(&key) else {
                if !seen.reply && matches!(seen.state, ConnectionState::New | ConnectionState::Established) {
                    known.insert(key, Known { direction: journey.direction(), flow: journey.first().flow, last_ns: seen.at_ns });
                }
                continue;
            };
            let counts = nodes.iter().find(|n| n.name == seen.node).and_then(|n| n.conntrack);
            if before.direction != journey.direction() && is_lost(journey, &seen, counts) && is_harmed(journey, &seen, untranslated) {
                add(&mut found, journey, &seen, before, counts);
            }
            before.last_ns = before.last_ns.max(seen.at_ns);
        }
    }
    found
}

/// What conntrack on each node made of a packet: at its last hook there, where rules see the connection.
fn by_node<'j>(journey: &'j Journey<'_>) -> Vec<Seen<'j>> {
    let mut found: Vec<Seen<'j>> = Vec::new();
    for step in journey.steps.iter().filter(|s| is_netfilter(s.stage) && s.spot.pod.is_none()) {
        for at in &journey.hops[step.first_hop..step.first_hop + step.hops] {
            let (helper, packet) = journey.parts[at.part];
            let hop = &packet.hops[at.hop];
            let Some(facts) = hop.facts.as_ref().filter(|_| !is_before_conntrack(&hop.hook)) else { continue };
            found.retain(|s| s.node != step.spot.node);
            found.push(Seen {
                node: &step.spot.node,
                hook: &hop.hook,
                conversation: (helper, packet.conversation),
                state: facts.connection,
                reply: facts.reply,
                at_ns: hop.at_ns,
            });
        }
    }
    found
}

/// Whether conntrack does not know what this packet answers. The answer to a SYN is invalid without an entry; that it may also be for
/// other reasons is left out only where entries were given up.
fn is_lost(journey: &Journey<'_>, seen: &Seen<'_>, counts: Option<ConntrackCounts>) -> bool {
    let gave_up = counts.is_some_and(|c| c.early_drop > 0);
    match seen.state {
        ConnectionState::New => !seen.reply && is_reply(journey),
        ConnectionState::None => journey.first().kind == PacketKind::SynAck && gave_up,
        _ => false,
    }
}

/// Whether it was dropped by rules, or not translated back.
fn is_harmed(journey: &Journey<'_>, seen: &Seen<'_>, untranslated: &[Untranslated]) -> bool {
    let here = |u: &Untranslated| u.node == seen.node && matches!(u.why, Why::Forgotten | Why::Invalid);
    let arrived = |u: &Untranslated| journey.last_flow().from == u.endpoint;
    matches!(journey.outcome(), Outcome::Dropped(d) if d.reason == "NETFILTER_DROP") || untranslated.iter().any(|u| here(u) && arrived(u))
}

fn add(found: &mut Vec<Forgotten>, journey: &Journey<'_>, seen: &Seen<'_>, before: &Known, counts: Option<ConntrackCounts>) {
    let flows = [before.flow, journey.first().flow, journey.last_flow()];
    if let Some(of_node) = found.iter_mut().find(|f| f.node == seen.node) {
        of_node.count += 1;
        of_node.flows.extend(flows);
        return;
    }
    let made = if seen.state == ConnectionState::New { "took it for the first packet of a new connection" } else { "found it invalid" };
    let mut evidence = vec![
        format!("packets of the other direction were tracked on {}; at {} conntrack {made}", seen.node, seen.hook),
        format!("the packet before it of this connection had passed {} earlier", nanos(seen.at_ns.saturating_sub(before.last_ns))),
    ];
    let early = counts.filter(|c| c.early_drop > 0);
    evidence.extend(early.map(|c| {
        let table = if c.max_entries > 0 { format!("; the table has {} entries of {}", c.entries, c.max_entries) } else { String::new() };
        format!("conntrack's counter early_drop rose by {} during the trace{table}", c.early_drop)
    }));
    found.push(Forgotten { count: 1, node: seen.node.to_owned(), flows: flows.to_vec(), early: early.is_some(), evidence });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sockpath_protocol::packet::Packet;
    use sockpath_protocol::request::Protocol;

    use super::super::made::{dropped, flow, forwarded, journey, packet};
    use super::*;

    const CLIENT: &str = "10.0.0.1:40000";
    const ENDPOINT: &str = "10.0.0.2:8080";
    const SERVICE: &str = "10.96.0.1:80";

    fn request(state: ConnectionState) -> Packet {
        let packet = packet(Protocol::Udp, PacketKind::Data, Direction::Request, flow(CLIENT, SERVICE));
        Packet { hops: vec![forwarded(1_000, state, false)], ..packet }
    }

    fn answer(kind: PacketKind, state: ConnectionState, reply: bool, outcome: Outcome) -> Packet {
        let protocol = if kind == PacketKind::Data { Protocol::Udp } else { Protocol::Tcp };
        let packet = packet(protocol, kind, Direction::Reply, flow(ENDPOINT, CLIENT));
        Packet { hops: vec![forwarded(5_000, state, reply)], outcome, ..packet }
    }

    fn node(early_drop: u64) -> NodeRow {
        NodeRow {
            name: "n".to_owned(),
            kernel: String::new(),
            arch: String::new(),
            helper: String::new(),
            hooks: Vec::new(),
            unavailable: BTreeMap::new(),
            armed_ns: None,
            clock_offset_ns: 0,
            conntrack: Some(ConntrackCounts { early_drop, entries: 60, max_entries: 64, ..ConntrackCounts::default() }),
        }
    }

    fn untranslated() -> Untranslated {
        Untranslated {
            count: 1,
            dialled: SERVICE.parse().expect("an address"),
            endpoint: ENDPOINT.parse().expect("an address"),
            node: "n".to_owned(),
            pod: None,
            why: Why::Forgotten,
            evidence: Vec::new(),
        }
    }

    fn found(packets: &[Packet], untranslated: &[Untranslated], early_drop: u64) -> Vec<Forgotten> {
        forgotten(&packets.iter().map(journey).collect::<Vec<_>>(), untranslated, &[node(early_drop)])
    }

    use ConnectionState::{Established, New, None as Invalid};

    #[test]
    fn an_answer_that_is_new_to_conntrack_was_forgotten() {
        let packets = [request(New), answer(PacketKind::Data, New, false, Outcome::Delivered)];
        let given_up = found(&packets, &[untranslated()], 3);
        let [one] = &given_up[..] else { panic!("{given_up:?}") };
        assert_eq!((one.node.as_str(), one.count, one.early, one.certainty()), ("n", 1, true, Certainty::Inferred));
        assert!(one.evidence.iter().any(|e| e.contains("early_drop rose by 3") && e.contains("60 entries of 64")), "{one:?}");
        // Without the counter it is not known what removed the entry.
        let gone = found(&packets, &[untranslated()], 0);
        assert_eq!((gone[0].early, gone[0].certainty()), (false, Certainty::Observed));
    }

    #[test]
    fn what_rules_drop_for_it_was_forgotten_too() {
        let drop = || answer(PacketKind::Data, New, false, dropped("NETFILTER_DROP", None));
        assert_eq!(found(&[request(Established), drop()], &[], 0).len(), 1);
        assert_eq!(
            found(&[request(Established), answer(PacketKind::Data, Established, true, dropped("NETFILTER_DROP", None))], &[], 9),
            []
        );
    }

    #[test]
    fn the_answer_to_a_syn_is_invalid_without_an_entry() {
        let packets = [request(New), answer(PacketKind::SynAck, Invalid, false, dropped("NETFILTER_DROP", None))];
        assert_eq!(found(&packets, &[], 1).len(), 1);
        // It may be invalid for reasons of its own.
        assert_eq!(found(&packets, &[], 0), []);
    }

    #[test]
    fn nothing_is_called_forgotten_that_arrived_or_was_never_tracked() {
        let answered = |reply| answer(PacketKind::Data, if reply { Established } else { New }, reply, Outcome::Delivered);
        assert_eq!(found(&[request(New), answered(true)], &[untranslated()], 5), []);
        assert_eq!(found(&[request(New), answered(false)], &[], 5), [], "it does no harm where nothing is translated");
        // The target began it.
        assert_eq!(found(&[answered(false), request(New)], &[untranslated()], 5), []);
    }
}
