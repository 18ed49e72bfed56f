//! Does this kernel's sockmap behave? Tried on two private sockets before any other is touched: kernels are admitted by what they
//! do, not by their version.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sockpath_protocol::accel::SelfTest;

use super::connection::PROFILE_READS;
use super::insertion;
use super::instance::Instance;
use super::pairing;
use super::private::{converse, exchange};
use super::tracked::{self, tracked};

/// The self-test that decides whether programs that may use FIONREAD are excluded.
const FIONREAD_TCP: &str = "fionread-tcp";

/// How long a step on the private sockets may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection between two private sockets, both in the map.
struct PrivateConnection<'a> {
    instance: &'a Instance,
    writer: TcpStream,
    reader: TcpStream,
    /// Slot of the writing end.
    slot: usize,
}

/// Runs all of them; the instance may track nothing else yet.
pub fn run(instance: &Instance) -> Result<Vec<SelfTest>> {
    // What they do must not be observed, and they receive as blocking readers do. Nothing is known of FIONREAD yet.
    instance.control().begin_epoch();
    let leave_blocking = instance.control().set_leave_blocking(0);
    let mut connection = PrivateConnection::prepare(instance)?;
    let tests = vec![
        connection.redirect()?,
        connection.order()?,
        connection.fionread()?,
        connection.fionread_of_tcp()?,
        connection.splice()?,
        connection.fin()?,
    ];
    let lies = tests.iter().any(|c| c.name == FIONREAD_TCP && !c.passed);
    instance.control().set_fionread_lies(lies);
    let PrivateConnection { writer, reader, .. } = connection;
    // The kernel adds what they carried to the totals when it forgets them, which may be later than what follows here.
    for socket in tracked(instance) {
        instance.ends.forget_traffic(socket.slot);
    }
    // One that stays tracked longer is forgotten like any other that is gone.
    let _in_time = close(instance, [writer, reader], PATIENCE)?;
    instance.control().forget_totals();
    instance.control().set_leave_blocking(leave_blocking);
    instance.control().end_epoch();
    Ok(tests)
}

/// Closes both ends by reset and waits until the instance has forgotten them. Says whether it has within `patience`: the kernel frees
/// closed sockets a little later (an RCU grace period and a work item of the sockmap).
pub fn close(instance: &Instance, ends: [TcpStream; 2], patience: Duration) -> Result<bool> {
    for stream in &ends {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &at_once).context("cannot set SO_LINGER")?;
    }
    drop(ends);
    let until = Instant::now() + patience;
    loop {
        instance.look()?;
        if tracked(instance).is_empty() {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl<'a> PrivateConnection<'a> {
    fn prepare(instance: &'a Instance) -> Result<Self> {
        let (mut writer, mut reader) = instance.private_pair()?;
        for stream in [&writer, &reader] {
            stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
        }
        converse(&mut writer, &mut reader, PROFILE_READS + 1)?;
        pairing::pair(instance);
        if insertion::insert_ready(instance, &tracked(instance))? != 1 {
            bail!("the kernel did not take two private sockets into a sockmap");
        }
        let port = writer.local_addr().context("a socket without an address")?.port();
        let slot = tracked(instance)
            .into_iter()
            .find(|k| instance.ends.get(k.slot).is_some_and(|end| end.lport.get() == port) && k.end.is_in())
            .context("a private socket is not known")?
            .slot;
        Ok(Self { instance, writer, reader, slot })
    }

    fn redirected(&self) -> u64 {
        self.instance.ends.get(self.slot).map_or(0, |end| end.messages.get())
    }

    fn force_tcp(&self, forced: bool) {
        self.instance.ends.force_tcp(self.slot, forced);
    }

    fn take(&mut self, expected: &[u8]) -> Result<bool> {
        let mut got = vec![0; expected.len()];
        Ok(self.reader.read_exact(&mut got).is_ok() && got == expected)
    }

    fn unread(&self) -> i32 {
        let mut bytes = -1;
        // SAFETY: FIONREAD writes one int.
        unsafe { libc::ioctl(self.reader.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        bytes
    }

    fn redirect(&mut self) -> Result<SelfTest> {
        // The first message may wake a reader by TCP; from the second on it has to be redirected.
        for _ in 0..3 {
            exchange(&mut self.writer, &mut self.reader)?;
        }
        let n = self.redirected();
        Ok(outcome("redirect", n > 0, true, format!("{n} of 3 messages went socket to socket")))
    }

    /// TCP bytes are unread when the next message could be redirected: it must not overtake them.
    fn order(&mut self) -> Result<SelfTest> {
        self.force_tcp(true);
        self.writer.write_all(b"first ").context("cannot write to a private socket")?;
        self.force_tcp(false);
        self.writer.write_all(b"second").context("cannot write to a private socket")?;
        let right = self.take(b"first second")?;
        Ok(outcome("order", right, true, if right { "bytes stay in order" } else { "bytes were reordered" }))
    }

    fn fionread(&mut self) -> Result<SelfTest> {
        exchange(&mut self.writer, &mut self.reader)?;
        self.writer.write_all(b"hello").context("cannot write to a private socket")?;
        let counted = self.unread();
        let right = self.take(b"hello")? && counted == 5;
        Ok(outcome("fionread", right, true, format!("FIONREAD counts {counted} of 5 redirected bytes")))
    }

    /// Passes only if it was seen that the bytes went by TCP to a socket in the map: otherwise their number shows nothing.
    fn fionread_of_tcp(&mut self) -> Result<SelfTest> {
        let before = self.redirected();
        self.force_tcp(true);
        self.writer.write_all(b"hello").context("cannot write to a private socket")?;
        self.force_tcp(false);
        let until = Instant::now() + Duration::from_millis(50);
        let mut counted = self.unread();
        while counted != 5 && Instant::now() < until {
            std::thread::yield_now();
            counted = self.unread();
        }
        let shows_something = self.redirected() == before && tracked::inserted(self.instance) == 2;
        let right = self.take(b"hello")? && counted == 5 && shows_something;
        Ok(outcome(
            FIONREAD_TCP,
            right,
            false,
            format!("FIONREAD counts {counted} of 5 TCP bytes on a socket in a sockmap; programs that use FIONREAD are excluded"),
        ))
    }

    /// No kernel so far: splice(2) does not see redirected bytes. Reported, because it is why such readers are excluded.
    fn splice(&mut self) -> Result<SelfTest> {
        exchange(&mut self.writer, &mut self.reader)?;
        self.writer.write_all(b"hello").context("cannot write to a private socket")?;
        let (mut out, into) = std::io::pipe().context("cannot make a pipe")?;
        // SPLICE_F_NONBLOCK is about the pipe: the socket would wait for as long as it may (tcp_splice_read).
        self.reader.set_nonblocking(true).context("cannot set O_NONBLOCK")?;
        let flags = libc::SPLICE_F_NONBLOCK;
        // SAFETY: no offsets; both descriptors are open.
        let n = unsafe { libc::splice(self.reader.as_raw_fd(), std::ptr::null_mut(), into.as_raw_fd(), std::ptr::null_mut(), 4096, flags) };
        self.reader.set_nonblocking(false).context("cannot clear O_NONBLOCK")?;
        let seen = n == 5;
        let right = if seen { out.read_exact(&mut [0; 5]).is_ok() } else { self.take(b"hello")? };
        Ok(outcome("splice", seen && right, false, "splice(2) does not see redirected bytes; sockets that use it are excluded"))
    }

    fn fin(&mut self) -> Result<SelfTest> {
        self.writer.write_all(b"last").context("cannot write to a private socket")?;
        self.writer.shutdown(Shutdown::Write).context("cannot shut a private socket down")?;
        let whole = self.take(b"last")?;
        let end = matches!(self.reader.read(&mut [0]), Ok(0));
        Ok(outcome("fin", whole && end, true, "the end of the stream comes after the last redirected byte"))
    }
}

fn outcome(name: &str, passed: bool, corruption_risk: bool, detail: impl Into<String>) -> SelfTest {
    SelfTest { name: name.to_owned(), passed, corruption_risk, detail: detail.into() }
}
