//! SYNs that meet a connection which is still open on the other side: answered with an ACK of the old connection.

use std::collections::HashMap;

use sockpath_protocol::packet::{Outcome, PacketKind};
use sockpath_protocol::request::Protocol;

use super::hint::{Hint, place};
use super::journey::Journey;

/// The drop reason of a SYN in the window of an open connection.
const INVALID_SYN: &str = "TCP_INVALID_SYN";

/// What a conversation's first packets were, by conversation in one helper.
#[derive(Default)]
struct Opening<'j, 'a> {
    syn: Option<&'j Journey<'a>>,
    syn_ack: bool,
    /// The kernel itself said that the connection was open.
    refused: bool,
    /// The first answer was an ACK without payload.
    challenged: bool,
}

/// Openings that were answered with a challenge ACK.
pub(super) fn still_open(journeys: &[Journey<'_>]) -> Option<Hint> {
    let mut openings: HashMap<(usize, u64), Opening<'_, '_>> = HashMap::new();
    for journey in journeys.iter().filter(|j| j.first().protocol == Protocol::Tcp) {
        let (helper, packet) = journey.parts[journey.parts.len() - 1];
        let opening = openings.entry((helper, packet.conversation)).or_default();
        match packet.kind {
            PacketKind::Syn => match journey.outcome() {
                Outcome::Delivered => opening.syn = Some(journey),
                // Newer kernels say so themselves.
                Outcome::Dropped(drop) if drop.reason == INVALID_SYN => (opening.syn, opening.refused) = (Some(journey), true),
                _ => {}
            },
            PacketKind::SynAck => opening.syn_ack = true,
            PacketKind::Ack => {
                let answers = |syn: &Journey<'_>| {
                    let (_, request) = syn.parts[syn.parts.len() - 1];
                    request.direction != packet.direction && packet.ack != request.seq.wrapping_add(1)
                };
                opening.challenged |= opening.syn.is_some_and(answers);
            }
            _ => {}
        }
    }
    let challenged: Vec<&Journey<'_>> =
        openings.values().filter(|o| o.refused || o.challenged && !o.syn_ack).filter_map(|o| o.syn).collect();
    let last = challenged.first()?.steps.last()?;
    Some(Hint::StillOpen {
        count: challenged.len(),
        place: place(Some(&last.spot.node), last.spot.pod.as_deref(), None),
        flows: challenged.iter().map(|j| j.first().flow).collect(),
    })
}
