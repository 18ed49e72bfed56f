//! Lists of what helpers said that do not grow without end.

use std::ops::Deref;

use serde::{Serialize, Serializer};

/// The first of what came, and how much more there was.
#[derive(Debug, Clone)]
pub struct Kept<T> {
    items: Vec<T>,
    most: usize,
    more: u64,
}

impl<T> Kept<T> {
    /// An empty list of at most so many.
    #[must_use]
    pub fn of(most: usize) -> Self {
        Self { items: Vec::new(), most, more: 0 }
    }

    /// Adds one; whether it is kept.
    pub fn push(&mut self, item: T) -> bool {
        let room = self.items.len() < self.most;
        if room {
            self.items.push(item);
        } else {
            self.more += 1;
        }
        room
    }

    /// How many were not kept.
    #[must_use]
    pub fn more(&self) -> u64 {
        self.more
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T: Serialize> Serialize for Kept<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

impl<T> Extend<T> for Kept<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        items.into_iter().for_each(|item| {
            self.push(item);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_counted() {
        let mut kept = Kept::of(2);
        kept.extend(0..5);
        assert!(!kept.push(5));
        assert_eq!((&*kept, kept.more()), (&[0, 1][..], 4));
    }
}
