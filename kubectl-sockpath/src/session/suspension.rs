//! Whether this process stood still: a laptop that slept, SIGSTOP. Helpers end when they hear nothing meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

/// How often the clocks are read.
const TICK: Duration = Duration::from_millis(500);
/// A longer gap between two readings is a suspension, not a busy machine.
const GAP: Duration = Duration::from_secs(4);
/// A suspension that ended longer ago explains nothing.
const LATELY: Duration = Duration::from_secs(60);

/// Watches for suspensions until the last handle goes.
#[derive(Debug, Clone)]
pub struct Suspension(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    readings: Mutex<Readings>,
    ticker: Mutex<Option<AbortHandle>>,
}

/// The clocks as they were read last: of the two, one stands still while a machine sleeps, the other may be set.
#[derive(Debug)]
struct Readings {
    monotonic: Instant,
    real: SystemTime,
    /// The last suspension: how long, and when it was noticed.
    last: Option<(Duration, Instant)>,
}

impl Default for Suspension {
    fn default() -> Self {
        let readings = Readings { monotonic: Instant::now(), real: SystemTime::now(), last: None };
        Self(Arc::new(Watch { readings: Mutex::new(readings), ticker: Mutex::default() }))
    }
}

impl Suspension {
    /// Begins to watch, once. Needs an event loop.
    pub fn watch(&self) {
        let mut ticker = self.0.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        if ticker.is_some() {
            return;
        }
        let watched = Arc::downgrade(&self.0);
        let task = tokio::spawn(async move {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(watch) = watched.upgrade() else { return };
                watch.read(Instant::now(), SystemTime::now());
            }
        });
        *ticker = Some(task.abort_handle());
    }

    /// How long this process stood still, where it did so within the last minute.
    #[must_use]
    pub fn lately(&self) -> Option<Duration> {
        // Without `watch` every moment since the start would be a gap.
        self.0.ticker.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?;
        self.0.read(Instant::now(), SystemTime::now())
    }
}

impl Watch {
    fn read(&self, monotonic: Instant, real: SystemTime) -> Option<Duration> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).take(monotonic, real)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(ticker) = self.ticker.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            ticker.abort();
        }
    }
}

impl Readings {
    /// Takes in what the clocks show now; gives the last suspension, unless it was long ago.
    fn take(&mut self, monotonic: Instant, real: SystemTime) -> Option<Duration> {
        let gap = monotonic.saturating_duration_since(self.monotonic).max(real.duration_since(self.real).unwrap_or_default());
        (self.monotonic, self.real) = (monotonic, real);
        if gap >= GAP {
            self.last = Some((gap, monotonic));
        }
        self.last.filter(|(_, at)| monotonic.saturating_duration_since(*at) < LATELY).map(|(gap, _)| gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_gap_of_either_clock_is_a_suspension_for_a_minute() {
        let (start, real) = (Instant::now(), SystemTime::UNIX_EPOCH + 1_000_000 * SECOND);
        // SIGSTOP: both clocks go on. Sleep: the monotonic one stands still.
        for stands_still in [false, true] {
            let mut readings = Readings { monotonic: start, real, last: None };
            assert_eq!(readings.take(start + SECOND, real + SECOND), None);
            assert_eq!(readings.take(start + 3 * SECOND, real + 3 * SECOND), None, "a busy machine");
            let wake = if stands_still { start + 4 * SECOND } else { start + 28 * SECOND };
            assert_eq!(readings.take(wake, real + 28 * SECOND), Some(25 * SECOND));
            assert_eq!(readings.take(wake + SECOND, real + 29 * SECOND), Some(25 * SECOND), "it is remembered");
            let mut later = 0;
            while readings.take(wake + later * SECOND, real + (28 + later) * SECOND).is_some() {
                later += 1;
            }
            assert_eq!(later, 60);
        }
    }

    #[test]
    fn without_a_watch_nothing_is_known() {
        assert_eq!(Suspension::default().lately(), None);
    }
}
