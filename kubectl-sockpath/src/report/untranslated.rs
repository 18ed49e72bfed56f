//! Replies that carry the endpoint's address where the Service's was dialled: nothing translated them back.

use std::collections::HashMap;
use std::net::SocketAddr;

use sockpath_protocol::packet::{ConnectionState, Direction, Flow, Hop, Packet, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::Side;

use super::journey::{Journey, is_before_conntrack, is_netfilter};
use super::wording::{packets, place};

/// How far beyond the acknowledged bytes a sequence number may lie; the largest window that TCP has.
const LARGEST_WINDOW: i64 = 1 << 30;

/// A distance that no receiver's window of today's defaults reaches: worth telling.
const FAR: i64 = 1 << 24;

/// Why a reply was not translated back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Conntrack had no connection for it.
    Invalid,
    /// A rule had taken it out of connection tracking.
    Untracked,
    /// Netfilter did not see it: the bridge passed it on without.
    Bridged,
    /// Conntrack took it for the first packet of a new connection: the entry of the requests was gone.
    Forgotten,
    /// Nothing shows it.
    Unknown,
}

impl Why {
    /// What to do.
    pub(super) fn next(self) -> &'static str {
        match self {
            Self::Invalid => {
                "drop INVALID packets in FORWARD there, as kube-proxy does (KUBE-FORWARD), or set net.netfilter.nf_conntrack_tcp_be_liberal=1; \
                 `conntrack -S` counts them"
            }
            Self::Untracked => "look for NOTRACK or notrack in the tables raw there: `iptables-save -t raw`, `nft list ruleset`",
            Self::Bridged => "load br_netfilter and set net.bridge.bridge-nf-call-iptables=1 on that node",
            Self::Forgotten => {
                "entries expire without packets (net.netfilter.nf_conntrack_udp_timeout), or a tool deletes them: `conntrack -E -e DESTROY` there"
            }
            Self::Unknown => "see `conntrack -L` and `nft list ruleset` on that node",
        }
    }
}

/// Replies of one kind that were not translated back.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Untranslated {
    /// How many.
    pub(super) count: usize,
    /// Address and port that requests were sent to.
    pub(super) dialled: SocketAddr,
    /// Address and port that they were translated to.
    pub(super) endpoint: SocketAddr,
    /// Node that translated the requests.
    pub(super) node: String,
    /// Pod that the replies came to.
    pub(super) pod: Option<String>,
    /// Why.
    pub(super) why: Why,
    /// What speaks for it.
    pub(super) evidence: Vec<String>,
}

impl Untranslated {
    /// What it is, in words.
    pub(super) fn text(&self) -> String {
        let why = match self.why {
            Why::Invalid => ": conntrack held it for invalid (out of window, or a bad checksum)",
            Why::Untracked => ": a rule had taken it out of connection tracking (notrack)",
            Why::Bridged => ": the bridge passed it on without netfilter (net.bridge.bridge-nf-call-iptables is off)",
            Why::Forgotten => ": conntrack had no entry of the connection any more",
            Why::Unknown => "",
        };
        let place = place(None, self.pod.as_deref(), None);
        let (what, node) = (packets(self.count, Direction::Reply), &self.node);
        format!("{what} not translated back on {node}{why}; arrived {place} from {} instead of {}", self.endpoint, self.dialled)
    }
}

/// A conversation whose requests were translated on a node.
struct Translated<'a> {
    dialled: SocketAddr,
    endpoint: SocketAddr,
    node: String,
    requests: Vec<&'a Packet>,
}

/// All of them, by cause.
pub(super) fn untranslated(journeys: &[Journey<'_>]) -> Vec<Untranslated> {
    let translated = translations(journeys);
    let mut found: Vec<Untranslated> = Vec::new();
    for journey in journeys.iter().filter(|j| is_reply(j)) {
        let Some(of) = translated.get(&conversation(journey)) else { continue };
        let arrived = journey.steps.iter().find(|s| s.stage.stage().side == Side::Receive && s.spot.pod.is_some());
        let (Some(arrived), true) = (arrived, journey.last_flow().from == of.endpoint) else { continue };
        let (why, evidence) = why(journey, of);
        match found.iter_mut().find(|u| (u.dialled, u.endpoint, &u.node, u.why) == (of.dialled, of.endpoint, &of.node, why)) {
            Some(known) => known.count += 1,
            None => found.push(Untranslated {
                count: 1,
                dialled: of.dialled,
                endpoint: of.endpoint,
                node: of.node.clone(),
                pod: arrived.spot.pod.clone(),
                why,
                evidence,
            }),
        }
    }
    found
}

/// Whether a packet belongs to what follows from such replies: they are dropped or answered with a reset.
pub(super) fn follows(untranslated: &[Untranslated], flow: Flow) -> bool {
    untranslated.iter().any(|u| flow.from == u.endpoint || flow.to == u.endpoint)
}

/// Whether it is a reply that carries something of the conversation, no error about it.
pub(super) fn is_reply(journey: &Journey<'_>) -> bool {
    let first = journey.first();
    let carries = !matches!(first.kind, PacketKind::IcmpError | PacketKind::IcmpRedirect | PacketKind::Bypass);
    journey.direction() == Direction::Reply && first.protocol != Protocol::Icmp && carries
}

/// A conversation has a number of its own in each helper; the one where the reply arrived is meant.
fn conversation(journey: &Journey<'_>) -> (usize, u64) {
    let (helper, packet) = journey.parts[journey.parts.len() - 1];
    (helper, packet.conversation)
}

fn translations<'a>(journeys: &[Journey<'a>]) -> HashMap<(usize, u64), Translated<'a>> {
    let mut found: HashMap<(usize, u64), Translated<'a>> = HashMap::new();
    for journey in journeys.iter().filter(|j| j.direction() == Direction::Request) {
        for (part, (helper, packet)) in journey.parts.iter().enumerate() {
            let after = packet.hops.iter().filter_map(|h| h.rewritten).next_back();
            let Some(after) = after.filter(|after| after.to != packet.flow.to) else { continue };
            let at = packet.hops.iter().position(|h| h.rewritten.is_some_and(|f| f.to == after.to));
            let reference = journey.hops.iter().position(|h| h.part == part && Some(h.hop) == at);
            let step = journey.steps.iter().find(|s| reference.is_some_and(|r| (s.first_hop..s.first_hop + s.hops).contains(&r)));
            let Some(step) = step else { continue };
            // What a pod redirects to itself (a sidecar) never leaves it, and no hook on the return path shows the address before.
            if step.spot.pod.is_some() && journey.direction() == Direction::Request && after.to.ip().is_loopback() {
                continue;
            }
            let new = || Translated { dialled: packet.flow.to, endpoint: after.to, node: step.spot.node.clone(), requests: Vec::new() };
            found.entry((*helper, packet.conversation)).or_insert_with(new).requests.push(packet);
        }
    }
    found
}

fn why(journey: &Journey<'_>, of: &Translated<'_>) -> (Why, Vec<String>) {
    let steps = || journey.steps.iter().filter(|s| s.spot.node == of.node && s.spot.pod.is_none());
    let hops = steps()
        .filter(|s| is_netfilter(s.stage))
        .flat_map(|s| journey.hops[s.first_hop..s.first_hop + s.hops].iter())
        .map(|h| &journey.parts[h.part].1.hops[h.hop]);
    let state = |h: &'_ Hop| h.facts.as_ref().map(|f| if f.reply { ConnectionState::Established } else { f.connection });
    let states: Vec<(&str, ConnectionState)> = hops.filter_map(|h| Some((h.hook.as_str(), state(h)?))).collect();
    let seen_by_netfilter = steps().any(|s| is_netfilter(s.stage));
    let mut evidence = Vec::new();
    let behind = states.iter().rfind(|(hook, _)| !is_before_conntrack(hook));
    let why = match behind {
        Some((hook, ConnectionState::None)) => {
            evidence.push(format!("at {hook} on {} conntrack had no connection for it: it had found the packet invalid", of.node));
            evidence.extend(out_of_window(journey.first(), of));
            Why::Invalid
        }
        Some((hook, ConnectionState::Untracked)) => {
            evidence.push(format!("at {hook} on {} it was untracked", of.node));
            Why::Untracked
        }
        Some((hook, ConnectionState::New)) => {
            evidence.push(format!("at {hook} on {} conntrack took it for the first packet of a new connection", of.node));
            Why::Forgotten
        }
        None if !seen_by_netfilter && steps().next().is_some() => {
            evidence.push(format!("the requests went through netfilter's hooks on {}, this reply through none of them", of.node));
            Why::Bridged
        }
        _ => Why::Unknown,
    };
    (why, evidence)
}

fn out_of_window(reply: &Packet, of: &Translated<'_>) -> Option<String> {
    if reply.protocol != Protocol::Tcp {
        return None;
    }
    let first_seen = |p: &&&Packet| p.hops.first().map_or(0, |h| h.at_ns);
    let came = reply.hops.first().map_or(u64::MAX, |h| h.at_ns);
    let last = of.requests.iter().filter(|p| first_seen(p) <= came && p.ack != 0).max_by_key(first_seen)?;
    let distance = i64::from(reply.seq.wrapping_sub(last.ack).cast_signed());
    ((FAR..=LARGEST_WINDOW).contains(&distance.abs())).then(|| {
        let side = if distance > 0 { "beyond" } else { "before" };
        format!("its sequence number lies {} bytes {side} what the other side had acknowledged: outside of the window", distance.abs())
    })
}
