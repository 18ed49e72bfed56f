//! A stream whose user waits in poll(2), as event loops do, and never inside a read or write.
//!
//! Readers that sleep inside recv(2) are excluded by default (`blocking-reader`), so benchmarks and tests of accelerated
//! connections use this on every column and in every run.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::torture::net::poll;

/// A non-blocking stream that waits where it has to.
#[derive(Debug)]
pub struct Polled<S>(pub S);

/// A blocking stream, whose user sleeps inside recv(2): what benchmarks compare with.
#[derive(Debug)]
pub struct Sleeping<S>(pub S);

impl<S: Read> Read for Sleeping<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<S: Write> Write for Sleeping<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Longest wait for the peer.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait(fd: &impl AsFd, events: i16) -> io::Result<()> {
    match poll(fd.as_fd().as_raw_fd(), events, Some(PATIENCE))? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

impl<S: Read + AsFd> Read for Polled<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            wait(&self.0, libc::POLLIN)?;
            match self.0.read(buf) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                r => return r,
            }
        }
    }
}

impl<S: Write + AsFd> Write for Polled<S> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(data) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => wait(&self.0, libc::POLLOUT)?,
                r => return r,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
