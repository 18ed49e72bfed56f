//! A probe from inside the source, its network namespace and its control group: an idle pair shows nothing by itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use sockpath_kernel::netns::inside;
use sockpath_protocol::message::{Probed, Why};
use sockpath_protocol::request::{ProbeRequest, Protocol};

use super::settings::{self, Call};
use super::sockets::{During, Sockets, domain};

/// What a datagram of a probe says.
const GREETING: &[u8] = b"sockpath probe\n";
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// Most requests of one probe.
const MAX_REQUESTS: u32 = 1000;
/// Time between them: room for an acceleration to find the connection.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(20);

/// Sends one probe and waits for its answer. Blocks, so it runs on a thread.
#[must_use]
pub fn probe(netns: &File, group: Option<&Path>, request: &ProbeRequest) -> Probed {
    let start = Instant::now();
    let timeout = Duration::from_millis(request.timeout_ms.clamp(1, 60_000));
    let result = inside(netns, || {
        let sockets = Sockets::of(group);
        let result = match request.protocol {
            Protocol::Tcp if request.http && request.requests > 1 => conversation(&sockets, request.to, timeout, request.requests),
            Protocol::Tcp => tcp(&sockets, request.to, timeout, request.http),
            Protocol::Udp => udp(&sockets, request.to, timeout),
            Protocol::Icmp => icmp(&sockets, request.to.ip(), timeout),
        };
        let group = group.filter(|_| sockets.are_of_the_group());
        let why = result.as_ref().err().and_then(|e| Some((e.downcast_ref::<During>().map_or(Call::Send, |d| d.0), errno(e)?)));
        let why = why.and_then(|(call, errno)| settings::of_call(call, request.to.ip(), errno, group));
        Ok((result, why))
    });
    let took_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let (result, why) = result.unwrap_or_else(|e| (Err(e), None));
    Probed {
        protocol: request.protocol,
        to: if request.protocol == Protocol::Icmp { request.to.ip().to_string() } else { request.to.to_string() },
        answered: result.is_ok(),
        took_ns,
        error: result.err().map(|e| words(&e)),
        why: why.map(|(detail, cause)| Box::new(Why { detail, cause })),
    }
}

/// The errno of a call that failed.
fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|e| {
        let io = e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        io.or_else(|| e.downcast_ref::<Errno>().map(|e| *e as i32))
    })
}

/// Why a probe failed, without the numbers of errors.
fn words(error: &anyhow::Error) -> String {
    let cause = |e: &(dyn std::error::Error + 'static)| match e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => e.to_string(),
    };
    error.chain().map(cause).collect::<Vec<_>>().join(": ")
}

fn tcp(sockets: &Sockets, to: SocketAddr, timeout: Duration, http: bool) -> Result<()> {
    let mut stream = sockets.tcp(to, timeout)?;
    if !http {
        return Ok(());
    }
    stream.set_read_timeout(Some(timeout)).context("cannot set a timeout")?;
    stream.set_write_timeout(Some(timeout)).context("cannot set a timeout")?;
    let request = format!("GET / HTTP/1.1\r\nHost: {to}\r\nUser-Agent: sockpath-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("cannot send the request")?;
    let mut answer = vec![0; 4096];
    let mut total = 0;
    // A server that speaks no HTTP may close or stay silent; that the connection stands is an answer already.
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return Ok(()),
            Ok(n) if total + n >= MAX_ANSWER => return Ok(()),
            Ok(n) => total += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if total > 0 => return Ok(()),
            Err(e) => return Err(e).context("connected, but the request was not answered"),
        }
    }
}

/// Requests on one connection, waited for in poll(2) as event loops do: receive calls that may sleep are not accelerated.
fn conversation(sockets: &Sockets, to: SocketAddr, timeout: Duration, requests: u32) -> Result<()> {
    let mut stream = sockets.tcp(to, timeout)?;
    stream.set_nonblocking(true).context("cannot make a socket non-blocking")?;
    let wait = nix::poll::PollTimeout::try_from(timeout).unwrap_or(nix::poll::PollTimeout::MAX);
    let mut answer = vec![0; MAX_ANSWER];
    for left in (0..requests.min(MAX_REQUESTS)).rev() {
        let connection = if left == 0 { "close" } else { "keep-alive" };
        let request = format!("GET / HTTP/1.1\r\nHost: {to}\r\nUser-Agent: sockpath-probe\r\nConnection: {connection}\r\n\r\n");
        stream.write_all(request.as_bytes()).context("cannot send a request")?;
        let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&stream), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut poll, wait).context("cannot wait for an answer")? == 0 {
            bail!("connected, but a request was not answered");
        }
        // A server may close after any answer.
        if stream.read(&mut answer).context("cannot read an answer")? == 0 {
            break;
        }
        std::thread::sleep(BETWEEN_REQUESTS);
    }
    Ok(())
}

fn udp(sockets: &Sockets, to: SocketAddr, timeout: Duration) -> Result<()> {
    let socket = sockets.udp(to)?;
    socket.set_read_timeout(Some(timeout)).context("cannot set a timeout")?;
    socket.send(GREETING).context(During(Call::Send, "cannot send the datagram"))?;
    socket.recv(&mut [0; 2048]).map(drop).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow::anyhow!("no reply received (a server need not answer)"),
        _ => e.into(),
    })
}

/// A raw socket, because what the ping socket asks for (net.ipv4.ping_group_range) is off by default.
fn icmp(sockets: &Sockets, to: IpAddr, timeout: Duration) -> Result<()> {
    let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
    let raw = sockets.open(domain(to), libc::SOCK_RAW, protocol);
    let fd = raw.context(During(Call::Open, "cannot open a raw socket (that needs CAP_NET_RAW)"))?;
    let id = (std::process::id() & 0xffff) as u16;
    let packet = echo_request(to.is_ipv4(), id, 1);
    send_to(&fd, &packet, to).context(During(Call::Send, "cannot send the echo request"))?;
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no echo reply");
        }
        let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&fd), nix::poll::PollFlags::POLLIN)];
        let wait = nix::poll::PollTimeout::try_from(left).unwrap_or(nix::poll::PollTimeout::MAX);
        if nix::poll::poll(&mut poll, wait).context("cannot wait for the reply")? == 0 {
            continue;
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 1500];
        // SAFETY: buffer is writable for its whole length, and recv(2) writes at most that much.
        let n = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(n) = usize::try_from(n) else { return Err(io::Error::last_os_error()).context("cannot read the reply") };
        // SAFETY: recv(2) has initialised the first n bytes.
        let answer: &[u8] = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), n.min(buffer.len())) };
        // An IPv4 raw socket shows the IP header, an IPv6 one does not.
        let skip = if to.is_ipv4() { usize::from(answer.first().copied().unwrap_or(0) & 15) * 4 } else { 0 };
        let reply = if to.is_ipv4() { 0 } else { 129 };
        if answer.get(skip) == Some(&reply) && answer.get(skip + 4..skip + 6) == Some(&id.to_be_bytes()) {
            return Ok(());
        }
    }
}

fn send_to(fd: &OwnedFd, packet: &[u8], to: IpAddr) -> io::Result<()> {
    let addr = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(to, 0));
    nix::sys::socket::sendto(fd.as_raw_fd(), packet, &addr, nix::sys::socket::MsgFlags::empty())?;
    Ok(())
}

/// An ICMP echo request; the kernel fills in the checksum of ICMPv6 itself.
fn echo_request(v4: bool, id: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![if v4 { 8 } else { 128 }, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(GREETING);
    if v4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let mut sum: u32 = data.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_described_in_words() {
        let refused = anyhow::Error::from(io::Error::from_raw_os_error(libc::ECONNREFUSED)).context("cannot connect");
        assert_eq!(words(&refused), "cannot connect: Connection refused");
        assert_eq!(words(&anyhow::anyhow!("no echo reply")), "no echo reply");
    }

    #[test]
    fn an_echo_request_sums_to_zero() {
        assert_eq!(checksum(&echo_request(true, 0x1234, 1)), 0);
    }
}
