//! A network namespace of our own with two connected sockets in it: the ground for looking at the kernel before others'
//! connections are touched.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};

/// Runs something on a thread in a fresh network namespace whose loopback device is up.
pub fn in_private_netns<R: Send>(f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (needs CAP_SYS_ADMIN)")?;
            loopback_up().context("cannot bring up the loopback device of a fresh namespace")?;
            f()
        });
        thread.join().unwrap_or_else(|_| bail!("the thread in the private namespace panicked"))
    })
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
