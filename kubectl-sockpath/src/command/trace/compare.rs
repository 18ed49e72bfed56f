//! The second half of `trace --compare`: the two pods accelerated for as long as it lasts.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, bail};
use sockpath_protocol::accel::PairsSnapshot;
use sockpath_protocol::request::TraceRequest;
use sockpath_protocol::{Message, Request};

use crate::backend::{Backend, Mode};
use crate::progress::Progress;
use crate::session::{Event, Fleet, SessionError};

/// Requests of a probe: its one connection has to last through both halves. It comes from the helper, so only because it is open
/// when the acceleration starts is it found (in the pod's network namespace; new ones are noticed in the pod's cgroup).
pub const REQUESTS: u32 = 1000;

/// An acceleration that runs beside the trace.
#[derive(Debug)]
pub struct Shortcut {
    fleet: Fleet,
    pairs: Option<PairsSnapshot>,
    /// Why it is over, when it is.
    lost: Option<String>,
}

impl Shortcut {
    /// Accelerates the pods of a trace and waits until that is in force.
    pub async fn start(backend: &Backend, request: &TraceRequest, progress: &Progress) -> Result<Self> {
        let pods: Vec<_> = std::iter::once(&request.source).chain(&request.targets).cloned().collect();
        let mut fleet = backend.helpers(&request.nodes, Mode::Accelerate, progress).await?;
        for (index, member) in fleet.members().iter().enumerate() {
            let pods = pods.iter().filter(|p| member.nodes.contains(&p.node)).cloned().collect();
            fleet.send(index, Request::Accelerate(Box::new(crate::command::accelerate::foreground_request(pods)))).await;
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
        Ok(Self { fleet, pairs: None, lost: None })
    }

    /// Hears what the acceleration says; has to be polled while it lasts. Never returns.
    pub async fn attend(&mut self) {
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

    /// Why nothing went socket to socket, as far as it is known.
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
    pub async fn end(mut self, patience: Duration, progress: &Progress) {
        self.fleet
            .finish(patience, |_, event| {
                if let Event::Lost(error) = event {
                    progress.warn(&format!("the helper that accelerated: {error}"));
                }
            })
            .await;
    }
}
