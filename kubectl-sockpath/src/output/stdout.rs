//! stdout itself: whether it is a terminal, and bytes that are written to it at once.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};

/// Why an error has this context: tests and users know it by this name.
pub(super) const CANNOT_WRITE: &str = "cannot write to stdout";

/// Whether stdout is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Writes all of these bytes and flushes them.
pub(super) fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context(CANNOT_WRITE)
}
