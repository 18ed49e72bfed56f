//! Asking a namespace for its nftables rules (include/uapi/linux/netfilter/nf_tables.h) and addresses.

use std::net::IpAddr;

use anyhow::{Context, Result};
use sockpath_netlink::{Attributes, Body, NETLINK_NETFILTER, NETLINK_ROUTE, Socket, address};

use crate::decode::{NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, Reader};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEW_GENERATION: u16 = 15;
const NEW_ADDRESS: u16 = 20;
/// Size of `struct nfgenmsg`.
const GENERIC: usize = 4;

/// How often a ruleset is read again that changed while it was read.
const ATTEMPTS: usize = 3;

/// Reads the nftables rules of the namespace this thread is in.
///
/// # Errors
/// When the kernel refuses: it takes CAP_NET_ADMIN in the namespace.
pub fn read_rules() -> Result<Reader> {
    let mut socket = Socket::open(NETLINK_NETFILTER).context("cannot open a netfilter socket")?;
    let mut attempt = 1;
    loop {
        let before = generation(&mut socket)?;
        let reader = read_once(&mut socket)?;
        if attempt == ATTEMPTS || generation(&mut socket)? == before {
            return Ok(reader);
        }
        attempt += 1;
    }
}

/// The number of the ruleset's version.
fn generation(socket: &mut Socket) -> Result<Option<u32>> {
    let answers = socket.request(message(NEW_GENERATION + 1), 0, &[0; GENERIC]).context("cannot ask netfilter")?;
    let of_rules = answers.iter().find(|m| m.kind == message(NEW_GENERATION));
    Ok(of_rules.and_then(|m| Attributes::behind(&m.body, GENERIC).network_word(1)))
}

fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

fn read_once(socket: &mut Socket) -> Result<Reader> {
    let mut reader = Reader::default();
    dump(socket, &mut |kind, family, body| reader.message(kind, family, body))?;
    Ok(reader)
}

/// Gives every chain, set, element and rule of the namespace the socket was opened in: the message's kind, address family and attributes,
/// in the order that a [`Reader`] takes them in.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(socket: &mut Socket, take: &mut dyn FnMut(u16, u8, &[u8])) -> Result<()> {
    let all = [0; GENERIC];
    each(socket, message(NEW_CHAIN + 1), message(NEW_CHAIN), &all, &mut |family, body| take(NEW_CHAIN, family, body))?;
    let mut sets = Vec::new();
    each(socket, message(NEW_SET + 1), message(NEW_SET), &all, &mut |family, body| {
        let a = Attributes::of(body);
        sets.extend(a.text(1).zip(a.text(2)).map(|(table, set)| (family, table, set)));
        take(NEW_SET, family, body);
    })?;
    for (family, table, set) in sets {
        let ask = Body::new(&[family, 0, 0, 0]).with(1, &terminated(table)).with(2, &terminated(set));
        let ask = ask.bytes();
        let elements = (message(NEW_ELEMENTS + 1), message(NEW_ELEMENTS));
        let read = each(socket, elements.0, elements.1, ask, &mut |family, body| take(NEW_ELEMENTS, family, body));
        if read.is_err() {
            // Without an element in it: this set is not known whole.
            take(NEW_ELEMENTS, family, &ask[GENERIC..]);
        }
    }
    each(socket, message(NEW_RULE + 1), message(NEW_RULE), &all, &mut |family, body| take(NEW_RULE, family, body))
}

/// Text as attributes have it, with a NUL.
fn terminated(text: String) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    bytes.push(0);
    bytes
}

/// Dumps everything of a kind: address family and attributes of each.
fn each(socket: &mut Socket, ask: u16, answer: u16, body: &[u8], take: &mut dyn FnMut(u8, &[u8])) -> Result<()> {
    let mut split = |body: &[u8]| {
        if let Some((generic, rest)) = body.split_at_checked(GENERIC) {
            take(generic[0], rest);
        }
    };
    socket.dump(ask, answer, body, &mut split).context("cannot ask netfilter")
}

/// Conntrack's counters of one namespace, of all CPUs, and how full its table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConntrackCounters {
    /// Packets found invalid.
    pub invalid: u64,
    /// New connections that could not be entered into the table: another one has the same addresses and ports.
    pub insert_failed: u64,
    /// Packets dropped because the table was full, or memory was short.
    pub drop: u64,
    /// Entries that the table gave up for new ones because it was full.
    pub early_drop: u64,
    /// Lookups that were done again because the table was resized meanwhile.
    pub search_restart: u64,
    /// New connections whose addresses and ports another packet had entered at the same time, and that were entered nevertheless.
    pub clash_resolve: u64,
    /// New connections that were not entered because a chain of the table was too long (since 5.15).
    pub chain_too_long: u64,
    /// Entries in the table.
    pub entries: u64,
    /// Entries that the table may have; 0 where the kernel does not say (before 5.9).
    pub most: u64,
}

impl ConntrackCounters {
    /// Adds the counters of one CPU (`enum ctattr_stats_cpu` of include/uapi/linux/netfilter/nfnetlink_conntrack.h).
    fn add(&mut self, a: &Attributes<'_>) {
        let number = |kind| u64::from(a.network_word(kind).unwrap_or(0));
        self.invalid += number(4);
        self.insert_failed += number(9);
        self.drop += number(10);
        self.early_drop += number(11);
        self.search_restart += number(13);
        self.clash_resolve += number(14);
        self.chain_too_long += number(15);
    }

    /// Takes the state of the table (`enum ctattr_stats_global`).
    fn table(&mut self, a: &Attributes<'_>) {
        let number = |kind| u64::from(a.network_word(kind).unwrap_or(0));
        (self.entries, self.most) = (number(1), number(2));
    }
}

/// Conntrack's counters in the namespace this thread is in; `None` where they cannot be read.
pub fn conntrack_counters() -> Option<ConntrackCounters> {
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    /// `IPCTNL_MSG_CT_GET_STATS_CPU` and `IPCTNL_MSG_CT_GET_STATS`, of question and answer.
    const OF_CPUS: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 4;
    const OF_TABLE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 5;
    let mut socket = Socket::open(NETLINK_NETFILTER).ok()?;
    let mut sum = ConntrackCounters::default();
    each(&mut socket, OF_CPUS, OF_CPUS, &[0; GENERIC], &mut |_, body| sum.add(&Attributes::of(body))).ok()?;
    // A kernel that does not know this question leaves the state of the table at 0.
    for answer in socket.request(OF_TABLE, 0, &[0; GENERIC]).unwrap_or_default().iter().filter(|m| m.kind == OF_TABLE) {
        sum.table(&Attributes::behind(&answer.body, GENERIC));
    }
    Some(sum)
}

/// The addresses of the namespace this thread is in, and the broadcast addresses of its links.
///
/// # Errors
/// When the kernel refuses.
pub fn addresses() -> Result<(Vec<IpAddr>, Vec<IpAddr>)> {
    /// Of `struct ifaddrmsg`.
    const ADDRESS: usize = 8;
    let mut socket = Socket::open(NETLINK_ROUTE).context("cannot open a routing socket")?;
    let (mut own, mut broadcast) = (Vec::new(), Vec::new());
    let take = |body: &[u8]| {
        let a = Attributes::behind(body, ADDRESS);
        // IFA_LOCAL, or IFA_ADDRESS where there is no peer.
        own.extend(a.get(2).or_else(|| a.get(1)).and_then(address));
        broadcast.extend(a.get(4).and_then(address));
    };
    socket.dump(NEW_ADDRESS + 2, NEW_ADDRESS, &[0; ADDRESS], take).context("cannot list addresses")?;
    Ok((own, broadcast))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(numbers: &[(u16, u32)]) -> Vec<u8> {
        numbers.iter().fold(Body::default(), |body, (kind, n)| body.with(*kind, &n.to_be_bytes())).bytes().to_vec()
    }

    #[test]
    fn counters_of_all_cpus_are_added() {
        let mut sum = ConntrackCounters::default();
        sum.add(&Attributes::of(&attributes(&[(4, 1), (9, 2), (10, 3), (11, 4), (13, 5), (14, 6), (15, 7)])));
        // A kernel before 5.9 has neither clash_resolve nor chaintoolong.
        sum.add(&Attributes::of(&attributes(&[(4, 10), (9, 20), (10, 30), (11, 40), (13, 50)])));
        sum.table(&Attributes::of(&attributes(&[(1, 60), (2, 64)])));
        let of_cpus = (sum.invalid, sum.insert_failed, sum.drop, sum.early_drop, sum.search_restart, sum.clash_resolve, sum.chain_too_long);
        assert_eq!(of_cpus, (11, 22, 33, 44, 55, 6, 7));
        assert_eq!((sum.entries, sum.most), (60, 64));
    }
}
