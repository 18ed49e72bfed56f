//! A network namespace of our own with two connected sockets in it, and a BPF file system of our own: the environment of tests of the
//! kernel before the helper touches the connections of others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::pins::{BPFFS, Pins};
use crate::site::Site;

/// Runs something on a thread in a fresh network namespace whose loopback device is up.
pub fn in_private_netns<R: Send>(f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (needs CAP_SYS_ADMIN)")?;
            loopback_up().context("cannot bring up the loopback device of a fresh namespace")?;
            f()
        });
        thread.join().unwrap_or_else(|_| bail!("the thread in the private namespace panicked"))
    })
}

/// Runs something with claimed pins in a BPF file system of its own, which goes with the thread: nothing can be left behind, and another user who
/// accelerates on this node meanwhile is not disturbed.
pub fn in_private_bpffs<R: Send>(f: impl FnOnce(&Pins) -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (needs CAP_SYS_ADMIN)")?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .context("cannot keep mounts private")?;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("cannot mount a BPF file system of our own on {BPFFS}"))?;
            let pins = Pins::of(&Site::Node);
            if !pins.make()? {
                bail!("{} exists in a fresh file system", pins.dir().display());
            }
            f(&pins)
        });
        thread.join().unwrap_or_else(|_| bail!("the thread with a BPF file system of its own panicked"))
    })
}

/// A test that loads programs of its own.
#[cfg(test)]
pub fn on_this_kernel(name: &str, test: impl FnOnce(&Pins) -> Result<()> + Send) {
    if nix::unistd::geteuid().is_root() {
        in_private_bpffs(test).unwrap();
    } else {
        crate::stderr::skipped(name, "it loads BPF programs, which takes root");
    }
}

fn loopback_up() -> Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
    // SAFETY: an all-zero ifreq is valid: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as _;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(std::io::Error::last_os_error()).context("SIOCSIFFLAGS");
    }
    Ok(())
}

/// Two ends of one connection over loopback: the one that connected first.
pub fn connected_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let client = TcpStream::connect(listener.local_addr()?).context("cannot connect over loopback")?;
    let (server, _) = listener.accept().context("cannot accept over loopback")?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    Ok((client, server))
}

/// One byte in each direction, as often as given.
pub fn converse(one: &mut TcpStream, other: &mut TcpStream, times: u32) -> Result<()> {
    for _ in 0..times {
        exchange(one, other)?;
        exchange(other, one)?;
    }
    Ok(())
}

/// One byte from one end to the other.
pub fn exchange(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"x").context("cannot write to a private socket")?;
    loop {
        match to.read(&mut [0]) {
            Ok(1) => return Ok(()),
            Ok(_) => bail!("a private socket was closed"),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("cannot read from a private socket"),
        }
    }
}
