//! From what helpers said to a report: pure functions, no clock, no terminal, no kernel.

use std::sync::Arc;

mod assemble;
mod capture;
mod causes;
mod common_clock;
pub mod diff;
pub mod document;
pub mod explain;
mod findings;
mod forgotten;
mod halves;
mod hint;
mod inferred;
mod journey;
pub mod kind;
pub mod leg;
#[cfg(test)]
mod made;
mod netfilter;
mod overhead;
pub mod packet_row;
pub mod packets;
mod redirected;
mod repeats;
pub mod rewrites;
mod role;
mod spread;
pub mod stage_row;
mod still_open;
pub mod times;
mod untranslated;
mod wording;

pub use capture::{Capture, HelperLog, HelperOrigin, Origin, PACKETS_KEPT};
pub use common_clock::CommonClock;
pub use document::{Finding, Report, Severity};
pub use journey::{Journey, is_netfilter};
pub use packets::Packets;

use packet_row::PacketRow;

/// The report on what was captured. It keeps the capture, which its packets are read from.
#[must_use]
pub fn report(capture: &Arc<Capture>) -> Report {
    let chains = journey::chains(capture);
    let mut spots = journey::Spots::default();
    let journeys: Vec<Journey<'_>> = chains.iter().map(|parts| journey::journey(capture, &mut spots, parts)).collect();
    let mut report = assemble::assemble(capture, &journeys);
    report.packets = Packets::new(Arc::clone(capture), chains);
    report
}

/// One packet as `-o jsonl` prints it, as soon as it came.
#[must_use]
pub fn row_of_packet(capture: &Capture, helper: usize, packet: &sockpath_protocol::packet::Packet) -> PacketRow {
    PacketRow::of(capture, &journey::single(capture, helper, packet))
}
