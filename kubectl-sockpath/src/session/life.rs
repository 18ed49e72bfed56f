//! Signs of life of a helper, and how long one that ends is waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::interrupt::Interrupt;

/// What is known of a helper's life, shared by what reads its stream and what waits for its end.
#[derive(Debug)]
pub(super) struct Life {
    /// It answers heartbeats at once, and its session can be resumed.
    works: AtomicBool,
    last_sign: Mutex<Instant>,
}

impl Default for Life {
    fn default() -> Self {
        Self { works: AtomicBool::new(false), last_sign: Mutex::new(Instant::now()) }
    }
}

impl Life {
    /// Whether it answers heartbeats at once, and its session can be resumed.
    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Notes whether it does.
    pub(super) fn set_works(&self, works: bool) {
        self.works.store(works, Ordering::Relaxed);
    }

    /// Notes that something came from it.
    pub(super) fn note_sign(&self) {
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When something last came from it.
    pub(super) fn last_sign(&self) -> Instant {
        *self.last_sign.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long helpers that end are waited for: as long as they show that they live, within limits.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Time without any sign of life, after which they are given up.
    pub silence: Duration,
    /// Time after which they are given up whatever they say.
    pub longest: Duration,
    /// Ctrl-C, and the time they have from then on.
    pub hurry: Option<(Interrupt, Duration)>,
}

impl Patience {
    /// The same time whether or not they show that they live.
    #[must_use]
    pub fn of(time: Duration) -> Self {
        Self { silence: time, longest: time, hurry: None }
    }

    /// When helpers that were asked to end at `began`, and last sent something at `sign`, are given up.
    pub(super) fn until(&self, began: Instant, sign: Instant) -> Instant {
        (sign.max(began) + self.silence).min(began + self.longest)
    }

    /// Waits for Ctrl-C, and then as long as helpers still have. Cancel-safe.
    pub(super) async fn lost(&self) {
        match &self.hurry {
            Some((interrupt, time)) => {
                interrupt.wait().await;
                tokio::time::sleep(*time).await;
            }
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_prolong_the_wait_up_to_its_limit() {
        let s = Duration::from_secs;
        let patience = Patience { silence: s(3), longest: s(30), hurry: None };
        let began = Instant::now();
        assert_eq!(patience.until(began, began.checked_sub(s(1)).unwrap_or(began)), began + s(3));
        assert_eq!(patience.until(began, began + s(10)), began + s(13));
        assert_eq!(patience.until(began, began + s(29)), began + s(30));
        assert_eq!(Patience::of(s(1)).until(began, began + s(1)), began + s(1));
    }
}
