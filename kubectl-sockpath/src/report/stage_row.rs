//! One stage of a path, as the report lists it.

use serde::Serialize;
use sockpath_protocol::stage::{Side, StageId};

use super::times::Times;

/// One stage of the path.
#[derive(Debug, Clone, Serialize)]
pub struct StageRow {
    /// Its identifier.
    pub id: StageId,
    /// The article's number.
    pub step: Option<&'static str>,
    /// Its plain name.
    pub name: &'static str,
    /// Part of the path.
    pub side: Side,
    /// Node.
    pub node: Option<String>,
    /// Pod whose namespace it is in.
    pub pod: Option<String>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
    /// Device.
    pub device: Option<String>,
    /// Who ran it: `process` or `softirq`.
    pub context: Option<&'static str>,
    /// Name of the process, when one ran it.
    pub comm: Option<String>,
    /// The kernel's hook that saw it; absent when it was not observed.
    pub observed_by: Option<String>,
    /// How it is known.
    pub seen: Seen,
    /// Packets that were seen there.
    pub count: usize,
    /// Times spent there.
    #[serde(flatten)]
    pub times: Times,
    /// Part of the whole path's typical time, from 0 to 1.
    pub share: Option<f64>,
    /// Whether time spent here is waiting rather than working.
    pub waits: bool,
    /// What is worth saying about it.
    pub note: Option<String>,
}

/// How a stage is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// A hook saw it.
    Observed,
    /// It must have happened between two that were observed.
    Inferred,
    /// It would have been seen, and was not: the kernel took a shortcut.
    Skipped,
    /// It may have happened; nothing here can tell.
    NotObservable,
}
