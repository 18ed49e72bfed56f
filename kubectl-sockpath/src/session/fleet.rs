//! One or several helpers as one stream of events.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::message::{EndReason, Hello};
use sockpath_protocol::{HEARTBEAT_INTERVAL_MS, Message, PROTOCOL_VERSION, Request};
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::stream::{Clock, Lines, Queued, Sink, listen, talk};
use super::{Aftermath, ClockEstimate, Ending, Keeper, Transport};

/// This plugin's release.
const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// What comes from a helper.
#[derive(Debug)]
pub enum Event {
    /// It said something (never `hello`, `heartbeat` or `end`).
    Said(Box<Message>),
    /// It said `end`.
    Ended(EndReason),
    /// The stream is over without `end`.
    Lost(SessionError),
}

/// Why a session with a helper failed, for callers that decide on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// It was over before the helper had said hello.
    NoHello {
        /// What is known.
        detail: String,
    },
    /// It runs, but says nothing.
    Mute {
        /// What is known.
        detail: String,
    },
    /// It has said hello, and then nothing for a long time.
    Silent {
        /// For how long.
        patience: Duration,
        /// What is known.
        detail: String,
    },
    /// The helper speaks another version of the protocol.
    Version {
        /// Version of its protocol.
        protocol: u32,
        /// Its release.
        release: String,
    },
    /// It went away without saying `end`.
    CutOff {
        /// What is known.
        detail: String,
    },
    /// It said something that is no message.
    Garbled {
        /// What was wrong with it.
        detail: String,
    },
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with = |f: &mut std::fmt::Formatter<'_>, text: &str, detail: &str| {
            if detail.is_empty() { f.write_str(text) } else { write!(f, "{text}: {detail}") }
        };
        match self {
            Self::NoHello { detail } => {
                with(f, "it did not start", detail)?;
                f.write_str("\ncheck --helper-image (in the lab SOCKPATH_LAB_PROGRAM); kubectl sockpath doctor examines what it needs")
            }
            Self::Mute { detail } => {
                with(f, "it runs, but does not say hello", detail)?;
                f.write_str("\nis that a helper of sockpath? check --helper-image (in the lab SOCKPATH_LAB_PROGRAM)")
            }
            Self::Silent { patience, detail } => {
                with(f, &format!("nothing was heard from it for {} s", patience.as_secs()), detail)?;
                f.write_str("\nits node or kubelet may be cut off, or it hangs; kubectl sockpath doctor examines the node")
            }
            Self::Version { protocol, release } => write!(
                f,
                "it is release {release} and speaks protocol {protocol}, this plugin is release {RELEASE} and speaks protocol {PROTOCOL_VERSION}\n\
                 use a helper of release {RELEASE} (--helper-image; in the lab SOCKPATH_LAB_PROGRAM) or the plugin of release {release}"
            ),
            Self::CutOff { detail } => with(f, "it went away before it was done, what it saw last is missing", detail),
            Self::Garbled { detail } => with(f, "it said something this plugin does not understand (are both of one release?)", detail),
        }
    }
}

impl std::error::Error for SessionError {}

impl SessionError {
    /// The same with what was found out afterwards.
    fn with(self, aftermath: &Aftermath) -> Self {
        match self {
            Self::CutOff { detail } => Self::CutOff { detail: join(&detail, aftermath) },
            Self::NoHello { detail } => Self::NoHello { detail: join(&detail, aftermath) },
            Self::Silent { patience, detail } => Self::Silent { patience, detail: join(&detail, aftermath) },
            // It ran until we ended it; what that looked like from outside is no cause.
            Self::Mute { detail } => {
                Self::Mute { detail: join(&detail, &Aftermath { cause: String::new(), stderr: aftermath.stderr.clone() }) }
            }
            other => other,
        }
    }
}

/// A helper that has said hello.
pub struct Ready {
    nodes: Vec<String>,
    hello: Hello,
    reader: Lines,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    keeper: Box<dyn Keeper>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("nodes", &self.nodes).field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Ready {
    /// Waits for the helper's hello and checks that both sides speak the same protocol. Several may be awaited at once.
    ///
    /// # Errors
    /// A [`SessionError`], after the transport's keeper has cleaned up.
    pub async fn handshake(transport: Transport, patience: Duration) -> Result<Self> {
        let Transport { nodes, reader, writer, keeper } = transport;
        let mut reader = Lines::new(reader);
        let mut ending = Ending::Kill;
        let error = match timeout(patience, reader.next()).await {
            Ok(Ok(Some(Message::Hello(hello)))) if hello.protocol == PROTOCOL_VERSION => {
                return Ok(Self { nodes, hello, reader, writer, keeper });
            }
            Ok(Ok(Some(Message::Hello(hello)))) => SessionError::Version { protocol: hello.protocol, release: hello.version },
            Ok(Ok(Some(Message::Error { text, .. }))) => SessionError::NoHello { detail: text },
            Ok(Ok(Some(_))) => SessionError::Garbled { detail: "the first line was no hello".to_owned() },
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
}

/// Says of which other release helpers are that speak our protocol all the same.
#[must_use]
pub fn other_releases(helpers: &[Ready]) -> Option<String> {
    let others: Vec<&Ready> = helpers.iter().filter(|h| h.hello.version != RELEASE).collect();
    if others.is_empty() {
        return None;
    }
    let nodes: Vec<&str> = others.iter().flat_map(|h| &h.nodes).map(String::as_str).collect();
    let releases: BTreeSet<&str> = others.iter().map(|h| h.hello.version.as_str()).collect();
    Some(format!(
        "the helper on {} is release {}, this plugin is release {RELEASE}: both speak protocol {PROTOCOL_VERSION}, but what only one of them \
         knows is missing; --helper-image names another helper",
        nodes.join(", "),
        releases.into_iter().collect::<Vec<_>>().join(", ")
    ))
}

/// Says which helpers were built with test switches: those may corrupt connections.
#[must_use]
pub fn built_for_tests(helpers: &[Ready]) -> Option<String> {
    let nodes: Vec<&str> = helpers.iter().filter(|h| h.hello.test_switches).flat_map(|h| &h.nodes).map(String::as_str).collect();
    (!nodes.is_empty()).then(|| {
        format!("the helper on {} is built with test switches, which corrupt connections: do not use it except in tests", nodes.join(", "))
    })
}

/// One helper of the fleet.
pub struct Member {
    /// The nodes it serves.
    pub nodes: Vec<String>,
    /// What it said first.
    pub hello: Hello,
    requests: mpsc::Sender<Request>,
    clock: Clock,
    tasks: [JoinHandle<()>; 2],
    keeper: Option<Box<dyn Keeper>>,
    over: bool,
    /// It has said that it goes on without us.
    stays: bool,
}

impl Member {
    /// How people call it.
    #[must_use]
    pub fn name(&self) -> String {
        self.nodes.join(", ")
    }

    /// How its clock lies to ours, as far as it was measured ([`Fleet::compare_clocks`]).
    #[must_use]
    pub fn clock(&self) -> Option<ClockEstimate> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).meter.estimate()
    }

    /// Whether its stream has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether its stream is there; it is not while we clean up behind a helper that went away.
    fn listens(&self) -> bool {
        !self.over && self.keeper.is_some()
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("nodes", &self.nodes).field("over", &self.over).finish_non_exhaustive()
    }
}

/// Helpers that work together on one request.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Member>,
    events: mpsc::Receiver<Queued>,
    sink: Sink,
    /// Cleaning up behind helpers that went away, which takes as long as the API server does; each ends in the event that tells of it.
    aftermaths: JoinSet<(usize, Event)>,
}

impl Default for Fleet {
    fn default() -> Self {
        let (sink, events) = Sink::new();
        Self { members: Vec::new(), events, sink, aftermaths: JoinSet::new() }
    }
}

impl Fleet {
    /// Takes a helper in and starts its heartbeat; its index tags what it says.
    pub fn join(&mut self, ready: Ready) -> usize {
        let index = self.members.len();
        let (requests, inbox) = mpsc::channel(16);
        let clock = Clock::default();
        let tasks = [
            tokio::spawn(listen(index, ready.reader, self.sink.clone(), clock.clone())),
            tokio::spawn(talk(ready.writer, inbox, clock.clone(), Duration::from_millis(HEARTBEAT_INTERVAL_MS))),
        ];
        self.members.push(Member {
            nodes: ready.nodes,
            hello: ready.hello,
            requests,
            clock,
            tasks,
            keeper: Some(ready.keeper),
            over: false,
            stays: false,
        });
        index
    }

    /// The helpers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether all streams have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.members.iter().all(|m| m.over)
    }

    /// Begins to compare the clocks of all nodes with ours, where there are several.
    pub fn compare_clocks(&self) {
        if self.members.len() > 1 {
            for member in &self.members {
                member.clock.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
            }
        }
    }

    /// Asks one helper for something. A helper that has gone is noticed through [`Fleet::next`], not here.
    pub async fn send(&self, index: usize, request: Request) {
        if let Some(member) = self.members.get(index).filter(|m| m.listens()) {
            let _ = member.requests.send(request).await;
        }
    }

    /// Asks every helper for the same.
    pub async fn send_all(&self, request: &Request) {
        for index in 0..self.members.len() {
            self.send(index, request.clone()).await;
        }
    }

    /// What comes next, and from which helper; `None` when all streams have ended and that has been told. Cancel-safe.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        while !self.is_over() {
            let (index, event) = tokio::select! {
                Some(told) = self.aftermaths.join_next() => match told {
                    Ok(told) => told,
                    // It panicked, which has been printed; `close` counts its helper as one that did not end.
                    Err(_) => continue,
                },
                Some(Queued { helper, event, .. }) = self.events.recv() => (helper, event),
            };
            let member = self.members.get_mut(index)?;
            match event {
                Event::Said(message) => {
                    member.stays |= matches!(&*message, Message::Summary(summary) if summary.detached);
                    return Some((index, Event::Said(message)));
                }
                Event::Lost(error) => match member.keeper.take() {
                    // Whoever asks for what comes next may stop asking at any moment, so nothing is waited for here.
                    Some(keeper) => {
                        self.aftermaths.spawn(async move { (index, Event::Lost(error.with(&keeper.end(Ending::Kill).await))) });
                    }
                    None => {
                        member.over = true;
                        return Some((index, Event::Lost(error)));
                    }
                },
                Event::Ended(reason) => {
                    member.over = true;
                    return Some((index, Event::Ended(reason)));
                }
            }
        }
        None
    }

    /// Ends the session with a helper that is not heard any more; `None` when it has ended already.
    pub async fn give_up(&mut self, index: usize, why: String) -> Option<Event> {
        let member = self.members.get_mut(index).filter(|m| m.listens())?;
        member.over = true;
        for task in &member.tasks {
            task.abort();
        }
        let aftermath = match member.keeper.take() {
            Some(keeper) => keeper.end(Ending::Kill).await,
            None => Aftermath::default(),
        };
        Some(Event::Lost(SessionError::CutOff { detail: join(&why, &aftermath) }))
    }

    /// Ends all sessions in order: asks for it, hands on what is still said, and after `patience` kills who has not ended.
    /// Errors of helpers reach `on` as events like everything else.
    pub async fn finish(&mut self, patience: Duration, mut on: impl FnMut(usize, Event)) {
        self.send_all(&Request::Finish).await;
        let deadline = Instant::now() + patience;
        while let Ok(Some((index, event))) = timeout_at(deadline, self.next()).await {
            on(index, event);
        }
        // What is known of the lost is told, however long it takes to clean up behind them.
        while let Some(Ok((index, event))) = self.aftermaths.join_next().await {
            self.members[index].over = true;
            on(index, event);
        }
        for index in self.close().await {
            on(index, Event::Lost(SessionError::CutOff { detail: format!("it did not end within {} s", patience.as_secs_f32()) }));
        }
    }

    /// Cleans up behind all helpers at once; returns those that had not said `end`.
    async fn close(&mut self) -> Vec<usize> {
        let mut unfinished = Vec::new();
        let mut endings = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            for task in &member.tasks {
                task.abort();
            }
            if let Some(keeper) = member.keeper.take() {
                let how = match (member.over, member.stays) {
                    (true, true) => Ending::Stay,
                    (true, false) => Ending::Done,
                    (false, _) => Ending::Kill,
                };
                endings.push(tokio::spawn(keeper.end(how)));
            }
            if !std::mem::replace(&mut member.over, true) {
                unfinished.push(index);
            }
        }
        for ending in endings {
            let _ = ending.await;
        }
        unfinished
    }
}

fn join(detail: &str, aftermath: &Aftermath) -> String {
    let stderr = aftermath.stderr.trim().trim_start_matches("error: ").replace('\n', "; ");
    [detail, &aftermath.cause, &stderr].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
