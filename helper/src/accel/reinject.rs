//! Reinjects redirected bytes into TCP that a reader cannot see: one that begins to use splice(2) while some are unread.
//!
//! The helper takes the bytes with a duplicate of the reader's descriptor and sends them with one of the writer's; the programs
//! (`bpf/src/accel/reinject.bpf.h`) keep what the writer sends meanwhile in order.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result as IoResult};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_flag, accel_holder, accel_reinjection};

use super::instance::Instance;
use super::tracked::{TrackedSocket, peer_of};

/// How long redirects in flight may take to arrive. Longer than that the accounts are wrong (bytes were taken that no
/// receive call was seen to take), and what is in hand goes out as it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a connection may take to accept what is in hand.
const DELIVERY: Duration = Duration::from_secs(5);

/// Reinjects the unread redirected bytes of all readers of `all` that use splice(2).
pub fn recover(instance: &Instance, all: &[TrackedSocket]) -> Result<()> {
    let splices = |k: &&TrackedSocket| k.end.has(accel_flag::ACCEL_SAW_SPLICE) && k.end.is_in();
    let mut readers: Vec<&TrackedSocket> = all.iter().filter(splices).collect();
    if readers.is_empty() {
        return Ok(());
    }
    instance.look()?;
    readers.retain(|k| instance.ends.get(k.slot).is_some_and(|end| end.queued.get() > 0) && !is_settled(instance, k));
    if readers.is_empty() {
        return Ok(());
    }
    let holders: HashMap<u64, accel_holder> = instance.holders()?.into_iter().map(|h| (h.cookie, h)).collect();
    for reader in readers {
        let Some(writer) = peer_of(all, reader) else { continue };
        let sockets = open(&holders, reader.end.cookie).and_then(|from| Ok((from, open(&holders, writer.end.cookie)?)));
        let set = |state| instance.ends.set_reinjection(reader.slot, state);
        match sockets {
            // Bytes by TCP lie behind them, or none can follow: what a descriptor takes cannot go where it belongs.
            Ok((_, to)) if reader.end.spilled != 0 || !can_send(&to) => set(accel_reinjection::ACCEL_REINJECT_FAILED),
            Ok((from, to)) => Reinjection { instance, slot: reader.slot, from, to }.run(),
            Err(_) => set(accel_reinjection::ACCEL_REINJECT_FAILED),
        }
    }
    Ok(())
}

/// Whether it was tried before; what a process that was killed left half done is begun again.
fn is_settled(instance: &Instance, k: &TrackedSocket) -> bool {
    instance.ends.get(k.slot).is_some_and(|end| end.reinjection.get() == accel_reinjection::ACCEL_REINJECT_FAILED)
}

/// One reader and its writer.
struct Reinjection<'a> {
    instance: &'a Instance,
    /// The reader's.
    slot: usize,
    from: OwnedFd,
    to: OwnedFd,
}

impl Reinjection<'_> {
    fn set(&self, state: accel_reinjection) {
        self.instance.ends.set_reinjection(self.slot, state);
        // Programs on other CPUs have to see it before bytes are missing.
        fence(Ordering::SeqCst);
    }

    fn run(self) {
        let mut hand = Vec::new();
        let began = Instant::now();
        self.set(accel_reinjection::ACCEL_REINJECT_TAKING);
        let mut taking = true;
        loop {
            if taking {
                self.take(&mut hand);
            }
            if hand.is_empty() {
                // The reader was quicker.
                return self.set(accel_reinjection::ACCEL_REINJECT_NONE);
            }
            self.instance.ends.set_hand(self.slot, hand.len());
            let room = Room::make(&self.to, hand.len());
            let sent = send(&self.to, &hand);
            drop(room);
            match sent {
                Ok(n) if n == hand.len() => return self.set(accel_reinjection::ACCEL_REINJECT_DONE),
                Ok(n) => {
                    // Short of memory. The rest follows; nothing else may before it.
                    hand.drain(..n);
                    taking = false;
                    self.set(accel_reinjection::ACCEL_REINJECT_SENDING);
                }
                // A redirect is in flight: its bytes are next.
                Err(e) if e.raw_os_error() == Some(libc::EACCES) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // The connection is over, and TCP would have lost them too.
                Err(_) => return self.set(accel_reinjection::ACCEL_REINJECT_FAILED),
            }
            if began.elapsed() > DELIVERY {
                return self.set(accel_reinjection::ACCEL_REINJECT_FAILED);
            }
            if taking && began.elapsed() > PATIENCE {
                taking = false;
                self.set(accel_reinjection::ACCEL_REINJECT_SENDING);
            }
            std::thread::sleep(Duration::from_micros(if taking { 20 } else { 500 }));
        }
    }

    /// Takes what is there.
    fn take(&self, hand: &mut Vec<u8>) {
        let mut buf = vec![0; 256 << 10];
        while let Ok(n @ 1..) = receive(&self.from, &mut buf) {
            hand.extend_from_slice(&buf[..n]);
        }
    }
}

/// Room in a send buffer for as long as this lives, so that one call takes all.
struct Room<'a> {
    socket: &'a OwnedFd,
    before: Option<(i32, i32)>,
}

impl<'a> Room<'a> {
    fn make(socket: &'a OwnedFd, bytes: usize) -> Self {
        let mut waiting = 0i32;
        // SAFETY: SIOCOUTQ writes one int.
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
        // Twice the payload is what the kernel counts at most.
        let needed = i32::try_from(bytes).unwrap_or(i32::MAX / 4).saturating_add(waiting).saturating_mul(2);
        let read = || Some((get(socket, libc::SO_SNDBUF).ok()?, get(socket, libc::SO_BUF_LOCK).ok()?));
        let before = read().filter(|(size, _)| *size < needed);
        if before.is_some() {
            let _ = set(socket, libc::SO_SNDBUFFORCE, needed);
        }
        Self { socket, before }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if let Some((size, lock)) = self.before {
            // The kernel doubles the value, and takes it for one that the program set: undo both.
            let _ = set(self.socket, libc::SO_SNDBUFFORCE, size / 2);
            let _ = set(self.socket, libc::SO_BUF_LOCK, lock);
        }
    }
}

/// A duplicate of the socket with this cookie.
fn open(holders: &HashMap<u64, accel_holder>, cookie: u64) -> IoResult<OwnedFd> {
    let holder = holders.get(&cookie).ok_or_else(|| Error::from(ErrorKind::NotFound))?;
    // SAFETY: no pointers.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, holder.tgid, 0) })?;
    // SAFETY: as above; the descriptor is open.
    let socket = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), holder.fd, 0) })?;
    // The number may have been given to another file since.
    let (mut found, mut len) = (0u64, libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8));
    // SAFETY: the pointers are to live variables of these sizes.
    let r = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut found).cast(), &raw mut len) };
    if r < 0 || found != cookie { Err(Error::from(ErrorKind::NotFound)) } else { Ok(socket) }
}

fn owned(fd: libc::c_long) -> IoResult<OwnedFd> {
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a fresh descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the connection still takes bytes: ESTABLISHED or CLOSE_WAIT.
fn can_send(socket: &OwnedFd) -> bool {
    let mut state = 0u8;
    let mut len: libc::socklen_t = 1;
    // SAFETY: the first byte of tcp_info is the state; the kernel writes no more than `len`.
    let r = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut state).cast(), &raw mut len) };
    r == 0 && matches!(state, 1 | 8)
}

fn get(socket: &OwnedFd, name: i32) -> IoResult<i32> {
    let (mut value, mut len) = (0i32, libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4));
    // SAFETY: the pointers are to live variables of these sizes.
    let r = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(value) }
}

fn set(socket: &OwnedFd, name: i32, value: i32) -> IoResult<()> {
    let len = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the pointer is to a live variable of this size.
    let r = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), len) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd, buf: &mut [u8]) -> IoResult<usize> {
    // SAFETY: the buffer is live and writable.
    let n = unsafe { libc::recv(socket.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> IoResult<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer is live.
    let n = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(n).map_err(|_| Error::last_os_error())
}
