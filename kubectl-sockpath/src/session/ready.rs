//! From an open stream to a helper that has said hello and hears from us.

use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::message::Hello;
use sockpath_protocol::{HEARTBEAT_INTERVAL_MS, Message, PROTOCOL_VERSION};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::{RELEASE, SessionError};
use super::stream::{Clock, Lines, Outgoing, talk};
use super::transport::{Ending, Keeper, Transport};

/// Requests that wait for a helper before who asks has to: those of commands that ask before it has started.
const REQUESTS_AHEAD: usize = 64;

/// The helper's end of the requests to it. Requests to a starting helper wait in it.
pub struct Mailbox {
    inbox: mpsc::Receiver<Outgoing>,
    clock: Clock,
}

impl Mailbox {
    /// An empty one, with the end to put requests in and the helper's clock.
    pub(super) fn new() -> (Self, mpsc::Sender<Outgoing>, Clock) {
        let clock = Clock::default();
        let (mailbox, requests) = Self::with(clock.clone());
        (mailbox, requests, clock)
    }

    /// One for a helper whose clock is being measured.
    pub(super) fn with(clock: Clock) -> (Self, mpsc::Sender<Outgoing>) {
        let (requests, inbox) = mpsc::channel(REQUESTS_AHEAD);
        (Self { inbox, clock }, requests)
    }

    /// Sends what is put into it, and heartbeats in between.
    pub(super) fn deliver(self, writer: Box<dyn AsyncWrite + Send + Unpin>) -> JoinHandle<()> {
        tokio::spawn(talk(writer, self.inbox, self.clock, Duration::from_millis(HEARTBEAT_INTERVAL_MS)))
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

/// A helper that has said hello. Requests and heartbeats go out from then on, whether or not it has joined a fleet yet.
pub struct Ready {
    pub(super) hello: Hello,
    pub(super) reader: Lines,
    pub(super) talk: JoinHandle<()>,
    pub(super) keeper: Box<dyn Keeper>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Ready {
    /// Waits for the helper's hello and checks that both sides speak the same protocol. Several may be awaited at once.
    ///
    /// # Errors
    /// A [`SessionError`], after the transport's keeper has cleaned up.
    pub async fn handshake(transport: Transport, patience: Duration, mailbox: Mailbox) -> Result<Self> {
        let Transport { nodes, reader, writer, keeper } = transport;
        let mut reader = Lines::new(reader);
        let mut ending = Ending::Kill;
        let error = match timeout(patience, reader.next()).await {
            Ok(Ok(Some(Message::Hello(hello)))) if hello.protocol == PROTOCOL_VERSION => {
                let talk = mailbox.deliver(writer);
                return Ok(Self { hello, reader, talk, keeper });
            }
            Ok(Ok(Some(Message::Hello(hello)))) => SessionError::Version { protocol: hello.protocol, release: hello.version },
            Ok(Ok(Some(Message::Error { text, .. }))) => SessionError::NoHello { detail: text },
            Ok(Ok(Some(_))) => SessionError::Garbled { detail: "the first line was not `hello`".to_owned() },
            Ok(Ok(None)) => {
                ending = Ending::Gone;
                SessionError::NoHello { detail: String::new() }
            }
            Ok(Err(detail)) => SessionError::Garbled { detail },
            Err(_) => SessionError::Mute { detail: format!("not within {} s", patience.as_secs_f32()) },
        };
        let aftermath = keeper.end(ending).await;
        let who = nodes.join(", ");
        Err(anyhow::Error::new(error.with(&aftermath)).context(format!("the helper on {who} cannot be used")))
    }

    /// What it said first.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Says that a helper is of another release, where that speaks our protocol all the same.
    #[must_use]
    pub fn other_release(&self, nodes: &[String]) -> Option<String> {
        let release = &self.hello.version;
        (release != RELEASE).then(|| {
            format!(
                "the helper on {} is release {release}, this plugin is release {RELEASE}: both use protocol {PROTOCOL_VERSION}, but what \
                 only one of them knows is missing; --helper-image names another helper",
                nodes.join(", "),
            )
        })
    }

    /// Says that a helper was built with test switches: those may corrupt connections.
    #[must_use]
    pub fn built_for_tests(&self, nodes: &[String]) -> Option<String> {
        let nodes = nodes.join(", ");
        self.hello
            .test_switches
            .then(|| format!("the helper on {nodes} is built with test switches, which corrupt connections: do not use it except in tests"))
    }
}
