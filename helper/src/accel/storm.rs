//! Connections that come and go too fast for meeting each of them to pay.
//!
//! Where a socket is met, when it is established, costs a microsecond and more (its storage, its slot, its changes of state): 3 % of
//! a connection that carries one request. While more than [`STORM`] come in a second they are not met; those that last
//! are found by iteration, as connections are that were open before the start.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::instance::Instance;
use super::shared::field;
use crate::node::FoundPod;

/// Sockets of chosen pods that are established in a second: below this, meeting each costs less than 1 % of a CPU.
const STORM: f64 = 4000.0;

/// It is over when fewer come than this.
const CALM: f64 = 2000.0;

/// They are counted over at least this long, or until so many have come: what can come in that time without a storm.
const COUNTED: Duration = Duration::from_millis(100);
const BURST: u32 = 400;

/// Time between two searches for those that last, and at least so many times what the last one took.
const SEARCH: Duration = Duration::from_secs(1);
const SEARCH_SHARE: u32 = 50;

/// Whether there is a storm of connections.
#[derive(Debug)]
pub struct Storm {
    rages: bool,
    opened: u32,
    since: Instant,
    next_search: Instant,
}

impl Storm {
    /// Begins to count.
    pub fn new(instance: &Instance) -> Self {
        let now = Instant::now();
        instance.control.set(0, field!(storm), 0);
        let opened = opened(instance);
        await_burst(instance, opened);
        Self { rages: false, opened, since: now, next_search: now }
    }

    /// Decides whether sockets are met when they are established, and finds those that were not.
    ///
    /// # Errors
    /// When open connections cannot be iterated over.
    pub fn look(&mut self, instance: &Instance, pods: &[FoundPod]) -> Result<()> {
        let now = Instant::now();
        let counted = now.duration_since(self.since);
        let opened = opened(instance);
        let came = opened.wrapping_sub(self.opened);
        if counted < COUNTED && came < BURST {
            return Ok(());
        }
        let rate = f64::from(came) / counted.as_secs_f64();
        self.opened = opened;
        self.since = now;
        await_burst(instance, opened);
        let raged = self.rages;
        self.rages = rages(raged, rate);
        if raged != self.rages {
            instance.control.set(0, field!(storm), u32::from(self.rages));
        }
        // Also once after its end: from now on they are met again, but for those that came before.
        if raged && (now >= self.next_search || !self.rages) {
            for pod in pods {
                instance.meet_live(pod)?;
            }
            self.next_search = Instant::now() + SEARCH.max(now.elapsed() * SEARCH_SHARE);
        }
        Ok(())
    }
}

fn opened(instance: &Instance) -> u32 {
    instance.control.read(0, field!(opened)).unwrap_or(0)
}

/// Has a look asked for at once when a burst has come since there were `opened`.
fn await_burst(instance: &Instance, opened: u32) {
    instance.control.set(0, field!(ring_at), opened.wrapping_add(BURST));
}

/// Whether a storm goes on, or begins, at this rate.
fn rages(raged: bool, rate: f64) -> bool {
    rate > if raged { CALM } else { STORM }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_ends_well_below_where_it_begins() {
        assert!(!rages(false, STORM) && rages(false, STORM + 1.0));
        assert!(rages(true, STORM) && rages(true, CALM + 1.0) && !rages(true, CALM));
    }
}
