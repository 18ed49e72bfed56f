//! Values that many connections have in common, each kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::rc::Rc;

/// Unused values are kept below this number.
const FEW: usize = 64;

/// Values that are kept once, for as long as they are used.
#[derive(Debug)]
pub struct Pool<T> {
    known: HashSet<Rc<T>>,
    /// The number of values at which unused ones are removed.
    purge_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), purge_at: FEW }
    }
}

impl<T: Eq + Hash> Pool<T> {
    /// The value that is kept, which is this one if it is new.
    pub fn share(&mut self, value: T) -> Rc<T> {
        if let Some(known) = self.known.get(&value) {
            return known.clone();
        }
        if self.known.len() >= self.purge_at {
            self.purge();
        }
        let value = Rc::new(value);
        self.known.insert(value.clone());
        value
    }

    /// Removes unused values.
    pub fn purge(&mut self) {
        self.known.retain(|known| Rc::strong_count(known) > 1);
        self.known.shrink_to_fit();
        // Until then, at most one value is examined for each new one.
        self.purge_at = FEW.max(self.known.len() * 2);
    }

    /// The number of values.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_once() {
        let mut pool = Pool::default();
        assert!(Rc::ptr_eq(&pool.share(1), &pool.share(1)) && !Rc::ptr_eq(&pool.share(1), &pool.share(2)));
        assert_eq!(pool.len(), 2);
    }

    #[test]
    fn unused_values_are_removed() {
        let mut pool = Pool::default();
        let kept: Vec<_> = (0..10).map(|n| pool.share(n)).collect();
        for n in 10..100_000 {
            pool.share(n);
        }
        assert!(pool.len() <= FEW, "{}", pool.len());
        assert!(kept.iter().enumerate().all(|(n, value)| Rc::ptr_eq(value, &pool.share(n))));
        // Those that are in use stay, however many there are.
        let many: Vec<_> = (0..1000).map(|n| pool.share(n)).collect();
        assert!(many.len() == 1000 && pool.len() >= 1000);
        drop(many);
        pool.purge();
        assert_eq!(pool.len(), kept.len());
    }
}
