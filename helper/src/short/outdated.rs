//! What has changed and was not looked at yet, and when that is due.

use std::time::{Duration, Instant};

/// After it has caught up with changes, the helper does so again only after this many times the time that it took, but no later than that:
/// nothing is approved meanwhile.
const SHARE: u32 = 4;
const LONGEST: Duration = Duration::from_millis(500);

/// What is outdated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What becomes of the packets of connections.
    Plans,
    /// The devices, and with them all plans.
    Devices,
}

/// What is outdated, if anything, and when it may be looked at.
#[derive(Debug)]
pub struct Outdated {
    extent: Option<Extent>,
    not_before: Instant,
}

impl Outdated {
    /// Nothing is, and what changes is due at once.
    pub fn nothing() -> Self {
        Self { extent: None, not_before: Instant::now() }
    }

    /// Notes a change.
    pub fn note(&mut self, extent: Extent) {
        self.extent = self.extent.max(Some(extent));
    }

    /// Whether something is outdated.
    pub fn any(&self) -> bool {
        self.extent.is_some()
    }

    /// What is to be looked at now. Many changes, as when many pods start, wait for each other.
    pub fn due(&self) -> Option<Extent> {
        self.extent.filter(|_| Instant::now() >= self.not_before)
    }

    /// It was looked at, which took so long.
    pub fn caught_up(&mut self, took: Duration) {
        *self = Self { extent: None, not_before: Instant::now() + (took * SHARE).min(LONGEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_wait_for_each_other_after_a_look() {
        let mut outdated = Outdated::nothing();
        assert!(!outdated.any() && outdated.due().is_none());
        outdated.note(Extent::Devices);
        outdated.note(Extent::Plans);
        assert_eq!(outdated.due(), Some(Extent::Devices));
        outdated.caught_up(Duration::from_secs(60));
        outdated.note(Extent::Plans);
        assert!(outdated.any() && outdated.due().is_none());
        assert!(outdated.not_before <= Instant::now() + LONGEST);
        outdated.caught_up(Duration::ZERO);
        outdated.note(Extent::Plans);
        assert_eq!(outdated.due(), Some(Extent::Plans));
    }
}
