//! Writers of every kind a program may use on a TCP socket.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::net::{self, Socket, check, own, transferred};
use super::prng::Prng;
use super::uring;

/// How a side writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriterKind {
    /// Blocking send(2).
    Send,
    /// Blocking write(2).
    Write,
    /// sendmsg(2) from several buffers.
    Sendmsg,
    /// send without blocking, poll(2) when full.
    Nonblocking,
    /// `MSG_MORE` on all but the last part of each write.
    More,
    /// sendfile(2) from a file in memory.
    Sendfile,
    /// splice(2) from a pipe.
    Splice,
    /// `MSG_ZEROCOPY`, notifications drained at the end.
    Zerocopy,
    /// The last byte of some writes with `MSG_OOB`; the reader has `SO_OOBINLINE`, so the stream stays whole.
    Urgent,
    /// `IORING_OP_SEND`.
    Uring,
}

impl WriterKind {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Send,
        Self::Write,
        Self::Sendmsg,
        Self::Nonblocking,
        Self::More,
        Self::Sendfile,
        Self::Splice,
        Self::Zerocopy,
        Self::Urgent,
        Self::Uring,
    ];
}

/// Writes one socket by one kind of call. The whole content of the direction is kept, as pages given to the kernel may not change.
#[derive(Debug)]
pub struct Writer<'a> {
    socket: &'a Socket,
    kind: WriterKind,
    rng: Prng,
    content: Vec<u8>,
    file: Option<OwnedFd>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    zerocopy_sent: u32,
    zerocopy_done: u32,
}

impl<'a> Writer<'a> {
    /// A writer of `content`; options that the kind needs are set on the socket.
    ///
    /// # Errors
    /// What the calls that prepare it say.
    pub fn new(socket: &'a Socket, kind: WriterKind, content: Vec<u8>, rng: Prng) -> io::Result<Self> {
        let mut writer = Self { socket, kind, rng, content, file: None, pipe: None, zerocopy_sent: 0, zerocopy_done: 0 };
        match kind {
            WriterKind::Zerocopy => socket.set(libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?,
            WriterKind::Splice => writer.pipe = Some(net::pipe()?),
            WriterKind::Sendfile => {
                // SAFETY: the name is a NUL-terminated literal.
                let file = own(unsafe { libc::memfd_create(c"sockpath-torture".as_ptr(), libc::MFD_CLOEXEC) })?;
                let mut done = 0;
                while done < writer.content.len() {
                    done += net::write(&file, &writer.content[done..])?;
                }
                writer.file = Some(file);
            }
            _ => {}
        }
        Ok(writer)
    }

    /// Writes bytes `from..to` of the content, all of them unless an error comes first. `progress` hears how far it is.
    ///
    /// # Errors
    /// The call's error.
    pub fn write(&mut self, from: usize, to: usize, mut progress: impl FnMut(usize)) -> io::Result<()> {
        let mut at = from;
        while at < to {
            match self.write_some(at, to) {
                Ok(n) => {
                    at += n;
                    progress(at);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && self.kind == WriterKind::Nonblocking => {
                    self.socket.poll(libc::POLLOUT, None)?;
                }
                // The memory that zero-copy pages may pin is exhausted until notifications are read.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) && self.kind == WriterKind::Zerocopy => self.drain_zerocopy()?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_some(&mut self, at: usize, to: usize) -> io::Result<usize> {
        let data = &self.content[at..to];
        match self.kind {
            WriterKind::Send => self.socket.send(data, 0),
            WriterKind::Write => net::write(self.socket, data),
            WriterKind::Nonblocking => self.socket.send(data, libc::MSG_DONTWAIT),
            WriterKind::More if data.len() > 1 => {
                let part = 1 + usize::try_from(self.rng.below(data.len() as u64 - 1)).unwrap_or(0);
                self.socket.send(&data[..part], libc::MSG_MORE)
            }
            WriterKind::More => self.socket.send(data, 0),
            WriterKind::Urgent if data.len() > 1 || self.rng.one_in(2) => {
                let plain = data.len().saturating_sub(1).max(1);
                self.socket.send(&data[..plain], 0)
            }
            WriterKind::Urgent => self.socket.send(data, libc::MSG_OOB),
            WriterKind::Zerocopy => {
                let n = self.socket.send(data, libc::MSG_ZEROCOPY)?;
                self.zerocopy_sent += 1;
                Ok(n)
            }
            WriterKind::Sendmsg => {
                let parts = usize::try_from(self.rng.between(1, 6)).unwrap_or(1);
                let mut iov: Vec<libc::iovec> = data
                    .chunks(data.len().div_ceil(parts))
                    .map(|c| libc::iovec { iov_base: c.as_ptr().cast_mut().cast(), iov_len: c.len() })
                    .collect();
                // SAFETY: msghdr is plain data; all zeroes means nothing attached.
                let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
                msg.msg_iov = iov.as_mut_ptr();
                msg.msg_iovlen = iov.len();
                // SAFETY: msg and the parts of the content it names are live for the call, which only reads them.
                transferred(unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) })
            }
            WriterKind::Sendfile => {
                let mut offset = i64::try_from(at).unwrap_or(0);
                let file = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
                // SAFETY: offset is a live off_t.
                transferred(unsafe { libc::sendfile(self.socket.as_raw_fd(), file, &raw mut offset, to - at) })
            }
            WriterKind::Splice => {
                let Some((out, into)) = &self.pipe else { return Ok(0) };
                // Half of what a default pipe holds, so that filling it cannot block.
                let n = net::write(into, &data[..data.len().min(32 << 10)])?;
                let mut moved = 0;
                while moved < n {
                    moved += net::splice(out, self.socket, n - moved, libc::SPLICE_F_MOVE)?;
                }
                Ok(n)
            }
            WriterKind::Uring => uring::send(self.socket, data),
        }
    }

    fn drain_zerocopy(&mut self) -> io::Result<()> {
        let mut control = [0u64; 16];
        loop {
            // SAFETY: msghdr is plain data; all zeroes means no data and no address wanted.
            let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = size_of_val(&control);
            // SAFETY: msg and its control buffer are live and writable for the call.
            let r = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut msg, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
            match check(i32::try_from(r).unwrap_or(-1)) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                r => r?,
            };
            // struct sock_extended_err follows the 16 bytes of cmsghdr: ee_errno, ee_origin.., ee_info, ee_data; info..=data are done.
            let (info, data) = ((control[3] & 0xffff_ffff) as u32, (control[3] >> 32) as u32);
            self.zerocopy_done += data.wrapping_sub(info) + 1;
        }
    }

    /// Waits a while until the kernel has let go of zero-copy pages.
    pub fn release(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.zerocopy_done < self.zerocopy_sent && self.drain_zerocopy().is_ok() && Instant::now() < end {
            if self.zerocopy_done < self.zerocopy_sent {
                let _ = self.socket.poll(0, Some(Duration::from_millis(5)));
            }
        }
    }
}

impl Drop for Writer<'_> {
    /// What the kernel may still send from is leaked: freeing it would alter bytes in flight.
    fn drop(&mut self) {
        if self.zerocopy_done < self.zerocopy_sent {
            std::mem::forget(std::mem::take(&mut self.content));
        }
    }
}
