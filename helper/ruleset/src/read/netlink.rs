//! Asking a namespace for its nftables rules (include/uapi/linux/netfilter/nf_tables.h) and addresses.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

use crate::attributes::Attributes;
use crate::decode::{NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, Reader};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NEW_GENERATION: u16 = 15;
const NEW_ADDRESS: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Bytes of a read: the kernel fills larger messages when there is room for them.
const CHUNK: usize = 1 << 18;

/// How often a ruleset is read again that changed while it was read.
const ATTEMPTS: usize = 3;

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has no such protocol.
    pub fn open(protocol: SockProtocol) -> Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(fd))
    }
}

/// Reads the nftables rules of the namespace this thread is in.
///
/// # Errors
/// When the kernel refuses: it takes CAP_NET_ADMIN in the namespace.
pub fn read_rules() -> Result<Reader> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter).context("cannot open a netfilter socket")?;
    let mut attempt = 1;
    loop {
        let before = generation(&socket)?;
        let reader = read_once(&socket)?;
        if attempt == ATTEMPTS || generation(&socket)? == before {
            return Ok(reader);
        }
        attempt += 1;
    }
}

/// The number of the ruleset's version.
fn generation(socket: &Socket) -> Result<Option<u32>> {
    let mut found = None;
    let (ask, answer) = (message(NEW_GENERATION + 1), message(NEW_GENERATION));
    request(socket, ask, libc::NLM_F_REQUEST, &[0; GENERIC])?;
    receive(socket, answer, true, &mut |body| found = body.get(GENERIC..).and_then(|b| Attributes::of(b).number(1)))?;
    Ok(found)
}

fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

fn read_once(socket: &Socket) -> Result<Reader> {
    let mut reader = Reader::default();
    dump(socket, &mut |kind, family, body| reader.message(kind, family, body))?;
    Ok(reader)
}

/// Gives every chain, set, element and rule of the namespace the socket was opened in: the message's kind, address family and attributes,
/// in the order that a [`Reader`] takes them in.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(socket: &Socket, take: &mut dyn FnMut(u16, u8, &[u8])) -> Result<()> {
    let all = [0; GENERIC];
    each(socket, message(NEW_CHAIN + 1), message(NEW_CHAIN), &all, &mut |family, body| take(NEW_CHAIN, family, body))?;
    let mut sets = Vec::new();
    each(socket, message(NEW_SET + 1), message(NEW_SET), &all, &mut |family, body| {
        let a = Attributes::of(body);
        sets.extend(a.text(1).zip(a.text(2)).map(|(table, set)| (family, table, set)));
        take(NEW_SET, family, body);
    })?;
    for (family, table, set) in sets {
        let mut ask = vec![family, 0, 0, 0];
        attribute(&mut ask, 1, &table);
        attribute(&mut ask, 2, &set);
        let elements = (message(NEW_ELEMENTS + 1), message(NEW_ELEMENTS));
        let read = each(socket, elements.0, elements.1, &ask, &mut |family, body| take(NEW_ELEMENTS, family, body));
        if read.is_err() {
            // Without an element in it: this set is not known whole.
            take(NEW_ELEMENTS, family, &ask[GENERIC..]);
        }
    }
    each(socket, message(NEW_RULE + 1), message(NEW_RULE), &all, &mut |family, body| take(NEW_RULE, family, body))
}

/// Appends an attribute of text.
fn attribute(message: &mut Vec<u8>, kind: u16, text: &str) {
    let length = 4 + text.len() + 1;
    message.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(text.as_bytes());
    message.resize(message.len() + 1 + (length.next_multiple_of(4) - length), 0);
}

/// Dumps everything of a kind: address family and attributes of each.
fn each(socket: &Socket, ask: u16, answer: u16, body: &[u8], take: &mut dyn FnMut(u8, &[u8])) -> Result<()> {
    request(socket, ask, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, body).context("cannot ask netfilter")?;
    receive(socket, answer, false, &mut |body| {
        if let Some((generic, rest)) = body.split_at_checked(GENERIC) {
            take(generic[0], rest);
        }
    })
    .context("cannot ask netfilter")
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
        let number = |kind| u64::from(a.number(kind).unwrap_or(0));
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
        let number = |kind| u64::from(a.number(kind).unwrap_or(0));
        (self.entries, self.most) = (number(1), number(2));
    }
}

/// Conntrack's counters in the namespace this thread is in; `None` where they cannot be read.
pub fn conntrack_counters() -> Option<ConntrackCounters> {
    const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    /// `IPCTNL_MSG_CT_GET_STATS_CPU` and `IPCTNL_MSG_CT_GET_STATS`, of question and answer.
    const OF_CPUS: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 4;
    const OF_TABLE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 5;
    let socket = Socket::open(SockProtocol::NetlinkNetFilter).ok()?;
    let mut sum = ConntrackCounters::default();
    each(&socket, OF_CPUS, OF_CPUS, &[0; GENERIC], &mut |_, body| sum.add(&Attributes::of(body))).ok()?;
    // A kernel that does not know this question leaves the state of the table at 0.
    let asked = request(&socket, OF_TABLE, libc::NLM_F_REQUEST, &[0; GENERIC]);
    let _ = asked
        .and_then(|()| receive(&socket, OF_TABLE, true, &mut |body| sum.table(&Attributes::of(body.get(GENERIC..).unwrap_or_default()))));
    Some(sum)
}

/// The addresses of the namespace this thread is in, and the broadcast addresses of its links.
///
/// # Errors
/// When the kernel refuses.
pub fn addresses() -> Result<(Vec<IpAddr>, Vec<IpAddr>)> {
    /// Of `struct ifaddrmsg`.
    const ADDRESS: usize = 8;
    let socket = Socket::open(SockProtocol::NetlinkRoute).context("cannot open a routing socket")?;
    let (mut own, mut broadcast) = (Vec::new(), Vec::new());
    request(&socket, NEW_ADDRESS + 2, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, &[0; ADDRESS])?;
    receive(&socket, NEW_ADDRESS, false, &mut |body| {
        let a = Attributes::of(body.get(ADDRESS..).unwrap_or_default());
        // IFA_LOCAL, or IFA_ADDRESS where there is no peer.
        own.extend(a.get(2).or_else(|| a.get(1)).and_then(ip));
        broadcast.extend(a.get(4).and_then(ip));
    })?;
    Ok((own, broadcast))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Asks for everything of a kind; gives what follows the header of each answer of type `answer`.
///
/// # Errors
/// When the kernel refuses.
pub fn dump_all(socket: &Socket, ask: u16, answer: u16, body: &[u8]) -> Result<Vec<Vec<u8>>> {
    request(socket, ask, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, body)?;
    let mut found = Vec::new();
    receive(socket, answer, false, &mut |body| found.push(body.to_vec()))?;
    Ok(found)
}

fn request(socket: &Socket, kind: u16, flags: i32, body: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(u32::try_from(HEADER + body.len())?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags)?.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend(body);
    send(socket.0.as_raw_fd(), &message, MsgFlags::empty()).context("cannot write to netlink")?;
    Ok(())
}

/// Takes what follows the header of each answer of type `answer`, until the last; with `single` there is one.
fn receive(socket: &Socket, answer: u16, single: bool, take: &mut dyn FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = recv(socket.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("cannot read netlink's answer")?;
        let mut rest = &buffer[..length];
        while let Some((length, kind)) = header(rest) {
            let body = rest.get(HEADER..length).unwrap_or_default();
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return Err(io::Error::from_raw_os_error(-code)).context("netlink refuses");
                }
                kind if kind == answer => {
                    take(body);
                    if single {
                        return Ok(());
                    }
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Length and type of the message that begins here.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (length >= HEADER && length <= bytes.len()).then_some((length, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(numbers: &[(u16, u32)]) -> Vec<u8> {
        numbers.iter().flat_map(|(kind, n)| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &n.to_be_bytes()].concat()).collect()
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
