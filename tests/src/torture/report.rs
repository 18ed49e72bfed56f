//! What the peer processes tell the controller, one JSON line each.

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

/// One line of a peer process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Report {
    /// The server listens.
    Ready {
        /// Its process.
        pid: u32,
    },
    /// Something that TCP may not do.
    Fault {
        /// The connection's number, when it is known.
        id: Option<u64>,
        /// `client` or `server`.
        side: String,
        /// The route it took, e.g. `direct4`.
        route: String,
        /// What it was meant to do.
        plan: String,
        /// What went wrong.
        text: String,
    },
    /// What cannot be tested here, and why.
    Skipped {
        /// What and why.
        text: String,
    },
    /// Last line.
    Done(Totals),
}

/// Sums of a peer process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Connections that were played to their end.
    pub connections: u64,
    /// Connections that were reset before their header was read.
    pub headless: u64,
    /// Bytes read and found right.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
    /// Writes of the plans that were written whole.
    pub messages: u64,
    /// Connections with faults.
    pub faults: u64,
    /// Connections that saw the end of the stream where TCP reports a reset, because the peer closed with unread bytes.
    pub deviations: u64,
    /// Connections on which FIONREAD counted 0 bytes where some were unread.
    pub misled: u64,
    /// Connections by route.
    pub routes: BTreeMap<String, u64>,
    /// A sum over what the connections saw whose outcome the plan decides, in any order; equal runs have equal sums.
    pub digest: u64,
}

/// Writes something as a line of JSON.
pub fn tell(report: &impl Serialize) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    // The test that reads it may have ended.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}
