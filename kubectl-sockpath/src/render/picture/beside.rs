//! The accelerated paths beside the normal one: measured, taken, or possible.

use sockpath_protocol::stage::Side;

use super::place::{namespace_title, node_title, push};
use super::{Beside, Bypass, Lane, Link, LinkKind, Picture, State};
use crate::duration::nanos;
use crate::report::Report;
use crate::report::document::Saving;
use crate::report::leg::Leg;
use crate::target::Scenario;

/// Adds what the report knows of them.
pub(super) fn add(report: &Report, picture: &mut Picture) {
    let lanes: Vec<Side> = picture.lanes().map(|(_, lane)| lane.side).collect();
    let (Some(from), Some(to)) = (lanes.iter().position(|s| *s == Side::Send), lanes.iter().rposition(|s| *s == Side::Receive)) else {
        return;
    };
    let beside = |path, taken, text: String| Beside { path, taken, text, from, to };
    if report.request.as_ref().is_some_and(|r| r.packets_of == "accelerated") {
        let time = report.end_to_end.p50_ns.map_or_else(String::new, |t| format!(", {}", nanos(t)));
        let skipped = skipped_node(report, picture, to);
        picture.beside.push(Beside { to: to + usize::from(skipped), ..beside(Bypass::Socket, true, format!("socket path{time}")) });
        return;
    }
    let measured = |leg: &Leg, saving: Option<Saving>| {
        let time = leg.end_to_end.p50_ns.map_or_else(|| "time unknown".to_owned(), nanos);
        let saving = saving.map_or_else(String::new, |s| match s.share {
            share if share >= 0.0 => format!(", {:.0} % less time", share * 100.0),
            share => format!(", {:.0} % more time", -share * 100.0),
        });
        format!("{time}{saving}")
    };
    if let Some(leg) = &report.accelerated {
        picture.beside.push(beside(Bypass::Socket, true, format!("socket path: {}", measured(leg, report.saving))));
    }
    if let Some(leg) = &report.short {
        picture.beside.push(beside(Bypass::Short, true, format!("short path: {}", measured(leg, report.short_saving))));
    }
    if report.request.as_ref().is_some_and(|r| r.redirected && r.complete) {
        picture.beside.push(beside(
            Bypass::Short,
            true,
            "redirected from device to device: the short path, or another tc program".to_owned(),
        ));
    }
    if report.findings.iter().any(|f| f.id == "could-accelerate") && picture.beside.is_empty() {
        picture.beside.push(beside(Bypass::Socket, false, "socket path: possible, --compare measures it".to_owned()));
        picture.beside.push(beside(Bypass::Short, false, "short path: possible, --compare measures it".to_owned()));
    }
}

/// Bytes from socket to socket pass the node beside its stack: it is shown, as skipped. Returns whether there is such a node.
fn skipped_node(report: &Report, picture: &mut Picture, to: usize) -> bool {
    let Some(node) = report.source.node.as_deref().filter(|_| report.scenario == Scenario::SameNode && to > 0) else { return false };
    let mut nodes = Vec::new();
    let skipped = (namespace_title(Some(node), None), "skipped: devices, bridge, netfilter, routing".to_owned());
    for old in std::mem::take(&mut picture.nodes) {
        for ns in old.namespaces {
            for lane in ns.lanes {
                if lane.side == Side::Receive {
                    let empty = Lane { side: Side::Transit, items: Vec::new(), took_ns: None };
                    push(&mut nodes, &node_title(report, Some(node)), skipped.clone(), State::Skipped, empty);
                }
                push(&mut nodes, &old.title, (ns.title.clone(), ns.detail.clone()), ns.state, lane);
            }
        }
    }
    picture.nodes = nodes;
    let lanes = picture.lanes().count();
    picture.links = vec![Link { kind: LinkKind::Unknown, taken: false }; lanes.saturating_sub(1)];
    true
}
