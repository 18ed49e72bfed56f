//! The kernel's clocks.

use std::io;

use nix::time::{ClockId, clock_gettime};

/// Reads a clock, in nanoseconds.
///
/// # Errors
/// When the kernel does not have this clock.
pub fn clock_ns(clock: ClockId) -> io::Result<u64> {
    let t = clock_gettime(clock).map_err(|e| io::Error::other(format!("cannot read the clock: {e}")))?;
    Ok(u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
}
