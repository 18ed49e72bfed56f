//! SYNs that reach a connection of before on the other side, one that is still open or one in TIME_WAIT: an ACK of that connection answers them.

use std::collections::HashMap;

use sockpath_protocol::packet::{Certainty, Drop, Flow, Outcome, PacketKind};
use sockpath_protocol::request::Protocol;

use super::journey::Journey;
use super::wording::{counted, place};

/// The drop reason of a SYN in the window of an open connection.
const INVALID_SYN: &str = "TCP_INVALID_SYN";

/// The drop reason of a SYN whose timestamp is older than the last that a socket in TIME_WAIT has seen.
const OLDER_THAN_TIME_WAIT: &str = "TCP_RFC7323_TW_PAWS";

/// Its name in `Drop::socket`.
const TIME_WAIT: &str = "TIME_WAIT";

/// SYNs that reached connections of before, at one place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reached {
    /// How many.
    pub(super) count: usize,
    /// `in pod x`, `on node y`.
    pub(super) place: String,
    /// Addresses of the SYNs, as they were sent.
    pub(super) flows: Vec<Flow>,
    /// State of the socket there, where the kernel names it.
    pub(super) state: Option<String>,
    /// Whether a SYN was older by its timestamp, where a socket in TIME_WAIT refused it.
    pub(super) by_timestamp: bool,
    /// How sure it is.
    pub(super) certainty: Certainty,
    /// What speaks for it.
    pub(super) evidence: Vec<String>,
}

impl Reached {
    /// What it is, in words: `time_wait` for a socket in TIME_WAIT, otherwise it was an open connection.
    pub(super) fn text(&self, time_wait: bool) -> String {
        let what = match &self.state {
            _ if time_wait && self.by_timestamp => {
                "a socket in TIME_WAIT with a timestamp that is older than the last of the closed connection".to_owned()
            }
            _ if time_wait => {
                "a socket in TIME_WAIT with a sequence number that is not newer than the last of the closed connection".to_owned()
            }
            Some(state) => format!("a connection that is still open (state {state})"),
            None => "a connection that is still open".to_owned(),
        };
        let (syns, place) = (counted(self.count, "SYN", false), &self.place);
        format!("{syns} reached {what} {place}: it answers with a challenge ACK, the client resets, and the next SYN comes a second later")
    }
}

/// What SYNs reached, by the state of the connection there.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Connections {
    /// Connections in TIME_WAIT.
    pub(super) time_wait: Option<Reached>,
    /// Connections that are still open.
    pub(super) open: Option<Reached>,
}

/// What a conversation's first packets were, by conversation in one helper.
#[derive(Default)]
struct Opening<'j, 'a> {
    syn: Option<&'j Journey<'a>>,
    syn_ack: bool,
    /// The drop by which the kernel itself shows that there was a connection.
    refused: Option<&'j Drop>,
    /// The number that the first answer acknowledged, where it was an ACK of something else than the SYN.
    challenged: Option<u32>,
}

impl Opening<'_, '_> {
    fn reached(&self) -> bool {
        self.refused.is_some() || self.challenged.is_some() && !self.syn_ack
    }

    fn is_time_wait(&self) -> bool {
        self.refused.is_some_and(|d| d.socket.as_deref() == Some(TIME_WAIT) || d.reason == OLDER_THAN_TIME_WAIT)
    }
}

/// Earlier connections that SYNs reached.
pub(super) fn reached(journeys: &[Journey<'_>]) -> Connections {
    let mut openings: HashMap<(usize, u64), Opening<'_, '_>> = HashMap::new();
    for journey in journeys.iter().filter(|j| j.first().protocol == Protocol::Tcp) {
        let (helper, packet) = journey.parts[journey.parts.len() - 1];
        let opening = openings.entry((helper, packet.conversation)).or_default();
        match packet.kind {
            PacketKind::Syn => match journey.outcome() {
                Outcome::Delivered => opening.syn = Some(journey),
                // Newer kernels say so themselves.
                Outcome::Dropped(drop) if shows_a_connection(drop) => (opening.syn, opening.refused) = (Some(journey), Some(drop)),
                _ => {}
            },
            PacketKind::SynAck => opening.syn_ack = true,
            PacketKind::Ack => {
                let answers = |syn: &Journey<'_>| {
                    let (_, request) = syn.parts[syn.parts.len() - 1];
                    request.direction != packet.direction && packet.ack != request.seq.wrapping_add(1)
                };
                if opening.challenged.is_none() && opening.syn.is_some_and(answers) {
                    opening.challenged = Some(packet.ack);
                }
            }
            _ => {}
        }
    }
    let mut reached: Vec<&Opening<'_, '_>> = openings.values().filter(|o| o.reached()).collect();
    reached.sort_by_key(|o| o.syn.map(|syn| syn.first().id));
    let (waiting, open): (Vec<_>, Vec<_>) = reached.into_iter().partition(|o| o.is_time_wait());
    Connections { time_wait: sum(&waiting), open: sum(&open) }
}

/// Whether a drop of a SYN shows that there was a connection of before.
fn shows_a_connection(drop: &Drop) -> bool {
    drop.reason == INVALID_SYN || drop.reason == OLDER_THAN_TIME_WAIT || drop.socket.as_deref() == Some(TIME_WAIT)
}

fn sum(openings: &[&Opening<'_, '_>]) -> Option<Reached> {
    let first = openings.first()?;
    let syn = first.syn?;
    let last = syn.steps.last()?;
    let mut evidence = Vec::new();
    if let Some(drop) = first.refused {
        let socket = drop.socket.as_ref().map_or_else(String::new, |state| format!(" at a socket in state {state}"));
        evidence.push(format!("the kernel dropped the SYN{socket}, with the reason {}", drop.reason));
    }
    if let Some(ack) = first.challenged {
        let expected = syn.parts[syn.parts.len() - 1].1.seq.wrapping_add(1);
        evidence.push(format!("the first answer acknowledges {ack}, not {expected} as an answer to the SYN would"));
    }
    Some(Reached {
        count: openings.len(),
        place: place(Some(&last.spot.node), last.spot.pod.as_deref(), None),
        flows: openings.iter().filter_map(|o| o.syn).map(|j| j.first().flow).collect(),
        state: first.refused.and_then(|d| d.socket.clone()),
        by_timestamp: openings.iter().any(|o| o.refused.is_some_and(|d| d.reason == OLDER_THAN_TIME_WAIT)),
        certainty: if first.refused.is_some() { Certainty::Observed } else { Certainty::Inferred },
        evidence,
    })
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::packet::{Direction, Packet};
    use sockpath_protocol::stage::StageId;

    use super::super::made::{dropped, flow, hop, journey, packet};
    use super::*;

    const CLIENT: &str = "10.0.0.1:40000";
    const SERVER: &str = "10.0.0.2:80";

    fn syn(outcome: Outcome) -> Packet {
        let hops = vec![hop(StageId::ReceiveTransport, "netfilter/LOCAL_IN last", 1)];
        Packet { hops, outcome, ..packet(Protocol::Tcp, PacketKind::Syn, Direction::Request, flow(CLIENT, SERVER)) }
    }

    fn answer(kind: PacketKind, ack: u32) -> Packet {
        Packet { ack, ..packet(Protocol::Tcp, kind, Direction::Reply, flow(SERVER, CLIENT)) }
    }

    fn found(packets: &[Packet]) -> Connections {
        reached(&packets.iter().map(journey).collect::<Vec<_>>())
    }

    #[test]
    fn a_socket_in_time_wait_is_not_an_open_connection() {
        let challenged = [syn(dropped("NOT_SPECIFIED", Some("TIME_WAIT"))), answer(PacketKind::Ack, 7)];
        let Connections { time_wait: Some(reached), open: None } = found(&challenged) else { panic!("{:?}", found(&challenged)) };
        assert_eq!((reached.count, reached.by_timestamp, reached.certainty), (1, false, Certainty::Observed));
        assert!(reached.evidence[0].contains("state TIME_WAIT") && reached.evidence[1].contains("acknowledges 7, not 101"), "{reached:?}");
        // A kernel that names no socket, but the reason.
        let older = [syn(dropped(OLDER_THAN_TIME_WAIT, None))];
        let Connections { time_wait: Some(reached), open: None } = found(&older) else { panic!("{:?}", found(&older)) };
        assert!(reached.by_timestamp, "{reached:?}");
    }

    #[test]
    fn a_connection_that_is_open_is_named_with_its_state() {
        let open = [syn(dropped(INVALID_SYN, Some("ESTABLISHED"))), answer(PacketKind::Ack, 7)];
        let Connections { time_wait: None, open: Some(reached) } = found(&open) else { panic!("{:?}", found(&open)) };
        assert_eq!(reached.state.as_deref(), Some("ESTABLISHED"));
        // Without the kernel's word the answer shows it.
        let challenged = [syn(Outcome::Delivered), answer(PacketKind::Ack, 7)];
        let Connections { time_wait: None, open: Some(reached) } = found(&challenged) else { panic!("{:?}", found(&challenged)) };
        assert_eq!((reached.state.as_deref(), reached.certainty), (None, Certainty::Inferred));
    }

    #[test]
    fn an_ordinary_opening_or_refusal_is_neither() {
        assert_eq!(
            found(&[syn(Outcome::Delivered), answer(PacketKind::SynAck, 101), answer(PacketKind::Ack, 150)]),
            Connections::default()
        );
        assert_eq!(found(&[syn(dropped("NO_SOCKET", None))]), Connections::default());
        assert_eq!(found(&[syn(dropped("NETFILTER_DROP", None))]), Connections::default());
        assert_eq!(found(&[syn(dropped("TCP_LISTEN_OVERFLOW", Some("LISTEN")))]), Connections::default());
    }
}
