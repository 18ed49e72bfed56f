//! When reports about connections are due: each second, sooner when there is news, later when they are costly.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::ClockId;

use sockpath_kernel::clock::clock_ns;

/// Time between two reports. Where they would take more than 2 % of a CPU, up to the longest time.
pub const REPORT: Duration = Duration::from_secs(1);
const REPORT_SHARE: u32 = 50;
const LONGEST: Duration = Duration::from_secs(3);

/// News is reported at once, but not sooner than this after the last report, and not so often that reports take more than 10 % of a CPU.
const NEWS: Duration = Duration::from_millis(200);
const NEWS_SHARE: u32 = 10;

/// News that nothing follows for this long is reported without waiting: a burst of it is over, and the result is what the user waits for. The
/// next report comes the later for it, so that the share is kept.
const QUIET: Duration = Duration::from_millis(30);

/// When reports are due.
#[derive(Debug)]
pub struct Schedule {
    next: Instant,
    last: Instant,
    took: Duration,
    /// When there will have been no news for a while.
    quiet: Option<Instant>,
    /// The last report was made for that reason.
    was_quiet: bool,
}

impl Default for Schedule {
    /// The first one is due at once.
    fn default() -> Self {
        Self { next: Instant::now(), last: Instant::now(), took: Duration::ZERO, quiet: None, was_quiet: false }
    }
}

impl Schedule {
    /// When the next report is due.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.quiet.map_or(self.next, |quiet| quiet.min(self.next))
    }

    /// There is news: the next report comes sooner.
    pub fn bring_forward(&mut self) {
        let reports = if self.was_quiet { 2 } else { 1 };
        self.next = self.next.min(self.last + NEWS.max(self.took * NEWS_SHARE * reports));
        let is_cheap = self.took * NEWS_SHARE * 2 <= LONGEST;
        self.quiet = (is_cheap && !self.was_quiet).then(|| Instant::now() + QUIET);
    }

    /// A report was made, which took this much CPU time.
    pub fn done(&mut self, took: Duration) {
        self.last = Instant::now();
        self.was_quiet = self.quiet.take().is_some_and(|_| self.last < self.next);
        self.next = self.last + (took * REPORT_SHARE).clamp(REPORT, LONGEST);
        self.took = took;
    }
}

/// Does something; what came of it, and the CPU time that it took in this thread: others may have had the CPU in between.
///
/// # Errors
/// Those of what is done, and when the clock cannot be read.
pub fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    timed_by(ClockId::CLOCK_THREAD_CPUTIME_ID, f)
}

/// The same with the CPU time of all threads: that of the short path collects its connections for a report.
///
/// # Errors
/// As [`timed`].
pub fn timed_in_all_threads<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    timed_by(ClockId::CLOCK_PROCESS_CPUTIME_ID, f)
}

fn timed_by<T>(clock: ClockId, f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let began = clock_ns(clock)?;
    let done = f()?;
    Ok((done, Duration::from_nanos(clock_ns(clock)?.saturating_sub(began))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_brings_the_next_report_forward_but_leaves_time_between_two() {
        let mut schedule = Schedule::default();
        schedule.done(Duration::from_millis(1));
        assert_eq!(schedule.next, schedule.last + REPORT);
        schedule.bring_forward();
        assert_eq!(schedule.next, schedule.last + NEWS);
    }

    #[test]
    fn news_that_nothing_follows_is_reported_without_waiting_but_only_once() {
        let mut schedule = Schedule::default();
        schedule.done(Duration::from_millis(60));
        let before = Instant::now();
        schedule.bring_forward();
        assert!(schedule.next() >= before + QUIET && schedule.next() <= Instant::now() + QUIET);
        // More news puts it off.
        schedule.bring_forward();
        schedule.done(Duration::from_millis(60));
        schedule.bring_forward();
        assert_eq!(schedule.next(), schedule.last + Duration::from_millis(1200));
        // After a report that was due anyhow it may come again.
        schedule.next = Instant::now();
        schedule.done(Duration::from_millis(60));
        schedule.bring_forward();
        assert!(schedule.next() <= Instant::now() + QUIET);
    }

    #[test]
    fn costly_reports_come_no_more_often_for_news() {
        let mut schedule = Schedule::default();
        schedule.done(Duration::from_millis(60));
        schedule.bring_forward();
        assert_eq!(schedule.next, schedule.last + Duration::from_millis(600));
        schedule.done(Duration::from_secs(1));
        assert_eq!(schedule.next(), schedule.last + LONGEST);
        schedule.bring_forward();
        assert_eq!(schedule.next(), schedule.last + LONGEST);
    }

    #[test]
    fn reports_take_a_small_share_of_a_cpu() {
        let mut schedule = Schedule::default();
        for (took, wait) in [(1, REPORT), (20, REPORT), (40, Duration::from_secs(2)), (400, LONGEST)] {
            schedule.done(Duration::from_millis(took));
            assert_eq!(schedule.next, schedule.last + wait);
        }
    }
}
