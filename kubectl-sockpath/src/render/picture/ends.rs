//! Where packets ended, and what they did not reach.

use sockpath_protocol::packet::Direction;
use sockpath_protocol::stage::{Side, StageId};

use super::place::{namespace_title, node_title, push};
use super::{EndMark, Item, Lane, Picture, State};
use crate::render::waterfall::{drop_text, vanished_text};
use crate::report::Report;
use crate::report::document::Party;
use crate::target::Scenario;

/// Adds the source if nothing was observed, and the target if no packet was observed there.
pub(super) fn unreached(report: &Report, picture: &mut Picture) {
    if picture.nodes.is_empty() {
        let namespace = (party_title(&report.source), "no packet was observed".to_owned());
        push(&mut picture.nodes, &node_of(report, &report.source), namespace, State::NotReached, empty(Side::Send));
    }
    let at_target = picture.lanes().last().is_some_and(|(_, lane)| lane.side == Side::Receive);
    let on_the_node = report.target.node.is_some() && report.scenario == Scenario::External;
    if at_target || report.request.as_ref().is_some_and(|r| r.complete) || on_the_node {
        return;
    }
    let ended = report.drops.iter().any(|d| d.direction == Direction::Request) || !report.vanished.is_empty();
    let detail = match (report.request.is_some(), ended, report.scenario) {
        (true, true, _) => "not reached",
        (_, _, Scenario::External) => "outside of the watched nodes",
        _ => "no packet was observed",
    };
    let node = node_of(report, &report.target);
    push(&mut picture.nodes, &node, (party_title(&report.target), detail.to_owned()), State::NotReached, empty(Side::Receive));
}

fn empty(side: Side) -> Lane {
    Lane { side, items: Vec::new(), took_ns: None }
}

fn node_of(report: &Report, party: &Party) -> String {
    match (&party.node, report.scenario) {
        (Some(node), _) => node_title(report, Some(node)),
        (None, Scenario::External) => "outside".to_owned(),
        (None, _) => node_title(report, None),
    }
}

fn party_title(party: &Party) -> String {
    match &party.namespace {
        Some(namespace) => format!("pod {namespace}/{}", party.name),
        None => party.name.clone(),
    }
}

/// Marks drops and last places where they are.
pub(super) fn mark(report: &Report, picture: &mut Picture) {
    for drop in &report.drops {
        let text = drop_text(drop);
        let what = format!("dropped: {}", drop.reason);
        place(picture, drop.stage, drop.node.as_deref(), drop.pod.as_deref(), EndMark { direction: drop.direction, what, text });
    }
    for lost in &report.vanished {
        let what = format!("not seen at {}", lost.expected.stage().name);
        let mark = EndMark { direction: lost.direction, what, text: vanished_text(lost) };
        place(picture, lost.last_seen, lost.node.as_deref(), lost.pod.as_deref(), mark);
    }
}

/// Puts a mark behind its stage, or at the end of the lane of its namespace.
fn place(picture: &mut Picture, stage: StageId, node: Option<&str>, pod: Option<&str>, mark: EndMark) {
    let title = namespace_title(node, pod);
    let mut lanes: Vec<&mut Lane> = picture
        .nodes
        .iter_mut()
        .flat_map(|n| &mut n.namespaces)
        .filter(|ns| ns.title == title && ns.state == State::Passed)
        .flat_map(|ns| &mut ns.lanes)
        .collect();
    let row = stage.stage();
    let is_stage = |item: &Item| matches!(item, Item::Stage(s) if (s.step, s.name) == (row.step, row.name));
    if mark.direction == Direction::Request
        && let Some(lane) = lanes.iter_mut().find(|lane| lane.items.iter().any(is_stage))
    {
        let after = lane.items.iter().rposition(is_stage).map_or(lane.items.len(), |at| at + 1);
        // Behind what belongs to the stage: translations, and earlier marks.
        let belongs = lane.items[after..].iter().take_while(|i| matches!(i, Item::Rewrite(_) | Item::End(_))).count();
        lane.items.insert(after + belongs, Item::End(mark));
        return;
    }
    if let Some(lane) = lanes.last_mut() {
        lane.items.push(Item::End(mark));
    }
}
