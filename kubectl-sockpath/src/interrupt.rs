//! Ctrl-C and its relatives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tokio::sync::Notify;

use crate::platform;

/// Becomes true when the user pressed Ctrl-C, or the process received SIGTERM or SIGHUP. A second signal ends the process at once.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl Interrupt {
    /// Starts to watch for signals.
    ///
    /// # Errors
    /// When the process cannot watch for signals.
    pub fn watch() -> Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        platform::watch_interrupts(move || raised.raise()).context("cannot watch for signals")?;
        Ok(interrupt)
    }

    /// Notes a signal; the second ends the process.
    pub(crate) fn raise(&self) {
        if self.raised.swap(true, Ordering::Relaxed) {
            // Helpers notice that their input is gone; their own leases and deadlines cover the rest.
            std::process::exit(130);
        }
        self.notify.notify_waiters();
    }

    /// Whether it has happened.
    #[must_use]
    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Waits for it; returns at once when it has happened. Cancel-safe.
    pub async fn wait(&self) {
        loop {
            let notified = self.notify.notified();
            if self.raised() {
                return;
            }
            notified.await;
        }
    }
}
