//! Which two sockets are the two ends of one connection.
//!
//! Sequence numbers tell: what one end began to send with is what the other began to receive with, and the reverse, whatever
//! namespaces, address families or translations lie between. That is 64 bits; addresses and ports check it, and a match that
//! is not unique is none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use sockpath_bpf::accel::types::{accel_end, accel_role};

/// What identifies one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its slot.
    pub slot: usize,
    /// The kernel's number of the socket, never used twice.
    pub cookie: u64,
    /// Inode of its network namespace.
    pub netns: u32,
    /// Its own address, v4-mapped ones as IPv4.
    pub local: SocketAddr,
    /// The other side as it sees it.
    pub remote: SocketAddr,
    /// How it came to be.
    pub role: Role,
    /// First sequence number it sent.
    pub iss: u32,
    /// First sequence number it received.
    pub irs: u32,
}

/// How a socket came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It was there before us.
    Unknown,
    /// By connect(2).
    Client,
    /// By accept(2).
    Server,
}

impl Identity {
    /// From what the programs noted.
    pub fn of(slot: usize, end: &accel_end) -> Self {
        let address = |words: [u32; 4], port: u16| {
            // The words are in network order, as the kernel keeps them.
            let ip = if end.family == libc::AF_INET as u16 {
                IpAddr::V4(Ipv4Addr::from(words[0].to_ne_bytes()))
            } else {
                let mut bytes = [0; 16];
                for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
                Ipv6Addr::from(bytes).to_canonical()
            };
            SocketAddr::new(ip, port)
        };
        let role = match end.role {
            accel_role::ACCEL_CLIENT => Role::Client,
            accel_role::ACCEL_SERVER => Role::Server,
            _ => Role::Unknown,
        };
        Self {
            slot,
            cookie: end.cookie,
            netns: end.netns,
            local: address(end.laddr, end.lport),
            remote: address(end.raddr, end.rport),
            role,
            iss: end.iss,
            irs: end.irs,
        }
    }

    /// Whether these may be the two ends of one connection. The end that sent the SYN counts it as acknowledged, the other
    /// does not count it as received, so numbers may differ by one in each direction.
    fn mirrors(&self, other: &Self) -> bool {
        near(self.iss, other.irs)
            && near(self.irs, other.iss)
            && self.cookie != other.cookie
            && self.roles_fit(other)
            && self.addresses_fit(other)
    }

    fn roles_fit(&self, other: &Self) -> bool {
        self.role == Role::Unknown || self.role != other.role
    }

    fn addresses_fit(&self, other: &Self) -> bool {
        // A loopback address means nothing outside its namespace.
        if [self, other].iter().any(|e| e.local.ip().is_loopback() || e.remote.ip().is_loopback()) && self.netns != other.netns {
            return false;
        }
        // Each translation changes one side's view of one address; where a view is untouched its port is too.
        let fits = |a: SocketAddr, b: SocketAddr| a.ip() != b.ip() || a.port() == b.port();
        fits(self.remote, other.local) && fits(other.remote, self.local)
    }

    /// Whether an address translation lies between the two.
    pub fn is_translated(&self, other: &Self) -> bool {
        self.remote != other.local || other.remote != self.local
    }
}

fn near(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).wrapping_add(1) <= 2
}

/// The pairs among these ends, and those whose match is not unique.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Matches {
    /// Indices into what was given.
    pub pairs: Vec<(usize, usize)>,
    /// Indices of ends that mirror more than one other.
    pub ambiguous: Vec<usize>,
}

/// Ends that received the same first sequence number, from which on none of them is paired: chance makes two of them alike in
/// 2^32, a process that sets its sequence numbers (TCP_REPAIR) as many as it likes, and each would cost all others a comparison.
const MOST_ALIKE: usize = 16;

/// Finds them.
pub fn find(ends: &[Identity]) -> Matches {
    let mut by_irs: HashMap<u32, Vec<usize>> = HashMap::with_capacity(ends.len());
    for (i, end) in ends.iter().enumerate() {
        by_irs.entry(end.irs).or_default().push(i);
    }
    let candidates = |i: usize| -> Vec<usize> {
        let end = &ends[i];
        let alike = (0..3).filter_map(|d| by_irs.get(&end.iss.wrapping_add(d).wrapping_sub(1))).flatten().copied().filter(|&j| j != i);
        // Ends that are alike without being one connection's only come where a program makes them so; they cost no more than this.
        alike.take(MOST_ALIKE).filter(|&j| end.mirrors(&ends[j])).collect()
    };
    let is_crowded = |i: usize| by_irs.get(&ends[i].irs).is_some_and(|bucket| bucket.len() >= MOST_ALIKE);
    let mut matches = Matches::default();
    for i in 0..ends.len() {
        if is_crowded(i) {
            matches.ambiguous.push(i);
            continue;
        }
        match candidates(i).as_slice() {
            [] => {}
            [j] if !is_crowded(*j) && candidates(*j).as_slice() == [i] => {
                if i < *j {
                    matches.pairs.push((i, *j));
                }
            }
            _ => matches.ambiguous.push(i),
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cookie: u64, netns: u32, local: &str, remote: &str, role: Role, iss: u32, irs: u32) -> Identity {
        Identity {
            slot: cookie as usize,
            cookie,
            netns,
            local: local.parse().expect("an address"),
            remote: remote.parse().expect("an address"),
            role,
            iss,
            irs,
        }
    }

    #[test]
    fn direct_pair() {
        let ends = [
            end(1, 10, "10.42.1.2:40000", "10.42.1.3:8080", Role::Client, 1000, 5000),
            end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Server, 5000, 1001),
        ];
        let found = find(&ends);
        assert_eq!(found.pairs, [(0, 1)]);
        assert!(!ends[0].is_translated(&ends[1]));
    }

    #[test]
    fn sequence_numbers_wrap() {
        let ends = [
            end(1, 10, "10.42.1.2:40000", "10.42.1.3:8080", Role::Client, u32::MAX, 5000),
            end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Server, 5000, 0),
        ];
        assert_eq!(find(&ends).pairs, [(0, 1)]);
    }

    #[test]
    fn through_a_service() {
        let ends = [
            end(1, 10, "10.42.1.2:40000", "10.96.0.10:80", Role::Client, 1000, 5000),
            end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Server, 5000, 1001),
        ];
        assert_eq!(find(&ends).pairs, [(0, 1)]);
        assert!(ends[0].is_translated(&ends[1]));
    }

    #[test]
    fn hairpin_with_masquerade() {
        let ends = [
            end(1, 10, "10.42.1.2:40000", "10.96.0.10:80", Role::Client, 1000, 5000),
            end(2, 10, "10.42.1.2:8080", "10.42.1.1:51234", Role::Server, 5000, 1001),
        ];
        assert_eq!(find(&ends).pairs, [(0, 1)]);
    }

    #[test]
    fn equal_loopback_addresses_in_two_namespaces_are_not_crossed() {
        let a = end(1, 10, "127.0.0.1:40000", "127.0.0.1:8080", Role::Client, 1000, 5000);
        let b = end(2, 10, "127.0.0.1:8080", "127.0.0.1:40000", Role::Server, 5000, 1001);
        let stranger = Identity { cookie: 3, slot: 3, netns: 11, ..b };
        assert_eq!(find(&[a, stranger]).pairs, []);
        assert_eq!(find(&[a, b, stranger]).pairs, [(0, 1)]);
    }

    #[test]
    fn a_cloned_identity_matches_no_socket() {
        let a = end(1, 10, "10.42.1.2:40000", "10.96.0.10:80", Role::Client, 1000, 5000);
        let b = end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Server, 5000, 1001);
        let clone = Identity { cookie: 3, slot: 3, ..b };
        let found = find(&[a, b, clone]);
        assert_eq!(found.pairs, []);
        assert_eq!(found.ambiguous, [0, 1, 2]);
    }

    #[test]
    fn many_that_are_alike_cost_no_more_than_they_are() {
        let alike = |n: u64, role| end(n, 10, &format!("10.42.1.2:{}", 1000 + n), "10.42.1.3:8080", role, 1000, 5000);
        let mut ends: Vec<Identity> = (0..30_000).map(|n| alike(n + 10, Role::Unknown)).collect();
        ends.push(end(1, 10, "10.42.1.2:40000", "10.42.1.3:8080", Role::Client, 77, 88));
        ends.push(end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Server, 88, 78));
        let found = find(&ends);
        assert_eq!(found.pairs, [(30_000, 30_001)]);
        assert_eq!(found.ambiguous.len(), 30_000);
    }

    #[test]
    fn ports_that_contradict_rule_a_match_out() {
        let a = end(1, 10, "10.42.1.2:40000", "10.42.1.3:8080", Role::Client, 1000, 5000);
        let b = end(2, 11, "10.42.1.3:8081", "10.42.1.2:40000", Role::Server, 5000, 1001);
        assert_eq!(find(&[a, b]).pairs, []);
    }

    #[test]
    fn two_clients_are_no_pair() {
        let a = end(1, 10, "10.42.1.2:40000", "10.42.1.3:8080", Role::Client, 1000, 5000);
        let b = end(2, 11, "10.42.1.3:8080", "10.42.1.2:40000", Role::Client, 5000, 1000);
        assert_eq!(find(&[a, b]).pairs, []);
    }
}
