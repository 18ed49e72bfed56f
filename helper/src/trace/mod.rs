//! Watching the packets of one pair of pods.

use anyhow::{Result, bail};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::request::TraceRequest;

use crate::session::Session;

/// Serves a trace until it is done or the session has to end.
pub async fn run(_session: &mut Session, _request: TraceRequest) -> Result<EndReason> {
    bail!("trace is not built yet")
}
