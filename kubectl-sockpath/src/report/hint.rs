//! The kinds of findings: what each says, how bad it is, and what to do next.

use std::net::SocketAddr;

use sockpath_protocol::packet::{Certainty, Direction, Flow, Mechanism, PacketKind};
use sockpath_protocol::stage::StageId;

use super::document::{Finding, Severity};
use super::forgotten::Forgotten;
use super::kind::Id;
use super::repeats::Repeats;
use super::rewrites::RewriteRow;
use super::still_open::Reached;
use super::untranslated::{Untranslated, Why};
use super::wording::{counted, large, packets, place, times};
use crate::duration::nanos;
use crate::session::SessionError;

/// Neighbours that were resolved at one place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NeighbourLookup {
    /// `in pod x`, `on node y`.
    pub(super) place: String,
    pub(super) count: usize,
    /// What a packet typically waited, when it was long.
    pub(super) waited_ns: Option<u64>,
}

impl NeighbourLookup {
    fn words(&self) -> String {
        let waited = self.waited_ns.map_or_else(String::new, |t| format!(", {} each", nanos(t)));
        format!("{} ({}{waited})", self.place, times(self.count))
    }
}

/// Everything there is to say. One variant is one kind of finding.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hint {
    /// The helper failed.
    HelperFailed { nodes: String, text: String, code: String },
    /// Something happened to a pod while it was watched.
    PodChanged { text: String },
    /// A node was not watched: no helper could be started there.
    NodeMissing { nodes: String, text: String },
    /// The stream of a helper was cut off.
    HelperLost { nodes: String, text: String },
    /// A Service without ready pods was named.
    NoEndpoints { service: String, frontends: Vec<SocketAddr> },
    /// Packets were translated to an address that is not a target.
    UnexpectedDnat(Box<RewriteRow>),
    /// Datagrams were sent on to an address that no rule names: conntrack remembers it.
    StaleEntry(Box<RewriteRow>),
    /// A rule in the pod sends connections to the proxy of a service mesh.
    Sidecar { name: &'static str, from: SocketAddr, to: SocketAddr, place: String },
    /// Packets were dropped.
    Dropped {
        count: usize,
        reason: String,
        place: String,
        direction: Direction,
        advice: Option<&'static str>,
        mechanism: Option<Mechanism>,
        detail: Option<String>,
        certainty: Option<Certainty>,
        evidence: Vec<String>,
        /// Addresses of the first packet, as it was sent.
        flow: Flow,
        kind: PacketKind,
        /// Every connection has such drops: what was dropped had arrived, or no process waits for it.
        harmless: bool,
    },
    /// Packets were seen no more.
    Vanished { count: usize, last: StageId, expected: StageId, place: String, direction: Direction, flows: Vec<Flow> },
    /// Replies were not translated back.
    Untranslated(Box<Untranslated>),
    /// No reply was received.
    NoReply { requests: u64, datagrams: bool },
    /// Packets left a node and did not appear on the next.
    HalfMissing { count: usize, node: String },
    /// A probe failed: how, and what in the source did it.
    ProbeFailed {
        to: String,
        error: String,
        mechanism: Option<Mechanism>,
        certainty: Option<Certainty>,
        detail: Option<String>,
        evidence: Vec<String>,
    },
    /// A listener refuses connections because its backlog is full.
    BacklogOverflow { count: usize, place: String },
    /// SYNs were answered with cookies.
    SynCookies { place: String },
    /// The queue of half-open connections was full.
    SynQueueFull { place: String },
    /// A receive window was closed.
    ZeroWindow { place: String },
    /// A pod used up its CPU limit.
    CpuThrottled { place: String, details: Vec<String> },
    /// The other side holds a connection that the client has forgotten.
    StillOpen(Box<Reached>),
    /// The other side keeps the addresses and ports of a closed connection.
    TimeWait(Box<Reached>),
    /// Conntrack does not know a connection any more.
    Forgotten(Box<Forgotten>),
    /// Connections were reset.
    Resets { count: usize, sent: bool, place: String, flows: Vec<Flow> },
    /// Segments were sent again.
    Retransmissions { count: usize, place: String, flows: Vec<Flow>, repeats: Repeats },
    /// A receive queue was full.
    ReceiveQueueFull { count: usize, place: String },
    /// Most of the time is spent waiting for the receiving process.
    ReaderSlow { share: f64, p50_ns: u64 },
    /// A queue discipline holds packets back.
    Queueing { device: String, place: String, p50_ns: u64 },
    /// ARP or ND resolution was needed: where, how often, and how long packets waited for it when that was long.
    NeighbourLookups(Vec<NeighbourLookup>),
    /// Packets were cut in transit.
    Segmented { count: usize, place: String, from: u32, to: u32 },
    /// Packets were larger than the MTU and had to be fragmented.
    Fragmented { count: usize, place: String },
    /// Packets of one kind took several routes.
    SeveralRoutes { others: usize, of: usize, through: String },
    /// Sampling was active.
    Sampled { recorded: u64, matched: u64 },
    /// More packets came than the report keeps.
    NotKept { kept: usize, came: u64 },
    /// Events were lost.
    LostEvents { count: u64 },
    /// Packets could not be tracked.
    Untracked { count: u64 },
    /// Rules did something and may not be read.
    UnnamedRules { nodes: String, why: String },
    /// The pods could be accelerated.
    CouldAccelerate { traversals: u32, pods: String },
    /// Helpers warned.
    Warned { text: String, count: u64 },
}

impl Hint {
    /// Its row of the table.
    pub(super) fn id(&self) -> Id {
        match self {
            Self::HelperFailed { .. } => Id::HelperFailed,
            Self::PodChanged { .. } => Id::PodChanged,
            Self::NodeMissing { .. } => Id::NodeMissing,
            Self::HelperLost { .. } => Id::HelperLost,
            Self::NoEndpoints { .. } => Id::NoEndpoints,
            Self::UnexpectedDnat(_) => Id::UnexpectedDnat,
            Self::StaleEntry(_) => Id::StaleEntry,
            Self::Sidecar { .. } => Id::Sidecar,
            Self::Dropped { .. } => Id::Dropped,
            Self::Vanished { .. } => Id::Vanished,
            Self::Untranslated(_) => Id::Untranslated,
            Self::NoReply { .. } => Id::NoReply,
            Self::HalfMissing { .. } => Id::HalfMissing,
            Self::ProbeFailed { .. } => Id::ProbeFailed,
            Self::BacklogOverflow { .. } => Id::Backlog,
            Self::SynCookies { .. } => Id::SynCookies,
            Self::SynQueueFull { .. } => Id::SynQueueFull,
            Self::ZeroWindow { .. } => Id::ZeroWindow,
            Self::CpuThrottled { .. } => Id::CpuThrottled,
            Self::StillOpen(_) => Id::StillOpen,
            Self::TimeWait(_) => Id::TimeWait,
            Self::Forgotten(_) => Id::Forgotten,
            Self::Resets { .. } => Id::Reset,
            Self::Retransmissions { .. } => Id::Retransmission,
            Self::ReceiveQueueFull { .. } => Id::ReceiveQueueFull,
            Self::ReaderSlow { .. } => Id::ReaderWait,
            Self::Queueing { .. } => Id::Queueing,
            Self::NeighbourLookups(_) => Id::Neighbour,
            Self::Segmented { .. } => Id::Segmented,
            Self::Fragmented { .. } => Id::Fragmented,
            Self::SeveralRoutes { .. } => Id::SeveralRoutes,
            Self::Sampled { .. } => Id::Sampled,
            Self::NotKept { .. } => Id::NotKept,
            Self::LostEvents { .. } => Id::LostEvents,
            Self::Untracked { .. } => Id::Untracked,
            Self::UnnamedRules { .. } => Id::UnnamedRules,
            Self::CouldAccelerate { .. } => Id::CouldAccelerate,
            Self::Warned { .. } => Id::Warned,
        }
    }

    /// As the report lists it, as a cause of its own.
    #[must_use]
    pub(super) fn finding(&self) -> Finding {
        let kind = self.id().kind();
        let direction = match self {
            Self::Dropped { direction, .. } | Self::Vanished { direction, .. } => Some(*direction),
            Self::Untranslated(_) | Self::Forgotten(_) => Some(Direction::Reply),
            _ => None,
        };
        let (certainty, evidence) = match self {
            Self::Dropped { certainty, evidence, .. } => (*certainty, evidence.clone()),
            Self::ProbeFailed { mechanism: Some(_), certainty, evidence, .. } => (*certainty, evidence.clone()),
            Self::StillOpen(r) | Self::TimeWait(r) => (Some(r.certainty), r.evidence.clone()),
            Self::Forgotten(f) => (Some(f.certainty()), f.evidence.clone()),
            Self::Untranslated(u) => {
                (Some(if u.why == Why::Unknown { Certainty::Observed } else { Certainty::Inferred }), u.evidence.clone())
            }
            _ => (None, Vec::new()),
        };
        Finding {
            id: kind.id,
            // A call that fails for a reason of its own does not follow from what packets did.
            severity: if matches!(self, Self::ProbeFailed { mechanism: Some(_), .. }) { Severity::Critical } else { kind.severity },
            direction,
            text: self.text(),
            next: self.next(),
            mechanism: self.mechanism(),
            certainty,
            evidence,
            because: None,
            root: None,
        }
    }

    /// What did it.
    fn mechanism(&self) -> Option<Mechanism> {
        match self {
            Self::Dropped { mechanism, .. } | Self::ProbeFailed { mechanism, .. } => *mechanism,
            Self::Forgotten(f) if f.early => Some(Mechanism::EarlyDrop),
            // It still waits for the answer.
            Self::Vanished { last: StageId::NeighbourOut | StageId::NodeNeighbour, .. } => Some(Mechanism::NeighbourSilent),
            _ => None,
        }
    }

    /// What to do: what its row says, unless this finding knows better.
    fn next(&self) -> Option<String> {
        let kind = self.id().kind();
        match self {
            Self::Dropped { advice, .. } => advice.map(str::to_owned),
            Self::ProbeFailed { .. } | Self::Vanished { .. } | Self::Forgotten(_) if self.mechanism().is_some() => {
                self.mechanism().map(|m| m.row().advice.to_owned())
            }
            Self::Untranslated(u) => Some(u.why.next().to_owned()),
            Self::NoEndpoints { service, .. } => kind.next_with(&[("service", service.split('/').next_back().unwrap_or(service))]),
            Self::StaleEntry(row) => kind.next_with(&[("address", &row.from.ip().to_string()), ("port", &row.from.port().to_string())]),
            Self::Queueing { device, .. } => kind.next_with(&[("device", device)]),
            Self::CouldAccelerate { pods, .. } => kind.next_with(&[("pods", pods)]),
            _ => kind.next_with(&[]),
        }
    }

    /// What it is, in words.
    fn text(&self) -> String {
        match self {
            Self::Vanished { count, last, expected, place, direction, .. } => format!(
                "{} last seen at `{}` {place}, expected next at `{}`",
                packets(*count, *direction),
                last.stage().name,
                expected.stage().name
            ),
            Self::Dropped { count, reason, place, direction, detail, .. } => {
                let detail = detail.as_ref().map_or_else(String::new, |d| format!(" ({d})"));
                format!("{} dropped with {reason} {place}{detail}", packets(*count, *direction))
            }
            Self::Untranslated(u) => u.text(),
            Self::UnexpectedDnat(row) => {
                let rule = row.rule.as_ref().map_or_else(String::new, |r| format!(" by {r}"));
                let (stage, place) = (row.stage.stage().name, place(Some(&row.node), row.pod.as_deref(), None));
                let (from, to) = (row.from, row.to);
                format!("packets to {from} were sent on to {to}{rule}, which is not the target that was named ({stage} {place})")
            }
            Self::StaleEntry(row) => {
                let (from, to, place) = (row.from, row.to, place(Some(&row.node), row.pod.as_deref(), None));
                format!(
                    "datagrams to {from} were sent on to {to} {place}, which no rule there names: a connection tracking entry from before"
                )
            }
            Self::Sidecar { name, from, to, place } => {
                format!("connections to {from} go to {name}'s proxy at {to} {place}: it connects to the target itself")
            }
            Self::Forgotten(f) => f.text(),
            Self::NoEndpoints { service, .. } => {
                format!("Service {service} has no ready pods behind it, so the node refuses or drops connections to it")
            }
            Self::NoReply { requests, .. } => format!("{} sent, no reply received", large(*requests, "request packet")),
            Self::HalfMissing { count, node } => {
                format!("{} left {node} and did not appear on the other node", counted(*count, "packet", false))
            }
            Self::ReaderSlow { share, p50_ns } => {
                format!("data waited {} ({:.0} %) for the receiving process to be scheduled", nanos(*p50_ns), share * 100.0)
            }
            Self::Queueing { device, place, p50_ns } => {
                format!("packets wait {} in the queue discipline of {device} {place}", nanos(*p50_ns))
            }
            Self::NeighbourLookups(lookups) => {
                let text = lookups.iter().map(NeighbourLookup::words).collect::<Vec<_>>().join(", ");
                format!("ARP/ND resolution was needed {text}")
            }
            Self::Segmented { count, place, from, to } => {
                format!("{} cut {place} (from {from} to {to} bytes)", counted(*count, "packet", true))
            }
            Self::Fragmented { count, place } => {
                format!("{} larger than the MTU and had to be cut into fragments {place}", counted(*count, "packet", true))
            }
            Self::SeveralRoutes { others, of, through } => format!("{others} of {of} packets took another path: {through}"),
            Self::CouldAccelerate { traversals, .. } => {
                format!("both pods share a node, yet each packet runs through {traversals} network stacks")
            }
            Self::ProbeFailed { to, error, detail, .. } => {
                let detail = detail.as_ref().map_or_else(String::new, |d| format!(" ({d})"));
                format!("the probe to {to} failed: {error}{detail}")
            }
            of_sockets => of_sockets.text_about_sockets(),
        }
    }

    /// The same of findings about sockets and who uses them.
    fn text_about_sockets(&self) -> String {
        match self {
            Self::BacklogOverflow { count, place } => {
                format!("a listener {place} had no room for {}: its backlog was full", counted(*count, "connection", false))
            }
            Self::SynCookies { place } => format!("SYNs were answered with cookies {place}: the queue of half-open connections was full"),
            Self::SynQueueFull { place } => format!("SYNs were dropped {place}: the queue of half-open connections was full"),
            Self::ZeroWindow { place } => format!("the reader {place} is too slow: TCP closed its receive window, and the writer waits"),
            Self::CpuThrottled { place, details } => format!("CPU limit reached {place}: {}", details.join("; ")),
            Self::StillOpen(reached) | Self::TimeWait(reached) => reached.text(self.id() == Id::TimeWait),
            Self::Resets { count, sent, place, .. } => {
                format!("{} {} {place}", counted(*count, "reset", true), if *sent { "sent" } else { "received" })
            }
            Self::Retransmissions { count, place, repeats, .. } => {
                let why = match (repeats.arrived, repeats.lost) {
                    (0, _) => "",
                    (_, 0) => ": the first copies had arrived, so acknowledgements were late or lost",
                    _ => ": some of the first copies had arrived, others were lost",
                };
                format!("{} sent again {place}{why}", counted(*count, "segment", true))
            }
            Self::ReceiveQueueFull { count, place } => format!("a receive queue {place} was full {}", times(*count)),
            of_the_trace => of_the_trace.text_about_the_trace(),
        }
    }

    /// The same of findings that are about the trace rather than about packets.
    fn text_about_the_trace(&self) -> String {
        match self {
            Self::HelperFailed { nodes, text, code } => format!("the helper on {nodes} failed: {text} ({code})"),
            Self::NodeMissing { nodes, text } => SessionError::Absent { detail: text.clone() }.on(nodes),
            Self::HelperLost { nodes, text } => format!("the helper on {nodes}: {text}"),
            Self::Sampled { recorded, matched } => {
                format!("packet rate was high: sampled {recorded} of {matched} packets, with all their hops")
            }
            Self::NotKept { kept, came } => format!("{came} packets came, the figures are made of {kept} of them drawn at random"),
            Self::LostEvents { count } => format!("{} found no room in the ring buffer: some packets miss hops", large(*count, "event")),
            Self::Untracked { count } => format!("{} could not be tracked: too many at once", large(*count, "packet")),
            Self::UnnamedRules { nodes, why } => format!("which rules of netfilter did this on {nodes} is not known: {why}"),
            Self::Warned { text, count } if *count > 1 => format!("{text} ({count} times)"),
            Self::PodChanged { text } | Self::Warned { text, .. } => text.clone(),
            _ => self.id().kind().title.to_owned(),
        }
    }
}
