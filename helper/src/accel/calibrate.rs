//! How a task that sleeps in plain `tcp_recvmsg` can be distinguished from others: by the address that `sk_wait_data` returns to,
//! which lies at a fixed distance above the task's wait queue entry. The distance depends on the kernel's build, so it is
//! taken from a task of this process that certainly sleeps there. Tasks that wait in poll or epoll are known by their wake functions.

use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use sockpath_bpf::accel::types::accel_sleeper;

use super::links::run_iterator;
use super::memory::sleeper::Sleeper;
use super::private::{connected_pair, in_private_netns};

/// How long our task may take to fall asleep.
const PATIENCE: Duration = Duration::from_secs(2);

/// The functions from which only TCP bytes wake a reader. `tcp_recvmsg_locked` may be inlined into `tcp_recvmsg`.
const NATIVE: [&str; 3] = ["tcp_recvmsg_locked", "tcp_recvmsg", "tcp_splice_read"];

/// What the reader gate needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Address of the function that wakes a task out of a blocking socket call.
    pub wake_function: u64,
    /// The same out of poll and select.
    pub poll_function: u64,
    /// The same out of epoll.
    pub epoll_function: u64,
    /// Bytes from the wait queue entry to the return address; 0 when unknown: then every sleeper counts.
    pub frame_offset: u32,
    /// Where the functions of [`NATIVE`] lie.
    pub native: [Range<u64>; 3],
}

/// Looks at sockets of this process on which a task sleeps, or polls; `link` is the iterator `show_sleeper`, which writes to `sleeper`.
pub fn measure(link: RawFd, sleeper: &Sleeper) -> Result<Stack> {
    let first_waiter = |what: &str| -> Result<accel_sleeper> {
        let until = Instant::now() + PATIENCE;
        sleeper.clear();
        loop {
            run_iterator(link)?;
            match sleeper.seen() {
                Some(seen) => return Ok(seen),
                None if Instant::now() > until => bail!("a task that waits in {what} for a socket was not seen to"),
                None => std::thread::yield_now(),
            }
        }
    };
    let (asleep, polling, in_epoll) = in_private_netns(|| {
        let (mut writer, reader) = connected_pair()?;
        let mut wake = || writer.write_all(b"x").context("cannot wake the waiting task");
        let mut receive = &reader;
        let asleep = std::thread::scope(|scope| {
            scope.spawn(move || receive.read_exact(&mut [0]));
            let seen = first_waiter("recv");
            wake()?;
            seen
        })?;
        let polling = std::thread::scope(|scope| {
            scope.spawn(|| poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE));
            let seen = first_waiter("poll");
            wake()?;
            seen
        })?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
        epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 0)).context("cannot add a socket to an epoll instance")?;
        Ok((asleep, polling, first_waiter("epoll")?))
    })?;
    let symbols = fs::read_to_string("/proc/kallsyms").context("cannot read /proc/kallsyms")?;
    let native = extents(&symbols, NATIVE);
    let offset = asleep.stack.iter().position(|word| native.iter().any(|r| r.contains(word))).map_or(0, |i| i * 8);
    Ok(Stack {
        wake_function: asleep.wake_function,
        poll_function: polling.wake_function,
        epoll_function: in_epoll.wake_function,
        frame_offset: u32::try_from(offset).unwrap_or(0),
        native,
    })
}

/// Where functions lie: from the symbol of each to the next one. Empty when addresses are hidden. The table is megabytes long, and the
/// start waits for this: it is gone through once.
fn extents<const N: usize>(symbols: &str, names: [&str; N]) -> [Range<u64>; N] {
    let mut starts = [0; N];
    let mut addresses = Vec::new();
    for line in symbols.lines() {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().and_then(|a| u64::from_str_radix(a, 16).ok()).unwrap_or(0);
        addresses.push(address);
        if let Some(i) = words.nth(1).and_then(|name| names.iter().position(|n| *n == name)).filter(|&i| starts[i] == 0) {
            starts[i] = address;
        }
    }
    starts.map(|start| match start {
        0 => 0..0,
        _ => start..addresses.iter().copied().filter(|a| *a > start).min().unwrap_or(start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let symbols = "ffffffff81000100 T b\nffffffff81000000 T a\nffffffff81000080 t __pfx_b\n";
        assert_eq!(extents(symbols, ["a"])[0], 0xffff_ffff_8100_0000..0xffff_ffff_8100_0080);
        assert_eq!(extents(symbols, ["c"])[0], 0..0);
    }

    #[test]
    fn hidden_addresses_are_no_addresses() {
        assert_eq!(extents("0000000000000000 T a\n0000000000000000 T b\n", ["a"])[0], 0..0);
    }
}
