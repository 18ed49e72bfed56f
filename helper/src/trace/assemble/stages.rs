//! From sights to hops: which stage begins at a sight, given where and after what it was.

use sockpath_bpf::trace::types::trace_flag;
use sockpath_protocol::packet::{Device, DeviceKind};
use sockpath_protocol::stage::StageId;

use crate::trace::event::{Hook, Sight};
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

/// A sight and what is known about its place.
#[derive(Debug)]
pub struct Placed<'a> {
    /// The sight.
    pub sight: &'a Sight,
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

/// The stage that begins at the sight with this index; `None` for a sight that is no hop of its own.
#[must_use]
pub fn stage_at(sights: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = sights.get(index)?;
    let stage = match here.role {
        _ if functions::of(here.sight.hook).is_some() => of_function(sights, index),
        Role::Sender => sending(here.sight.hook),
        Role::Receiver => receiving(here.sight.hook),
        Role::Both => sending(here.sight.hook).or_else(|| receiving(here.sight.hook)),
        Role::Node => between(sights, index),
    }?;
    Some(match stage {
        StageId::LinkHeader if here.waited => StageId::NeighbourOut,
        StageId::NodeLinkHeader if here.waited => StageId::NodeNeighbour,
        StageId::LinkHeader if sights.get(index + 1).is_some_and(|next| is_cut(here.sight, next.sight)) => StageId::Segment,
        // The functions that cut and that write the header say it more exactly.
        StageId::LinkHeader | StageId::NodeLinkHeader
            if here.sight.hook == Hook::TRACE_NF_LAST_POST_ROUTING
                && sights.get(index + 1).is_some_and(|next| next.role == here.role && follows_rules(next.sight.hook)) =>
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

/// Whether the packet was cut into fragments or segments between two sights; the later one is of the first piece.
#[must_use]
pub fn is_cut(before: &Sight, after: &Sight) -> bool {
    let fragmented = after.has(trace_flag::TRACE_F_MORE_FRAGMENTS) && !before.has(trace_flag::TRACE_F_MORE_FRAGMENTS);
    let segmented = before.segments > 1 && after.segments < before.segments && after.payload < before.payload;
    fragmented || segmented
}

/// What a function shows is left to netfilter's hooks where they show the same, so that a stage has one name for its hook.
fn of_function(sights: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = &sights[index];
    let [send, pass, receive] = functions::of(here.sight.hook)?.stages;
    let in_this_netns = |s: &&Placed<'_>| s.sight.netns == here.sight.netns;
    let received = || sights[..index].iter().filter(in_this_netns).any(|s| s.sight.hook == Hook::TRACE_RECEIVE_SKB);
    let next_is = |hook: Hook| sights.get(index + 1).is_some_and(|next| next.sight.hook == hook);
    let before_is = |hook: Hook| sights[..index].last().is_some_and(|before| before.sight.hook == hook);
    match (here.sight.hook, here.role) {
        (Hook::TRACE_FN_BR_FORWARD, Role::Node) if next_is(Hook::TRACE_NF_FIRST_FORWARD) => None,
        (Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH, Role::Node) if before_is(Hook::TRACE_NF_LAST_PRE_ROUTING) => None,
        // A queue discipline may have classes of its own.
        (Hook::TRACE_FN_TCF_CLASSIFY, _) if sights[..index].iter().filter(in_this_netns).any(|s| s.sight.hook == Hook::TRACE_DEV_QUEUE) => {
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

fn between(sights: &[Placed<'_>], index: usize) -> Option<StageId> {
    let here = &sights[index];
    let in_this_netns = |s: &&Placed<'_>| s.sight.netns == here.sight.netns;
    Some(match here.sight.hook {
        Hook::TRACE_NETIF_RX | Hook::TRACE_GRO_RECEIVE if here.is_on(DeviceKind::Tunnel) => StageId::TunnelDecap,
        Hook::TRACE_NETIF_RX | Hook::TRACE_GRO_RECEIVE => match &here.device {
            Some(d) if d.kind == DeviceKind::Veth && !comes_from_a_node(sights, index) => StageId::VethCross,
            _ => StageId::Wire,
        },
        // A routed packet reaches the stack a second time, from the bridge's own device.
        Hook::TRACE_RECEIVE_SKB if here.is_on(DeviceKind::Bridge) => StageId::NodeRoute,
        Hook::TRACE_RECEIVE_SKB => StageId::NodeReceive,
        Hook::TRACE_NF_FIRST_PRE_ROUTING => StageId::NodePreRouting,
        Hook::TRACE_NF_LAST_PRE_ROUTING => {
            let received = sights[..index].iter().rev().filter(in_this_netns).find(|s| s.sight.hook == Hook::TRACE_RECEIVE_SKB);
            if received.is_some_and(Placed::is_bridge_port) { StageId::BridgeIn } else { StageId::NodeRoute }
        }
        Hook::TRACE_NF_FIRST_FORWARD => StageId::NodeForward,
        Hook::TRACE_NF_FIRST_POST_ROUTING => StageId::NodePostRouting,
        Hook::TRACE_NF_LAST_POST_ROUTING if is_bridged(sights, index) => StageId::BridgeForward,
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
fn is_bridged(sights: &[Placed<'_>], index: usize) -> bool {
    let here = &sights[index];
    sights[..index]
        .iter()
        .rev()
        .take_while(|s| s.sight.netns == here.sight.netns)
        .find(|s| s.sight.hook == Hook::TRACE_NF_FIRST_FORWARD)
        .is_some_and(|s| s.is_on(DeviceKind::Bridge) && s.sight.arg == s.sight.ifindex && !was_routed(sights, index))
}

/// A packet that was handed up from the bridge's own device is routed, even if it leaves by the same bridge.
fn was_routed(sights: &[Placed<'_>], index: usize) -> bool {
    let here = &sights[index];
    sights[..index]
        .iter()
        .rev()
        .take_while(|s| s.sight.netns == here.sight.netns)
        .any(|s| s.sight.hook == Hook::TRACE_RECEIVE_SKB && s.is_on(DeviceKind::Bridge))
}

fn comes_from_a_node(sights: &[Placed<'_>], index: usize) -> bool {
    let here = &sights[index];
    match sights[..index].last() {
        Some(before) => before.role == Role::Node && before.sight.netns != here.sight.netns,
        // Nothing was seen before: it came from another node.
        None => true,
    }
}
