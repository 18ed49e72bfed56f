//! How a node's clock lies to ours, from round trips: a question, and the time the node's clock showed when it was answered.
//!
//! The answer was given at some moment between question and arrival, so the clocks are compared as NTP does it (RFC 5905,
//! section 8): the offset is taken at the middle, and half the round trip is how far that may be off. The quickest round trip says
//! most. It does not show which half of it took longer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sockpath_protocol::message::ClockReading;

/// Questions whose answers are still awaited, at most: answers of a node that hangs must not pile up.
const AWAITED: usize = 16;

/// What is known about a node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockEstimate {
    /// The node's `CLOCK_REALTIME` minus ours, in nanoseconds.
    pub offset_ns: i64,
    /// The offset's error in either direction, in nanoseconds.
    pub uncertainty_ns: u64,
    /// How many round trips it is the best of.
    pub round_trips: u32,
}

/// Measures one node's clock.
#[derive(Debug, Default)]
pub struct ClockMeter {
    next: u64,
    asked: BTreeMap<u64, Instant>,
    best: Option<ClockEstimate>,
}

impl ClockMeter {
    /// A question leaves now; gives the id its answer will carry.
    pub fn ask(&mut self) -> u64 {
        self.next += 1;
        self.asked.insert(self.next, Instant::now());
        while self.asked.len() > AWAITED {
            self.asked.pop_first();
        }
        self.next
    }

    /// An answer has come.
    pub fn answered(&mut self, reading: &ClockReading) {
        let Some(asked) = self.asked.remove(&reading.id) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.take(asked.elapsed(), now, reading.realtime_ns);
    }

    /// Takes in one round trip: how long it took, our clock at its end, and the node's clock in between.
    fn take(&mut self, round_trip: Duration, now: Duration, theirs_ns: u64) {
        let half = round_trip / 2;
        let middle = i128::try_from((now.saturating_sub(half)).as_nanos()).unwrap_or(i128::MAX);
        let estimate = ClockEstimate {
            offset_ns: i64::try_from(i128::from(theirs_ns) - middle).unwrap_or(i64::MAX),
            uncertainty_ns: u64::try_from(half.as_nanos()).unwrap_or(u64::MAX),
            round_trips: self.best.map_or(0, |b| b.round_trips) + 1,
        };
        self.best = Some(match self.best {
            Some(best) if best.uncertainty_ns <= estimate.uncertainty_ns => ClockEstimate { round_trips: estimate.round_trips, ..best },
            _ => estimate,
        });
    }

    /// What is known by now.
    #[must_use]
    pub fn estimate(&self) -> Option<ClockEstimate> {
        self.best
    }
}

impl ClockEstimate {
    /// How the other clock lies to this one: its offset, and how far that may be off. What is unknown about either is unknown
    /// about their difference.
    #[must_use]
    pub fn to(&self, other: &Self) -> (i64, u64) {
        (other.offset_ns.saturating_sub(self.offset_ns), self.uncertainty_ns.saturating_add(other.uncertainty_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A round trip at our time `at`: there takes `there` ms, back takes `back` ms, and the node's clock is `ahead` ms ahead.
    fn trip(meter: &mut ClockMeter, at: u64, there: u64, back: u64, ahead: i64) {
        let theirs = i64::try_from((at + there) * MS).unwrap() + ahead * i64::try_from(MS).unwrap();
        let now = Duration::from_millis(at + there + back);
        meter.take(Duration::from_millis(there + back), now, u64::try_from(theirs).unwrap());
    }

    #[test]
    fn the_quickest_round_trip_counts_and_the_truth_lies_within_its_half() {
        for ahead in [-5_000, -3, 0, 7, 90_000] {
            let mut meter = ClockMeter::default();
            for (i, (there, back)) in [(40, 2), (3, 9), (1, 60), (5, 5), (0, 12)].into_iter().enumerate() {
                trip(&mut meter, 1_000_000 + i as u64 * 100, there, back, ahead);
                let estimate = meter.estimate().unwrap();
                let off = estimate.offset_ns - ahead * i64::try_from(MS).unwrap();
                assert!(off.unsigned_abs() <= estimate.uncertainty_ns, "{ahead} ms: off by {off}, {estimate:?}");
            }
            let estimate = meter.estimate().unwrap();
            assert_eq!((estimate.uncertainty_ns, estimate.round_trips), (5 * MS, 5), "3 + 9 = 12 ms, but 5 + 5 came");
        }
    }

    #[test]
    fn two_nodes_are_compared_with_the_doubts_of_both() {
        let a = ClockEstimate { offset_ns: 1_000, uncertainty_ns: 300, round_trips: 1 };
        let b = ClockEstimate { offset_ns: -500, uncertainty_ns: 200, round_trips: 1 };
        assert_eq!(a.to(&b), (-1_500, 500));
        assert_eq!(b.to(&a), (1_500, 500));
    }

    #[test]
    fn only_answers_to_questions_count_and_those_that_never_come_are_forgotten() {
        let mut meter = ClockMeter::default();
        let reading = |id| ClockReading { id, realtime_ns: 1, monotonic_ns: 1 };
        meter.answered(&reading(7));
        assert_eq!(meter.estimate(), None);
        let first = meter.ask();
        for _ in 0..AWAITED {
            meter.ask();
        }
        meter.answered(&reading(first));
        assert_eq!(meter.estimate(), None, "the oldest question was given up");
        let last = meter.ask();
        meter.answered(&reading(last));
        meter.answered(&reading(last));
        assert_eq!(meter.estimate().map(|e| e.round_trips), Some(1));
    }
}
