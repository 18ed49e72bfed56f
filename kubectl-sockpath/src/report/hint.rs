//! The kinds of findings: what each says, how bad it is, and what to do next.

use sockpath_protocol::packet::{Certainty, Direction};
use sockpath_protocol::stage::StageId;

use super::document::{Finding, Severity};
use super::rewrites::RewriteRow;
use super::untranslated::{Untranslated, Why};
use crate::duration::nanos;
use crate::session::SessionError;

/// Id of the finding that replies were not translated back.
pub(super) const UNTRANSLATED: &str = "untranslated-reply";

/// Neighbours that had to be asked for at one place.
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
    NoEndpoints { service: String },
    /// Packets were sent on to an address nobody named.
    UnexpectedDnat(Box<RewriteRow>),
    /// Packets were dropped.
    Dropped {
        count: usize,
        reason: String,
        place: String,
        direction: Direction,
        advice: Option<&'static str>,
        detail: Option<String>,
        certainty: Option<Certainty>,
        evidence: Vec<String>,
    },
    /// Packets were seen no more.
    Vanished { count: usize, last: StageId, expected: StageId, place: String, direction: Direction },
    /// Replies were not translated back.
    Untranslated(Box<Untranslated>),
    /// Nothing came back.
    NoReply { requests: u64 },
    /// Packets left a node and did not appear on the next.
    HalfMissing { count: usize, node: String },
    /// A probe failed.
    ProbeFailed { to: String, error: String },
    /// A listener refuses connections because its backlog is full.
    BacklogOverflow { count: usize, place: String },
    /// Connections were reset.
    Resets { count: usize, sent: bool, place: String, follows: bool },
    /// Segments were sent again.
    Retransmissions { count: usize, place: String },
    /// A receive queue was full.
    ReceiveQueueFull { count: usize, place: String },
    /// Most of the time is spent waiting for the reader.
    ReaderSlow { share: f64, p50_ns: u64 },
    /// A queue discipline holds packets back.
    Queueing { device: String, place: String, p50_ns: u64 },
    /// Neighbours had to be asked for: where, how often, and how long packets waited for it when that was long.
    NeighbourLookups(Vec<NeighbourLookup>),
    /// Packets were cut on the way.
    Segmented { count: usize, place: String, from: u32, to: u32 },
    /// Packets were larger than the MTU and had to be fragmented.
    Fragmented { count: usize, place: String },
    /// Packets of one kind took several ways.
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
    /// As the report lists it.
    #[must_use]
    pub(super) fn finding(&self) -> Finding {
        use Severity::{Critical, Info, Warning};
        let go = |s: &str| Some(s.to_owned());
        let (id, severity, text, next) = match self {
            Self::HelperFailed { nodes, text, code } => {
                ("helper-failed", Critical, format!("the helper on {nodes} failed: {text} ({code})"), go("kubectl sockpath doctor"))
            }
            Self::PodChanged { text } => ("pod-changed", Critical, text.clone(), None),
            Self::NodeMissing { nodes, text } => (
                "node-missing",
                Critical,
                SessionError::Absent { detail: text.clone() }.on(nodes),
                go("what happened on that node is not in this report: --wait-nodes waits longer, kubectl sockpath doctor examines it"),
            ),
            Self::HelperLost { nodes, text } => {
                ("helper-lost", Critical, format!("the helper on {nodes}: {text}"), go("kubectl sockpath cleanup"))
            }
            Self::NoEndpoints { service } => {
                let name = service.split('/').next_back().unwrap_or(service);
                let next = format!(
                    "kubectl get endpointslices -l kubernetes.io/service-name={name}: compare the Service's selector with the pods' labels and readiness"
                );
                (
                    "no-endpoints",
                    Critical,
                    format!("Service {service} has no ready pods behind it, so the node refuses or drops connections to it"),
                    Some(next),
                )
            }
            Self::UnexpectedDnat(row) => {
                let rule = row.rule.as_ref().map_or_else(String::new, |r| format!(" by {r}"));
                let text = format!(
                    "packets to {} were sent on to {}{rule}, which is not the target that was named ({} {})",
                    row.from,
                    row.to,
                    row.stage.stage().name,
                    place(Some(&row.node), row.pod.as_deref(), None)
                );
                (
                    "unexpected-dnat",
                    Critical,
                    text,
                    go("look for a rule with that address: `nft list ruleset` (or `iptables-save -t nat`) on that node"),
                )
            }
            Self::Dropped { count, reason, place, direction, advice, detail, .. } => {
                let detail = detail.as_ref().map_or_else(String::new, |d| format!(" ({d})"));
                let text = format!("{} dropped with {reason} {place}{detail}", packets(*count, *direction));
                ("dropped", Critical, text, advice.map(str::to_owned))
            }
            Self::Vanished { count, last, expected, place, direction } => {
                let text = format!(
                    "{} last seen at `{}` {place}, expected next at `{}`",
                    packets(*count, *direction),
                    last.stage().name,
                    expected.stage().name
                );
                (
                    "vanished",
                    Critical,
                    text,
                    go("a program at tc, XDP or in the driver may have taken them: `bpftool net` and `tc -s qdisc` there"),
                )
            }
            Self::Untranslated(u) => (UNTRANSLATED, Critical, untranslated_text(u), go(untranslated_next(u.why))),
            Self::NoReply { requests } => (
                "no-reply",
                Critical,
                format!(
                    "{} went out, nothing came back",
                    counted(usize::try_from(*requests).unwrap_or(usize::MAX), "request packet", false)
                ),
                go("trace the way back: swap SOURCE and TARGET"),
            ),
            Self::HalfMissing { count, node } => {
                let text = format!("{} left {node} and did not appear on the other node", counted(*count, "packet", false));
                (
                    "half-missing",
                    Warning,
                    text,
                    go(
                        "they were lost between the nodes, or that node's helper saw too little: see the warnings and `kubectl sockpath doctor`",
                    ),
                )
            }
            Self::ProbeFailed { to, error } => ("probe-failed", Warning, format!("the probe to {to} failed: {error}"), None),
            Self::BacklogOverflow { count, place } => (
                "backlog-overflow",
                Critical,
                format!("a listener {place} had no room for {}: its backlog was full", counted(*count, "connection", false)),
                go("accept faster, or raise the listen() backlog and net.core.somaxconn"),
            ),
            Self::Resets { count, sent, place, follows } => {
                let verb = if *sent { "sent" } else { "received" };
                (
                    "reset",
                    Warning,
                    format!("{} {verb} {place}", counted(*count, "reset", true)),
                    go(match follows {
                        true => "it answers a packet that was not translated back: see above",
                        false => "no listener on that port, or the application closed with unread data",
                    }),
                )
            }
            Self::Retransmissions { count, place } => (
                "retransmission",
                Warning,
                format!("{} sent again {place}", counted(*count, "segment", true)),
                go("look for drops above, or a receiver that acknowledges late"),
            ),
            Self::ReceiveQueueFull { count, place } => (
                "receive-queue-full",
                Warning,
                format!("a receive queue {place} was full {}", times(*count)),
                go("the reader is too slow, or its socket buffer (SO_RCVBUF) too small"),
            ),
            Self::ReaderSlow { share, p50_ns } => (
                "reader-wait",
                Info,
                format!("{:.0} % of the time ({}) the data waits for the reader to get a CPU and read it", share * 100.0, nanos(*p50_ns)),
                go("not the network: look at the target's CPU limit and load"),
            ),
            Self::Queueing { device, place, p50_ns } => (
                "queueing",
                Warning,
                format!("packets wait {} in the queue discipline of {device} {place}", nanos(*p50_ns)),
                Some(format!("`tc -s qdisc show dev {device}` there; a bandwidth limit of the pod looks like this")),
            ),
            Self::NeighbourLookups(lookups) => {
                let text = lookups.iter().map(NeighbourLookup::words).collect::<Vec<_>>().join(", ");
                (
                    "neighbour",
                    Info,
                    format!("MAC addresses had to be asked for {text}"),
                    go("there was no entry, or it had expired: `ip neigh show` there"),
                )
            }
            Self::Segmented { count, place, from, to } => (
                "segmented",
                Info,
                format!("{} cut on the way {place} (from {from} to {to} bytes)", counted(*count, "packet", true)),
                go("normal where segmentation is left to the device (GSO); between tunnels compare MTUs"),
            ),
            Self::Fragmented { count, place } => (
                "fragmented",
                Warning,
                format!("{} larger than the MTU and had to be cut into fragments {place}", counted(*count, "packet", true)),
                go("compare the MTU of pod, bridge and tunnel devices with what the application sends"),
            ),
            Self::SeveralRoutes { others, of, through } => (
                "several-routes",
                Info,
                format!("{others} of {of} packets went another way: {through}"),
                go("the picture shows the way most packets took; -o json lists all"),
            ),
            Self::Sampled { recorded, matched } => (
                "sampled",
                Info,
                format!("traffic was hot: {recorded} of {matched} packets were recorded, whole packets each"),
                go("--every-packet records all"),
            ),
            Self::NotKept { kept, came } => {
                ("not-kept", Info, format!("{came} packets came, the figures are made of {kept} of them drawn at random"), None)
            }
            Self::LostEvents { count } => (
                "lost-events",
                Warning,
                format!(
                    "{} no room in the ring buffer: some packets miss hops",
                    if *count == 1 { "1 event found".to_owned() } else { format!("{count} events found") }
                ),
                go("without --every-packet the helper samples and keeps up"),
            ),
            Self::Untracked { count } => (
                "untracked",
                Warning,
                format!(
                    "{} could not be tracked: too many at once",
                    counted(usize::try_from(*count).unwrap_or(usize::MAX), "packet", false)
                ),
                None,
            ),
            Self::UnnamedRules { nodes, why } => (
                "rules-unread",
                Info,
                format!("which rules of netfilter did this on {nodes} is not known: {why}"),
                go("trace without --no-rules asks for that right (docs/cluster.md)"),
            ),
            Self::CouldAccelerate { traversals, pods } => (
                "could-accelerate",
                Info,
                format!("both pods share a node, yet each packet runs through {traversals} network stacks"),
                Some(format!("kubectl sockpath accelerate {pods}")),
            ),
            Self::Warned { text, count } => {
                let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
                ("warning", Warning, format!("{text}{times}"), None)
            }
        };
        let direction = match self {
            Self::Dropped { direction, .. } | Self::Vanished { direction, .. } => Some(*direction),
            Self::Untranslated(_) => Some(Direction::Reply),
            _ => None,
        };
        let (certainty, evidence) = match self {
            Self::Dropped { certainty, evidence, .. } => (*certainty, evidence.clone()),
            Self::Untranslated(u) => {
                (Some(if u.why == Why::Unknown { Certainty::Observed } else { Certainty::Inferred }), u.evidence.clone())
            }
            _ => (None, Vec::new()),
        };
        let because = matches!(self, Self::Resets { follows: true, .. }).then_some(UNTRANSLATED);
        Finding { id, severity, direction, text, next, certainty, evidence, because }
    }
}

fn untranslated_text(u: &Untranslated) -> String {
    let why = match u.why {
        Why::Invalid => ": conntrack held it for invalid (out of window, or a bad checksum)",
        Why::Untracked => ": a rule had taken it out of connection tracking (notrack)",
        Why::Bridged => ": the bridge passed it on without netfilter (net.bridge.bridge-nf-call-iptables is off)",
        Why::Unknown => "",
    };
    let place = place(None, u.pod.as_deref(), None);
    let (what, node) = (packets(u.count, Direction::Reply), &u.node);
    format!("{what} not translated back on {node}{why}; arrived {place} from {} instead of {}", u.endpoint, u.dialled)
}

fn untranslated_next(why: Why) -> &'static str {
    match why {
        Why::Invalid => {
            "drop INVALID packets in FORWARD there, as kube-proxy does (KUBE-FORWARD), or set net.netfilter.nf_conntrack_tcp_be_liberal=1; \
             `conntrack -S` counts them"
        }
        Why::Untracked => "look for NOTRACK or notrack in the tables raw there: `iptables-save -t raw`, `nft list ruleset`",
        Why::Bridged => "load br_netfilter and set net.bridge.bridge-nf-call-iptables=1 on that node",
        Why::Unknown => "see `conntrack -L` and `nft list ruleset` on that node",
    }
}

/// `1 reset was`, `3 resets were`.
fn counted(count: usize, one: &str, verb: bool) -> String {
    let (s, be) = if count == 1 { ("", " was") } else { ("s", " were") };
    format!("{count} {one}{s}{}", if verb { be } else { "" })
}

fn times(count: usize) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn packets(count: usize, direction: Direction) -> String {
    let what = match direction {
        Direction::Request => "request",
        Direction::Reply => "reply",
    };
    if count == 1 { format!("1 {what} packet was") } else { format!("{count} {what} packets were") }
}

/// `in pod x on node y at device z`, with what is known.
pub(super) fn place(node: Option<&str>, pod: Option<&str>, device: Option<&str>) -> String {
    let mut text = match (pod, node) {
        (Some(pod), _) => format!("in pod {pod}"),
        (None, Some(node)) if !node.is_empty() => format!("on {node}"),
        _ => "somewhere".to_owned(),
    };
    if let Some(device) = device {
        text.push_str(&format!(" at {device}"));
    }
    text
}
