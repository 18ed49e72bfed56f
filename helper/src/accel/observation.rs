//! Observing system calls and sockets, as long as somebody has to be observed: it makes calls on the machine slower.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_flag, accel_state};

use super::connections::{self, Known, Lesson, peer_of};
use super::instance::Instance;
use super::shared::field;

/// How long observers stay when nobody needs them any more: attaching them costs a walk over all tasks.
const LINGER: Duration = Duration::from_millis(10);

/// One of them, attached or not.
#[derive(Debug, Default)]
struct Observer {
    link: Option<OwnedFd>,
    needed: Option<Instant>,
}

impl Observer {
    /// Attaches it when it is needed, and lets go of it when it has not been for a while; `true` when it has been let go.
    fn adjust(&mut self, needed: bool, attach: impl FnOnce() -> Result<OwnedFd>) -> Result<bool> {
        if needed {
            self.needed = Some(Instant::now());
            if self.link.is_none() {
                self.link = Some(attach()?);
            }
        } else if self.needed.is_none_or(|at| at.elapsed() > LINGER) {
            return Ok(self.link.take().is_some());
        }
        Ok(false)
    }
}

/// The observers.
#[derive(Debug, Default)]
pub struct Observation {
    calls: Observer,
    sends: Observer,
    arrivals: Observer,
}

impl Observation {
    /// Whether system calls are observed.
    pub fn is_on(&self) -> bool {
        self.calls.link.is_some()
    }

    /// Attaches who is needed and detaches who is not: calls are observed when a pair is in the map or may go there, sends only while
    /// the readers of one are learned (the verdict sees those of pairs in the map), and arriving data while it is learned of one of them
    /// whether its calls sleep.
    pub fn adjust(&mut self, instance: &Instance, all: &[Known]) -> Result<()> {
        let Some(lesson) = Lesson::of(instance) else { return Ok(()) };
        let (mut calls, mut learning, mut sleepers) = (false, false, false);
        for k in all {
            let candidate = peer_of(all, k).is_some_and(|peer| connections::is_candidate(k, peer));
            let enrolled = k.end.state == accel_state::ACCEL_ENROLLED;
            calls |= candidate || enrolled;
            learning |= candidate || (enrolled && !lesson.is_learned(k));
            sleepers |= candidate && k.has(accel_flag::ACCEL_MAY_SLEEP);
        }
        if self.arrivals.adjust(sleepers, || instance.observe_arrivals())? {
            instance.control.set(0, field!(observing_arrivals), 0);
        }
        self.calls.adjust(calls, || instance.observe_calls())?;
        if self.sends.adjust(learning, || instance.observe_sends())? {
            instance.control.set(0, field!(observing), 0);
            // What they do now is not seen: who joins later is learned afresh.
            for k in all.iter().filter(|k| k.end.state != accel_state::ACCEL_ENROLLED) {
                instance.ends.set(k.slot, field!(learned), 0);
            }
        }
        Ok(())
    }
}
