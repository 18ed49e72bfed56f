//! A session whose connection broke, continued over a new one while the helper still waits for its plugin.

use std::time::Duration;

use sockpath_protocol::{HEARTBEAT_TIMEOUT_MS, Message, PROTOCOL_VERSION};
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::error::SessionError;
use super::event::Event;
use super::stream::{Lines, Sink};
use super::suspension::Suspension;
use super::transport::{Ending, Keeper, Reopened};
use crate::duration::human;

/// How long a helper goes on without its plugin, and what its report may take to arrive: after that it has ended.
const LIMIT: Duration = Duration::from_millis(HEARTBEAT_TIMEOUT_MS + 2_000);
/// One attempt, from the request to the helper's answer.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An interruption that lasts no longer is reported when it is over, if at all: most streams that end belong to a helper that ended.
const UNREPORTED: Duration = Duration::from_millis(1_500);

/// The message that a connection was lost; `meanwhile`: what that means for the command.
pub fn disconnected(name: &str, meanwhile: &str, why: &str) -> String {
    format!("the connection to the helper on {name} was lost and is being restored{meanwhile}: {why}")
}

/// The message that it is restored; `meanwhile`: what that means for the command.
pub fn reconnected(name: &str, away: Duration, meanwhile: &str) -> String {
    let away = human(away.max(Duration::from_secs(1)));
    format!("the connection to the helper on {name} was interrupted for {away} and is restored{meanwhile}")
}

/// What became of a helper whose stream ended.
pub(super) enum Outcome {
    /// Its session continues.
    Resumed(Box<Resumed>),
    /// It is over; what to report.
    Over(Event),
}

/// A session that continues.
pub(super) struct Resumed {
    pub(super) keeper: Box<dyn Keeper>,
    pub(super) lines: Lines,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// How long there was no connection.
    pub(super) away: Duration,
}

/// A session whose connection broke.
pub(super) struct Broken {
    pub(super) index: usize,
    pub(super) keeper: Box<dyn Keeper>,
    /// How that was noticed.
    pub(super) error: SessionError,
    pub(super) sink: Sink,
    /// Becomes true when the command ends: nothing is resumed from then on.
    pub(super) ending: watch::Receiver<bool>,
    pub(super) suspension: Suspension,
}

impl Broken {
    /// Resumes the session, or finds out why it is over and cleans up.
    pub(super) async fn resume(mut self) -> Outcome {
        let began = Instant::now();
        let mut ending = self.ending.clone();
        let resumed = tokio::select! {
            biased;
            _ = ending.wait_for(|ends| *ends) => Err(Failure::Interrupted),
            resumed = self.try_until(began + LIMIT) => resumed,
        };
        let (lines, writer) = match resumed {
            Ok(streams) => streams,
            Err(failure) => return Outcome::Over(self.conclude(failure, began.elapsed()).await),
        };
        Outcome::Resumed(Box::new(Resumed { keeper: self.keeper, lines, writer, away: began.elapsed() }))
    }

    async fn try_until(&mut self, end: Instant) -> Result<(Lines, Box<dyn AsyncWrite + Send + Unpin>), Failure> {
        let (began, mut pause, mut reported) = (Instant::now(), FIRST_PAUSE, false);
        loop {
            let why = match timeout(ATTEMPT, self.attempt()).await {
                Ok(Ok(streams)) => return Ok(streams),
                Ok(Err(Reopened::Never(why))) => return Err(Failure::Ended(why)),
                Ok(Err(Reopened::NotYet(why))) => why,
                Ok(Err(Reopened::Open(..))) | Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
            };
            if Instant::now() + pause >= end {
                return Err(Failure::Unreachable(why));
            }
            if !reported && began.elapsed() >= UNREPORTED {
                reported = true;
                self.sink.put(self.index, Event::Disconnected(why), 0).await;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Opens the stream once and waits for the helper's hello. The first line may be the rest of one.
    async fn attempt(&mut self) -> Result<(Lines, Box<dyn AsyncWrite + Send + Unpin>), Reopened> {
        let (reader, writer) = match self.keeper.reopen().await {
            Reopened::Open(reader, writer) => (reader, writer),
            other => return Err(other),
        };
        let mut lines = Lines::new(reader);
        loop {
            match lines.next().await {
                Ok(Some(Message::Hello(hello))) if hello.protocol == PROTOCOL_VERSION => return Ok((lines, writer)),
                Ok(None) => return Err(Reopened::NotYet("the stream ended".to_owned())),
                // What it said meanwhile is lost, as is what it said while there was no connection.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// Cleans up; gives the event that tells why the session is over.
    async fn conclude(self, failure: Failure, after: Duration) -> Event {
        let slept = self.suspension.lately();
        let error = match failure {
            // The stream ended because the helper did.
            Failure::Ended(why) if why.is_empty() && slept.is_none() => self.error,
            Failure::Ended(why) => SessionError::Disconnected { after: slept.unwrap_or(after), suspended: slept.is_some(), detail: why },
            Failure::Unreachable(why) => SessionError::Disconnected { after, suspended: false, detail: why },
            Failure::Interrupted => SessionError::Disconnected { after, suspended: false, detail: String::new() },
        };
        Event::Lost(error.with(&self.keeper.end(Ending::Kill).await))
    }
}

/// Why a session was not resumed.
enum Failure {
    /// The helper has ended, or refuses us, and why where that is known.
    Ended(String),
    /// There was no connection for too long.
    Unreachable(String),
    /// The command ends.
    Interrupted,
}
