//! What a session receives from outside: requests, reasons to end, and refusals of requests.

use sockpath_protocol::Request;
use sockpath_protocol::message::EndReason;

/// What a running mode receives from outside.
#[derive(Debug)]
pub enum Inbound {
    /// The plugin asked for something.
    Request(Request),
    /// The session has to end for this reason.
    Stop(EndReason),
}

/// Why a request was not taken, in words; the session ends.
#[derive(Debug)]
pub struct Refused(pub String);
