//! One session with the plugin: JSON lines in, JSON lines out.
//!
//! The same code serves PID 1 of the helper pod and `sockpath-lab` as a child process of the plugin. It ends on `finish`, when stdin closes,
//! when heartbeats stay away, on SIGTERM or SIGINT, and always sends `end` if the plugin still reads.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use serde::Serialize;
use sockpath_kernel::clock::clock_ns;
use sockpath_protocol::message::{ClockReading, End, EndReason, Hello};
use sockpath_protocol::{Message, PROTOCOL_VERSION, Request};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::coded::Coded;
use crate::site::Site;
use crate::{stderr, switches};

mod inbound;
mod pulse;
mod requests;

pub use inbound::Inbound;
use inbound::Refused;
use pulse::Pulse;

/// Bytes of a streamed line that are written at a time: what a pipe holds.
const PIECE: usize = 64 << 10;

/// The plugin's side of the session, as the modes see it.
#[derive(Debug)]
pub struct Session {
    site: Site,
    inbound: mpsc::Receiver<Result<Inbound, Refused>>,
    /// Set once the plugin's side of stdout is gone; nothing is written after that.
    closed: bool,
    /// What the kernel offers, for each `hello`.
    features: BTreeMap<String, bool>,
    /// The plugin that the session belongs to.
    plugin: Identity,
    /// Present while it ends.
    pulse: Option<Pulse>,
}

/// Which plugin a session belongs to, by the secret of its first `hello`.
#[derive(Debug, Default)]
struct Identity(Option<String>);

impl Identity {
    /// Whether a `hello` with this secret comes from that plugin. Pods may be attached to several times, also by others.
    fn admit(&mut self, secret: Option<String>) -> bool {
        if self.0.is_none() {
            self.0 = secret;
            return true;
        }
        self.0 == secret
    }
}

impl Session {
    /// Begins one on stdin and stdout, with a `hello`; `features` is what the kernel offers.
    ///
    /// # Errors
    /// When the first line cannot be written, or signals cannot be watched.
    pub fn open(site: Site, features: BTreeMap<String, bool>) -> Result<Self> {
        let (tx, inbound) = mpsc::channel(64);
        let mut session = Self { site, inbound, closed: false, features, plugin: Identity::default(), pulse: None };
        session.send(&Message::Hello(session.hello()?))?;
        tokio::spawn(requests::read_requests(tokio::io::stdin(), tx.clone()));
        tokio::spawn(watch_signals(tx)?);
        Ok(session)
    }

    /// Where it works.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Waits until a signal asks the process to end; whether the plugin still listens no longer matters. Cancel-safe.
    pub async fn signalled(&mut self) {
        loop {
            match self.inbound.recv().await {
                Some(Ok(Inbound::Stop(EndReason::Signal))) => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Next thing to react to. Cancel-safe. After `Stop` it always yields `Stop`.
    pub async fn next(&mut self) -> Inbound {
        loop {
            if self.closed {
                return Inbound::Stop(EndReason::StdinClosed);
            }
            let inbound = match self.inbound.recv().await.unwrap_or(Ok(Inbound::Stop(EndReason::StdinClosed))) {
                Ok(inbound) => inbound,
                Err(Refused(text)) => {
                    stderr::error(&text);
                    let _ = self.send(&Message::Error { text, code: "protocol".to_owned() });
                    return Inbound::Stop(EndReason::Failed);
                }
            };
            let answer = match inbound {
                Inbound::Request(Request::Hello { secret }) => {
                    if !self.plugin.admit(secret) {
                        stderr::error("a hello of another plugin was ignored: this session is not its own");
                        continue;
                    }
                    self.hello().map(Message::Hello)
                }
                Inbound::Request(Request::Clock { id }) => read_clocks(id).map(Message::Clock),
                // This shows the plugin that the running mode continues.
                Inbound::Request(Request::Heartbeat) => Ok(Message::Heartbeat),
                Inbound::Request(request) => match self.site.admit(&request) {
                    Ok(()) => {
                        if matches!(request, Request::Finish) {
                            self.ends();
                        }
                        return Inbound::Request(request);
                    }
                    Err(refusal) => {
                        if let Err(e) = self.fail(&refusal) {
                            stderr::error(&format!("cannot answer: {e:#}"));
                        }
                        return Inbound::Stop(EndReason::Failed);
                    }
                },
                stop @ Inbound::Stop(_) => {
                    self.ends();
                    return stop;
                }
            };
            if let Err(e) = answer.and_then(|answer| self.send(&answer)) {
                stderr::error(&format!("cannot answer: {e:#}"));
            }
        }
    }

    /// The session ends, which may take a while: from now on the plugin gets signs of life instead of answers.
    pub fn ends(&mut self) {
        self.pulse.get_or_insert_with(Pulse::start);
    }

    /// The session goes on after all.
    pub fn goes_on(&mut self) {
        self.pulse = None;
    }

    /// Says that the session is over, and why.
    pub fn end(&mut self, reason: EndReason) -> Result<()> {
        self.pulse = None;
        self.send(&Message::End(End { reason }))
    }

    fn hello(&self) -> Result<Hello> {
        let uname = nix::sys::utsname::uname().context("cannot read the kernel's name")?;
        Ok(Hello {
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            arch: uname.machine().to_string_lossy().into_owned(),
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default(),
            features: self.features.clone(),
            test_switches: switches::COMPILED_IN,
            monotonic_ns: clock_ns(ClockId::CLOCK_MONOTONIC)?,
            realtime_ns: clock_ns(ClockId::CLOCK_REALTIME)?,
        })
    }

    /// Waits until the plugin has read the last line: it deletes the pod then. The runtime may close the streams of a pod without
    /// `stdinOnce` when its process ends, before what was written last has reached the plugin.
    pub async fn await_its_end(&mut self) {
        // A plugin that has asked for the end sends nothing more, which is noticed when the end takes long.
        let is_silent = |inbound: &_| matches!(inbound, Ok(Inbound::Request(_) | Inbound::Stop(EndReason::HeartbeatMissed)));
        let ended = async { while self.inbound.recv().await.as_ref().is_some_and(is_silent) {} };
        let _ = tokio::time::timeout(LAST_LINE, ended).await;
    }

    /// Writes something as one line, piece by piece while it is encoded: for what may be megabytes.
    pub fn stream(&mut self, message: &impl Serialize) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut out = io::BufWriter::with_capacity(PIECE, io::stdout().lock());
        let encoded = serde_json::to_writer(&mut out, message).map_err(io::Error::from);
        let written = encoded.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        // What is left in it after a failure has nowhere to go.
        let (_, _) = out.into_parts();
        self.note(written)
    }

    /// Writes messages as lines in one system call. A reader that went away is noted, not an error.
    pub fn send_all<'a>(&mut self, messages: impl IntoIterator<Item = &'a Message>) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let mut lines = Vec::with_capacity(4096);
        for message in messages {
            serde_json::to_writer(&mut lines, message).context("cannot encode a message")?;
            lines.push(b'\n');
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(&lines).and_then(|()| out.flush());
        self.note(written)
    }

    fn note(&mut self, written: io::Result<()>) -> Result<()> {
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            r => r.context("cannot write to the plugin"),
        }
    }

    /// Writes one message.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        self.send_all([message])
    }

    /// Says why the session fails.
    pub fn fail(&mut self, error: &anyhow::Error) -> Result<()> {
        let code = error.downcast_ref::<Coded>().map_or("failed", Coded::code).to_owned();
        self.send(&Message::Error { text: format!("{error:#}"), code })
    }

    /// Tells the user something; the session goes on.
    pub fn warn(&mut self, text: impl Into<String>) -> Result<()> {
        self.send(&Message::Warning { text: text.into() })
    }
}

/// How long the last line may take to the plugin.
const LAST_LINE: Duration = Duration::from_secs(2);

fn watch_signals(tx: mpsc::Sender<Result<Inbound, Refused>>) -> Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = tx.send(Ok(Inbound::Stop(EndReason::Signal))).await;
    })
}

fn read_clocks(id: u64) -> Result<ClockReading> {
    Ok(ClockReading { id, monotonic_ns: clock_ns(ClockId::CLOCK_MONOTONIC)?, realtime_ns: clock_ns(ClockId::CLOCK_REALTIME)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_belongs_to_the_plugin_that_came_first() {
        let secret = |s: &str| Some(s.to_owned());
        let mut plugin = Identity::default();
        assert!(plugin.admit(None), "a plugin without a secret");
        assert!(plugin.admit(secret("a")) && plugin.admit(secret("a")));
        assert!(!plugin.admit(secret("b")) && !plugin.admit(None) && plugin.admit(secret("a")));
    }
}
