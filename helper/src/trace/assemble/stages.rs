//! From events to hops: which stage begins at an event, given where and after what it was.

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::packet::{Device, DeviceKind};
use sockpath_protocol::stage::StageId;

use crate::trace::event::{Event, Hook};
use crate::trace::functions;

/// What a namespace is to one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The sender's.
    Sender,
    /// The receiver's.
    Receiver,
    /// Sender's and receiver's at once (in-pod, over lo).
    Both,
    /// Any other: a node's.
    Node,
}

/// An event and what is known about its place.
#[derive(Debug)]
pub struct Placed<'a> {
    /// The event.
    pub event: &'a Event,
    /// What its namespace is to this packet.
    pub role: Role,
    /// The device, if it names one.
    pub device: Option<Device>,
    /// The device's root queue discipline.
    pub qdisc: Option<String>,
    /// Whether it waited here for the next hop's MAC address.
    pub waited: bool,
}

impl Placed<'_> {
    fn is_on(&self, kind: DeviceKind) -> bool {
        self.device.as_ref().is_some_and(|d| d.kind == kind)
    }

    fn is_bridge_port(&self) -> bool {
        self.device.as_ref().is_some_and(|d| d.bridge.is_some())
    }
}

/// The stage that begins at the event with this index; `None` for an event that is not a hop of its own.
#[must_use]
pub fn stage_at(events: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = events.get(index)?;
    let stage = match here.role {
        _ if functions::of(here.event.hook).is_some() => of_function(events, index),
        Role::Sender => sending(here.event.hook),
        Role::Receiver => receiving(here.event.hook),
        Role::Both => sending(here.event.hook).or_else(|| receiving(here.event.hook)),
        Role::Node => between(events, index),
    }?;
    Some(match stage {
        StageId::LinkHeader if here.waited => StageId::NeighbourOut,
        StageId::NodeLinkHeader if here.waited => StageId::NodeNeighbour,
        StageId::LinkHeader if events.get(index + 1).is_some_and(|next| is_cut(here.event, next.event)) => StageId::Segment,
        // The functions that cut and that write the header say it more exactly.
        StageId::LinkHeader | StageId::NodeLinkHeader
            if here.event.hook == Hook::TRACE_NF_LAST_POST_ROUTING
                && events.get(index + 1).is_some_and(|next| next.role == here.role && follows_rules(next.event.hook)) =>
        {
            return None;
        }
        stage => stage,
    })
}

/// Functions between the end of POST_ROUTING and the device.
fn follows_rules(hook: Hook) -> bool {
    matches!(
        hook,
        Hook::TRACE_FN_IP_DO_FRAGMENT | Hook::TRACE_FN_IP6_FRAGMENT | Hook::TRACE_FN_IP_FINISH_OUTPUT2 | Hook::TRACE_FN_IP6_FINISH_OUTPUT2
    )
}

/// Whether the packet was cut into fragments or segments between two events; the later one is of the first piece.
#[must_use]
pub fn is_cut(before: &Event, after: &Event) -> bool {
    let fragmented = after.has(trace_flag::TRACE_F_MORE_FRAGMENTS) && !before.has(trace_flag::TRACE_F_MORE_FRAGMENTS);
    let segmented = before.segments > 1 && after.segments < before.segments && after.payload < before.payload;
    fragmented || segmented
}

/// What a function shows is left to netfilter's hooks where they show the same, so that a stage has one name for its hook.
fn of_function(events: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = &events[index];
    let [send, pass, receive] = functions::of(here.event.hook)?.stages;
    let in_this_netns = |s: &&Placed<'_>| s.event.netns == here.event.netns;
    let received = || events[..index].iter().filter(in_this_netns).any(|s| s.event.hook == Hook::TRACE_RECEIVE_SKB);
    let next_is = |hook: Hook| events.get(index + 1).is_some_and(|next| next.event.hook == hook);
    let before_is = |hook: Hook| events[..index].last().is_some_and(|before| before.event.hook == hook);
    match (here.event.hook, here.role) {
        (Hook::TRACE_FN_BR_FORWARD, Role::Node) if next_is(Hook::TRACE_NF_FIRST_FORWARD) => None,
        (Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH, Role::Node) if before_is(Hook::TRACE_NF_LAST_PRE_ROUTING) => None,
        // A queue discipline may have classes of its own.
        (Hook::TRACE_FN_TCF_CLASSIFY, _) if events[..index].iter().filter(in_this_netns).any(|s| s.event.hook == Hook::TRACE_DEV_QUEUE) => {
            receive.filter(|_| received())
        }
        (Hook::TRACE_FN_TCF_CLASSIFY, Role::Both) => {
            if received() {
                receive
            } else {
                send
            }
        }
        (_, Role::Sender) => send,
        (_, Role::Node) => pass,
        (_, Role::Receiver) => receive,
        (_, Role::Both) => send.or(receive),
    }
}

fn sending(hook: Hook) -> Option<StageId> {
    Some(match hook {
        Hook::TRACE_TCP_SENDMSG | Hook::TRACE_WRITE_CALL => StageId::SocketWrite,
        Hook::TRACE_FIB_LOOKUP => StageId::RouteOut,
        Hook::TRACE_NF_FIRST_LOCAL_OUT => StageId::NfLocalOut,
        Hook::TRACE_NF_LAST_LOCAL_OUT => StageId::OutputDevice,
        Hook::TRACE_NF_FIRST_POST_ROUTING => StageId::NfPostRouting,
        Hook::TRACE_NF_LAST_POST_ROUTING => StageId::LinkHeader,
        Hook::TRACE_DEV_QUEUE => StageId::SendStackDone,
        Hook::TRACE_QDISC_ENQUEUE => StageId::Qdisc,
        Hook::TRACE_DEV_XMIT => StageId::DeviceXmit,
        _ => return None,
    })
}

fn receiving(hook: Hook) -> Option<StageId> {
    Some(match hook {
        Hook::TRACE_NETIF_RX | Hook::TRACE_GRO_RECEIVE => StageId::DeviceHandover,
        Hook::TRACE_RECEIVE_SKB => StageId::ReceiveStack,
        Hook::TRACE_NF_FIRST_PRE_ROUTING => StageId::NfPreRouting,
        Hook::TRACE_NF_LAST_PRE_ROUTING => StageId::RouteIn,
        Hook::TRACE_NF_FIRST_LOCAL_IN => StageId::NfLocalIn,
        Hook::TRACE_NF_LAST_LOCAL_IN => StageId::ReceiveTransport,
        Hook::TRACE_TCP_PROBE => StageId::SocketLookup,
        Hook::TRACE_DATA_READY | Hook::TRACE_BYPASS_READY => StageId::ReaderWoken,
        Hook::TRACE_COPY_DATAGRAM => StageId::Dequeued,
        Hook::TRACE_RECV_LENGTH | Hook::TRACE_RCV_SPACE_ADJUST | Hook::TRACE_BYPASS_READ => StageId::Copied,
        Hook::TRACE_CONSUME_SKB => StageId::Released,
        _ => return None,
    })
}

fn between(events: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = &events[index];
    let in_this_netns = |s: &&Placed<'_>| s.event.netns == here.event.netns;
    Some(match here.event.hook {
        Hook::TRACE_NETIF_RX | Hook::TRACE_GRO_RECEIVE if here.is_on(DeviceKind::Tunnel) => StageId::TunnelDecap,
        Hook::TRACE_NETIF_RX | Hook::TRACE_GRO_RECEIVE => match &here.device {
            Some(d) if d.kind == DeviceKind::Veth && !comes_from_a_node(events, index) => StageId::VethCross,
            _ => StageId::Wire,
        },
        // A routed packet reaches the stack a second time, from the bridge's own device.
        Hook::TRACE_RECEIVE_SKB if here.is_on(DeviceKind::Bridge) => StageId::NodeRoute,
        Hook::TRACE_RECEIVE_SKB => StageId::NodeReceive,
        Hook::TRACE_NF_FIRST_PRE_ROUTING => StageId::NodePreRouting,
        Hook::TRACE_NF_LAST_PRE_ROUTING => {
            let received = events[..index].iter().rev().filter(in_this_netns).find(|s| s.event.hook == Hook::TRACE_RECEIVE_SKB);
            if received.is_some_and(Placed::is_bridge_port) { StageId::BridgeIn } else { StageId::NodeRoute }
        }
        Hook::TRACE_NF_FIRST_FORWARD => StageId::NodeForward,
        Hook::TRACE_NF_FIRST_POST_ROUTING => StageId::NodePostRouting,
        Hook::TRACE_NF_LAST_POST_ROUTING if is_bridged(events, index) => StageId::BridgeForward,
        Hook::TRACE_NF_LAST_POST_ROUTING => StageId::NodeLinkHeader,
        Hook::TRACE_NF_FIRST_LOCAL_OUT | Hook::TRACE_NF_LAST_LOCAL_OUT => StageId::NodeLocalOut,
        Hook::TRACE_NF_FIRST_LOCAL_IN => StageId::NodeLocalIn,
        Hook::TRACE_NF_LAST_LOCAL_IN => StageId::TunnelDecap,
        Hook::TRACE_FIB_LOOKUP => StageId::NodeRoute,
        Hook::TRACE_DEV_QUEUE => StageId::NodeQueue,
        Hook::TRACE_QDISC_ENQUEUE => StageId::NodeQdisc,
        Hook::TRACE_DEV_XMIT if here.is_on(DeviceKind::Tunnel) => StageId::TunnelEncap,
        Hook::TRACE_DEV_XMIT => StageId::NodeXmit,
        _ => return None,
    })
}

/// Bridge netfilter shows the bridge as device in and device out; a router's two differ (hairpins aside).
fn is_bridged(events: &[Placed<'_>], index: usize) -> bool {
    let here = &events[index];
    events[..index]
        .iter()
        .rev()
        .take_while(|s| s.event.netns == here.event.netns)
        .find(|s| s.event.hook == Hook::TRACE_NF_FIRST_FORWARD)
        .is_some_and(|s| s.is_on(DeviceKind::Bridge) && s.event.arg == s.event.ifindex && !was_routed(events, index))
}

/// A packet that was handed up from the bridge's own device is routed, even if it leaves by the same bridge.
fn was_routed(events: &[Placed<'_>], index: usize) -> bool {
    let here = &events[index];
    events[..index]
        .iter()
        .rev()
        .take_while(|s| s.event.netns == here.event.netns)
        .any(|s| s.event.hook == Hook::TRACE_RECEIVE_SKB && s.is_on(DeviceKind::Bridge))
}

fn comes_from_a_node(events: &[Placed<'_>], index: usize) -> bool {
    let here = &events[index];
    match events[..index].last() {
        Some(before) => before.role == Role::Node && before.event.netns != here.event.netns,
        // Nothing was seen before: it came from another node.
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::assemble::tests::event;

    /// The stages of a path of hooks, each with its namespace and what that is to the packet.
    fn stages(path: &[(Hook, u32, Role)]) -> Vec<Option<StageId>> {
        let events: Vec<Event> = path.iter().zip(1..).map(|((hook, netns, _), at)| event(1, *hook, *netns, 2, at)).collect();
        let placed: Vec<Placed<'_>> = events
            .iter()
            .zip(path)
            .map(|(event, (_, _, role))| Placed { event, role: *role, device: None, qdisc: None, waited: false })
            .collect();
        (0..path.len()).map(|index| stage_at(&placed, index)).collect()
    }

    /// The same where all is in one namespace.
    fn stages_in(role: Role, hooks: &[Hook]) -> Vec<Option<StageId>> {
        stages(&hooks.iter().map(|hook| (*hook, 1, role)).collect::<Vec<_>>())
    }

    #[test]
    fn a_function_shows_what_its_namespace_is_to_the_packet() {
        let of = |hook, role| stages_in(role, &[hook])[0];
        let finish = Hook::TRACE_FN_IP_FINISH_OUTPUT2;
        assert_eq!(of(finish, Role::Sender), Some(StageId::LinkHeader));
        assert_eq!(of(finish, Role::Node), Some(StageId::NodeLinkHeader));
        assert_eq!(of(finish, Role::Receiver), None);
        // Over lo a function shows the sending half if it has one, else the receiving one.
        assert_eq!(of(finish, Role::Both), Some(StageId::LinkHeader));
        assert_eq!(of(Hook::TRACE_FN_IP_RCV_CORE, Role::Both), Some(StageId::NetworkPulled));
        assert_eq!(of(Hook::TRACE_FN_IP_RCV_FINISH, Role::Receiver), Some(StageId::RouteIn));
        assert_eq!(of(Hook::TRACE_FN_IP_RCV_FINISH, Role::Node), Some(StageId::NodeRoute));
        assert_eq!(of(Hook::TRACE_FN_IP_OUTPUT, Role::Node), None, "a node's output device is a part of its routing");
    }

    #[test]
    fn waiting_for_a_neighbour_shows_at_the_function_too() {
        let s = event(1, Hook::TRACE_FN_IP_FINISH_OUTPUT2, 1, 2, 1);
        for (role, stage) in [(Role::Sender, StageId::NeighbourOut), (Role::Node, StageId::NodeNeighbour)] {
            let placed = Placed { event: &s, role, device: None, qdisc: None, waited: true };
            assert_eq!(stage_at(&[placed], 0), Some(stage));
        }
    }

    #[test]
    fn the_bridge_is_shown_once() {
        let node = |hooks: &[Hook]| stages_in(Role::Node, hooks);
        // With rules on bridged packets, netfilter shows where the bridge takes and passes them.
        assert_eq!(node(&[Hook::TRACE_NF_LAST_PRE_ROUTING, Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH])[1], None);
        assert_eq!(node(&[Hook::TRACE_FN_BR_FORWARD, Hook::TRACE_NF_FIRST_FORWARD])[0], None);
        // Without, its functions do.
        assert_eq!(node(&[Hook::TRACE_RECEIVE_SKB, Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH])[1], Some(StageId::BridgeIn));
        assert_eq!(node(&[Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH])[0], Some(StageId::BridgeIn));
        assert_eq!(node(&[Hook::TRACE_FN_BR_FORWARD, Hook::TRACE_DEV_QUEUE])[0], Some(StageId::BridgeForward));
        assert_eq!(node(&[Hook::TRACE_FN_BR_FORWARD])[0], Some(StageId::BridgeForward));
    }

    #[test]
    fn tc_filters_are_distinguished_from_classes_of_a_qdisc() {
        const TC: Hook = Hook::TRACE_FN_TCF_CLASSIFY;
        assert_eq!(stages_in(Role::Sender, &[TC])[0], Some(StageId::TcEgress));
        assert_eq!(stages_in(Role::Sender, &[Hook::TRACE_DEV_QUEUE, TC])[1], None);
        assert_eq!(stages_in(Role::Receiver, &[TC])[0], Some(StageId::TcIngress));
        // In a pod that talks to itself the packet is sent before it is received, and comes by the queue first.
        assert_eq!(stages_in(Role::Both, &[TC])[0], Some(StageId::TcEgress));
        assert_eq!(stages_in(Role::Both, &[Hook::TRACE_DEV_QUEUE, TC])[1], None);
        assert_eq!(stages_in(Role::Both, &[Hook::TRACE_RECEIVE_SKB, TC])[1], Some(StageId::TcIngress));
        assert_eq!(stages_in(Role::Both, &[Hook::TRACE_DEV_QUEUE, Hook::TRACE_RECEIVE_SKB, TC])[2], Some(StageId::TcIngress));
        // The queue of another namespace has nothing to do with it.
        let receiver = stages(&[(Hook::TRACE_DEV_QUEUE, 2, Role::Node), (TC, 1, Role::Receiver)]);
        assert_eq!(receiver[1], Some(StageId::TcIngress));
    }

    #[test]
    fn the_functions_behind_the_rules_replace_their_end() {
        const RULES_END: Hook = Hook::TRACE_NF_LAST_POST_ROUTING;
        for function in [
            Hook::TRACE_FN_IP_DO_FRAGMENT,
            Hook::TRACE_FN_IP6_FRAGMENT,
            Hook::TRACE_FN_IP_FINISH_OUTPUT2,
            Hook::TRACE_FN_IP6_FINISH_OUTPUT2,
        ] {
            assert!(follows_rules(function), "{function:?}");
            for role in [Role::Sender, Role::Node] {
                let found = stages_in(role, &[RULES_END, function]);
                assert_eq!(found[0], None, "{function:?}");
                assert_eq!(
                    found[1].is_some(),
                    role == Role::Sender || !matches!(function, Hook::TRACE_FN_IP_DO_FRAGMENT | Hook::TRACE_FN_IP6_FRAGMENT)
                );
            }
        }
        for hook in [Hook::TRACE_DEV_QUEUE, Hook::TRACE_FN_IP_OUTPUT, Hook::TRACE_FN_IP_RCV_CORE, Hook::TRACE_NF_LAST_LOCAL_OUT] {
            assert!(!follows_rules(hook), "{hook:?}");
        }
        assert_eq!(stages_in(Role::Sender, &[RULES_END, Hook::TRACE_DEV_QUEUE])[0], Some(StageId::LinkHeader));
        assert_eq!(stages_in(Role::Node, &[RULES_END, Hook::TRACE_DEV_QUEUE])[0], Some(StageId::NodeLinkHeader));
        // Who sends the function's packet is another than who ended the rules.
        let two = stages(&[(RULES_END, 1, Role::Sender), (Hook::TRACE_FN_IP_FINISH_OUTPUT2, 2, Role::Node)]);
        assert_eq!(two, [Some(StageId::LinkHeader), Some(StageId::NodeLinkHeader)]);
    }
}
