//! One or several helpers as one stream of events. Helpers join when they have started, without waiting for the slowest.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};

use anyhow::{Result, anyhow};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};

use super::clock::ClockEstimate;
use super::error::SessionError;
use super::event::Event;
use super::life::Life;
use super::ready::{Mailbox, Ready};
use super::resume::{Broken, Outcome, Resumed};
use super::stream::{Clock, Lines, Outgoing, Queued, Sink, listen};
use super::suspension::Suspension;
use super::transport::{Ending, Keeper};

/// Says what a helper that starts waits for, where that is known.
pub type Phase = Box<dyn Fn() -> Option<String> + Send>;

/// A helper that has not joined yet.
pub(super) struct Starting {
    pub(super) task: AbortHandle,
    pub(super) phase: Phase,
}

/// One helper of the fleet, from its request on.
pub struct Member {
    /// The nodes it serves.
    pub nodes: Vec<String>,
    pub(super) requests: mpsc::Sender<Outgoing>,
    clock: Clock,
    pub(super) starting: Option<Starting>,
    joined: bool,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) keeper: Option<Box<dyn Keeper>>,
    pub(super) over: bool,
    pub(super) life: Arc<Life>,
    /// It has said that it goes on without us.
    pub(super) stays: bool,
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

    /// Whether its stream has ended, or it could not be started, and that was reported.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether it has started, ended or not.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.joined
    }

    /// Hands on what its stream brings.
    fn listen(&mut self, index: usize, lines: Lines, sink: Sink) {
        self.tasks.push(tokio::spawn(listen(index, lines, sink, self.clock.clone(), self.life.clone())));
    }

    /// Whether it takes requests; it does not while we clean up behind a helper that went away.
    pub(super) fn listens(&self) -> bool {
        !self.over && (self.keeper.is_some() || self.starting.is_some())
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
    pub(super) members: Vec<Member>,
    events: mpsc::Receiver<Queued>,
    sink: Sink,
    arrivals: JoinSet<(usize, Result<Ready>)>,
    /// Events of the fleet itself that are still to be reported.
    pending: VecDeque<(usize, Event)>,
    /// Helpers that could not be started: reported once others work, or none is left that may.
    held: VecDeque<(usize, String)>,
    /// Resuming sessions whose connection broke, and cleaning up behind helpers that went away, which takes as long as the API server does.
    pub(super) aftermaths: JoinSet<(usize, Outcome)>,
    /// Whether the command ends: no session is resumed any more.
    pub(super) ending: watch::Sender<bool>,
    suspension: Suspension,
}

impl Default for Fleet {
    fn default() -> Self {
        let (sink, events) = Sink::new();
        Self {
            members: Vec::new(),
            events,
            sink,
            arrivals: JoinSet::new(),
            pending: VecDeque::new(),
            held: VecDeque::new(),
            aftermaths: JoinSet::new(),
            ending: watch::Sender::new(false),
            suspension: Suspension::default(),
        }
    }
}

impl Fleet {
    /// Takes a helper in that is being started on these nodes; its index tags what it says. It joins when `start`, which gets the
    /// requests to it, has come to its end. Requests may be sent before.
    pub fn expect<F>(&mut self, nodes: Vec<String>, phase: Phase, start: impl FnOnce(Mailbox) -> F) -> usize
    where
        F: Future<Output = Result<Ready>> + Send + 'static,
    {
        self.suspension.watch();
        let index = self.members.len();
        let (mailbox, requests, clock) = Mailbox::new();
        let start = start(mailbox);
        let task = self.arrivals.spawn(async move { (index, start.await) });
        self.members.push(Member {
            nodes,
            requests,
            clock,
            starting: Some(Starting { task, phase }),
            joined: false,
            tasks: Vec::new(),
            keeper: None,
            over: false,
            life: Arc::default(),
            stays: false,
        });
        index
    }

    /// Waits until a helper has joined. Cancel-safe.
    ///
    /// # Errors
    /// When none can be started: every cause once.
    pub async fn first(&mut self) -> Result<()> {
        while !self.members.iter().any(|m| m.joined) {
            match self.arrivals.join_next().await {
                Some(arrived) => self.arrive(arrived),
                None if self.members.is_empty() => return Ok(()),
                None => {
                    let causes: BTreeSet<&str> = self.held.iter().map(|(_, why)| why.as_str()).collect();
                    return Err(anyhow!(causes.into_iter().collect::<Vec<_>>().join("\n")));
                }
            }
        }
        Ok(())
    }

    /// A helper has started, or cannot.
    fn arrive(&mut self, arrived: Result<(usize, Result<Ready>), JoinError>) {
        let (index, outcome) = match arrived {
            Ok(arrived) => arrived,
            Err(e) => {
                let ended = |m: &Member| m.starting.as_ref().is_some_and(|s| s.task.id() == e.id());
                // One that was given up has been reported.
                let Some(index) = self.members.iter().position(ended) else { return };
                (index, Err(anyhow!("a helper could not be started: {e}")))
            }
        };
        let Some(member) = self.members.get_mut(index) else { return };
        member.starting = None;
        match outcome {
            Ok(ready) => {
                member.keeper = Some(ready.keeper);
                member.tasks.push(ready.talk);
                if member.over {
                    // It was given up a moment ago; it ends with the fleet.
                    return;
                }
                member.listen(index, ready.reader, self.sink.clone());
                member.joined = true;
                self.pending.push_back((index, Event::Joined(Box::new(ready.hello))));
            }
            Err(e) => self.held.push_back((index, format!("{e:#}"))),
        }
    }

    /// Gives up the helpers that have not started; reports what they wait for.
    pub(super) async fn give_up_starting(&mut self) {
        for index in 0..self.members.len() {
            let Some(starting) = self.members[index].starting.take() else { continue };
            starting.task.abort();
            let why = match (starting.phase)() {
                Some(phase) => format!("its helper did not start before the end ({phase})"),
                None => "its helper did not start before the end".to_owned(),
            };
            self.held.push_back((index, why));
        }
        // One may have started at this very moment: it is ended with the others.
        while let Some(arrived) = self.arrivals.join_next().await {
            if let Ok((index, Ok(ready))) = arrived {
                self.members[index].tasks.push(ready.talk);
                self.members[index].keeper = Some(ready.keeper);
            }
        }
    }

    /// A helper has begun with its work: it answers heartbeats at once from now on, and when its connection breaks, its session is
    /// resumed over another one.
    pub fn works(&self, index: usize) {
        if let Some(member) = self.members.get(index) {
            member.life.set_works(true);
        }
    }

    /// The helpers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// How people call the helper with this index.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        self.members.get(index).map(Member::name).unwrap_or_default()
    }

    /// Whether nothing comes any more: all streams have ended.
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

    /// Sends a request to one helper; a starting one gets it once it has started. A lost helper is noticed through
    /// [`Fleet::next`], not here.
    pub async fn send(&self, index: usize, request: Request) {
        if let Some(member) = self.members.get(index).filter(|m| m.listens()) {
            let _ = member.requests.send(Outgoing::Request(request)).await;
        }
    }

    /// The same for a large request: it is built when it is sent, after those to other helpers.
    pub async fn send_large(&self, index: usize, build: impl FnOnce() -> Request + Send + 'static) {
        if let Some(member) = self.members.get(index).filter(|m| m.listens()) {
            let _ = member.requests.send(Outgoing::Large(Box::new(build))).await;
        }
    }

    /// Asks every helper for the same.
    pub async fn send_all(&self, request: &Request) {
        for index in 0..self.members.len() {
            self.send(index, request.clone()).await;
        }
    }

    /// What comes next, and from which helper; `None` when all streams have ended and that was reported. Cancel-safe.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        loop {
            if let Some(event) = self.next_pending() {
                return Some(event);
            }
            if self.is_over() {
                return None;
            }
            let (index, event) = tokio::select! {
                Some(arrived) = self.arrivals.join_next() => {
                    self.arrive(arrived);
                    continue;
                }
                Some(joined) = self.aftermaths.join_next() => match joined {
                    Ok((index, outcome)) => (index, self.settle(index, outcome)),
                    // It panicked, which has been printed; `close` counts its helper as one that did not end.
                    Err(_) => continue,
                },
                Some(Queued { helper, event, .. }) = self.events.recv() => (helper, event),
            };
            if let Some(taken) = self.take(index, event) {
                return Some(taken);
            }
        }
    }

    /// What the fleet itself has to tell.
    fn next_pending(&mut self) -> Option<(usize, Event)> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        let others_work = self.members.iter().any(|m| m.joined);
        if !others_work && self.members.iter().any(|m| m.starting.is_some()) {
            return None;
        }
        let (index, detail) = self.held.pop_front()?;
        self.members.get_mut(index)?.over = true;
        Some((index, Event::Lost(SessionError::Absent { detail })))
    }

    /// What a helper's stream, or the end of one, brought; `None` where cleaning up comes first.
    fn take(&mut self, index: usize, event: Event) -> Option<(usize, Event)> {
        let member = self.members.get_mut(index)?;
        match event {
            Event::Said(message) => {
                member.stays |= matches!(&*message, Message::Summary(summary) if summary.detached);
                Some((index, Event::Said(message)))
            }
            Event::Lost(error) => self.lose(index, error),
            // It received nothing for too long: it ended, and not because its work was done.
            Event::Ended(EndReason::HeartbeatMissed | EndReason::StdinClosed) => {
                self.lose(index, SessionError::Abandoned { suspended: self.suspension.lately() })
            }
            // The pod's status says why.
            Event::Ended(EndReason::Signal) => {
                let Some(keeper) = member.keeper.take() else {
                    member.over = true;
                    return Some((index, Event::Ended(EndReason::Signal)));
                };
                let error = SessionError::Terminated { detail: String::new() };
                self.aftermaths.spawn(async move { (index, Outcome::Over(Event::Lost(error.with(&keeper.end(Ending::Signalled).await)))) });
                None
            }
            Event::Ended(reason) => {
                member.over = true;
                Some((index, Event::Ended(reason)))
            }
            other => Some((index, other)),
        }
    }

    /// A helper's stream has ended without `end`. The caller may cancel at any moment, so nothing is awaited here.
    fn lose(&mut self, index: usize, error: SessionError) -> Option<(usize, Event)> {
        let member = self.members.get_mut(index)?;
        let Some(keeper) = member.keeper.take() else {
            member.over = true;
            return Some((index, Event::Lost(error)));
        };
        let broke = matches!(error, SessionError::CutOff { .. } | SessionError::Silent { .. });
        if broke && member.life.works() && !*self.ending.borrow() {
            member.tasks.drain(..).for_each(|task| task.abort());
            let (sink, ending, suspension) = (self.sink.clone(), self.ending.subscribe(), self.suspension.clone());
            let broken = Broken { index, keeper, error, sink, ending, suspension };
            self.aftermaths.spawn(async move { (index, broken.resume().await) });
        } else {
            self.aftermaths.spawn(async move { (index, Outcome::Over(Event::Lost(error.with(&keeper.end(Ending::Kill).await)))) });
        }
        None
    }

    /// What became of a helper whose stream ended.
    pub(super) fn settle(&mut self, index: usize, outcome: Outcome) -> Event {
        let resumed = match outcome {
            Outcome::Over(event) => return event,
            Outcome::Resumed(resumed) => resumed,
        };
        let Resumed { keeper, lines, writer, away } = *resumed;
        let member = &mut self.members[index];
        let (mailbox, requests) = Mailbox::with(member.clock.clone());
        member.requests = requests;
        member.keeper = Some(keeper);
        member.tasks.push(mailbox.deliver(writer));
        member.listen(index, lines, self.sink.clone());
        Event::Reconnected(away)
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
