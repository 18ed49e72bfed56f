//! Readers of every kind a program may use on a TCP socket.

use std::io::{self, Error, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::net::{self, Socket, check, own, transferred};
use super::prng::Prng;
use super::uring;

/// How a side reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReaderKind {
    /// Blocking recv(2).
    Recv,
    /// Blocking read(2).
    Read,
    /// poll(2), then recv without blocking.
    Poll,
    /// poll(2), then read(2), which would block.
    PollRead,
    /// poll(2), then recvmsg(2) into several buffers.
    PollRecvmsg,
    /// poll(2), then `MSG_PEEK`, then recv of the same bytes.
    PollPeek,
    /// Level-triggered epoll.
    EpollLevel,
    /// Edge-triggered epoll: waits only after `EAGAIN`.
    EpollEdge,
    /// Edge-triggered epoll, as nginx does it: after a read that filled its buffer it asks `FIONREAD`, and waits when that says 0.
    EdgeTrusting,
    /// `IORING_OP_RECV`.
    Uring,
    /// `IORING_OP_POLL_ADD`, then recv without blocking.
    UringPoll,
    /// `MSG_PEEK`, then recv of the same bytes.
    Peek,
    /// recvmsg(2) into several buffers.
    Recvmsg,
    /// recv with a short `SO_RCVTIMEO`, again and again.
    Timeout,
    /// splice(2) into a pipe.
    Splice,
    /// `MSG_WAITALL`.
    WaitAll,
    /// poll with `SO_RCVLOWAT` above 1.
    LowWater,
    /// poll, `FIONREAD`, then exactly as much as it tells.
    Fionread,
    /// Another kind for every read.
    Mixed,
    /// Another of the kinds whose receive calls cannot sleep for every read.
    Shifting,
    /// Several threads in recv on one socket (only where a side reads to the end).
    Threads,
}

impl ReaderKind {
    /// All kinds that read through [`Reader`].
    pub const SINGLE: [Self; 15] = [
        Self::Recv,
        Self::Read,
        Self::Poll,
        Self::EpollLevel,
        Self::EpollEdge,
        Self::Uring,
        Self::Peek,
        Self::Recvmsg,
        Self::Timeout,
        Self::Splice,
        Self::WaitAll,
        Self::LowWater,
        Self::Fionread,
        Self::Mixed,
        Self::PollRead,
    ];

    /// Kinds whose receive calls cannot sleep: those that are accelerated by default.
    pub const POLLING: [Self; 8] =
        [Self::Poll, Self::PollRecvmsg, Self::PollPeek, Self::EpollLevel, Self::EpollEdge, Self::Uring, Self::UringPoll, Self::Shifting];

    /// Those that [`ReaderKind::Mixed`] changes between.
    const MIXABLE: [Self; 9] =
        [Self::Recv, Self::Read, Self::Poll, Self::EpollLevel, Self::EpollEdge, Self::Uring, Self::Peek, Self::Recvmsg, Self::Fionread];
}

/// How often in a row poll may say "readable" and recv find nothing, before it counts as a busy loop.
const MOST_SPURIOUS: u32 = 200;

/// Reads one socket by one kind of call.
#[derive(Debug)]
pub struct Reader<'a> {
    socket: &'a Socket,
    kind: ReaderKind,
    rng: Prng,
    /// Level- and edge-triggered instances, made when first used.
    epoll: [Option<OwnedFd>; 2],
    pipe: Option<(OwnedFd, OwnedFd)>,
    peeked: Vec<u8>,
    low_water: usize,
    /// How often FIONREAD counted 0 bytes where some were unread, on a socket of a [`ReaderKind::Mixed`] reader.
    pub misled: u32,
    /// FIONREAD said that nothing is unread.
    believes_empty: bool,
    /// What the last `MSG_WAITALL` asked for and got, if less: only an end may follow.
    short: Option<(usize, usize)>,
}

impl<'a> Reader<'a> {
    /// A reader of `socket`; options that the kind needs are set on it.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn new(socket: &'a Socket, kind: ReaderKind, rng: Prng) -> io::Result<Self> {
        if kind == ReaderKind::Timeout {
            socket.receive_timeout(Duration::from_millis(20))?;
        }
        Ok(Self {
            socket,
            kind,
            rng,
            epoll: [None, None],
            pipe: None,
            peeked: Vec::new(),
            low_water: 1,
            misled: 0,
            believes_empty: false,
            short: None,
        })
    }

    /// Reads at least one byte, blocking as long as it takes; 0 means end of stream.
    ///
    /// # Errors
    /// The call's error; `InvalidData` when the socket behaved as no TCP socket may.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let kind = match self.kind {
            ReaderKind::Mixed => self.rng.pick(&ReaderKind::MIXABLE),
            ReaderKind::Shifting => self.rng.pick(ReaderKind::POLLING.split_last().map_or(&[], |(_, others)| others)),
            kind => kind,
        };
        loop {
            match self.read_as(kind, buf) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && kind == ReaderKind::Timeout => {}
                r => return r,
            }
        }
    }

    fn read_as(&mut self, kind: ReaderKind, buf: &mut [u8]) -> io::Result<usize> {
        match kind {
            ReaderKind::Recv | ReaderKind::Timeout | ReaderKind::Mixed | ReaderKind::Shifting | ReaderKind::Threads => {
                self.socket.recv(buf, 0)
            }
            ReaderKind::Read => net::read(self.socket, buf),
            ReaderKind::LowWater => {
                // Never more than the caller wants, or the last bytes of a message would not wake the reader.
                let want = buf.len().min(64);
                if want != self.low_water {
                    self.socket.set(libc::SOL_SOCKET, libc::SO_RCVLOWAT, i32::try_from(want).unwrap_or(1))?;
                    self.low_water = want;
                }
                self.poll_then(|s| s.socket.recv(buf, libc::MSG_DONTWAIT))
            }
            ReaderKind::Poll => self.poll_then(|s| s.socket.recv(buf, libc::MSG_DONTWAIT)),
            ReaderKind::EpollLevel => self.epoll(false, buf),
            ReaderKind::EpollEdge => self.epoll(true, buf),
            ReaderKind::EdgeTrusting => self.edge_trusting(buf),
            ReaderKind::Uring => uring::recv(self.socket, buf),
            ReaderKind::UringPoll => self.uring_poll(buf),
            ReaderKind::Peek => self.peek(buf, 0),
            ReaderKind::PollPeek => self.poll_then(|s| s.peek(buf, libc::MSG_DONTWAIT)),
            ReaderKind::PollRead => {
                self.socket.poll(libc::POLLIN, None)?;
                net::read(self.socket, buf)
            }
            ReaderKind::Recvmsg => self.recvmsg(buf, 0),
            ReaderKind::PollRecvmsg => self.poll_then(|s| s.recvmsg(buf, libc::MSG_DONTWAIT)),
            ReaderKind::Splice => self.splice(buf),
            ReaderKind::WaitAll => {
                let n = self.socket.recv(buf, libc::MSG_WAITALL)?;
                if let Some((want, got)) = self.short.filter(|_| n > 0) {
                    return Err(invalid(format!("MSG_WAITALL gave {got} of {want} bytes although the stream went on")));
                }
                self.short = (n < buf.len()).then_some((buf.len(), n));
                Ok(n)
            }
            ReaderKind::Fionread => self.poll_then(|s| s.fionread(buf)),
        }
    }

    fn poll_then(&mut self, mut read: impl FnMut(&mut Self) -> io::Result<usize>) -> io::Result<usize> {
        for _ in 0..MOST_SPURIOUS {
            self.socket.poll(libc::POLLIN, None)?;
            match read(self) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                r => return r,
            }
        }
        Err(invalid(format!("poll said readable {MOST_SPURIOUS} times and there was nothing to read")))
    }

    fn fionread(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let counted = self.socket.unread()?;
        if counted > 0 {
            let most = counted.min(buf.len());
            let n = self.socket.recv(&mut buf[..most], libc::MSG_DONTWAIT)?;
            // More may have come since, less may not.
            return if n < most { Err(invalid(format!("FIONREAD counted {counted} bytes, recv of {most} gave {n}"))) } else { Ok(n) };
        }
        // Nothing although readable: end of stream or an error, unless bytes arrived after FIONREAD looked.
        match self.socket.recv(buf, libc::MSG_DONTWAIT) {
            Ok(n) if n > 0 && self.socket.unread()? == 0 && n < buf.len() => {
                // One that asks now and then is accelerated until its first question is seen.
                if self.kind == ReaderKind::Mixed {
                    self.misled += 1;
                    return Ok(n);
                }
                Err(invalid(format!("FIONREAD counted 0 bytes on a readable socket, recv gave {n}")))
            }
            r => r,
        }
    }

    fn epoll(&mut self, edge: bool, buf: &mut [u8]) -> io::Result<usize> {
        let slot = usize::from(edge);
        if self.epoll[slot].is_none() {
            // SAFETY: epoll_create1(2) takes no pointers.
            let epoll = own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
            let events = libc::EPOLLIN | libc::EPOLLRDHUP | if edge { libc::EPOLLET } else { 0 };
            let mut event = libc::epoll_event { events: events as u32, u64: 0 };
            // SAFETY: event is live for the call.
            check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, self.socket.as_raw_fd(), &raw mut event) })?;
            self.epoll[slot] = Some(epoll);
        }
        if edge {
            match self.socket.recv(buf, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                r => return r,
            }
        }
        for _ in 0..MOST_SPURIOUS {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            let epoll = self.epoll[slot].as_ref().map_or(-1, AsRawFd::as_raw_fd);
            // SAFETY: event is live and has room for the one event asked for.
            check(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, -1) })?;
            match self.socket.recv(buf, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                r => return r,
            }
        }
        Err(invalid(format!("epoll said readable {MOST_SPURIOUS} times and there was nothing to read")))
    }

    fn edge_trusting(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if std::mem::take(&mut self.believes_empty) {
            self.await_edge()?;
        }
        let n = self.epoll(true, buf)?;
        self.believes_empty = n == buf.len() && self.socket.unread()? == 0;
        Ok(n)
    }

    /// The next edge; one that came before is taken into account, as by any edge-triggered program.
    fn await_edge(&mut self) -> io::Result<()> {
        let epoll = self.epoll[1].as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: event is live and has room for the one event asked for.
        check(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, -1) }).map(drop)
    }

    fn uring_poll(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MOST_SPURIOUS {
            uring::poll_in(self.socket)?;
            match self.socket.recv(buf, libc::MSG_DONTWAIT) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                r => return r,
            }
        }
        Err(invalid(format!("io_uring said readable {MOST_SPURIOUS} times and there was nothing to read")))
    }

    fn peek(&mut self, buf: &mut [u8], flags: i32) -> io::Result<usize> {
        let n = self.socket.recv(buf, libc::MSG_PEEK | flags)?;
        self.peeked.resize(n, 0);
        let taken = if n == 0 { self.socket.recv(&mut [0; 1], libc::MSG_DONTWAIT)? } else { self.socket.recv(&mut self.peeked, flags)? };
        if taken != n || self.peeked[..taken.min(n)] != buf[..n] {
            return Err(invalid(format!(
                "MSG_PEEK gave {n} bytes, recv of as many gave {taken}, equal: {}",
                self.peeked[..taken.min(n)] == buf[..taken.min(n)]
            )));
        }
        Ok(n)
    }

    fn recvmsg(&mut self, buf: &mut [u8], flags: i32) -> io::Result<usize> {
        let parts = usize::try_from(self.rng.between(1, 6)).unwrap_or(1);
        let part = buf.len().div_ceil(parts).max(1);
        let mut iov: Vec<libc::iovec> =
            buf.chunks_mut(part).map(|c| libc::iovec { iov_base: c.as_mut_ptr().cast(), iov_len: c.len() }).collect();
        // SAFETY: msghdr is plain data; all zeroes means nothing asked for.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = iov.as_mut_ptr();
        msg.msg_iovlen = iov.len();
        // SAFETY: msg and the disjoint parts of buf it names are live and writable for the call.
        transferred(unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut msg, flags) })
    }

    fn splice(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.pipe.is_none() {
            self.pipe = Some(net::pipe()?);
        }
        let Some((out, into)) = &self.pipe else { return Ok(0) };
        // A default pipe holds 16 pages of which small segments may fill one each; the pipe is empty here, so this cannot block on it.
        let n = net::splice(self.socket, into, buf.len().min(32 << 10), libc::SPLICE_F_MOVE)?;
        let mut have = 0;
        while have < n {
            match net::read(out, &mut buf[have..n])? {
                0 => return Err(invalid(format!("splice moved {n} bytes, the pipe held {have}"))),
                more => have += more,
            }
        }
        Ok(n)
    }
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::InvalidData, text)
}
