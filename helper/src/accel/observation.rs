//! Observing system calls, as long as somebody has to be observed: it makes each call on the machine slower.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_bpf::accel::types::accel_state;

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
}

impl Observation {
    /// Attaches observers when a pair is in the map or may go there, and detaches them when there is none.
    pub fn adjust(&mut self, instance: &Instance, all: &[Known]) -> Result<()> {
        let needed = all
            .iter()
            .any(|k| k.end.state == accel_state::ACCEL_ENROLLED || peer_of(all, k).is_some_and(|peer| connections::is_candidate(k, peer)));
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
                instance.ends.set(k.identity.slot, field!(learned), 0);
            }
        }
        Ok(())
    }
}
