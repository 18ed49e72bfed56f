//! The connections of a node that the short path knows, and the slots that they have.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Instant;

use hashbrown::HashTable;
use slab::Slab;
use sockpath_kernel::conntrack::{Entry, Tuple};

use super::connection::{Addresses, Connection};
use super::eligible::Leg;
use super::flow::Tracking;
use super::pool::Pool;

/// The connections of a node.
#[derive(Debug, Default)]
pub struct Connections {
    all: Slab<Connection>,
    /// Where each is in `all`, by its original tuple.
    by_tuple: HashTable<u32>,
    hasher: RandomState,
    /// Where the last user of a pair of slots was in `all`; the index is half the even slot.
    by_slot: Vec<u32>,
    /// Released slots, the one that has rested longest first: a program may still be at work on a packet of its old user.
    free: VecDeque<u32>,
    fresh: u32,
    addresses: Pool<Addresses>,
    legs: Pool<[Leg; 2]>,
}

impl Connections {
    /// A pair of slots, by the even one; `None` when there is none left.
    pub fn take_slot(&mut self, limit: usize) -> Option<u32> {
        if (self.fresh as usize) + 2 <= limit {
            self.fresh += 2;
            return Some(self.fresh - 2);
        }
        self.free.pop_front()
    }

    /// Gives a pair of slots back.
    pub fn free_slot(&mut self, slot: u32) {
        self.free.push_back(slot);
    }

    /// The original tuple of the connection with this slot.
    pub fn of_slot(&self, slot: u32) -> Option<Tuple> {
        let connection = self.all.get(*self.by_slot.get(slot as usize / 2)? as usize)?;
        connection.installed.as_ref().filter(|(of, _)| *of == slot).map(|_| connection.original())
    }

    /// A new connection, not yet installed, to be put in; `asked` is when conntrack listed the entry, and `answer` what it means.
    pub fn begin(&mut self, entry: &Entry, answer: (Tracking, u32), live: bool, asked: Instant) -> Connection {
        Connection::new(entry, self.addresses.share(Addresses::of(entry)), answer, live, asked)
    }

    /// These directions, kept once for all connections that have them.
    pub fn share(&mut self, legs: [Leg; 2]) -> Rc<[Leg; 2]> {
        self.legs.share(legs)
    }

    /// Removes what was shared and is not used any more.
    pub fn purge(&mut self) {
        self.addresses.purge();
        self.legs.purge();
    }

    /// The connection with this original tuple.
    pub fn get(&self, tuple: &Tuple) -> Option<&Connection> {
        let at = self.by_tuple.find(self.hasher.hash_one(tuple), |at| has(&self.all, *at, tuple))?;
        self.all.get(*at as usize)
    }

    /// Removes it, to be inserted again.
    pub fn take(&mut self, tuple: &Tuple) -> Option<Connection> {
        let Self { all, by_tuple, hasher, .. } = self;
        let (at, _) = by_tuple.find_entry(hasher.hash_one(tuple), |at| has(all, *at, tuple)).ok()?.remove();
        all.try_remove(at as usize)
    }

    /// Puts it in, and notes whose its slots are.
    pub fn put(&mut self, connection: Connection) {
        let hash = self.hasher.hash_one(connection.original());
        let pair = connection.installed.as_ref().map(|(slot, _)| *slot as usize / 2);
        // As many connections do not fit into the memory of a machine.
        let at = u32::try_from(self.all.insert(connection)).expect("fewer than 2^32 connections");
        let Self { all, by_tuple, hasher, .. } = self;
        by_tuple.insert_unique(hash, at, |at| all.get(*at as usize).map_or(0, |c| hasher.hash_one(c.original())));
        if let Some(pair) = pair {
            if self.by_slot.len() <= pair {
                self.by_slot.resize(pair + 1, u32::MAX);
            }
            self.by_slot[pair] = at;
        }
    }

    /// The original tuples of all.
    pub fn tuples(&self) -> Vec<Tuple> {
        self.iter().map(Connection::original).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.all.iter().map(|(_, connection)| connection)
    }
}

/// Whether the connection there has this original tuple.
fn has(all: &Slab<Connection>, at: u32, tuple: &Tuple) -> bool {
    all.get(at as usize).is_some_and(|c| c.original() == *tuple)
}

#[cfg(test)]
mod tests {
    use super::super::eligible::Target;
    use super::super::eligible::tests::direct;
    use super::*;

    #[test]
    fn slots_rest_before_they_are_used_again() {
        let mut connections = Connections::default();
        let slots: Vec<_> = (0..3).map(|_| connections.take_slot(6)).collect();
        assert_eq!(slots, [Some(0), Some(2), Some(4)]);
        assert_eq!(connections.take_slot(6), None);
        connections.free_slot(4);
        connections.free_slot(0);
        assert_eq!((connections.take_slot(6), connections.take_slot(6)), (Some(4), Some(0)));
    }

    fn entry(port: u16) -> Entry {
        direct(&format!("10.42.1.2:{port}"), "10.42.1.3:80")
    }

    #[test]
    fn connections_are_found_by_tuple_and_by_slot() {
        let mut connections = Connections::default();
        for port in 1..100 {
            let mut connection = connections.begin(&entry(port), (Tracking::NotAsked, 0), false, Instant::now());
            connection.installed = Some((2 * u32::from(port), connections.share([leg(1), leg(2)])));
            connections.put(connection);
        }
        assert_eq!((connections.len(), connections.tuples().len()), (99, 99));
        assert_eq!((connections.legs.len(), connections.addresses.len()), (1, 1));
        let tuples: Vec<_> = (1..100).map(|port| entry(port).original).collect();
        for (tuple, slot) in tuples.iter().zip((2..).step_by(2)) {
            assert_eq!(connections.get(tuple).map(Connection::original), Some(*tuple));
            assert_eq!(connections.of_slot(slot), Some(*tuple));
        }
        assert_eq!((connections.of_slot(0), connections.of_slot(200)), (None, None));
        // The order does not matter, and a connection that has released its slots is not found by them.
        let [mut first, second] = [0, 1].map(|i| connections.take(&tuples[i]).expect("there"));
        assert!(connections.get(&tuples[0]).is_none() && connections.of_slot(2).is_none());
        first.installed = None;
        connections.put(first);
        connections.put(second);
        assert_eq!((connections.of_slot(2), connections.of_slot(4)), (None, Some(tuples[1])));
        assert!(connections.get(&tuples[0]).is_some() && connections.take(&entry(100).original).is_none());
    }

    fn leg(device: u32) -> Leg {
        Leg { device, target: Target::Pod { device: device + 1 }, mtu: 1500, routed: false }
    }
}
