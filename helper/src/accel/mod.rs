//! Letting pods of one node exchange bytes socket to socket.

use anyhow::{Result, bail};
use sockpath_protocol::accel::{AccelerateRequest, StopRequest};
use sockpath_protocol::message::EndReason;

use crate::session::Session;

/// Serves an acceleration until it is done or the session has to end.
pub async fn run(_session: &mut Session, _request: AccelerateRequest) -> Result<EndReason> {
    bail!("accelerate is not built yet")
}

/// Answers `status`.
pub fn status(_session: &mut Session) -> Result<EndReason> {
    bail!("status is not built yet")
}

/// Puts connections back on their normal path.
pub async fn stop(_session: &mut Session, _request: &StopRequest) -> Result<EndReason> {
    bail!("stop is not built yet")
}

/// Removes every leftover of ours on this node.
pub async fn cleanup(_session: &mut Session) -> Result<EndReason> {
    bail!("cleanup is not built yet")
}
