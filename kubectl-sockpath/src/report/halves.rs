//! Packets that left one node and should have appeared on another.

use std::net::IpAddr;

use sockpath_protocol::packet::{Direction, Outcome};

use super::capture::Capture;
use super::hint::Hint;
use super::journey::Journey;

/// What a packet may take from one node to the other and through its stack until it is seen, in nanoseconds.
const BETWEEN_NODES_NS: i128 = 50_000_000;

/// Packets that left a node for an end of the trace on another that was watched meanwhile, and did not appear there.
pub(super) fn missing(capture: &Capture, journeys: &[Journey<'_>]) -> Option<Hint> {
    // Where a node was not watched, that a packet did not appear there says nothing.
    if capture.watched() < 2 || capture.watched() < capture.origin.helpers.len() {
        return None;
    }
    let lost = |j: &&Journey<'_>| *j.outcome() == Outcome::Left && is_for_an_end(capture, j) && was_watched(capture, j);
    let left: Vec<&Journey<'_>> = journeys.iter().filter(lost).collect();
    let node = left.first()?.steps.last()?.spot.node.clone();
    Some(Hint::HalfMissing { count: left.len(), node })
}

/// A Service may send packets to a backend that was not asked for, whose node or pod is not watched.
fn is_for_an_end(capture: &Capture, journey: &Journey<'_>) -> bool {
    let request = &capture.origin.plan.request;
    let to: IpAddr = journey.last_flow().to.ip();
    match journey.direction() {
        Direction::Request => request.targets.iter().any(|t| t.ips.contains(&to)),
        Direction::Reply => {
            // Behind a masquerade the reply goes to the node first.
            let nodes = request.nodes.iter().flat_map(|n| &n.ips);
            request.source.ips.iter().chain(nodes).any(|ip| *ip == to)
        }
    }
}

/// Whether the other nodes were watched when it left. A packet from before they were armed, or from after they ended, is not a loss.
fn was_watched(capture: &Capture, journey: &Journey<'_>) -> bool {
    let (helper, packet) = journey.parts[journey.parts.len() - 1];
    let Some(at) = packet.hops.last().and_then(|hop| capture.common_time(helper, hop.at_ns)) else { return true };
    (0..capture.helpers.len()).filter(|other| *other != helper).all(|other| {
        let Some(armed) = capture.helpers[other].armed.as_ref().filter(|a| a.at_ns != 0) else { return true };
        let doubt = doubt(capture, helper) + doubt(capture, other);
        let from = capture.common_time(other, armed.at_ns);
        let elapsed = capture.helpers[other].counters.as_ref().map_or(0, |c| c.elapsed_ns);
        let until = capture.common_time(other, armed.at_ns.saturating_add(elapsed)).filter(|_| elapsed > 0);
        from.is_none_or(|from| at - doubt >= from) && until.is_none_or(|until| at + doubt + BETWEEN_NODES_NS <= until)
    })
}

/// How far such a time may be off.
fn doubt(capture: &Capture, helper: usize) -> i128 {
    capture.helpers.get(helper).and_then(|h| h.clock).map_or(0, |c| i128::from(c.uncertainty_ns))
}
