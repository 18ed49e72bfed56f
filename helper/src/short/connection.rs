//! A connection of the short path, in little memory: a node may have tens of thousands.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use sockpath_kernel::conntrack::{Entry, Tuple};

use super::eligible::Leg;
use super::flow::{State, Tracking};

/// What the packets of all connections between two pods, or of a pod by a Service, have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    protocol: u8,
    /// Source and destination of the original tuple, then those of the reply tuple.
    ips: [IpAddr; 4],
}

impl Addresses {
    /// Those of an entry.
    pub fn of(entry: &Entry) -> Self {
        let [from, to] = [entry.original, entry.reply].map(|tuple| [tuple.source.ip(), tuple.destination.ip()]);
        Self { protocol: entry.original.protocol, ips: [from[0], from[1], to[0], to[1]] }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    addresses: Rc<Addresses>,
    /// In the order of the addresses.
    ports: [u16; 4],
    /// The id of its entry in connection tracking.
    pub id: u32,
    /// Where it is.
    pub state: State,
    /// While the programs know it: the slot of its original direction, whose number is even, and both directions.
    pub installed: Option<(u32, Rc<[Leg; 2]>)>,
    /// It was open when the short path began.
    pub live: bool,
    /// Time of the last conntrack query.
    pub asked: Instant,
    /// Its result, with the epoch.
    pub answer: (Tracking, u32),
    /// Jiffy of the last redirected packet when the entry was refreshed.
    pub last_tick: u64,
    /// Packets that were redirected while it had slots that it has released.
    pub packets: u64,
    /// Their bytes, without link layer headers.
    pub bytes: u64,
}

impl Connection {
    /// A new connection, not yet installed; `addresses` are those of its entry, `asked` is when conntrack listed that, and `answer` what it
    /// means.
    pub fn new(entry: &Entry, addresses: Rc<Addresses>, answer: (Tracking, u32), live: bool, asked: Instant) -> Self {
        let Entry { original, reply, id, .. } = entry;
        let ports = [original.source, original.destination, reply.source, reply.destination].map(|end| end.port());
        let (state, installed) = (State::Watched, None);
        Self { addresses, ports, id: *id, state, installed, live, asked, answer, last_tick: 0, packets: 0, bytes: 0 }
    }

    fn tuple(&self, [source, destination]: [usize; 2]) -> Tuple {
        let end = |at: usize| SocketAddr::new(self.addresses.ips[at], self.ports[at]);
        Tuple { protocol: self.protocol(), source: end(source), destination: end(destination) }
    }

    /// Its original tuple.
    pub fn original(&self) -> Tuple {
        self.tuple([0, 1])
    }

    /// Its reply tuple.
    pub fn reply(&self) -> Tuple {
        self.tuple([2, 3])
    }

    /// TCP or UDP.
    pub fn protocol(&self) -> u8 {
        self.addresses.protocol
    }
}

#[cfg(test)]
mod tests {
    use super::super::eligible::tests::{direct, entry};
    use super::*;

    #[test]
    fn tuples_are_those_of_the_entry() {
        let there = direct("10.42.1.2:4000", "10.96.0.10:80").original;
        let back = direct("10.42.1.3:8080", "10.42.1.1:61000").original;
        let both = [entry(there, back), direct("[fd00::2]:1", "[fd00::3]:2")];
        for entry in &both {
            let connection = Connection::new(entry, Rc::new(Addresses::of(entry)), (Tracking::NotAsked, 0), false, Instant::now());
            assert_eq!((connection.original(), connection.reply()), (entry.original, entry.reply));
        }
    }

    #[test]
    fn a_connection_takes_little_memory() {
        assert!(size_of::<Connection>() <= 104, "{} bytes", size_of::<Connection>());
    }
}
