//! What helpers are for.

/// What helpers will be asked to do; decides on their privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `trace`.
    Trace,
    /// `trace --no-rules`.
    TraceWithoutRules,
    /// `accelerate`, `status`, `stop`, `cleanup`.
    Accelerate,
    /// `doctor`.
    Doctor,
}
