//! From what helpers said to a report: pure functions, no clock, no terminal, no kernel.

mod absent;
mod assemble;
mod capture;
pub mod document;
mod findings;
mod hint;
mod journey;
pub mod leg;
mod netfilter;
mod overhead;
pub mod rewrites;
pub mod times;
mod untranslated;

pub use capture::{Capture, HelperLog, HelperOrigin, Origin, PACKETS_KEPT};
pub use document::{Finding, Report, Severity};
pub use journey::Journey;

/// The report on what was captured.
#[must_use]
pub fn report(capture: &Capture) -> Report {
    let journeys = journey::join(capture);
    assemble::assemble(capture, &journeys)
}

/// One packet as `-o jsonl` prints it, as soon as it came.
#[must_use]
pub fn packet_row(capture: &Capture, helper: usize, packet: &sockpath_protocol::packet::Packet) -> document::PacketRow {
    assemble::packet(capture, &journey::single(capture, helper, packet))
}
