//! The packets of a report, hop by hop. A row repeats names at every hop, so all rows together take several times what was captured:
//! each is made on demand.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::capture::Capture;
use super::journey::{Spots, journey};
use super::packet_row::PacketRow;

/// The packets of a report.
#[derive(Debug, Clone, Default)]
pub struct Packets {
    /// Absent when there are none.
    capture: Option<Arc<Capture>>,
    /// The parts of each, as indices into [`Capture::packets`].
    chains: Vec<Vec<usize>>,
}

impl Packets {
    pub(super) fn new(capture: Arc<Capture>, chains: Vec<Vec<usize>>) -> Self {
        Self { capture: Some(capture), chains }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chains.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<PacketRow> {
        let (capture, parts) = (self.capture.as_ref()?, self.chains.get(index)?);
        Some(PacketRow::of(capture, &journey(capture, &mut Spots::default(), parts)))
    }

    /// All of them, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = PacketRow> {
        let mut spots = Spots::default();
        let rows = self.capture.iter().flat_map(|capture| self.chains.iter().map(move |parts| (capture, parts)));
        rows.map(move |(capture, parts)| PacketRow::of(capture, &journey(capture, &mut spots, parts)))
    }
}

impl Serialize for Packets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}
