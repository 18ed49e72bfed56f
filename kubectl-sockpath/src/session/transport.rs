//! A byte stream to a helper, and what opens it again and ends the helper.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a helper and the means to end it.
pub struct Transport {
    /// The nodes this helper serves: one in a cluster, all in the lab.
    pub nodes: Vec<String>,
    /// The helper's stdout.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// The helper's stdin.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// What cleans up after the helper.
    pub keeper: Box<dyn Keeper>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

/// Ends a helper for good: waits for or kills the child process, deletes the pod.
pub trait Keeper: Send {
    /// Ends it and tells what can be said about how it went (exit status, last lines of stderr, the pod's state), for
    /// error messages. With [`Ending::Done`] the helper has said `end` and is about to exit by itself; with [`Ending::Kill`]
    /// nothing more is expected of it. Must come back within about a second, but for [`Ending::Gone`].
    fn end(self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>>;

    /// Opens the stream to the helper again, once, after it broke, and asks for a `hello`. A child process has only one stream.
    fn reopen(&mut self) -> Pin<Box<dyn Future<Output = Reopened> + Send + '_>> {
        Box::pin(async { Reopened::Never(String::new()) })
    }
}

/// What came of an attempt to open a stream again.
pub enum Reopened {
    /// It is open; the helper's stdout and stdin.
    Open(Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>),
    /// It is not, and why; it may be later.
    NotYet(String),
    /// It cannot be, and why; empty where the helper has ended.
    Never(String),
}

/// How a helper is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It has said `end`.
    Done,
    /// It has said `end`, and goes on without us.
    Stay,
    /// It has not, or does not answer.
    Kill,
    /// It has said `end`, because a signal asked for it.
    Signalled,
    /// Its stream was over before it was used. Its status may take some seconds to be known.
    Gone,
}

/// What is known about a helper that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aftermath {
    /// Why it ended, in words (`killed by signal 9`, `the pod was evicted`); empty when nothing is known.
    pub cause: String,
    /// The last lines it wrote to stderr.
    pub stderr: String,
}
