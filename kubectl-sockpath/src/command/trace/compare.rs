//! The second part of `trace --compare`, and the third: the two pods accelerated on one path for as long as it lasts.

use std::collections::HashSet;

use anyhow::{Result, bail};
use sockpath_protocol::accel::{PairsSnapshot, Via};
use sockpath_protocol::request::TraceRequest;
use sockpath_protocol::{Message, Request};

use crate::backend::Backend;
use crate::command::accelerate;
use crate::mode::Mode;
use crate::progress::Progress;
use crate::session::{Event, Fleet, Patience, SessionError};

/// Requests of a probe: its one connection has to last until it is accelerated, and through what is measured then.
pub const REQUESTS: u32 = 1000;

/// The paths that can be compared with that through the stack, in the order they are measured: the short one between two pods, and the one
/// from socket to socket on one node.
pub fn paths(request: &TraceRequest) -> Vec<Via> {
    let source = &request.source;
    let short = request.targets.iter().any(|t| t.uid != source.uid).then_some(Via::Short);
    let socket = request.targets.iter().any(|t| t.node == source.node).then_some(Via::Socket);
    short.into_iter().chain(socket).collect()
}

/// What the path is called.
pub fn name(via: Via) -> &'static str {
    match via {
        Via::Auto => "accelerated path",
        Via::Short => "short path",
        Via::Socket => "socket path",
    }
}

/// An acceleration that runs beside the trace.
#[derive(Debug)]
pub struct Shortcut {
    fleet: Fleet,
    /// The path.
    pub via: Via,
    pairs: Option<PairsSnapshot>,
    /// Why it is over, when it is.
    lost: Option<String>,
}

impl Shortcut {
    /// Accelerates the pods of a trace and waits until that is in force.
    pub async fn start(backend: &Backend, request: &TraceRequest, via: Via, progress: &Progress) -> Result<Self> {
        let source = &request.source;
        let pods: Vec<_> = std::iter::once(source).chain(request.targets.iter().filter(|t| t.uid != source.uid)).cloned().collect();
        let mut fleet = backend.helpers(&request.nodes, Mode::Accelerate, progress).await?;
        for (index, member) in fleet.members().iter().enumerate() {
            let nodes = request.nodes.iter().filter(|n| member.nodes.contains(&n.name)).cloned().collect();
            let request = accelerate::request::foreground(&pods, nodes, via);
            fleet.send(index, Request::Accelerate(Box::new(request))).await;
        }
        let mut waiting: HashSet<usize> = (0..fleet.members().len()).collect();
        while !waiting.is_empty() {
            match fleet.next().await {
                Some((index, Event::Said(message))) => match *message {
                    Message::Pairs(_) => {
                        waiting.remove(&index);
                    }
                    Message::Error { text, .. } => bail!("cannot accelerate for the comparison: {text}"),
                    _ => {}
                },
                Some((index, Event::Lost(SessionError::Absent { .. }))) => drop(waiting.remove(&index)),
                Some((_, Event::Lost(error))) => bail!("cannot accelerate for the comparison: {error}"),
                Some((_, Event::Joined(_) | Event::Ended(_) | Event::Disconnected(_) | Event::Reconnected(_))) => {}
                None => bail!("cannot accelerate for the comparison: the helper ended"),
            }
        }
        Ok(Self { fleet, via, pairs: None, lost: None })
    }

    /// Receives the messages of the acceleration; the caller polls this while the acceleration lasts. Never returns.
    pub async fn receive(&mut self) {
        loop {
            match self.fleet.next().await {
                Some((_, Event::Said(message))) => match *message {
                    Message::Pairs(pairs) => self.pairs = Some(pairs),
                    Message::Error { text, .. } => self.lost = Some(text),
                    _ => {}
                },
                Some((_, Event::Lost(error))) => self.lost = Some(error.to_string()),
                Some((_, Event::Joined(_) | Event::Ended(_) | Event::Disconnected(_) | Event::Reconnected(_))) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Why nothing took its path, as far as it is known.
    #[must_use]
    pub fn why_not(&self) -> String {
        if let Some(lost) = &self.lost {
            return format!("the acceleration ended: {lost}");
        }
        let pairs = self.pairs.iter().flat_map(|p| &p.pairs);
        let mut reasons: Vec<&'static str> = pairs.filter_map(|p| p.reason).map(|r| r.text()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        match reasons.as_slice() {
            [] => "no connection between the two pods was open".to_owned(),
            some => some.join("; "),
        }
    }

    /// Restores the normal path.
    pub async fn end(mut self, patience: &Patience, progress: &Progress) {
        self.fleet
            .finish(patience, |_, event| {
                if let Event::Lost(error) = event {
                    progress.warn(&format!("the helper that accelerated: {error}"));
                }
            })
            .await;
    }
}
