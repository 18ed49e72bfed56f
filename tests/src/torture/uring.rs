//! The smallest io_uring that can wait for a receive or a send: one entry at a time, over raw system calls.

use std::cell::RefCell;
use std::io::{self, Error};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_long, c_void};

use super::net::own;

const SETUP: c_long = 425;
const ENTER: c_long = 426;
const OFF_SQ_RING: i64 = 0;
const OFF_SQES: i64 = 0x1000_0000;
const FEAT_SINGLE_MMAP: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
/// `IORING_OP_POLL_ADD` of linux/io_uring.h.
const OP_POLL_ADD: u8 = 6;
/// `IORING_OP_SEND` of linux/io_uring.h.
const OP_SEND: u8 = 26;
/// `IORING_OP_RECV` of linux/io_uring.h.
const OP_RECV: u8 = 27;

/// `struct io_sqring_offsets` and `struct io_cqring_offsets` have the same size; their names differ from the fifth field on.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    /// `flags` of the submission ring, `overflow` of the completion ring.
    fifth: u32,
    /// `dropped` of the submission ring, `cqes` of the completion ring.
    sixth: u32,
    /// `array` of the submission ring, `flags` of the completion ring.
    seventh: u32,
    resv: u32,
    user_addr: u64,
}

/// `struct io_uring_params` of linux/io_uring.h.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq: Offsets,
    cq: Offsets,
}

/// `struct io_uring_sqe` of linux/io_uring.h, as far as RECV and SEND use it.
#[repr(C)]
struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    msg_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

/// `struct io_uring_cqe` of linux/io_uring.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cqe {
    user_data: u64,
    res: i32,
    flags: u32,
}

thread_local! {
    /// One ring for each thread: closing one sends its thread a notification that cuts `MSG_WAITALL` of other sockets short.
    static RING: RefCell<Option<Uring>> = const { RefCell::new(None) };
}

/// Receives as recv(2) does, asleep in this thread's ring until there is something.
///
/// # Errors
/// The receive's error, or what io_uring_setup(2) says; `EPERM` or `ENOSYS` where it is not permitted.
pub fn recv(socket: &impl AsRawFd, buf: &mut [u8]) -> io::Result<usize> {
    with_ring(|ring| ring.run(OP_RECV, socket, buf.as_mut_ptr() as u64, buf.len(), 0))
}

/// Sends as send(2) does, through this thread's ring.
///
/// # Errors
/// The send's error, or what io_uring_setup(2) says.
pub fn send(socket: &impl AsRawFd, data: &[u8]) -> io::Result<usize> {
    with_ring(|ring| ring.run(OP_SEND, socket, data.as_ptr() as u64, data.len(), libc::MSG_NOSIGNAL as u32))
}

/// Waits until there is something to read, an end, or an error, asleep in this thread's ring.
///
/// # Errors
/// What io_uring_setup(2) says.
pub fn poll_in(socket: &impl AsRawFd) -> io::Result<usize> {
    // poll32_events lies where other operations have their flags; on big-endian machines its halves are swapped.
    let events = u32::from(libc::POLLIN.cast_unsigned());
    let events = if cfg!(target_endian = "big") { events.rotate_left(16) } else { events };
    with_ring(|ring| ring.run(OP_POLL_ADD, socket, 0, 0, events))
}

fn with_ring(f: impl FnOnce(&mut Uring) -> io::Result<usize>) -> io::Result<usize> {
    RING.with_borrow_mut(|ring| match ring {
        Some(ring) => f(ring),
        None => f(ring.insert(Uring::new()?)),
    })
}

/// A ring with room for one operation.
#[derive(Debug)]
struct Uring {
    fd: OwnedFd,
    ring: *mut u8,
    ring_len: usize,
    sqes: *mut c_void,
    sqes_len: usize,
    sq: [usize; 3],
    cq: [usize; 4],
}

impl Uring {
    fn new() -> io::Result<Self> {
        let mut p = Params::default();
        // SAFETY: p is a live io_uring_params, zeroed as the kernel demands.
        let fd = unsafe { libc::syscall(SETUP, 4 as c_long, &raw mut p) };
        let fd = own(i32::try_from(fd).unwrap_or(-1))?;
        if p.features & FEAT_SINGLE_MMAP == 0 {
            return Err(Error::other("io_uring without IORING_FEAT_SINGLE_MMAP (before Linux 5.4)"));
        }
        let sq_len = p.sq.array() + p.sq_entries as usize * 4;
        let cq_len = p.cq.sixth as usize + p.cq_entries as usize * size_of::<Cqe>();
        let ring_len = sq_len.max(cq_len);
        let sqes_len = p.sq_entries as usize * size_of::<Sqe>();
        let ring = map(&fd, ring_len, OFF_SQ_RING)?;
        let sqes = map(&fd, sqes_len, OFF_SQES)?;
        Ok(Self {
            fd,
            ring: ring.cast(),
            ring_len,
            sqes,
            sqes_len,
            sq: [p.sq.tail as usize, p.sq.ring_mask as usize, p.sq.array()],
            cq: [p.cq.head as usize, p.cq.tail as usize, p.cq.ring_mask as usize, p.cq.sixth as usize],
        })
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the offset is the kernel's; the ring is mapped for as long as self lives, and shared words are atomics on both sides.
        unsafe { AtomicU32::from_ptr(self.ring.add(offset).cast()) }
    }

    fn run(&mut self, opcode: u8, socket: &impl AsRawFd, addr: u64, len: usize, msg_flags: u32) -> io::Result<usize> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let sqe = Sqe { opcode, flags: 0, ioprio: 0, fd: socket.as_raw_fd(), off: 0, addr, len, msg_flags, user_data: 1, rest: [0; 3] };
        let tail = self.word(self.sq[0]).load(Ordering::Relaxed);
        let index = tail & self.word(self.sq[1]).load(Ordering::Relaxed);
        // SAFETY: index is below the number of entries that sqes holds, and the kernel does not read an entry before the tail moves.
        unsafe { self.sqes.cast::<Sqe>().add(index as usize).write(sqe) };
        self.word(self.sq[2] + index as usize * 4).store(index, Ordering::Relaxed);
        self.word(self.sq[0]).store(tail.wrapping_add(1), Ordering::Release);
        let mut submit: c_long = 1;
        loop {
            let head = self.word(self.cq[0]).load(Ordering::Relaxed);
            if head != self.word(self.cq[1]).load(Ordering::Acquire) {
                let slot = (head & self.word(self.cq[2]).load(Ordering::Relaxed)) as usize;
                // SAFETY: the tail says that the kernel has written this entry.
                let cqe = unsafe { self.ring.add(self.cq[3]).cast::<Cqe>().add(slot).read() };
                self.word(self.cq[0]).store(head.wrapping_add(1), Ordering::Release);
                return usize::try_from(cqe.res).map_err(|_| Error::from_raw_os_error(-cqe.res));
            }
            // SAFETY: a null signal mask is allowed; the buffer named in the entry outlives this loop.
            let r = unsafe {
                let none = std::ptr::null::<c_void>();
                libc::syscall(ENTER, c_long::from(self.fd.as_raw_fd()), submit, 1 as c_long, ENTER_GETEVENTS as c_long, none, 0 as c_long)
            };
            if r >= 0 {
                submit = 0;
            } else if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                return Err(Error::last_os_error());
            }
        }
    }
}

impl Offsets {
    /// Where the submission ring keeps the indices of its entries.
    fn array(&self) -> usize {
        self.seventh as usize
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in new() with these lengths and nothing refers to them any more.
        unsafe {
            libc::munmap(self.ring.cast(), self.ring_len);
            libc::munmap(self.sqes, self.sqes_len);
        }
    }
}

fn map(fd: &OwnedFd, len: usize, offset: i64) -> io::Result<*mut c_void> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new shared mapping at an address of the kernel's choice overlaps no other.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(at) }
}
