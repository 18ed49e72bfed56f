//! Segments that were sent again: was the first copy lost, or only acknowledged late?

use std::collections::HashMap;

use sockpath_protocol::packet::{Direction, Outcome, PacketKind};
use sockpath_protocol::request::Protocol;

use super::journey::Journey;

/// What became of the first copies of segments that were seen more than once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Repeats {
    /// First copies that had reached their socket.
    pub(super) arrived: usize,
    /// First copies that had not.
    pub(super) lost: usize,
}

/// A segment: helper, conversation, direction, whether it is a SYN, and sequence number.
type Segment = (usize, u64, Direction, bool, u32);

/// Counts them.
pub(super) fn repeats(journeys: &[Journey<'_>]) -> Repeats {
    let mut first: HashMap<Segment, (&Outcome, usize)> = HashMap::new();
    for journey in journeys {
        let (helper, packet) = journey.parts[0];
        let syn = matches!(packet.kind, PacketKind::Syn | PacketKind::SynAck);
        if packet.protocol != Protocol::Tcp || !(syn || packet.kind == PacketKind::Data) {
            continue;
        }
        let key = (helper, packet.conversation, packet.direction, syn, packet.seq);
        first.entry(key).or_insert((journey.outcome(), 0)).1 += 1;
    }
    let mut found = Repeats::default();
    for (outcome, _) in first.values().filter(|(_, copies)| *copies > 1) {
        match outcome {
            Outcome::Delivered => found.arrived += 1,
            _ => found.lost += 1,
        }
    }
    found
}
