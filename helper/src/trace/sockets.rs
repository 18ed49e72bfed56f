//! Sockets as the processes of a pod open them: in its network namespace (that of this thread), and of its control group.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, getsockopt, sendto};
use sockpath_kernel::cgroup;

use super::settings::Call;

/// Of include/linux/socket.h: look for the route only.
const MSG_PROBE: i32 = 0x10;

/// What was being done when a call failed, in words, and which call it was.
#[derive(Debug)]
pub struct During(pub Call, pub &'static str);

impl fmt::Display for During {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
}

/// Opens sockets.
#[derive(Debug)]
pub struct Sockets {
    group: Option<File>,
    /// Whether all of them belong to the group so far.
    of_group: Cell<bool>,
}

impl Sockets {
    /// Of a control group, where one is given and the kernel allows it; otherwise of this process's own. This thread enters the cgroup
    /// namespace of the node, so it has to be one that ends soon.
    #[must_use]
    pub fn of(group: Option<&Path>) -> Self {
        // In a frozen group a process would not run, and this thread would wait for it.
        let group = group.filter(|dir| !is_frozen(&fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default()));
        let group = group.and_then(|dir| File::open(dir).ok());
        if group.is_some() {
            // From a namespace of its own, as containers have, no process could be started in a group outside of it. Without the right
            // to enter the node's, opening a socket finds that out.
            let _ = File::open("/proc/1/ns/cgroup").map(|file| setns(file, CloneFlags::CLONE_NEWCGROUP));
        }
        Self { of_group: Cell::new(group.is_some()), group }
    }

    /// Whether all sockets so far belong to the control group.
    #[must_use]
    pub fn are_of_the_group(&self) -> bool {
        self.of_group.get()
    }

    /// Opens a socket, as socket(2) does.
    ///
    /// # Errors
    /// What socket(2) fails with.
    pub fn open(&self, domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        if let Some(group) = self.group.as_ref().filter(|_| self.of_group.get()) {
            match cgroup::socket(group.as_fd(), domain, kind, protocol) {
                Ok(opened) => return opened,
                Err(_) => self.of_group.set(false),
            }
        }
        // SAFETY: socket(2) takes three integers; its result is checked before it is used.
        let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd is a descriptor that socket(2) has just returned and that has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// A TCP connection that blocks.
    ///
    /// # Errors
    /// When it cannot be established within the timeout.
    pub fn tcp(&self, to: SocketAddr, timeout: Duration) -> Result<TcpStream> {
        let socket = self.open(domain(to.ip()), libc::SOCK_STREAM, 0).context(During(Call::Open, "cannot open a TCP socket"))?;
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        connect_within(&stream, to, timeout).context(During(Call::Connect, "cannot connect"))?;
        stream.set_nonblocking(false).context("cannot make a socket blocking")?;
        Ok(stream)
    }

    /// A UDP socket that sends to an address and receives from it.
    ///
    /// # Errors
    /// When it cannot be opened or connected.
    pub fn udp(&self, to: SocketAddr) -> Result<UdpSocket> {
        let socket = self.open(domain(to.ip()), libc::SOCK_DGRAM, 0).context(During(Call::Open, "cannot open a UDP socket"))?;
        let socket = UdpSocket::from(socket);
        may_send_to(&socket, to).context(During(Call::SendTo, "cannot send to that address"))?;
        socket.connect(to).context(During(Call::Connect, "cannot connect"))?;
        Ok(socket)
    }
}

/// Whether a control group's processes are stopped, by its file `cgroup.events`.
fn is_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// The address family of sockets that send to an address.
#[must_use]
pub fn domain(to: IpAddr) -> i32 {
    if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// Whether programs at control groups let a socket that is not connected send to an address: with these flags the kernel goes as far as
/// the route and sends nothing (kernel function `udp_sendmsg`). What else such a call fails with, connect() shows, too.
fn may_send_to(socket: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    let nothing = MsgFlags::from_bits_retain(libc::MSG_CONFIRM | MSG_PROBE);
    match sendto(socket.as_raw_fd(), &[], &SockaddrStorage::from(to), nothing) {
        Err(Errno::EPERM) => Err(Errno::EPERM.into()),
        _ => Ok(()),
    }
}

/// Connects a socket that does not block.
fn connect_within(stream: &TcpStream, to: SocketAddr, timeout: Duration) -> io::Result<()> {
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => {}
        outcome => return Ok(outcome?),
    }
    let wait = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    if poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], wait)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"));
    }
    match getsockopt(stream, SocketError)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_frozen;

    #[test]
    fn a_frozen_group_is_known() {
        assert!(is_frozen("populated 1\nfrozen 1\n"));
        assert!(!is_frozen("populated 1\nfrozen 0\n") && !is_frozen(""), "before Linux 5.2 it cannot be frozen here");
    }
}
