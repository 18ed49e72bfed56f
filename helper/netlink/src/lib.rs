//! Netlink sockets and messages (include/uapi/linux/netlink.h): requests, dumps, notifications, and attributes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket as Raw, SocketAddr};

pub use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NESTED: u16 = 0x8000;
/// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const NLA_TYPE: u16 = 0x3fff;
/// Room for one read; the kernel's messages of a dump come in pieces of at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// Requests that are sent at a time: they, and an answer to each, fit into the socket's buffers.
const AT_A_TIME: usize = 64;

/// A message: its type, and what follows the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u16,
    /// What follows `struct nlmsghdr`.
    pub body: Vec<u8>,
}

/// A netlink socket of the network namespace in which it was opened.
pub struct Socket {
    raw: Raw,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("fd", &self.raw.as_raw_fd()).finish_non_exhaustive()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

impl Socket {
    /// Opens a socket of a netlink protocol in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel does not know the protocol (EPROTONOSUPPORT) or refuses.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Opens a socket that receives the notifications of these groups and does not block.
    ///
    /// # Errors
    /// As [`Socket::open`], or when the kernel does not know a group.
    pub fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        for group in groups {
            raw.add_membership(*group)?;
        }
        raw.set_non_blocking(true)?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Has a request carried out; gives the messages that came before the acknowledgement.
    ///
    /// # Errors
    /// What the kernel answers, as its errno.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        self.send(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body)?;
        let mut answers = Vec::new();
        while !self.read_until_end(&mut |kind, body| answers.push(Message { kind, body: body.to_vec() }))? {}
        Ok(answers)
    }

    /// Has requests of one kind carried out in their order, many with each system call; what came of each.
    ///
    /// # Errors
    /// When the socket cannot be written or read.
    pub fn request_each(&mut self, kind: u16, bodies: &[Body]) -> io::Result<Vec<io::Result<()>>> {
        let mut outcomes = Vec::with_capacity(bodies.len());
        for some in bodies.chunks(AT_A_TIME) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for (i, body) in (1..).zip(some) {
                // Errors are always answered, and the last answer shows that none is missing.
                let acknowledge = if i == some.len() { NLM_F_ACK } else { 0 };
                self.sequence = self.sequence.wrapping_add(1);
                append(&mut bytes, kind, NLM_F_REQUEST | acknowledge, self.sequence, &body.0)?;
            }
            self.raw.send(&bytes, 0)?;
            let begin = outcomes.len();
            outcomes.extend(some.iter().map(|_| Ok(())));
            let mut complete = false;
            while !complete {
                self.receive()?;
                complete = note_answers(&self.buffer, first, &mut outcomes[begin..]);
            }
        }
        Ok(outcomes)
    }

    /// Asks for everything of a kind; `each` gets the body of every message of type `answer`.
    ///
    /// # Errors
    /// What the kernel answers, as its errno.
    pub fn dump(&mut self, kind: u16, answer: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
        let mut take = |kind: u16, body: &[u8]| {
            if kind == answer {
                each(body);
            }
        };
        while !self.read_until_end(&mut take)? {}
        Ok(())
    }

    /// The same, all at once.
    ///
    /// # Errors
    /// What the kernel answers, as its errno.
    pub fn dump_all(&mut self, kind: u16, answer: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        self.dump(kind, answer, body, |body| found.push(body.to_vec()))?;
        Ok(found)
    }

    /// Notifications that have come, without waiting; `None` when some were lost because the socket's buffer was full.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn notifications(&mut self) -> io::Result<Option<Vec<Message>>> {
        let mut found = Vec::new();
        let mut lost = false;
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => found.extend(Messages(&self.buffer).map(|(kind, _, body)| Message { kind, body: body.to_vec() })),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok((!lost).then_some(found)),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        append(&mut message, kind, flags, self.sequence, body)?;
        self.raw.send(&message, 0).map(drop)
    }

    /// Waits for messages and reads them into the buffer.
    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.raw.recv(&mut self.buffer, 0).map(drop)
    }

    /// Reads once; whether the answer to the last request is complete.
    fn read_until_end(&mut self, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<bool> {
        self.receive()?;
        for (kind, _, body) in Messages(&self.buffer).filter(|(_, sequence, _)| *sequence == self.sequence) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return acknowledged(body).map(|()| true),
                kind => each(kind, body),
            }
        }
        Ok(false)
    }
}

/// Notes what answers say of requests whose sequence numbers begin with `first`; whether they are complete: the last one is answered, or all
/// are refused, which the kernel says once (netlink_net_capable() in nfnetlink_rcv()).
fn note_answers(bytes: &[u8], first: u32, outcomes: &mut [io::Result<()>]) -> bool {
    let mut complete = false;
    for (_, sequence, body) in Messages(bytes).filter(|(kind, _, _)| *kind == NLMSG_ERROR) {
        let at = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
        let last = outcomes.len().checked_sub(1) == Some(at);
        if let Some(outcome) = outcomes.get_mut(at) {
            *outcome = acknowledged(body);
            complete |= last;
            if at == 0 && !last && is_refused(outcome) {
                outcomes.iter_mut().for_each(|outcome| *outcome = Err(io::Error::from_raw_os_error(libc::EPERM)));
                return true;
            }
        }
    }
    complete
}

fn is_refused(outcome: &io::Result<()>) -> bool {
    outcome.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EPERM))
}

/// What an answer of type NLMSG_ERROR, or the end of a dump, says.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match word(body, 0).map_or(0, u32::cast_signed) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// Appends a message, at a multiple of four bytes.
fn append(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: &[u8]) -> io::Result<()> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = u32::try_from(HEADER + body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    Ok(())
}

/// The messages in a buffer: type, sequence number, body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(word(self.0, 0)?).ok()?;
        let kind = half(self.0, 4)?;
        let sequence = word(self.0, 8)?;
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    }
}

/// A number of 32 bits in the machine's order at this offset.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A number of 16 bits in the machine's order at this offset.
#[must_use]
pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Attributes to be sent.
#[derive(Debug, Default, Clone)]
pub struct Body(Vec<u8>);

impl Body {
    /// Begins with a fixed header.
    #[must_use]
    pub fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// Adds an attribute. Values beyond 65,531 bytes do not exist in netlink and are cut.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - 4)];
        self.0.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute that holds attributes.
    #[must_use]
    pub fn with_nested(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NLA_F_NESTED, &inner.0)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes that were received, as far as they are whole.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those that these bytes are.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Attributes behind a fixed header of that many bytes.
    #[must_use]
    pub fn behind(body: &'a [u8], header: usize) -> Self {
        Self(body.get(header..).unwrap_or_default())
    }

    /// All, in their order: type and value.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(half(rest, 0)?);
            let kind = half(rest, 2)? & NLA_TYPE;
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The value of the first of this type.
    #[must_use]
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes in the first of this type.
    #[must_use]
    pub fn nested(&self, kind: u16) -> Option<Self> {
        self.get(kind).map(Self)
    }

    /// The first of this type as a number of 8 bits.
    #[must_use]
    pub fn byte(&self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    /// The first of this type as a number of 32 bits in the machine's order.
    #[must_use]
    pub fn word(&self, kind: u16) -> Option<u32> {
        word(self.get(kind)?, 0)
    }

    /// The first of this type as a number of 32 bits in network order.
    #[must_use]
    pub fn network_word(&self, kind: u16) -> Option<u32> {
        self.word(kind).map(u32::from_be)
    }

    /// The first of this type as a number of 64 bits in network order.
    #[must_use]
    pub fn network_long(&self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The first of this type as text, which a NUL may end.
    #[must_use]
    pub fn text(&self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    /// The values of all, in their order.
    pub fn values(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.iter().map(|(_, value)| value)
    }

    /// The first of this type as an address, by its length.
    #[must_use]
    pub fn address(&self, kind: u16) -> Option<std::net::IpAddr> {
        address(self.get(kind)?)
    }
}

/// Text that a NUL may end.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address in network order, by its length.
#[must_use]
pub fn address(value: &[u8]) -> Option<std::net::IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(value).ok().map(Into::into),
        _ => None,
    }
}

/// An address in network order.
#[must_use]
pub fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(a) => a.octets().to_vec(),
        std::net::IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address family of an address.
#[must_use]
pub fn family(address: std::net::IpAddr) -> u8 {
    // AF_INET and AF_INET6 are 2 and 10.
    u8::try_from(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = Body::default().with(1, &[1, 2, 3]).with(2, &7u32.to_be_bytes());
        let body = Body::new(&[9; 4]).with_nested(4, &inner).with(5, b"eth0\0");
        let read = Attributes::behind(body.bytes(), 4);
        assert_eq!(read.nested(4).and_then(|n| n.get(1)), Some(&[1, 2, 3][..]));
        assert_eq!(read.nested(4).and_then(|n| n.network_word(2)), Some(7));
        assert_eq!(read.text(5).as_deref(), Some("eth0"));
        assert_eq!(read.get(6), None);
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let whole = Body::default().with(1, &[1; 8]).with(2, &[2; 8]);
        for end in 0..whole.bytes().len() {
            let read = Attributes::behind(&whole.bytes()[..end], 0);
            assert!(read.get(2).is_none() && read.get(1).is_none_or(|v| v == [1; 8]), "cut at {end}");
        }
        // A length of 0 must not loop.
        assert_eq!(Attributes::behind(&[0; 16], 0).iter().count(), 0);
    }

    #[test]
    fn requests_that_are_sent_together_have_their_own_outcomes() {
        let answer = |bytes: &mut Vec<u8>, sequence: u32, code: i32| {
            append(bytes, NLMSG_ERROR, 0, sequence, &code.to_ne_bytes()).expect("short");
        };
        // The numbers wrap around.
        let first = u32::MAX - 1;
        let mut outcomes: Vec<io::Result<()>> = (0..4).map(|_| Ok(())).collect();
        let mut bytes = Vec::new();
        answer(&mut bytes, first.wrapping_sub(1), -libc::EPERM);
        answer(&mut bytes, first.wrapping_add(1), -libc::ENOENT);
        assert!(!note_answers(&bytes, first, &mut outcomes), "the last one is not answered");
        let mut bytes = Vec::new();
        answer(&mut bytes, first.wrapping_add(3), 0);
        answer(&mut bytes, first.wrapping_add(4), -libc::EPERM);
        assert!(note_answers(&bytes, first, &mut outcomes));
        let codes: Vec<_> = outcomes.iter().map(|o| o.as_ref().err().and_then(io::Error::raw_os_error)).collect();
        assert_eq!(codes, [None, Some(libc::ENOENT), None, None]);
        assert!(!note_answers(&bytes, first, &mut []));
        let mut bytes = Vec::new();
        answer(&mut bytes, first, -libc::EPERM);
        assert!(note_answers(&bytes, first, &mut outcomes) && outcomes.iter().all(is_refused), "all are refused with the first");
    }

    #[test]
    fn messages_are_separated() {
        let mut bytes = Vec::new();
        for (kind, length) in [(7u16, 20u32), (8, 16)] {
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(3u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.resize(bytes.len() + length as usize - 16, 5);
        }
        let found: Vec<_> = Messages(&bytes).collect();
        assert_eq!(found, [(7, 3, &[5; 4][..]), (8, 3, &[][..])]);
        assert_eq!(Messages(&bytes[..18]).count(), 0);
    }
}
