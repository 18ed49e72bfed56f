//! When a packet's path has ended, and how.

use sockpath_protocol::packet::DeviceKind;
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::conversation::Pair;
use super::hops::asks_neighbour;
use super::open::Open;
use crate::trace::event::Hook;
use crate::trace::places::Places;

const MS: u64 = 1_000_000;
/// What follows on another CPU, or after the call that ends the path, comes within this time.
const SETTLE: u64 = 4 * MS;
/// A device that leads out of the traced namespaces may lead back in (two nodes of one helper): wait for that.
const LEAVE: u64 = 50 * MS;
/// A packet that is neither queued nor waiting for a neighbour moves on within this time.
const MOVE: u64 = 1_000 * MS;
/// A queue or an address resolution may take longer; three probes of ARP take 3 s.
const QUEUE: u64 = 5_000 * MS;
/// A reader may be slow: the packet is reported without it after this time.
const READ: u64 = 2_000 * MS;

/// A packet last observed within this time of the end of the trace may still be in transit on a busy machine.
const IN_TRANSIT: u64 = 50 * MS;

/// How the path of a packet ended, before the details are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reached its socket.
    Delivered,
    /// It left through a device.
    Left,
    /// The kernel dropped it.
    Dropped,
    /// Nothing was seen of it any more.
    Vanished,
}

/// The verdict, if the path has ended at `now`; `at_the_end` decides at once.
pub fn verdict(open: &Open, places: &mut Places, pair: &Pair, now: u64, at_the_end: bool) -> Option<Verdict> {
    let quiet = if at_the_end { u64::MAX } else { now.saturating_sub(open.last) };
    if let Some(drop) = &open.drop
        && drop.at >= open.last
    {
        return (quiet >= SETTLE).then_some(Verdict::Dropped);
    }
    if open.copied {
        return (quiet >= SETTLE).then_some(Verdict::Delivered);
    }
    if open.arrived_in.is_some() {
        let patience = if open.is_for_a_reader() && !open.at_rest { READ } else { SETTLE };
        return (quiet >= patience).then_some(Verdict::Delivered);
    }
    let last = open.events.iter().max_by_key(|s| s.at)?;
    let leaves_the_namespaces = last.hook == Hook::TRACE_DEV_XMIT
        && places.device(last.netns, last.ifindex).is_some_and(|d| match d.kind {
            DeviceKind::Other => true,
            // What a bridge sends to a pod that is not watched is a copy, unless no watched pod is its destination.
            DeviceKind::Veth => d.peer.is_none() && (d.bridge.is_none() || !pair.has(last.flow.to.ip())),
            _ => false,
        });
    if leaves_the_namespaces {
        return (quiet >= LEAVE).then_some(Verdict::Left);
    }
    // The device that it leaves by is not seen, nor what sends it on.
    if open.at_rest && last.hook == Hook::TRACE_NF_LAST_POST_ROUTING {
        return (quiet >= MOVE).then_some(Verdict::Left);
    }
    let patience = match last.hook {
        Hook::TRACE_QDISC_ENQUEUE => QUEUE,
        hook if asks_neighbour(hook) => QUEUE,
        _ => MOVE,
    };
    (quiet >= patience).then_some(Verdict::Vanished)
}

/// The verdict at the end of the trace, which was observed until `now`; `None` if the end of the packet is unknown.
pub fn last_verdict(open: &Open, places: &mut Places, pair: &Pair, now: u64) -> Option<Verdict> {
    let verdict = verdict(open, places, pair, now, true).unwrap_or(Verdict::Vanished);
    (verdict != Verdict::Vanished || now.saturating_sub(open.last) >= IN_TRANSIT).then_some(verdict)
}

/// The stage that should have come after this one.
#[must_use]
pub fn expected_after(stage: StageId, protocol: Protocol) -> StageId {
    match stage {
        StageId::SocketWrite | StageId::SendStack | StageId::SendTransport | StageId::RouteOut | StageId::SendNetwork => {
            StageId::NfLocalOut
        }
        StageId::NfLocalOut | StageId::OutputDevice => StageId::NfPostRouting,
        StageId::NfPostRouting | StageId::Segment => StageId::LinkHeader,
        StageId::NeighbourOut | StageId::LinkHeader => StageId::SendStackDone,
        StageId::SendStackDone | StageId::TcEgress | StageId::Qdisc => StageId::DeviceXmit,
        StageId::DeviceXmit | StageId::OnItsWay => StageId::VethCross,
        StageId::VethCross | StageId::Wire => StageId::NodeReceive,
        StageId::NodeReceive => StageId::NodePreRouting,
        StageId::BridgeIn | StageId::NodePreRouting | StageId::NodeRoute => StageId::NodeForward,
        StageId::NodeForward => StageId::NodePostRouting,
        StageId::NodePostRouting => StageId::NodeQueue,
        StageId::BridgeForward | StageId::NodeNeighbour | StageId::NodeLinkHeader | StageId::NodeLocalOut => StageId::NodeQueue,
        StageId::NodeQueue | StageId::NodeQdisc => StageId::NodeXmit,
        StageId::NodeXmit => StageId::DeviceHandover,
        StageId::TunnelEncap => StageId::NodeLocalOut,
        StageId::NodeLocalIn | StageId::TunnelDecap => StageId::NodeReceive,
        StageId::DeviceHandover | StageId::Metadata | StageId::LinkPulled => StageId::ReceiveStack,
        StageId::ReceiveStack | StageId::NetworkNoted | StageId::TcIngress | StageId::NetworkPulled | StageId::TransportNoted => {
            StageId::NfPreRouting
        }
        StageId::NfPreRouting | StageId::RouteIn | StageId::Merge => StageId::NfLocalIn,
        StageId::NfLocalIn => StageId::ReceiveTransport,
        StageId::ReceiveTransport if protocol == Protocol::Tcp => StageId::SocketLookup,
        StageId::ReceiveTransport | StageId::SocketLookup | StageId::ReceiveQueue => StageId::ReaderWoken,
        StageId::IngressQueue => StageId::ReaderWoken,
        StageId::ReaderWoken | StageId::ReceiveStackDone => StageId::Dequeued,
        StageId::Dequeued | StageId::Verdict => StageId::Copied,
        StageId::Copied | StageId::Released => StageId::Released,
    }
}
