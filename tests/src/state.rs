//! Waiting for a state instead of for time to pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Pauses between two looks: the first is short, so that what holds at once costs nothing, and each is twice the one before.
const PAUSES: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(20)];

/// Looks until there is something, and returns that; `None` when there was nothing within `patience`.
pub fn look<T>(patience: Duration, mut find: impl FnMut() -> Option<T>) -> Option<T> {
    let [mut pause, longest] = PAUSES;
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = find() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

/// Waits until a condition holds.
///
/// # Panics
/// When it does not within `patience`.
#[track_caller]
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let held = look(patience, || holds().then_some(()));
    assert!(held.is_some(), "not within {patience:?}: {what}");
}

/// Ends what goes on until this is set, also where a test fails: a scope waits for its threads.
#[derive(Debug)]
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_found_and_what_does_not_is_given_up() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(look(Duration::from_secs(60), third), Some(3));
        assert_eq!(look(Duration::ZERO, || None::<()>), None);
    }
}
