//! What the reader should know, each with what to do next.

use std::net::IpAddr;

use sockpath_protocol::advice;
use sockpath_protocol::message::{EndReason, NETFILTER_RULES};
use sockpath_protocol::packet::{Flow, Hop, IncidentKind, RewriteKind};
use sockpath_protocol::pod::Pod;
use sockpath_protocol::request::{Protocol, TraceRequest};
use sockpath_protocol::stage::StageId;

use super::capture::Capture;
use super::document::{DropRow, Party, Report};
use super::forgotten;
use super::halves;
use super::hint::{Hint, NeighbourLookup};
use super::journey::Journey;
use super::repeats::{Repeats, repeats};
use super::rewrites::{RewriteRow, mesh, strangers};
use super::still_open;
use super::untranslated::{self, Untranslated};
use super::wording::place;

/// Share of the typical time above which a single cause is worth a finding.
const LARGE_SHARE: f64 = 0.4;

/// Typical time in a queue above which it is worth a finding, in nanoseconds.
const LONG_QUEUE_NS: u64 = 100_000;

/// Everything there is to say about this report, in no particular order.
pub(super) fn findings(capture: &Capture, journeys: &[Journey<'_>], report: &Report, untranslated: Vec<Untranslated>) -> Vec<Hint> {
    let mut hints = helpers(capture);
    let incidents = incidents(report, &untranslated, repeats(journeys));
    hints.extend(forgotten::forgotten(journeys, &untranslated, &report.nodes).into_iter().map(|f| Hint::Forgotten(Box::new(f))));
    hints.extend(untranslated.into_iter().map(|u| Hint::Untranslated(Box::new(u))));
    hints.extend(reachability(capture, journeys, report));
    hints.extend(incidents);
    let reached = still_open::reached(journeys);
    hints.extend(reached.time_wait.map(|r| Hint::TimeWait(Box::new(r))));
    hints.extend(reached.open.map(|r| Hint::StillOpen(Box::new(r))));
    hints.extend(neighbours(report));
    hints.extend(timing(capture, report));
    hints.extend(cuts(capture, journeys));
    hints.extend(accounting(capture, report));
    hints.extend(unnamed_rules(report));
    hints
}

/// Nodes where a rule rewrote or dropped packets, and rules may not be read.
fn unnamed_rules(report: &Report) -> Option<Hint> {
    let at_work = |node: &str| {
        let rewrote = |r: &RewriteRow| r.node == node && r.by.is_none() && matches!(r.kind, RewriteKind::Dnat | RewriteKind::Snat);
        let dropped = |d: &DropRow| d.node.as_deref() == Some(node) && d.rule.is_none() && d.reason == "NETFILTER_DROP";
        report.rewrites.iter().any(rewrote) || report.drops.iter().any(dropped)
    };
    let blind = report.nodes.iter().filter_map(|n| Some((n.name.as_str(), n.unavailable.get(NETFILTER_RULES)?)));
    let (nodes, why): (Vec<&str>, Vec<&String>) = blind.filter(|(node, _)| at_work(node)).unzip();
    Some(Hint::UnnamedRules { nodes: nodes.join(", "), why: (*why.first()?).clone() })
}

fn helpers(capture: &Capture) -> Vec<Hint> {
    // What happened to a pod is the cause of what follows from it, so it comes first.
    let mut hints: Vec<Hint> = capture.changes.iter().map(|text| Hint::PodChanged { text: text.clone() }).collect();
    for (origin, log) in capture.origin.helpers.iter().zip(&capture.helpers) {
        let nodes = origin.nodes.join(", ");
        if let (Some(text), false) = (&log.lost, origin.has_joined()) {
            hints.push(Hint::NodeMissing { nodes, text: text.clone() });
        } else if let Some((text, code)) = &log.error {
            hints.push(Hint::HelperFailed { nodes, text: text.clone(), code: code.clone() });
        } else if let Some(text) = &log.lost {
            hints.push(Hint::HelperLost { nodes, text: text.clone() });
        } else if let Some(reason @ (EndReason::HeartbeatMissed | EndReason::Signal | EndReason::StdinClosed)) = log.ended {
            let text = match reason {
                EndReason::HeartbeatMissed => "it received nothing from the plugin for too long and ended",
                EndReason::Signal => "a signal ended it",
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
            let frontends = named.iter().flat_map(|s| s.frontends.iter().map(|f| f.addr)).collect();
            hints.push(Hint::NoEndpoints { service: name.clone(), frontends });
        }
    }
    let mut expected: Vec<IpAddr> = request.addresses.clone();
    expected.extend(request.targets.iter().flat_map(|t| t.ips.iter().copied()));
    expected.extend(request.services.iter().flat_map(|s| s.backends.iter().map(|b| b.ip())));
    hints.extend(sidecars(&report.rewrites, &expected, request));
    hints.extend(strangers(&report.rewrites, &expected).into_iter().filter_map(|row| {
        if mesh(&row, &request.source.ips).is_some() {
            return None;
        }
        Some(if is_stale(&row, report) { Hint::StaleEntry(Box::new(row)) } else { Hint::UnexpectedDnat(Box::new(row)) })
    }));
    // What follows from another finding is in the document only.
    for d in report.drops.iter().filter(|d| d.because.is_none()) {
        hints.push(Hint::Dropped {
            count: d.count,
            reason: d.reason.clone(),
            place: format!("{} in `{}`", place(d.node.as_deref(), d.pod.as_deref(), d.device.as_deref()), d.stage.stage().name),
            direction: d.direction,
            advice: d.advice,
            mechanism: d.mechanism,
            detail: d.detail.clone(),
            certainty: d.certainty,
            evidence: d.evidence.clone(),
            flow: d.flow,
            kind: d.kind,
            harmless: advice::is_harmless(&d.reason, d.kind, d.direction),
        });
    }
    for v in &report.vanished {
        let place = place(v.node.as_deref(), v.pod.as_deref(), v.device.as_deref());
        hints.push(Hint::Vanished {
            count: v.count,
            last: v.last_seen,
            expected: v.expected,
            place,
            direction: v.direction,
            flows: vec![v.flow],
        });
    }
    if report.seen.requests > 0 && report.seen.replies == 0 && report.drops.is_empty() && report.vanished.is_empty() {
        let datagrams = report.request.as_ref().is_some_and(|r| r.protocol == Protocol::Udp);
        hints.push(Hint::NoReply { requests: report.seen.requests, datagrams });
    }
    hints.extend(halves::missing(capture, journeys));
    for probe in &report.probes {
        if let Some(error) = &probe.error {
            hints.push(Hint::ProbeFailed {
                to: probe.to.clone(),
                error: error.clone(),
                mechanism: probe.mechanism,
                certainty: probe.certainty,
                detail: probe.detail.clone(),
                evidence: probe.evidence.clone(),
            });
        }
    }
    hints
}

/// Redirects to the proxy of a service mesh in the pod.
fn sidecars(rows: &[RewriteRow], expected: &[IpAddr], request: &TraceRequest) -> Vec<Hint> {
    let own: Vec<IpAddr> = request.source.ips.iter().chain(expected).copied().collect();
    let redirect = |row: &RewriteRow| {
        let name = mesh(row, &own).filter(|_| row.kind == RewriteKind::Dnat)?;
        Some(Hint::Sidecar { name, from: row.from, to: row.to, place: place(Some(&row.node), row.pod.as_deref(), None) })
    };
    rows.iter().filter_map(redirect).collect()
}

/// Datagrams keep their translation as long as they come, also when no rule names it any more.
fn is_stale(row: &RewriteRow, report: &Report) -> bool {
    let readable = report.nodes.iter().any(|n| n.name == row.node && !n.unavailable.contains_key(NETFILTER_RULES));
    row.protocol == Protocol::Udp && row.by.is_none() && readable
}

/// Incidents of one kind at one place.
struct Sum {
    what: IncidentKind,
    place: String,
    /// Whether they answer replies that were not translated back.
    follows: bool,
    count: usize,
    flows: Vec<Flow>,
    details: Vec<String>,
}

fn incidents(report: &Report, untranslated: &[Untranslated], repeats: Repeats) -> Vec<Hint> {
    let mut hints = Vec::new();
    // The details of incidents are in the document; here only how often and where.
    let mut sums: Vec<Sum> = Vec::new();
    for row in &report.incidents {
        let place = place(row.node.as_deref(), row.pod.as_deref(), None);
        let follows = row.flow.is_some_and(|flow| untranslated::follows(untranslated, flow));
        match sums.iter_mut().find(|s| (s.what, s.follows) == (row.what, follows) && s.place == place) {
            Some(sum) => {
                sum.count += row.count;
                sum.flows.extend(row.flow);
                sum.details.extend(row.detail.clone());
            }
            None => sums.push(Sum {
                what: row.what,
                place,
                follows,
                count: row.count,
                flows: row.flow.into_iter().collect(),
                details: row.detail.iter().cloned().collect(),
            }),
        }
    }
    for Sum { what, place, count, flows, details, .. } in sums {
        hints.push(match what {
            IncidentKind::ResetSent => Hint::Resets { count, sent: true, place, flows },
            IncidentKind::ResetReceived => Hint::Resets { count, sent: false, place, flows },
            IncidentKind::Retransmit | IncidentKind::RetransmitSynAck => Hint::Retransmissions { count, place, flows, repeats },
            IncidentKind::BacklogOverflow => Hint::BacklogOverflow { count, place },
            IncidentKind::ReceiveQueueFull => Hint::ReceiveQueueFull { count, place },
            IncidentKind::SynCookies => Hint::SynCookies { place },
            IncidentKind::SynQueueFull => Hint::SynQueueFull { place },
            IncidentKind::ZeroWindow => Hint::ZeroWindow { place },
            IncidentKind::CpuThrottled => Hint::CpuThrottled { place, details },
            IncidentKind::Neighbour | IncidentKind::State => continue,
        });
    }
    hints
}

/// What was asked for is an event of its own; how long a packet waited for it is its stage.
fn neighbours(report: &Report) -> Option<Hint> {
    let mut lookups: Vec<NeighbourLookup> = Vec::new();
    let mut at = |place: String, count: usize, waited_ns: Option<u64>| match lookups.iter_mut().find(|l| l.place == place) {
        Some(known) => {
            known.count += count;
            known.waited_ns = known.waited_ns.max(waited_ns);
        }
        None => lookups.push(NeighbourLookup { place, count: count.max(1), waited_ns }),
    };
    for row in report.incidents.iter().filter(|r| r.what == IncidentKind::Neighbour) {
        at(place(row.node.as_deref(), row.pod.as_deref(), None), row.count, None);
    }
    for stage in report.stages.iter().chain(report.reply.iter().flat_map(|r| &r.stages)) {
        let waited_ns = stage.times.p50_ns.filter(|t| stage.count > 0 && *t >= LONG_QUEUE_NS);
        if matches!(stage.id, StageId::NeighbourOut | StageId::NodeNeighbour) && waited_ns.is_some() {
            at(place(stage.node.as_deref(), stage.pod.as_deref(), None), 0, waited_ns);
        }
    }
    (!lookups.is_empty()).then_some(Hint::NeighbourLookups(lookups))
}

fn timing(capture: &Capture, report: &Report) -> Vec<Hint> {
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
        let Some(p50_ns) = stage.times.p50_ns.filter(|t| *t >= LONG_QUEUE_NS) else { continue };
        if matches!(stage.id, StageId::Qdisc | StageId::NodeQdisc) {
            let place = place(stage.node.as_deref(), stage.pod.as_deref(), None);
            let device = stage.device.clone().unwrap_or_else(|| "DEV".to_owned());
            hints.push(Hint::Queueing { device, place, p50_ns });
        }
    }
    // A hostNetwork pod uses the node's sockets, which are excluded.
    let request = &capture.origin.plan.request;
    let on_host = |p: &Party| {
        let is = |pod: &Pod| pod.host_network && pod.name == p.name && Some(&pod.namespace) == p.namespace.as_ref();
        is(&request.source) || request.targets.iter().any(is)
    };
    let own_pods = |p: &Party| p.namespace.is_some() && !on_host(p);
    let same_node = report.scenario == crate::target::Scenario::SameNode;
    let tcp = report.request.as_ref().is_some_and(|r| r.protocol == Protocol::Tcp && r.complete && r.packets_of == "data");
    if same_node
        && tcp
        && report.stack_traversals > 1
        && own_pods(&report.source)
        && own_pods(&report.target)
        && report.accelerated.is_none()
    {
        let pods = pods_to_name(&report.source, &report.target);
        hints.push(Hint::CouldAccelerate { traversals: report.stack_traversals, pods });
    }
    hints
}

/// Two pods as a command names them.
fn pods_to_name(source: &Party, target: &Party) -> String {
    let namespace = |p: &Party| p.namespace.clone().unwrap_or_default();
    let (of_source, of_target) = (namespace(source), namespace(target));
    match (of_source == of_target, of_source.as_str()) {
        (true, "default" | "") => format!("{} {}", source.name, target.name),
        (true, _) => format!("-n {of_source} {} {}", source.name, target.name),
        (false, _) => format!("{of_source}/{} {of_target}/{}", source.name, target.name),
    }
}

/// Packets whose length shrinks or whose segments are cut between two hops.
fn cuts(capture: &Capture, journeys: &[Journey<'_>]) -> Vec<Hint> {
    let mut cut: Option<(usize, String, u32, u32)> = None;
    let mut fragmented: Option<(usize, String)> = None;
    for journey in journeys {
        let notes = || journey.hops.iter().filter_map(|h| journey.parts[h.part].1.hops[h.hop].note.as_deref());
        // The same stage covers segmentation (GSO), which is harmless.
        let step = journey.steps.iter().find(|s| s.stage == StageId::Segment).filter(|_| notes().any(|n| n.contains("first fragment")));
        if let Some(step) = step {
            let at = || place(Some(&step.spot.node), step.spot.pod.as_deref(), step.spot.device.as_deref());
            fragmented.get_or_insert_with(|| (0, at())).0 += 1;
        }
        let hops = || journey.hops.iter().map(|h| (journey.parts[h.part].0, &journey.parts[h.part].1.hops[h.hop]));
        // At the socket only payload is left, in one piece: nothing was cut.
        let smaller = |a: &Hop, b: &Hop| b.offsets.is_some() && a.segments > 1 && b.segments < a.segments && b.len < a.len;
        let found = hops().zip(hops().skip(1)).find(|((_, a), (_, b))| smaller(a, b));
        let Some(((_, a), (helper, b))) = found else { continue };
        match &mut cut {
            Some((count, ..)) => *count += 1,
            None => {
                let at = capture.place(helper, b.place);
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
