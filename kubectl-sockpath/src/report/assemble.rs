//! Fills the document from what was captured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sockpath_protocol::advice;
use sockpath_protocol::packet::{Direction, Outcome, PacketKind, Place};
use sockpath_protocol::pod::Pod;
use sockpath_protocol::request::Service;

use super::capture::Capture;
use super::causes;
use super::document::{
    ClockRow, DropRow, IncidentRow, LegSummary, NodeRow, Party, ProbeRow, Report, SCHEMA, Saving, SeenCounts, VanishedRow,
};
use super::findings;
use super::inferred::Watch;
use super::journey::{Class, Journey};
use super::kind::Id;
use super::leg::{Leg, leg};
use super::netfilter;
use super::overhead::overhead;
use super::packets::Packets;
use super::rewrites::rewrites;
use super::times::Times;
use super::untranslated::{self, Untranslated};
use crate::session::ClockEstimate;
use crate::target::{Scenario, name};

fn saving(normal: Times, accelerated: Option<&Leg>) -> Option<Saving> {
    let (normal, short) = (normal.p50_ns.filter(|n| *n > 0)?, accelerated?.end_to_end.p50_ns?);
    Some(Saving { normal_p50_ns: normal, accelerated_p50_ns: short, share: (normal as f64 - short as f64) / normal as f64 })
}

/// Puts everything together.
pub(super) fn assemble(capture: &Capture, journeys: &[Journey<'_>]) -> Report {
    let watch = Watch::of(capture.helpers.iter().filter_map(|h| h.armed.as_ref()));
    let request = leg(journeys, Direction::Request, None, &watch);
    let reply = leg(journeys, Direction::Reply, None, &watch);
    let main = journeys.iter().filter(|j| j.direction() == Direction::Request).map(Journey::class).min();
    let beside =
        |class: Class| if main.is_some_and(|main| main < class) { leg(journeys, Direction::Request, Some(class), &watch) } else { None };
    let (short, accelerated) = (beside(Class::Redirected), beside(Class::Bypass));
    let (overhead, lost_events) = overhead(capture);
    let rewrites = rewrites(journeys);
    let plan = &capture.origin.plan;
    let (summary, stages, end_to_end, stack_traversals) = match request {
        Some(Leg {
            packets_of,
            redirected,
            count,
            complete,
            stages,
            end_to_end,
            waiting_ns,
            stack_traversals,
            routes,
            typical_packet,
            protocol,
        }) => (
            Some(LegSummary { packets_of, redirected, count, complete, waiting_ns, routes, typical_packet, protocol }),
            stages,
            end_to_end,
            stack_traversals,
        ),
        None => (None, Vec::new(), Times::default(), 0),
    };
    let conversations: BTreeSet<(usize, u64)> = capture.packets.iter().map(|(h, p)| (*h, p.conversation)).collect();
    let count = |d| capture.seen.get(&d).copied().unwrap_or(0);
    let untranslated = untranslated::untranslated(journeys);
    let mut report = Report {
        schema: SCHEMA,
        scenario: scenario(plan.scenario, journeys),
        via_service: service(capture, journeys).or_else(|| plan.via_service.clone()),
        dialled: most(requests(journeys).map(|j| j.first().flow.to)),
        source: party(std::slice::from_ref(&plan.request.source), "", None),
        target: target(capture, journeys),
        nodes: nodes(capture),
        clocks: clocks(capture),
        kernel: kernel(capture),
        stages,
        end_to_end,
        stack_traversals,
        request: summary,
        reply,
        saving: saving(end_to_end, accelerated.as_ref()),
        accelerated,
        short_saving: saving(end_to_end, short.as_ref()),
        short,
        seen: SeenCounts {
            requests: count(Direction::Request),
            replies: count(Direction::Reply),
            conversations: conversations.len() as u64,
        },
        rewrites,
        drops: drops(capture, journeys, &untranslated),
        vanished: vanished(journeys),
        incidents: incidents(capture),
        probes: probes(capture),
        findings: Vec::new(),
        lost_events,
        overhead,
        packets: Packets::default(),
    };
    report.findings = causes::ordered(&findings::findings(capture, journeys, &report, untranslated));
    report
}

/// The scenario as packets show it; what the names say where none arrived.
fn scenario(planned: Scenario, journeys: &[Journey<'_>]) -> Scenario {
    let arrived = journeys.iter().find(|j| j.direction() == Direction::Request && *j.outcome() == Outcome::Delivered);
    let Some(journey) = arrived else { return planned };
    let (Some(first), Some(last)) = (journey.steps.first(), journey.steps.last()) else { return planned };
    match planned {
        Scenario::External => planned,
        _ if first.spot.netns == last.spot.netns && first.spot.netns != 0 && first.spot.node == last.spot.node => Scenario::InPod,
        _ if first.spot.node == last.spot.node => Scenario::SameNode,
        _ => Scenario::CrossNode,
    }
}

/// The Service that most requests were sent to.
fn service(capture: &Capture, journeys: &[Journey<'_>]) -> Option<String> {
    let services = &capture.origin.plan.request.services;
    let hit = |j: &Journey<'_>| service_at(services, j.first().flow.to);
    let hits: Vec<_> = requests(journeys).filter_map(hit).collect();
    (hits.len() * 2 > requests(journeys).count()).then(|| hits.first().map(|s| format!("{}/{}", s.namespace, s.name))).flatten()
}

/// The Service that is dialled at this address and port. An address alone names none: node ports share those of the nodes.
fn service_at(services: &[Service], dialled: SocketAddr) -> Option<&Service> {
    services.iter().find(|s| s.frontends.iter().any(|f| f.addr == dialled))
}

fn requests<'j>(journeys: &'j [Journey<'j>]) -> impl Iterator<Item = &'j Journey<'j>> {
    journeys.iter().filter(|j| j.direction() == Direction::Request)
}

/// What occurs most often; of equals, the least.
fn most<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(item, _)| item)
}

/// The pod that most requests arrived at, else the one that was named.
fn target(capture: &Capture, journeys: &[Journey<'_>]) -> Party {
    let plan = &capture.origin.plan;
    let at = most(requests(journeys).map(|j| j.last_flow().to));
    let (ip, port) = match at {
        Some(at) => (Some(at.ip()), Some(at.port()).filter(|p| *p != 0)),
        None => (None, plan.request.port),
    };
    let pods: Vec<Pod> = match plan.request.targets.iter().find(|t| ip.is_some_and(|ip| t.ips.contains(&ip))) {
        Some(pod) => vec![pod.clone()],
        None => plan.request.targets.clone(),
    };
    // It was parsed before anything was captured; a recording may hold anything.
    let typed = name::split(&plan.target).map_or(plan.target.as_str(), |(name, _)| name);
    let mut party = party(&pods, typed, port);
    if pods.is_empty() {
        party.ips.clone_from(&plan.request.addresses);
        // An address of a node that is watched.
        let arrived = requests(journeys).find(|j| *j.outcome() == Outcome::Delivered).and_then(|j| j.steps.last());
        party.node = arrived.filter(|step| step.spot.pod.is_none()).map(|step| step.spot.node.clone()).or(party.node);
    }
    party
}

fn party(pods: &[Pod], typed: &str, port: Option<u16>) -> Party {
    match pods {
        [pod] => Party {
            // A node is in none.
            namespace: Some(pod.namespace.clone()).filter(|ns| !ns.is_empty()),
            name: pod.name.clone(),
            node: Some(pod.node.clone()),
            ips: pod.ips.clone(),
            port,
        },
        _ => Party { namespace: None, name: typed.to_owned(), node: None, ips: pods.iter().flat_map(|p| p.ips.clone()).collect(), port },
    }
}

fn nodes(capture: &Capture) -> Vec<NodeRow> {
    let mut rows = Vec::new();
    // A node that took no part was not watched.
    for (origin, log) in capture.origin.helpers.iter().zip(&capture.helpers).filter(|(o, _)| o.has_joined()) {
        let (hooks, unavailable, armed_ns) = match &log.armed {
            Some(a) => (a.hooks.clone(), a.unavailable.clone(), Some(a.took_ns)),
            None => (Vec::new(), BTreeMap::new(), None),
        };
        for name in &origin.nodes {
            rows.push(NodeRow {
                name: name.clone(),
                kernel: origin.hello.kernel.clone(),
                arch: origin.hello.arch.clone(),
                helper: origin.hello.version.clone(),
                hooks: hooks.clone(),
                unavailable: unavailable.clone(),
                armed_ns,
                clock_offset_ns: i64::try_from(origin.clock_offset_ns()).unwrap_or(0),
                conntrack: log.counters.iter().flat_map(|c| &c.conntrack).find(|of| of.node == *name).map(|of| of.counts),
            });
        }
    }
    rows
}

/// Nothing on one node, and nothing where a helper went away before its clock was read.
fn clocks(capture: &Capture) -> Vec<ClockRow> {
    let mut measured = capture.origin.helpers.iter().zip(&capture.helpers).filter_map(|(o, log)| Some((o.nodes.join(", "), log.clock?)));
    let Some((against, first)) = measured.next() else { return Vec::new() };
    let row = |(node, clock): (String, ClockEstimate)| {
        let (offset_ns, uncertainty_ns) = first.to(&clock);
        ClockRow { node, against: against.clone(), offset_ns, uncertainty_ns, round_trips: clock.round_trips }
    };
    measured.map(row).collect()
}

fn kernel(capture: &Capture) -> String {
    let source = &capture.origin.plan.request.source.node;
    let helpers = &capture.origin.helpers;
    helpers.iter().find(|h| h.nodes.contains(source)).or(helpers.first()).map(|h| h.hello.kernel.clone()).unwrap_or_default()
}

fn device_name(place: Option<&Place>) -> Option<String> {
    place.and_then(|p| p.device.as_ref()).map(|d| d.name.clone())
}

fn drops(capture: &Capture, journeys: &[Journey<'_>], untranslated: &[Untranslated]) -> Vec<DropRow> {
    let mut rows: Vec<DropRow> = Vec::new();
    for journey in journeys {
        let (helper, packet) = journey.parts[journey.parts.len() - 1];
        let Outcome::Dropped(drop) = &packet.outcome else { continue };
        let place = capture.place(helper, drop.place);
        let row = DropRow {
            reason: drop.reason.clone(),
            direction: packet.direction,
            stage: drop.stage,
            location: drop.location.clone(),
            node: place.map(|p| p.node.clone()),
            pod: place.and_then(|p| p.pod.clone()),
            device: device_name(place),
            socket: drop.socket.clone(),
            detail: drop.detail.clone().or_else(|| netfilter::detail(drop)),
            rule: drop.rule.as_deref().cloned(),
            mechanism: drop.cause.as_ref().map(|c| c.mechanism),
            certainty: drop.cause.as_ref().map(|c| c.certainty),
            evidence: drop.cause.as_ref().map(|c| c.evidence.clone()).unwrap_or_default(),
            candidates: drop.cause.as_ref().map(|c| c.candidates.clone()).unwrap_or_default(),
            advice: drop.cause.as_ref().map(|c| c.mechanism.row().advice).or_else(|| advice::for_drop(&drop.reason)),
            because: consequence(journey, untranslated),
            count: 1,
            flow: journey.first().flow,
            kind: packet.kind,
        };
        let same = |r: &&mut DropRow| {
            let redirect = |r: &DropRow| r.kind == PacketKind::IcmpRedirect;
            (&r.reason, r.direction, r.stage, &r.node, &r.pod, &r.device, &r.detail, r.because, redirect(r))
                == (&row.reason, row.direction, row.stage, &row.node, &row.pod, &row.device, &row.detail, row.because, redirect(&row))
        };
        match rows.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => rows.push(row),
        }
    }
    rows.sort_by_key(|r| std::cmp::Reverse(r.count));
    rows
}

/// Replies that were not translated back are dropped or reset where they arrive; a router's errors about them are not a separate cause.
fn consequence(journey: &Journey<'_>, untranslated: &[Untranslated]) -> Option<&'static str> {
    let first = journey.first();
    let error = matches!(first.kind, PacketKind::IcmpError | PacketKind::IcmpRedirect) && !untranslated.is_empty();
    (error || untranslated::follows(untranslated, journey.last_flow())).then_some(Id::Untranslated.kind().id)
}

fn vanished(journeys: &[Journey<'_>]) -> Vec<VanishedRow> {
    let mut rows: Vec<VanishedRow> = Vec::new();
    for journey in journeys {
        let (Outcome::Vanished { expected }, Some(last)) = (journey.outcome(), journey.steps.last()) else { continue };
        let row = VanishedRow {
            direction: journey.direction(),
            last_seen: last.stage,
            expected: *expected,
            node: (!last.spot.node.is_empty()).then(|| last.spot.node.clone()),
            pod: last.spot.pod.clone(),
            device: last.spot.device.clone(),
            flow: journey.first().flow,
            count: 1,
        };
        let same = |r: &&mut VanishedRow| VanishedRow { count: 1, flow: row.flow, ..(**r).clone() } == row;
        match rows.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => rows.push(row),
        }
    }
    rows.sort_by_key(|r| std::cmp::Reverse(r.count));
    rows
}

fn incidents(capture: &Capture) -> Vec<IncidentRow> {
    let mut rows: Vec<IncidentRow> = Vec::new();
    for (helper, incident) in &capture.incidents {
        let place = incident.place.and_then(|p| capture.place(*helper, p));
        let row = IncidentRow {
            what: incident.what,
            node: place.map(|p| p.node.clone()),
            pod: place.and_then(|p| p.pod.clone()),
            detail: incident.detail.clone(),
            flow: incident.flow,
            count: 1,
        };
        let same = |r: &&mut IncidentRow| (r.what, &r.node, &r.pod, &r.detail) == (row.what, &row.node, &row.pod, &row.detail);
        match rows.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => rows.push(row),
        }
    }
    rows
}

fn probes(capture: &Capture) -> Vec<ProbeRow> {
    let row = |p: &sockpath_protocol::message::Probed| ProbeRow {
        protocol: p.protocol,
        to: p.to.clone(),
        answered: p.answered,
        took_ns: p.took_ns,
        error: p.error.clone(),
        mechanism: p.why.as_ref().map(|w| w.cause.mechanism),
        certainty: p.why.as_ref().map(|w| w.cause.certainty),
        detail: p.why.as_ref().map(|w| w.detail.clone()),
        evidence: p.why.as_ref().map(|w| w.cause.evidence.clone()).unwrap_or_default(),
    };
    capture.probes.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::request::{Frontend, Protocol};

    use super::*;

    #[test]
    fn a_port_of_the_node_that_is_no_node_port_is_no_service() {
        let frontends = ["10.96.0.1:80", "192.0.2.1:30080"].map(|a| Frontend { addr: a.parse().unwrap(), protocol: Protocol::Tcp });
        let services =
            [Service { namespace: "shop".to_owned(), name: "web".to_owned(), frontends: frontends.to_vec(), backends: Vec::new() }];
        let at = |addr: &str| service_at(&services, addr.parse().unwrap()).map(|s| s.name.as_str());
        assert_eq!(["10.96.0.1:80", "192.0.2.1:30080", "192.0.2.1:10250", "10.96.0.1:81"].map(at), [Some("web"), Some("web"), None, None]);
    }
}
