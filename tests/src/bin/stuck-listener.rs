//! A listener whose backlog is full: it listens with a backlog of 0 on the given port, connects to itself until no more fits, says
//! `ready` and waits for its stdin to close. It never accepts.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt};

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: stuck-listener PORT")?.parse().context("not a port")?;
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &SockaddrIn::new(0, 0, 0, 0, port))?;
    listen(&listener, Backlog::new(0)?)?;

    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut waiting = Vec::new();
    // The kernel lets one more than the backlog in; the first connect that times out says that it is full.
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        waiting.push(stream);
        if waiting.len() > 64 {
            bail!("the backlog never fills");
        }
    }
    println!("ready");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
