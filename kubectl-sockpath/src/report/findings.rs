//! What the reader should know, each with what to do next.

use std::net::IpAddr;

use sockpath_protocol::message::EndReason;
use sockpath_protocol::packet::{Direction, IncidentKind, Outcome};
use sockpath_protocol::stage::StageId;

use super::capture::Capture;
use super::document::{Finding, Report, Severity};
use super::journey::Journey;
use super::rewrites::{RewriteRow, strangers};
use crate::duration::nanos;

/// Share of the typical time above which a single cause is worth a finding.
const LARGE_SHARE: f64 = 0.4;

/// Typical time in a queue above which it is worth a finding, in nanoseconds.
const LONG_QUEUE_NS: u64 = 100_000;

/// Everything there is to say. One variant is one kind of finding.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hint {
    /// The helper failed.
    HelperFailed { nodes: String, text: String, code: String },
    /// The stream of a helper was cut off.
    HelperLost { nodes: String, text: String },
    /// A Service without ready pods was named.
    NoEndpoints { service: String },
    /// Packets were sent on to an address nobody named.
    UnexpectedDnat(Box<RewriteRow>),
    /// Packets were dropped.
    Dropped { count: usize, reason: String, place: String, direction: Direction, advice: Option<&'static str>, detail: Option<String> },
    /// Packets were seen no more.
    Vanished { count: usize, last: StageId, expected: StageId, place: String, direction: Direction },
    /// Nothing came back.
    NoReply { requests: u64 },
    /// Packets left a node and did not appear on the next.
    HalfMissing { count: usize, node: String },
    /// A probe failed.
    ProbeFailed { to: String, error: String },
    /// A listener refuses connections because its backlog is full.
    BacklogOverflow { count: usize, place: String },
    /// Connections were reset.
    Resets { count: usize, sent: bool, place: String },
    /// Segments were sent again.
    Retransmissions { count: usize, place: String },
    /// A receive queue was full.
    ReceiveQueueFull { count: usize, place: String },
    /// Most of the time is spent waiting for the reader.
    ReaderSlow { share: f64, p50_ns: u64 },
    /// A queue discipline holds packets back.
    Queueing { device: String, place: String, p50_ns: u64 },
    /// A neighbour had to be asked for.
    NeighbourLookup { count: usize, place: String, p50_ns: Option<u64> },
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
    /// The pods could be accelerated.
    CouldAccelerate { traversals: u32, source: String, target: String },
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
            Self::Dropped { count, reason, place, direction, advice, detail } => {
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
            Self::Resets { count, sent, place } => {
                let verb = if *sent { "sent" } else { "received" };
                (
                    "reset",
                    Warning,
                    format!("{} {verb} {place}", counted(*count, "reset", true)),
                    go("no listener on that port, or the application closed with unread data"),
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
            Self::NeighbourLookup { count, place, p50_ns } => {
                let time = p50_ns.map_or_else(String::new, |t| format!(", which took {}", nanos(t)));
                (
                    "neighbour",
                    Info,
                    format!("a MAC address had to be asked for {place}, {}{time}", times(*count)),
                    go("the entry had expired or was removed: `ip neigh show` there"),
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
            Self::CouldAccelerate { traversals, source, target } => (
                "could-accelerate",
                Info,
                format!("both pods share a node, yet each packet runs through {traversals} network stacks"),
                Some(format!("kubectl sockpath accelerate {source} {target}")),
            ),
            Self::Warned { text, count } => {
                let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
                ("warning", Warning, format!("{text}{times}"), None)
            }
        };
        let direction = match self {
            Self::Dropped { direction, .. } | Self::Vanished { direction, .. } => Some(*direction),
            _ => None,
        };
        Finding { id, severity, direction, text, next }
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
fn place(node: Option<&str>, pod: Option<&str>, device: Option<&str>) -> String {
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

/// Everything there is to say about this report, in no particular order.
pub(super) fn findings(capture: &Capture, journeys: &[Journey<'_>], report: &Report) -> Vec<Hint> {
    let mut hints = helpers(capture);
    hints.extend(reachability(capture, journeys, report));
    hints.extend(incidents(report));
    hints.extend(timing(report));
    hints.extend(cuts(capture, journeys));
    hints.extend(accounting(capture, report));
    hints
}

fn helpers(capture: &Capture) -> Vec<Hint> {
    let mut hints = Vec::new();
    for (origin, log) in capture.origin.helpers.iter().zip(&capture.helpers) {
        let nodes = origin.nodes.join(", ");
        if let Some((text, code)) = &log.error {
            hints.push(Hint::HelperFailed { nodes, text: text.clone(), code: code.clone() });
        } else if let Some(text) = &log.lost {
            hints.push(Hint::HelperLost { nodes, text: text.clone() });
        } else if let Some(reason @ (EndReason::HeartbeatMissed | EndReason::Signal | EndReason::StdinClosed)) = log.ended {
            let text = match reason {
                EndReason::HeartbeatMissed => "it heard nothing from the plugin for too long and ended",
                EndReason::Signal => "it was told to end by a signal",
                _ => "its input was closed before the trace was done",
            };
            hints.push(Hint::HelperLost { nodes, text: text.to_owned() });
        }
    }
    for (text, count) in &capture.warnings {
        hints.push(Hint::Warned { text: text.clone(), count: *count });
    }
    hints
}

fn reachability(capture: &Capture, journeys: &[Journey<'_>], report: &Report) -> Vec<Hint> {
    let mut hints = Vec::new();
    let request = &capture.origin.plan.request;
    if let Some(name) = &capture.origin.plan.via_service {
        let named = request.services.iter().find(|s| format!("{}/{}", s.namespace, s.name) == *name);
        if named.is_some_and(|s| s.backends.is_empty()) {
            hints.push(Hint::NoEndpoints { service: name.clone() });
        }
    }
    let mut expected: Vec<IpAddr> = request.addresses.clone();
    expected.extend(request.targets.iter().flat_map(|t| t.ips.iter().copied()));
    expected.extend(request.services.iter().flat_map(|s| s.backends.iter().map(|b| b.ip())));
    hints.extend(strangers(&report.rewrites, &expected).into_iter().map(|row| Hint::UnexpectedDnat(Box::new(row))));
    for d in &report.drops {
        hints.push(Hint::Dropped {
            count: d.count,
            reason: d.reason.clone(),
            place: format!("{} in `{}`", place(d.node.as_deref(), d.pod.as_deref(), d.device.as_deref()), d.stage.stage().name),
            direction: d.direction,
            advice: d.advice,
            detail: d.detail.clone(),
        });
    }
    for v in &report.vanished {
        let place = place(v.node.as_deref(), v.pod.as_deref(), v.device.as_deref());
        hints.push(Hint::Vanished { count: v.count, last: v.last_seen, expected: v.expected, place, direction: v.direction });
    }
    if report.seen.requests > 0 && report.seen.replies == 0 && report.drops.is_empty() && report.vanished.is_empty() {
        hints.push(Hint::NoReply { requests: report.seen.requests });
    }
    let several = capture.origin.helpers.len() > 1;
    let left: Vec<&Journey<'_>> = journeys.iter().filter(|j| several && *j.outcome() == Outcome::Left).collect();
    if let Some(step) = left.first().and_then(|j| j.steps.last()) {
        hints.push(Hint::HalfMissing { count: left.len(), node: step.spot.node.clone() });
    }
    for probe in &report.probes {
        if let Some(error) = &probe.error {
            hints.push(Hint::ProbeFailed { to: probe.to.clone(), error: error.clone() });
        }
    }
    hints
}

fn incidents(report: &Report) -> Vec<Hint> {
    let mut hints = Vec::new();
    // The details of incidents are in the document; here only how often and where.
    let mut sums: Vec<(IncidentKind, String, usize)> = Vec::new();
    for row in &report.incidents {
        let place = place(row.node.as_deref(), row.pod.as_deref(), None);
        match sums.iter_mut().find(|(what, at, _)| *what == row.what && *at == place) {
            Some((_, _, count)) => *count += row.count,
            None => sums.push((row.what, place, row.count)),
        }
    }
    for (what, place, count) in sums {
        hints.push(match what {
            IncidentKind::ResetSent => Hint::Resets { count, sent: true, place },
            IncidentKind::ResetReceived => Hint::Resets { count, sent: false, place },
            IncidentKind::Retransmit | IncidentKind::RetransmitSynAck => Hint::Retransmissions { count, place },
            IncidentKind::BacklogOverflow => Hint::BacklogOverflow { count, place },
            IncidentKind::ReceiveQueueFull => Hint::ReceiveQueueFull { count, place },
            IncidentKind::Neighbour => Hint::NeighbourLookup { count, place, p50_ns: None },
            IncidentKind::State => continue,
        });
    }
    hints
}

fn timing(report: &Report) -> Vec<Hint> {
    let mut hints = Vec::new();
    let waits_for_reader = |id| matches!(id, StageId::ReaderWoken | StageId::ReceiveStackDone | StageId::ReceiveQueue);
    let reader: u64 = report.stages.iter().filter(|s| waits_for_reader(s.id)).filter_map(|s| s.times.p50_ns).sum();
    if let Some(total) = report.end_to_end.p50_ns.filter(|t| *t > 0) {
        #[expect(clippy::cast_precision_loss, reason = "a share is shown in per cent")]
        let share = reader as f64 / total as f64;
        if share >= LARGE_SHARE {
            hints.push(Hint::ReaderSlow { share, p50_ns: reader });
        }
    }
    let reply = report.reply.iter().flat_map(|r| &r.stages);
    for stage in report.stages.iter().chain(reply) {
        let place = place(stage.node.as_deref(), stage.pod.as_deref(), None);
        let p50_ns = stage.times.p50_ns;
        match stage.id {
            StageId::Qdisc | StageId::NodeQdisc if p50_ns.is_some_and(|t| t >= LONG_QUEUE_NS) => {
                let device = stage.device.clone().unwrap_or_else(|| "DEV".to_owned());
                hints.push(Hint::Queueing { device, place, p50_ns: p50_ns.unwrap_or(0) });
            }
            StageId::NeighbourOut | StageId::NodeNeighbour if stage.count > 0 && p50_ns.is_some_and(|t| t >= LONG_QUEUE_NS) => {
                hints.push(Hint::NeighbourLookup { count: stage.count, place, p50_ns });
            }
            _ => {}
        }
    }
    let own_pods = |p: &super::document::Party| p.namespace.is_some();
    let same_node = report.scenario == crate::target::Scenario::SameNode;
    let tcp = report
        .request
        .as_ref()
        .is_some_and(|r| r.protocol == sockpath_protocol::request::Protocol::Tcp && r.complete && r.packets_of == "data");
    if same_node
        && tcp
        && report.stack_traversals > 1
        && own_pods(&report.source)
        && own_pods(&report.target)
        && report.accelerated.is_none()
    {
        let (source, target) = (report.source.name.clone(), report.target.name.clone());
        hints.push(Hint::CouldAccelerate { traversals: report.stack_traversals, source, target });
    }
    hints
}

/// Packets whose length shrinks or whose segments are cut between two hops.
fn cuts(capture: &Capture, journeys: &[Journey<'_>]) -> Vec<Hint> {
    let mut cut: Option<(usize, String, u32, u32)> = None;
    let mut fragmented: Option<(usize, String)> = None;
    for journey in journeys {
        let notes = || journey.hops.iter().filter_map(|h| journey.parts[h.part].1.hops[h.hop].note.as_deref());
        // The same stage covers segmentation (GSO), which is no cause for concern.
        let step = journey.steps.iter().find(|s| s.stage == StageId::Segment).filter(|_| notes().any(|n| n.contains("first fragment")));
        if let Some(step) = step {
            let at = || place(Some(&step.spot.node), step.spot.pod.as_deref(), step.spot.device.as_deref());
            fragmented.get_or_insert_with(|| (0, at())).0 += 1;
        }
        let hops = || journey.hops.iter().map(|h| (journey.parts[h.part].0, &journey.parts[h.part].1.hops[h.hop]));
        let found = hops().zip(hops().skip(1)).find(|((_, a), (_, b))| a.segments > 1 && b.segments < a.segments && b.len < a.len);
        let Some(((_, a), (helper, b))) = found else { continue };
        match &mut cut {
            Some((count, ..)) => *count += 1,
            None => {
                let at = capture.helpers.get(helper).and_then(|h| h.places.get(&b.place));
                let device = at.and_then(|p| p.device.as_ref()).map(|d| d.name.as_str());
                cut = Some((1, place(at.map(|p| p.node.as_str()), at.and_then(|p| p.pod.as_deref()), device), a.len, b.len));
            }
        }
    }
    let cut = cut.map(|(count, place, from, to)| Hint::Segmented { count, place, from, to });
    cut.into_iter().chain(fragmented.map(|(count, place)| Hint::Fragmented { count, place })).collect()
}

fn accounting(capture: &Capture, report: &Report) -> Vec<Hint> {
    let mut hints = Vec::new();
    if let Some(request) = &report.request
        && let [_, others @ ..] = &request.routes[..]
        && let Some(other) = others.first()
    {
        let count = others.iter().map(|r| r.count).sum();
        let of = request.routes.iter().map(|r| r.count).sum();
        hints.push(Hint::SeveralRoutes { others: count, of, through: other.through.join(" > ") });
    }
    if report.overhead.sampled_out > 0 {
        hints.push(Hint::Sampled { recorded: report.overhead.recorded, matched: report.overhead.matched });
    }
    if capture.not_kept > 0 {
        hints.push(Hint::NotKept { kept: capture.packets.len(), came: capture.packets.len() as u64 + capture.not_kept });
    }
    if report.lost_events > 0 {
        hints.push(Hint::LostEvents { count: report.lost_events });
    }
    if report.overhead.untracked > 0 {
        hints.push(Hint::Untracked { count: report.overhead.untracked });
    }
    hints
}
