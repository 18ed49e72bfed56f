//! TCP sockets with every option and call the torture needs, straight over libc: what is tested is which system call meets
//! which socket, so nothing may stand between.

use std::io::{self, Error, ErrorKind};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libc::{c_int, c_void, socklen_t};

/// A TCP (or MPTCP) socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// Address family and protocol of a new socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `AF_INET6` instead of `AF_INET`; a v6 socket also takes v4-mapped addresses.
    pub v6: bool,
    /// `IPPROTO_MPTCP` instead of TCP.
    pub mptcp: bool,
}

/// Turns the -1 of a system call into its error.
pub fn check(r: c_int) -> io::Result<c_int> {
    if r < 0 { Err(Error::last_os_error()) } else { Ok(r) }
}

/// Turns the -1 of a transfer call into its error.
pub fn transferred(r: isize) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| Error::last_os_error())
}

/// Takes ownership of a descriptor that a system call just returned.
pub fn own(fd: c_int) -> io::Result<OwnedFd> {
    // SAFETY: check() refuses -1, and the caller passes the result of a call that creates a descriptor without another owner.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Socket {
    /// A new stream socket.
    ///
    /// # Errors
    /// What socket(2) says; `EPROTONOSUPPORT` without MPTCP.
    pub fn new(kind: Kind) -> io::Result<Self> {
        let family = if kind.v6 { libc::AF_INET6 } else { libc::AF_INET };
        let protocol = if kind.mptcp { libc::IPPROTO_MPTCP } else { libc::IPPROTO_TCP };
        // SAFETY: socket(2) takes no pointers.
        let socket = own(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) }).map(Self)?;
        if kind.v6 {
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        }
        Ok(socket)
    }

    /// A listening socket on `port` of all addresses. `options` run before bind and listen.
    ///
    /// # Errors
    /// What socket, setsockopt, bind or listen say.
    pub fn listen(kind: Kind, port: u16, options: impl FnOnce(&Self) -> io::Result<()>) -> io::Result<Self> {
        let socket = Self::new(kind)?;
        socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        options(&socket)?;
        let any = if kind.v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        socket.bind(SocketAddr::new(any, port))?;
        // SAFETY: listen(2) takes no pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), 4096) })?;
        Ok(socket)
    }

    /// bind(2).
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn bind(&self, to: SocketAddr) -> io::Result<()> {
        let (address, len) = encode(to);
        // SAFETY: address is a live sockaddr_storage of which the first len bytes are filled.
        check(unsafe { libc::bind(self.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
    }

    /// connect(2); a v4 address on a v6 socket is v4-mapped.
    ///
    /// # Errors
    /// What connect(2) says; `EINPROGRESS` on a non-blocking socket.
    pub fn connect(&self, to: SocketAddr) -> io::Result<()> {
        let (address, len) = encode(self.mapped(to)?);
        // SAFETY: as in bind.
        check(unsafe { libc::connect(self.as_raw_fd(), (&raw const address).cast(), len) }).map(drop)
    }

    /// Connects with data in the SYN (TCP Fast Open, RFC 7413); yields how much of `data` was taken.
    ///
    /// # Errors
    /// What sendto(2) with `MSG_FASTOPEN` says.
    pub fn connect_with(&self, to: SocketAddr, data: &[u8]) -> io::Result<usize> {
        let (address, len) = encode(self.mapped(to)?);
        let flags = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
        // SAFETY: data and address are live for the call, with the lengths given.
        transferred(unsafe { libc::sendto(self.as_raw_fd(), data.as_ptr().cast(), data.len(), flags, (&raw const address).cast(), len) })
    }

    fn mapped(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        Ok(match to {
            SocketAddr::V4(v4) if self.get(libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_INET6 => {
                SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
            }
            other => other,
        })
    }

    /// accept4(2).
    ///
    /// # Errors
    /// What accept4(2) says.
    pub fn accept(&self) -> io::Result<Self> {
        // SAFETY: null address and length are allowed.
        own(unsafe { libc::accept4(self.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) }).map(Self)
    }

    /// The local address.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.name(libc::getsockname)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// What getpeername(2) says.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.name(libc::getpeername)
    }

    fn name(&self, call: unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut socklen_t) -> c_int) -> io::Result<SocketAddr> {
        // SAFETY: sockaddr_storage is plain data; all zeroes is valid.
        let mut address: libc::sockaddr_storage = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as socklen_t;
        // SAFETY: address and len are live, len holds the room there is.
        check(unsafe { call(self.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
        decode(&address)
    }

    /// setsockopt(2) with an integer.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set(&self, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
        self.set_bytes(level, option, &value.to_ne_bytes())
    }

    /// setsockopt(2) with the bytes of a structure.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_bytes(&self, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
        // SAFETY: value is live for the call, its length is given.
        check(unsafe { libc::setsockopt(self.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as socklen_t) }).map(drop)
    }

    /// getsockopt(2) of an integer.
    ///
    /// # Errors
    /// What getsockopt(2) says.
    pub fn get(&self, level: c_int, option: c_int) -> io::Result<c_int> {
        let (mut value, mut len) = (0 as c_int, size_of::<c_int>() as socklen_t);
        // SAFETY: value and len are live, len holds the size of value.
        check(unsafe { libc::getsockopt(self.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) })?;
        Ok(value)
    }

    /// `SO_LINGER`: `Some(0)` makes close(2) send a reset.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn linger(&self, seconds: Option<u32>) -> io::Result<()> {
        let on = u32::from(seconds.is_some());
        self.set_bytes(libc::SOL_SOCKET, libc::SO_LINGER, &[on.to_ne_bytes(), seconds.unwrap_or(0).to_ne_bytes()].concat())
    }

    /// `SO_RCVTIMEO`; zero means none.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn receive_timeout(&self, limit: Duration) -> io::Result<()> {
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let value = [seconds.to_ne_bytes(), i64::from(limit.subsec_micros()).to_ne_bytes()].concat();
        self.set_bytes(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value)
    }

    /// send(2), always with `MSG_NOSIGNAL`.
    ///
    /// # Errors
    /// What send(2) says.
    pub fn send(&self, data: &[u8], flags: c_int) -> io::Result<usize> {
        // SAFETY: data is live for the call, its length is given.
        transferred(unsafe { libc::send(self.as_raw_fd(), data.as_ptr().cast(), data.len(), flags | libc::MSG_NOSIGNAL) })
    }

    /// recv(2).
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn recv(&self, buf: &mut [u8], flags: c_int) -> io::Result<usize> {
        // SAFETY: buf is live and writable for the call, its length is given.
        transferred(unsafe { libc::recv(self.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags) })
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// What shutdown(2) says.
    pub fn shutdown(&self, how: c_int) -> io::Result<()> {
        // SAFETY: shutdown(2) takes no pointers.
        check(unsafe { libc::shutdown(self.as_raw_fd(), how) }).map(drop)
    }

    /// close(2), whose error is of interest with `SO_LINGER`.
    ///
    /// # Errors
    /// What close(2) says.
    pub fn close(self) -> io::Result<()> {
        let fd = std::os::fd::IntoRawFd::into_raw_fd(self.0);
        // SAFETY: fd came from an OwnedFd that gave it up, so it is not closed again.
        check(unsafe { libc::close(fd) }).map(drop)
    }

    /// Unread bytes as `FIONREAD` tells.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn unread(&self) -> io::Result<usize> {
        let mut n: c_int = 0;
        // SAFETY: FIONREAD writes one int to a live int.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::FIONREAD, &raw mut n) })?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Sets or clears `O_NONBLOCK`.
    ///
    /// # Errors
    /// What ioctl(2) says.
    pub fn nonblocking(&self, on: bool) -> io::Result<()> {
        let mut value = c_int::from(on);
        // SAFETY: FIONBIO reads one int from a live int.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::FIONBIO, &raw mut value) }).map(drop)
    }

    /// poll(2) for `events`; yields what happened, 0 when the time is up.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn poll(&self, events: i16, limit: Option<Duration>) -> io::Result<i16> {
        poll(self.as_raw_fd(), events, limit)
    }

    /// Unread bytes as `MSG_PEEK` shows them, up to `most`: programs that use `FIONREAD` are not accelerated by every kernel. Of
    /// redirected bytes and TCP bytes behind them it shows only the first.
    fn peek_unread(&self, most: usize) -> io::Result<usize> {
        match self.recv(&mut vec![0; most], libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            r => r,
        }
    }

    /// Waits until at least `n` bytes are unread.
    ///
    /// # Errors
    /// `TimedOut` with what `FIONREAD` tells last; `ConnectionAborted` when the peer has ended before.
    pub fn await_unread(&self, n: usize, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        let peek_until = Instant::now() + limit / 10;
        loop {
            if self.peek_unread(n)? >= n {
                return Ok(());
            }
            if Instant::now() < peek_until {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
            let unread = self.unread()?;
            if unread >= n {
                return Ok(());
            }
            // Notifications of zero-copy writes show as POLLERR and mean nothing here.
            let ended = self.poll(libc::POLLRDHUP, Some(Duration::ZERO))? & (libc::POLLRDHUP | libc::POLLHUP) != 0;
            if ended && self.unread()? < n {
                return Err(Error::new(ErrorKind::ConnectionAborted, format!("the peer ended when FIONREAD counted {unread} of {n}")));
            }
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::TimedOut, format!("FIONREAD counts {unread}, expected {n}")));
            }
            // poll cannot wait for "more than there is", so this looks again and again.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// poll(2) of one descriptor, restarted when a signal interrupts it.
///
/// # Errors
/// What poll(2) says.
pub fn poll(fd: RawFd, events: i16, limit: Option<Duration>) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let limit = limit.map_or(-1, |l| c_int::try_from(l.as_millis()).unwrap_or(c_int::MAX));
    loop {
        // SAFETY: entry is one live pollfd.
        match check(unsafe { libc::poll(&raw mut entry, 1, limit) }) {
            Ok(_) => return Ok(entry.revents),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A pipe: read end, write end.
///
/// # Errors
/// What pipe2(2) says.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 fills two ints.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((own(ends[0])?, own(ends[1])?))
}

/// splice(2) without offsets.
///
/// # Errors
/// What splice(2) says.
pub fn splice(from: &impl AsRawFd, to: &impl AsRawFd, len: usize, flags: u32) -> io::Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: null offsets are allowed for pipes and sockets.
    transferred(unsafe { libc::splice(from.as_raw_fd(), none, to.as_raw_fd(), none, len, flags) })
}

/// write(2).
///
/// # Errors
/// What write(2) says.
pub fn write(fd: &impl AsRawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: data is live for the call, its length is given.
    transferred(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) })
}

/// read(2).
///
/// # Errors
/// What read(2) says.
pub fn read(fd: &impl AsRawFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: buf is live and writable for the call, its length is given.
    transferred(unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast::<c_void>(), buf.len()) })
}

fn encode(address: SocketAddr) -> (libc::sockaddr_storage, socklen_t) {
    // SAFETY: sockaddr_storage is plain data; all zeroes is valid.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let sin = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is at least as large and as aligned as every other sockaddr.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let sin6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as socklen_t)
}

fn decode(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that a sockaddr_in was written there.
            let sin = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes())), u16::from_be(sin.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that a sockaddr_in6 was written there.
            let sin6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(sin6.sin6_addr.s6_addr)), u16::from_be(sin6.sin6_port)))
        }
        other => Err(Error::new(ErrorKind::InvalidData, format!("address family {other}"))),
    }
}
