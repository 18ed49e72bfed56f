//! The lease of an acceleration: how long the kernel goes on with it without its helper, and when the helper counts as gone.

use std::time::Duration;

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
