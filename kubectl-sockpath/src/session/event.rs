//! What a fleet reports of its helpers.

use std::time::Duration;

use sockpath_protocol::Message;
use sockpath_protocol::message::{EndReason, Hello};

use super::error::SessionError;

/// What comes from a helper.
#[derive(Debug)]
pub enum Event {
    /// It has started and said hello; before that nothing else comes from it.
    Joined(Box<Hello>),
    /// It said something (never `hello`, `heartbeat` or `end`).
    Said(Box<Message>),
    /// It said `end`.
    Ended(EndReason),
    /// The stream is over without `end`, or the helper could not be started.
    Lost(SessionError),
    /// The connection broke, and why; it is being restored.
    Disconnected(String),
    /// The connection was restored after this time; messages of that time, in either direction, may be lost.
    Reconnected(Duration),
}
