//! Connection bursts: connections that come and go too fast for tracking each of them to pay.
//!
//! Tracking a socket when it is established costs a microsecond and more (its storage, its slot, its changes of state): 3 % of
//! a connection that carries one request. While more than [`BURST`] come in a second, those of the pods they come from are not tracked;
//! those that last are found by iteration, as connections are that were open before the start.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::instance::Instance;
use crate::node::FoundPod;

/// Sockets of chosen pods that are established in a second: below this, tracking each costs less than 1 % of a CPU.
const BURST: f64 = 4000.0;

/// It is over when fewer come than this.
const CALM: f64 = 2000.0;

/// They are counted over at least this long, or until so many have come: what can come in that time without a burst.
const COUNTED: Duration = Duration::from_millis(100);
const MANY: u32 = 400;

/// Time between two searches for those that last, and at least so many times what the last one took.
const SEARCH: Duration = Duration::from_secs(1);
const SEARCH_SHARE: u32 = 50;

/// The bursts of connections, by namespace.
#[derive(Debug)]
pub struct Bursts {
    /// By share: sockets that were established when they were counted last, and whether there is a burst.
    counted: HashMap<usize, (u32, bool)>,
    since: Instant,
    next_search: Instant,
}

impl Bursts {
    /// Begins to count.
    pub fn new(instance: &Instance) -> Self {
        let now = Instant::now();
        let mut bursts = Self { counted: HashMap::new(), since: now, next_search: now };
        for (index, share) in instance.namespaces.open_shares() {
            bursts.counted.insert(index, (share.opened, false));
            instance.namespaces.set_burst(index, false, share.opened.wrapping_add(MANY));
        }
        bursts
    }

    /// Decides of which namespaces sockets are tracked when they are established, and finds those that were not.
    ///
    /// # Errors
    /// When open connections cannot be iterated over.
    pub fn look(&mut self, instance: &Instance, pods: &[FoundPod]) -> Result<()> {
        let now = Instant::now();
        let counted = now.duration_since(self.since);
        let shares = instance.namespaces.open_shares();
        let came: Vec<u32> = shares.iter().map(|(i, s)| s.opened.wrapping_sub(self.counted.get(i).map_or(s.opened, |c| c.0))).collect();
        let sum: u32 = came.iter().fold(0, |sum, n| sum.saturating_add(*n));
        if counted < COUNTED && sum < MANY && self.counted.len() == shares.len() {
            return Ok(());
        }
        self.since = now;
        let before: Vec<bool> = shares.iter().map(|(i, _)| self.counted.get(i).is_some_and(|c| c.1)).collect();
        let rates: Vec<f64> = came.iter().map(|n| f64::from(*n) / counted.as_secs_f64().max(1e-3)).collect();
        let after = bursting(&before, &rates);
        self.counted.clear();
        for ((index, share), burst) in shares.iter().zip(&after) {
            self.counted.insert(*index, (share.opened, *burst));
            instance.namespaces.set_burst(*index, *burst, share.opened.wrapping_add(MANY));
        }
        // Also once after the end: from now on they are tracked again, but for those that came before.
        let ended = before.iter().zip(&after).any(|(before, after)| *before && !after);
        if before.contains(&true) && (now >= self.next_search || ended) {
            for pod in pods {
                instance.track_live(pod)?;
            }
            self.next_search = Instant::now() + SEARCH.max(now.elapsed() * SEARCH_SHARE);
        }
        Ok(())
    }
}

/// Which namespaces have a burst, by which had one and the rates at which their sockets come. What one pod does concerns the others only
/// by the sum: those that come at less than the average rate go on being tracked.
fn bursting(before: &[bool], rates: &[f64]) -> Vec<bool> {
    let sum: f64 = rates.iter().sum();
    let average = sum / rates.len().max(1) as f64;
    before.iter().zip(rates).map(|(before, rate)| sum > if *before { CALM } else { BURST } && *rate >= average).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_well_below_where_it_begins() {
        assert_eq!(bursting(&[false], &[BURST]), [false]);
        assert_eq!(bursting(&[false], &[BURST + 1.0]), [true]);
        assert_eq!(bursting(&[true], &[CALM + 1.0]), [true]);
        assert_eq!(bursting(&[true], &[CALM]), [false]);
        assert_eq!(bursting(&[], &[]), [false; 0]);
    }

    #[test]
    fn one_pod_does_not_end_the_tracking_of_the_others() {
        assert_eq!(bursting(&[false, false, false], &[40_000.0, 10.0, 0.0]), [true, false, false]);
        assert_eq!(bursting(&[false, false], &[5_000.0, 5_000.0]), [true, true]);
    }
}
