//! The connections of a node that the short path knows, and the slots that they have.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

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
    pub installed: Option<(u32, [Leg; 2])>,
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
    pub fn new(entry: &Entry, answer: (Tracking, u32), live: bool, asked: Instant) -> Box<Self> {
        let Entry { original, reply, id, .. } = *entry;
        Box::new(Self {
            original,
            reply,
            id,
            state: State::Watched,
            installed: None,
            live,
            asked,
            answer,
            last_ns: 0,
            packets: 0,
            bytes: 0,
        })
    }
}

/// The connections of a node.
#[derive(Debug, Default)]
pub struct Connections {
    by_tuple: HashMap<Tuple, Box<Connection>>,
    /// Whose a pair of slots is; the index is half the even slot.
    by_slot: Vec<Option<Tuple>>,
    /// Released slots, the one that has rested longest first: a program may still be at work on a packet of its old user.
    free: VecDeque<u32>,
    fresh: u32,
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
        if let Some(name) = self.by_slot.get_mut(slot as usize / 2) {
            *name = None;
        }
        self.free.push_back(slot);
    }

    /// Notes whose slot this is.
    pub fn name_slot(&mut self, slot: u32, tuple: Tuple) {
        let at = slot as usize / 2;
        if self.by_slot.len() <= at {
            self.by_slot.resize(at + 1, None);
        }
        self.by_slot[at] = Some(tuple);
    }

    /// The connection with this slot.
    pub fn of_slot(&self, slot: u32) -> Option<Tuple> {
        self.by_slot.get(slot as usize / 2).copied().flatten()
    }

    /// The connection with this original tuple.
    pub fn get(&self, tuple: &Tuple) -> Option<&Connection> {
        self.by_tuple.get(tuple).map(Box::as_ref)
    }

    /// Removes it, to be inserted again.
    pub fn take(&mut self, tuple: &Tuple) -> Option<Box<Connection>> {
        self.by_tuple.remove(tuple)
    }

    /// Puts it in.
    pub fn put(&mut self, connection: Box<Connection>) {
        self.by_tuple.insert(connection.original, connection);
    }

    /// The original tuples of all.
    pub fn tuples(&self) -> Vec<Tuple> {
        self.by_tuple.keys().copied().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_tuple.len()
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.by_tuple.values().map(Box::as_ref)
    }
}

#[cfg(test)]
mod tests {
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
}
