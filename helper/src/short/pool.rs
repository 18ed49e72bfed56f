//! Values that many connections have in common, each kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::rc::Rc;

/// With fewer values, those that nothing has any more stay.
const FEW: usize = 64;

/// Values that are kept once, for as long as something has them.
#[derive(Debug)]
pub struct Pool<T> {
    known: HashSet<Rc<T>>,
    /// The number of values at which those that nothing has any more go.
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
            self.known.retain(|known| Rc::strong_count(known) > 1);
            // Each value is looked at once for every new one, at most.
            self.purge_at = FEW.max(self.known.len() * 2);
        }
        let value = Rc::new(value);
        self.known.insert(value.clone());
        value
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
    fn values_that_nothing_has_are_forgotten() {
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
    }
}
