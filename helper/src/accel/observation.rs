//! Observing system calls, as long as somebody has to be observed: it makes each call on the machine slower.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_flag, accel_state};

use super::connections::{self, Known, peer_of};
use super::instance::Instance;
use super::shared::field;

/// How long observers stay when nobody needs them any more: attaching them costs a walk over all tasks.
const LINGER: Duration = Duration::from_millis(10);

/// The observers, attached or not.
#[derive(Debug, Default)]
pub struct Observation {
    links: Option<[OwnedFd; 2]>,
    needed: Option<Instant>,
    arrivals: Option<OwnedFd>,
    arrivals_needed: Option<Instant>,
}

impl Observation {
    /// Whether they are attached.
    pub fn is_on(&self) -> bool {
        self.links.is_some()
    }

    /// Attaches observers when a pair is in the map or may go there, and detaches them when there is none.
    pub fn adjust(&mut self, instance: &Instance, all: &[Known]) -> Result<()> {
        let is_candidate = |k: &Known| peer_of(all, k).is_some_and(|peer| connections::is_candidate(k, peer));
        let (mut needed, mut sleepers) = (false, false);
        for k in all {
            let candidate = is_candidate(k);
            needed |= candidate || k.end.state == accel_state::ACCEL_ENROLLED;
            sleepers |= candidate && k.has(accel_flag::ACCEL_MAY_SLEEP);
        }
        self.adjust_arrivals(instance, sleepers)?;
        if needed {
            self.needed = Some(Instant::now());
            if self.links.is_none() {
                self.links = Some(instance.observe()?);
            }
        } else if self.links.is_some() && self.needed.is_none_or(|at| at.elapsed() > LINGER) {
            instance.control.set(0, field!(observing), 0);
            self.links = None;
            // What they do now is not seen: who joins later is learned afresh.
            for k in all {
                instance.ends.set(k.slot, field!(learned), 0);
            }
        }
        Ok(())
    }

    /// The same for arriving data: as long as a reader whose calls may sleep is not known well enough.
    fn adjust_arrivals(&mut self, instance: &Instance, needed: bool) -> Result<()> {
        if needed {
            self.arrivals_needed = Some(Instant::now());
            if self.arrivals.is_none() {
                self.arrivals = Some(instance.observe_arrivals()?);
            }
        } else if self.arrivals.is_some() && self.arrivals_needed.is_none_or(|at| at.elapsed() > LINGER) {
            instance.control.set(0, field!(observing_arrivals), 0);
            self.arrivals = None;
        }
        Ok(())
    }
}
