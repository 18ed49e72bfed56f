//! The connections of a node that the short path knows, and the slots that they have.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Instant;

use hashbrown::HashTable;
use slab::Slab;
use sockpath_kernel::conntrack::{Entry, Tuple};

use super::eligible::Leg;
use super::flow::{State, Tracking};

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Its original tuple.
    pub original: Tuple,
    /// Its reply tuple.
    pub reply: Tuple,
    /// The id of its entry in connection tracking.
    pub id: u32,
    /// Where it is.
    pub state: State,
    /// While the programs know it: the slot of its original direction, whose number is even, and both directions.
    pub installed: Option<(u32, Rc<[Leg; 2]>)>,
    /// It was open when the short path began.
    pub live: bool,
    /// When connection tracking was asked.
    pub asked: Instant,
    /// What it said, and in which epoch.
    pub answer: (Tracking, u32),
    /// The time of the last redirected packet when the entry was refreshed.
    pub last_ns: u64,
    /// Packets that were redirected while it had slots that it has released.
    pub packets: u64,
    /// Their bytes, without link layer headers.
    pub bytes: u64,
}

impl Connection {
    /// A connection that nothing was done about yet; `asked` is when connection tracking had this entry, and `answer` what that means.
    pub fn new(entry: &Entry, answer: (Tracking, u32), live: bool, asked: Instant) -> Self {
        let Entry { original, reply, id, .. } = *entry;
        Self { original, reply, id, state: State::Watched, installed: None, live, asked, answer, last_ns: 0, packets: 0, bytes: 0 }
    }
}

/// The connections of a node.
#[derive(Debug, Default)]
pub struct Connections {
    all: Slab<Connection>,
    /// Where each is in `all`, by its original tuple.
    by_tuple: HashTable<usize>,
    hasher: RandomState,
    /// Where the last user of a pair of slots was in `all`; the index is half the even slot.
    by_slot: Vec<u32>,
    /// Released slots, the one that has rested longest first: a program may still be at work on a packet of its old user.
    free: VecDeque<u32>,
    fresh: u32,
    /// Directions that connections have in common.
    legs: HashSet<Rc<[Leg; 2]>>,
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
        connection.installed.as_ref().filter(|(of, _)| *of == slot).map(|_| connection.original)
    }

    /// These directions, kept once for all connections that have them.
    pub fn share(&mut self, legs: [Leg; 2]) -> Rc<[Leg; 2]> {
        if let Some(known) = self.legs.get(&legs) {
            return known.clone();
        }
        // Those that no connection has any more go when there is something new.
        self.legs.retain(|known| Rc::strong_count(known) > 1);
        let legs = Rc::new(legs);
        self.legs.insert(legs.clone());
        legs
    }

    /// The connection with this original tuple.
    pub fn get(&self, tuple: &Tuple) -> Option<&Connection> {
        let at = self.by_tuple.find(self.hasher.hash_one(tuple), |at| has(&self.all, *at, tuple))?;
        self.all.get(*at)
    }

    /// Removes it, to be inserted again.
    pub fn take(&mut self, tuple: &Tuple) -> Option<Connection> {
        let Self { all, by_tuple, hasher, .. } = self;
        let (at, _) = by_tuple.find_entry(hasher.hash_one(tuple), |at| has(all, *at, tuple)).ok()?.remove();
        all.try_remove(at)
    }

    /// Puts it in, and notes whose its slots are.
    pub fn put(&mut self, connection: Connection) {
        let hash = self.hasher.hash_one(connection.original);
        let pair = connection.installed.as_ref().map(|(slot, _)| *slot as usize / 2);
        let at = self.all.insert(connection);
        let Self { all, by_tuple, hasher, .. } = self;
        by_tuple.insert_unique(hash, at, |at| all.get(*at).map_or(0, |c| hasher.hash_one(c.original)));
        if let Some(pair) = pair {
            if self.by_slot.len() <= pair {
                self.by_slot.resize(pair + 1, u32::MAX);
            }
            self.by_slot[pair] = u32::try_from(at).unwrap_or(u32::MAX);
        }
    }

    /// The original tuples of all.
    pub fn tuples(&self) -> Vec<Tuple> {
        self.iter().map(|c| c.original).collect()
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
fn has(all: &Slab<Connection>, at: usize, tuple: &Tuple) -> bool {
    all.get(at).is_some_and(|c| c.original == *tuple)
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

    fn connection(port: u16) -> Connection {
        let entry = direct(&format!("10.42.1.2:{port}"), "10.42.1.3:80");
        Connection::new(&entry, (Tracking::NotAsked, 0), false, Instant::now())
    }

    #[test]
    fn connections_are_found_by_tuple_and_by_slot() {
        let mut connections = Connections::default();
        for port in 1..100 {
            let mut connection = connection(port);
            connection.installed = Some((2 * u32::from(port), connections.share([leg(1), leg(2)])));
            connections.put(connection);
        }
        assert_eq!((connections.len(), connections.tuples().len(), connections.legs.len()), (99, 99, 1));
        let tuples: Vec<_> = (1..100).map(|port| connection(port).original).collect();
        for (tuple, slot) in tuples.iter().zip((2..).step_by(2)) {
            assert_eq!(connections.get(tuple).map(|c| c.original), Some(*tuple));
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
        assert!(connections.get(&tuples[0]).is_some() && connections.take(&connection(100).original).is_none());
    }

    #[test]
    fn directions_that_no_connection_has_are_forgotten() {
        let mut connections = Connections::default();
        let one = connections.share([leg(1), leg(2)]);
        drop(connections.share([leg(3), leg(4)]));
        assert!(Rc::ptr_eq(&one, &connections.share([leg(1), leg(2)])));
        let _other = connections.share([leg(5), leg(6)]);
        assert_eq!(connections.legs.len(), 2);
    }

    #[test]
    fn a_connection_takes_little_memory() {
        assert!(size_of::<Connection>() <= 240, "{} bytes", size_of::<Connection>());
    }

    fn leg(device: u32) -> Leg {
        Leg { device, target: Target::Pod { device: device + 1 }, mtu: 1500, routed: false }
    }
}
