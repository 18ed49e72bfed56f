//! Events of a conversation other than the hops of its packets.

use sockpath_protocol::packet::IncidentKind;

use crate::trace::event::{Event, Hook};

/// `NUD_REACHABLE`, `NUD_FAILED` and the rest of include/uapi/linux/neighbour.h.
const NUD: &[(u32, &str)] = &[
    (0x01, "incomplete"),
    (0x02, "reachable"),
    (0x04, "stale"),
    (0x08, "delay"),
    (0x10, "probe"),
    (0x20, "failed"),
    (0x40, "noarp"),
    (0x80, "permanent"),
];

/// `TCP_TIME_WAIT` of include/net/tcp_states.h.
pub const TIME_WAIT: u32 = 6;

/// The incident a hook stands for.
pub fn kind(hook: Hook) -> Option<IncidentKind> {
    Some(match hook {
        Hook::TRACE_SEND_RESET => IncidentKind::ResetSent,
        Hook::TRACE_RECEIVE_RESET => IncidentKind::ResetReceived,
        Hook::TRACE_RETRANSMIT => IncidentKind::Retransmit,
        Hook::TRACE_RETRANSMIT_SYNACK => IncidentKind::RetransmitSynAck,
        Hook::TRACE_SET_STATE => IncidentKind::State,
        Hook::TRACE_RCVQUEUE_FULL => IncidentKind::ReceiveQueueFull,
        Hook::TRACE_NEIGH_SEND | Hook::TRACE_NEIGH_DEAD | Hook::TRACE_NEIGH_UPDATE => IncidentKind::Neighbour,
        _ => return None,
    })
}

/// Whether a neighbour's new state says that it cannot be resolved. Answers and refreshed entries are not incidents.
pub fn is_failure(event: &Event) -> bool {
    event.arg == 0x20
}

/// The incident in words.
pub fn detail(event: &Event) -> Option<String> {
    let neighbour = event.flow.to.ip();
    Some(match event.hook {
        Hook::TRACE_SET_STATE => format!("{} to {}", state(event.arg >> 8), state(event.arg & 0xff)),
        Hook::TRACE_NEIGH_SEND => format!("{neighbour} is asked for its address"),
        Hook::TRACE_NEIGH_DEAD => format!("{neighbour} cannot be had"),
        Hook::TRACE_NEIGH_UPDATE => {
            let state = NUD.iter().find(|(bit, _)| *bit == event.arg).map_or("changed", |(_, name)| name);
            format!("{neighbour} is {state}")
        }
        _ => return None,
    })
}

/// The state of a socket by its number in include/net/tcp_states.h.
pub fn state(state: u32) -> &'static str {
    match state {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        TIME_WAIT => "TIME_WAIT",
        7 => "CLOSE",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        10 => "LISTEN",
        11 => "CLOSING",
        12 => "NEW_SYN_RECV",
        _ => "unknown",
    }
}
