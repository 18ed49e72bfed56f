//! The lease of an acceleration: how long the kernel goes on with it without its helper, and when the helper counts as gone.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// How long the kernel redirects without a renewal: what is left of an acceleration whose helper was killed.
pub const LEASE: Duration = Duration::from_secs(5);

/// An acceleration renews its lease at least this often.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// One that has not renewed it for so long was killed, or stands still.
pub const RENEWED_WITHIN: Duration = Duration::from_millis(2_500);

/// Whether the process that renews a lease is late by more than one renewal, by what is left of the lease and the length that it had when
/// it was renewed last.
#[must_use]
pub fn is_late(left: Duration, renewed: Duration) -> bool {
    left.is_zero() || left + RENEWED_WITHIN < renewed
}

/// Time until a moment of CLOCK_MONOTONIC (nanoseconds), as the programs see it: they read the coarse clock, which is late by up to a tick.
///
/// # Errors
/// When the clock cannot be read.
pub fn left_until(moment_ns: u64) -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot read the clock")?;
    Ok(Duration::from_nanos(moment_ns).saturating_sub(Duration::from(now)))
}

/// Milliseconds, rounded up: 0 means that nothing is left.
#[must_use]
pub fn millis_up(left: Duration) -> u64 {
    u64::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_nothing_is_rounded_to_nothing() {
        assert_eq!([0, 1, 1_000_000, 1_000_001].map(|ns| millis_up(Duration::from_nanos(ns))), [0, 1, 1, 2]);
    }
}
