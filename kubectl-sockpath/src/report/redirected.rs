//! Packets that went from device to device: a tc program redirected them past the node's stack, as the short path and some network plugins do.

use sockpath_protocol::message::Armed;
use sockpath_protocol::packet::{Outcome, Packet, PacketKind};
use sockpath_protocol::stage::{Side, StageId};

/// Whether no node's stack did with a packet of data what it would have had to: the packet reached the other pod of the node without being
/// queued at a device of the node, or crossed between nodes without being routed or bridged. Nothing is known where a hook that shows this was
/// not attached, and of a packet that did not arrive.
pub(super) fn is_redirected(packet: &Packet, armed: Option<&Armed>) -> bool {
    let arrives = match packet.outcome {
        Outcome::Delivered => true,
        Outcome::Left => false,
        Outcome::Dropped(_) | Outcome::Vanished { .. } => return false,
    };
    let starts = packet.hops.first().is_some_and(|h| h.stage.stage().side == Side::Send);
    let transit = || packet.hops.iter().map(|h| h.stage).filter(|s| s.stage().side == Side::Transit);
    let on_one_node = arrives && starts && !transit().any(is_between_nodes);
    packet.kind == PacketKind::Data
        && transit().next().is_some()
        && !transit().any(|stage| is_forwarding(stage) || (on_one_node && is_queueing(stage)))
        && shows_the_stack(armed)
}

/// Whether the hooks are attached that every packet passes which a node routes, bridges, or queues at a device.
fn shows_the_stack(armed: Option<&Armed>) -> bool {
    let has = |word: &str| armed.is_some_and(|a| a.hooks.iter().any(|h| h.contains(word)));
    has("netfilter/") && has("net_dev_queue")
}

fn is_forwarding(stage: StageId) -> bool {
    matches!(stage, StageId::BridgeIn | StageId::BridgeForward | StageId::NodeRoute | StageId::NodeForward)
}

fn is_between_nodes(stage: StageId) -> bool {
    matches!(stage, StageId::Wire | StageId::TunnelEncap | StageId::TunnelDecap)
}

fn is_queueing(stage: StageId) -> bool {
    matches!(stage, StageId::NodeQueue | StageId::NodeQdisc | StageId::NodeXmit)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sockpath_protocol::packet::Direction;
    use sockpath_protocol::request::Protocol;

    use super::super::made::{flow, hop, packet};
    use super::*;

    fn armed(hooks: &[&str]) -> Armed {
        let hooks = hooks.iter().map(|h| (*h).to_owned()).collect();
        Armed { hooks, unavailable: BTreeMap::new(), filters: Vec::new(), took_ns: 0, at_ns: 0 }
    }

    fn data(stages: &[StageId], outcome: Outcome) -> Packet {
        let hops = stages.iter().map(|stage| hop(*stage, "", 0)).collect();
        let packet = packet(Protocol::Tcp, PacketKind::Data, Direction::Request, flow("10.0.0.1:1", "10.0.0.2:2"));
        Packet { hops, outcome, ..packet }
    }

    #[test]
    fn what_passes_no_stack_of_a_node_is_redirected() {
        use StageId::{BridgeForward, DeviceHandover, DeviceXmit, NodeForward, NodeQueue, NodeReceive, TunnelEncap, VethCross, Wire};
        let armed = armed(&["tp_btf/net_dev_queue", "netfilter/FORWARD first"]);
        let redirected = |stages: &[StageId], outcome| is_redirected(&data(stages, outcome), Some(&armed));
        let delivered = || Outcome::Delivered;
        assert!(redirected(&[DeviceXmit, VethCross, NodeReceive, DeviceHandover], delivered()));
        for by_the_stack in [NodeForward, BridgeForward, NodeQueue] {
            assert!(!redirected(&[DeviceXmit, VethCross, by_the_stack, DeviceHandover], delivered()), "{by_the_stack:?}");
        }
        // Inside a pod.
        assert!(!redirected(&[DeviceXmit, DeviceHandover], delivered()));
        // Its two halves, and both seen by one helper.
        assert!(redirected(&[DeviceXmit, VethCross, NodeQueue], Outcome::Left));
        assert!(redirected(&[Wire, NodeReceive, DeviceHandover], delivered()));
        assert!(redirected(&[DeviceXmit, VethCross, NodeQueue, TunnelEncap, Wire, DeviceHandover], delivered()));
        assert!(!redirected(&[DeviceXmit, VethCross, NodeForward, NodeQueue], Outcome::Left));
        assert!(!redirected(&[Wire, NodeForward, NodeQueue, DeviceHandover], delivered()));
        assert!(!redirected(&[DeviceXmit, VethCross], Outcome::Vanished { expected: NodeReceive }));
    }

    #[test]
    fn without_the_hooks_that_show_the_stack_nothing_is_known() {
        let packet = data(&[StageId::DeviceXmit, StageId::VethCross, StageId::DeviceHandover], Outcome::Delivered);
        assert!(!is_redirected(&packet, Some(&armed(&["tp_btf/net_dev_queue"]))));
        assert!(!is_redirected(&packet, Some(&armed(&["netfilter/FORWARD first"]))));
        assert!(!is_redirected(&packet, None));
    }
}
