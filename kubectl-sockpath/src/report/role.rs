//! The roles of pods and nodes in a trace: the source, the target, and their nodes. Traces are compared by them, because names change.

use super::document::{Party, Report};

/// The name of a source or target, with the namespace of a pod.
pub(super) fn party(party: &Party) -> String {
    match &party.namespace {
        Some(namespace) => format!("{namespace}/{}", party.name),
        None => party.name.clone(),
    }
}

/// A place by its role in the trace.
pub(super) fn place(report: &Report, node: Option<&str>, pod: Option<&str>) -> String {
    let is = |p: &Party| p.namespace.is_some() && pod == Some(party(p).as_str());
    let at = |p: &Party| pod.is_none() && node.is_some() && p.node.as_deref() == node;
    match (pod, node) {
        _ if is(&report.source) => "the source".to_owned(),
        _ if is(&report.target) => "the target".to_owned(),
        _ if at(&report.source) => "the source's node".to_owned(),
        _ if at(&report.target) => "the target's node".to_owned(),
        (Some(pod), _) => pod.to_owned(),
        (None, node) => node.unwrap_or("an unknown place").to_owned(),
    }
}
