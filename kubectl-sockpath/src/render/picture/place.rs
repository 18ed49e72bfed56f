//! Places of a picture: the titles of nodes and namespaces, and lanes that are added to them.

use super::{Lane, Namespace, NodeBox, State};
use crate::report::Report;

/// Adds a lane behind the others: to the last namespace or node where it is the same.
pub(super) fn push(nodes: &mut Vec<NodeBox>, node: &str, (title, detail): (String, String), state: State, lane: Lane) {
    if nodes.last().is_none_or(|n| n.title != node) {
        nodes.push(NodeBox { title: node.to_owned(), namespaces: Vec::new() });
    }
    let Some(last) = nodes.last_mut() else { return };
    match last.namespaces.last_mut() {
        Some(ns) if (&ns.title, &ns.detail, ns.state) == (&title, &detail, state) => ns.lanes.push(lane),
        _ => last.namespaces.push(Namespace { title, detail, state, lanes: vec![lane] }),
    }
}

/// The title of a node, with its kernel where the report has it.
pub(super) fn node_title(report: &Report, node: Option<&str>) -> String {
    let Some(name) = node else { return "unknown node".to_owned() };
    match report.nodes.iter().find(|n| n.name == name).filter(|n| !n.kernel.is_empty()) {
        Some(row) => format!("node {name}, kernel {}", row.kernel),
        None => format!("node {name}"),
    }
}

/// The title of a network namespace: its pod, or the host network of its node.
pub(super) fn namespace_title(node: Option<&str>, pod: Option<&str>) -> String {
    match (pod, node) {
        (Some(pod), _) => format!("pod {pod}"),
        (None, Some(node)) => format!("host network of {node}"),
        (None, None) => "unknown place".to_owned(),
    }
}
