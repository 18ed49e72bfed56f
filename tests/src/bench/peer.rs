//! The two peers of a benchmark. The client tells the server in 16 bytes what to do, so that one server serves all runs.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::stats::quantile;
use crate::polled::{Polled, Sleeping};
use crate::torture::net::{Kind, Socket};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Load {
    /// Request and answer of equal size in turn.
    RequestResponse,
    /// The same, where both sides sleep inside recv(2) instead of poll(2).
    Blocking,
    /// Writes of one size, as fast as they go.
    Stream,
    /// Connect, one request and answer, close.
    Connect,
    /// Request and answer of equal size in turn, as datagrams.
    Datagrams,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// TCP.
    Tcp(SocketAddr),
    /// AF_UNIX stream.
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        if s.starts_with('/') {
            return Ok(Self::Unix(s.into()));
        }
        s.parse().map(Self::Tcp).with_context(|| format!("{s:?} is neither a path nor an address with a port"))
    }
}

/// What one run of a client found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Exchanges, connections or bytes in a second.
    pub rate: f64,
    /// Median turnaround, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// CPU time of the client per exchange, in nanoseconds, system time included.
    pub cpu_ns: f64,
}

/// A byte stream of either family.
trait Stream: Read + Write + Send {
    /// Ends the writing direction.
    fn half_close(&self) -> io::Result<()>;

    /// The same stream, read by calls that sleep.
    fn sleeping(self: Box<Self>) -> io::Result<Box<dyn Stream>>;
}

/// A stream socket of either family.
trait Plain: Read + Write + Send + AsFd + 'static {
    fn half_close(&self) -> io::Result<()>;
    fn block(&self) -> io::Result<()>;
}

impl Plain for std::net::TcpStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn block(&self) -> io::Result<()> {
        self.set_nonblocking(false)
    }
}

impl Plain for UnixStream {
    fn half_close(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn block(&self) -> io::Result<()> {
        self.set_nonblocking(false)
    }
}

impl<S: Plain> Stream for Polled<S> {
    fn half_close(&self) -> io::Result<()> {
        self.0.half_close()
    }

    fn sleeping(self: Box<Self>) -> io::Result<Box<dyn Stream>> {
        self.0.block()?;
        Ok(Box::new(Sleeping(self.0)))
    }
}

impl<S: Plain> Stream for Sleeping<S> {
    fn half_close(&self) -> io::Result<()> {
        self.0.half_close()
    }

    fn sleeping(self: Box<Self>) -> io::Result<Box<dyn Stream>> {
        Ok(self)
    }
}

/// Binds this process to one CPU.
///
/// # Errors
/// What sched_setaffinity(2) says.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).context("no such CPU")?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).context("cannot bind to a CPU")
}

/// Serves on a TCP port of all addresses or on a path, until stdin closes. Datagrams to that port are discarded, or sent back when they
/// begin with [`SEND_BACK`].
///
/// # Errors
/// When it cannot listen.
pub fn serve(port: Option<u16>, path: Option<PathBuf>) -> Result<()> {
    if let Some(port) = port {
        let any = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), port);
        let listener = TcpListener::bind(any).with_context(|| format!("cannot listen on {any}"))?;
        let datagrams = UdpSocket::bind(any).with_context(|| format!("cannot take datagrams on {any}"))?;
        std::thread::spawn(move || {
            let mut buf = [0; 2048];
            while let Ok((n, from)) = datagrams.recv_from(&mut buf) {
                if buf[0] == SEND_BACK {
                    // A client that is gone needs no answer.
                    let _ = datagrams.send_to(&buf[..n], from);
                }
            }
        });
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).is_ok() {
                    spawn(Polled(stream));
                }
            }
        });
    }
    if let Some(path) = &path {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok() {
                    spawn(Polled(stream));
                }
            }
        });
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    if let Some(path) = &path {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn spawn(stream: impl Stream + 'static) {
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // The end of a run shows as an error here.
        let _ = answer(Box::new(stream));
    });
    if let Err(e) = thread {
        eprintln!("error: a connection is closed, as its thread cannot start: {e}");
    }
}

fn answer(mut stream: Box<dyn Stream>) -> io::Result<()> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let size = usize::try_from(u64::from_le_bytes(header[8..].try_into().unwrap_or_default())).unwrap_or(1).clamp(1, 16 << 20);
    let mut buf = vec![0; size];
    if header[0] == b's' {
        let mut total = 0u64;
        loop {
            match stream.read(&mut buf)? {
                0 => return stream.write_all(&total.to_le_bytes()),
                n => total += n as u64,
            }
        }
    }
    if header[0] == b'b' {
        stream = stream.sleeping()?;
    }
    loop {
        stream.read_exact(&mut buf)?;
        stream.write_all(&buf)?;
    }
}

/// One run of a client, `time` long after a short warm-up.
///
/// # Errors
/// When the server cannot be reached or breaks off.
pub fn run(to: &Place, load: Load, size: usize, time: Duration) -> Result<Run> {
    match load {
        Load::RequestResponse => request_response(open(to, b'r', size)?.as_mut(), size, time),
        Load::Blocking => request_response(open(to, b'b', size)?.sleeping()?.as_mut(), size, time),
        Load::Stream => stream(open(to, b's', size)?.as_mut(), size, time),
        Load::Connect => connect(to, size, time),
        Load::Datagrams => datagrams(to, size, time),
    }
}

/// A datagram that the server sends back begins with this byte.
const SEND_BACK: u8 = b'e';

fn datagrams(to: &Place, size: usize, time: Duration) -> Result<Run> {
    let Place::Tcp(to) = to else { bail!("datagrams go to an address") };
    let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.connect(to)?;
    // A datagram that is lost ends the run.
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buf = vec![SEND_BACK; size];
    let mut exchange = || {
        socket.send(&buf)?;
        socket.recv(&mut buf)?;
        Ok(())
    };
    // Connection tracking assures a flow of datagrams when it has lasted for two seconds.
    let assured = Instant::now() + Duration::from_millis(2200);
    while Instant::now() < assured {
        exchange()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    turns(time, exchange)
}

fn open(to: &Place, load: u8, size: usize) -> Result<Box<dyn Stream>> {
    let mut stream: Box<dyn Stream> = match to {
        Place::Tcp(to) => {
            let stream = std::net::TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Box::new(Polled(stream))
        }
        Place::Unix(path) => {
            let stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
            stream.set_nonblocking(true)?;
            Box::new(Polled(stream))
        }
    };
    stream.write_all(&header(load, size))?;
    Ok(stream)
}

fn header(load: u8, size: usize) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = load;
    header[8..].copy_from_slice(&(size as u64).to_le_bytes());
    header
}

fn request_response(stream: &mut dyn Stream, size: usize, time: Duration) -> Result<Run> {
    let mut buf = vec![1; size];
    turns(time, || {
        stream.write_all(&buf)?;
        stream.read_exact(&mut buf)?;
        Ok(())
    })
}

/// Exchanges one after the other, after a short warm-up.
fn turns(time: Duration, mut exchange: impl FnMut() -> Result<()>) -> Result<Run> {
    let warm = Instant::now() + time / 8;
    while Instant::now() < warm {
        exchange()?;
    }
    let mut turnarounds: Vec<u64> = Vec::with_capacity(1 << 17);
    let (start, cpu) = (Instant::now(), cpu_ns());
    let mut now = start;
    while now - start < time {
        exchange()?;
        let then = now;
        now = Instant::now();
        turnarounds.push(u64::try_from((now - then).as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(summary(turnarounds, now - start, cpu_ns() - cpu))
}

fn summary(mut turnarounds: Vec<u64>, time: Duration, cpu_ns: u64) -> Run {
    turnarounds.sort_unstable();
    let n = turnarounds.len() as f64;
    Run {
        rate: n / time.as_secs_f64(),
        p50_ns: quantile(&turnarounds, 0.5),
        p99_ns: quantile(&turnarounds, 0.99),
        cpu_ns: cpu_ns as f64 / n,
    }
}

fn stream(stream: &mut dyn Stream, size: usize, time: Duration) -> Result<Run> {
    let buf = vec![1; size];
    let (start, cpu) = (Instant::now(), cpu_ns());
    let mut written = 0u64;
    // The clock is read once for about 64 KiB.
    let batch = ((64 << 10) / size).max(1);
    while start.elapsed() < time {
        for _ in 0..batch {
            stream.write_all(&buf)?;
        }
        written += (batch * size) as u64;
    }
    stream.half_close()?;
    let mut told = [0; 8];
    stream.read_exact(&mut told)?;
    if u64::from_le_bytes(told) != written {
        bail!("{written} bytes were written, the server read {}", u64::from_le_bytes(told));
    }
    let messages = written as f64 / size as f64;
    Ok(Run { rate: written as f64 / start.elapsed().as_secs_f64(), p50_ns: 0, p99_ns: 0, cpu_ns: (cpu_ns() - cpu) as f64 / messages })
}

fn connect(to: &Place, size: usize, time: Duration) -> Result<Run> {
    let Place::Tcp(to) = to else { bail!("connections are counted for TCP only") };
    let mut request = header(b'r', size).to_vec();
    request.resize(16 + size, 1);
    let mut turnarounds = Vec::with_capacity(1 << 16);
    let (start, cpu) = (Instant::now(), cpu_ns());
    let mut now = start;
    while now - start < time {
        let socket = Socket::new(Kind { v6: to.is_ipv6(), mptcp: false })?;
        // A reset leaves no TIME-WAIT behind, of which the run would use up all ports.
        socket.linger(Some(0))?;
        socket.connect(*to)?;
        socket.send(&request, 0)?;
        let mut have = 0;
        while have < size {
            socket.poll(libc::POLLIN, None)?;
            match socket.recv(&mut request[..size], 0)? {
                0 => bail!("the server closed"),
                n => have += n,
            }
        }
        request[..16].copy_from_slice(&header(b'r', size));
        drop(socket);
        let then = now;
        now = Instant::now();
        turnarounds.push(u64::try_from((now - then).as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(summary(turnarounds, now - start, cpu_ns() - cpu))
}

/// CPU time of this process so far, user and system, in nanoseconds.
fn cpu_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0, |t| u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
}

/// Sends small datagrams at `rate` per second (as many as go when 0); yields how many went per second.
///
/// # Errors
/// When there is no socket.
pub fn flood(to: SocketAddr, rate: u64, time: Duration) -> Result<f64> {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < time {
        let due = if rate == 0 { sent + 64 } else { (start.elapsed().as_secs_f64() * rate as f64) as u64 };
        while sent < due {
            // A full queue or a refusal is the network's business.
            let _ = socket.send(&[1; 64]);
            sent += 1;
        }
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

/// Opens `count` connections to `to` and holds them; tells on stdout when all are open, then measures turnarounds over all of them
/// in turn whenever a line with a number of exchanges comes on stdin, until stdin closes.
///
/// # Errors
/// When a connection fails.
pub fn many(to: SocketAddr, count: usize) -> Result<()> {
    let start = Instant::now();
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Kind { v6: to.is_ipv6(), mptcp: false })?;
        socket.connect(to).with_context(|| format!("connection {}", sockets.len()))?;
        socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        socket.send(&header(b'r', 64), 0)?;
        sockets.push(socket);
    }
    println!("{}", serde_json::to_string(&Run { rate: count as f64 / start.elapsed().as_secs_f64(), ..Run::default() })?);
    let mut in_turn = sockets.iter().cycle();
    for line in io::stdin().lines() {
        let exchanges: usize = line?.trim().parse().context("a number of exchanges was expected")?;
        let mut turnarounds = Vec::with_capacity(exchanges);
        let (start, cpu) = (Instant::now(), cpu_ns());
        for socket in in_turn.by_ref().take(exchanges) {
            let then = Instant::now();
            socket.send(&[1; 64], 0)?;
            let mut have = 0;
            while have < 64 {
                socket.poll(libc::POLLIN, None)?;
                // As event loops do: readers whose calls may sleep are excluded.
                match socket.recv(&mut [0; 64], libc::MSG_DONTWAIT)? {
                    0 => bail!("the server closed"),
                    n => have += n,
                }
            }
            turnarounds.push(u64::try_from(then.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        println!("{}", serde_json::to_string(&summary(turnarounds, start.elapsed(), cpu_ns() - cpu))?);
    }
    Ok(())
}

/// Makes connections at `rate` per second, each with `exchanges` requests and answers before it ends, until stdin closes; prints how many
/// there were.
///
/// # Errors
/// When a connection fails.
pub fn churn(to: SocketAddr, rate: u64, exchanges: u32) -> Result<()> {
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = over.clone();
    std::thread::spawn(move || {
        // The end of stdin is all that counts.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        watch.store(true, std::sync::atomic::Ordering::Release);
    });
    println!("ready");
    let (start, mut made) = (Instant::now(), 0u64);
    while !over.load(std::sync::atomic::Ordering::Acquire) {
        std::thread::sleep((start + Duration::from_secs_f64(made as f64 / rate as f64)).saturating_duration_since(Instant::now()));
        let mut stream = open(&Place::Tcp(to), b'r', 64)?;
        for _ in 0..exchanges {
            let mut buf = [1; 64];
            stream.write_all(&buf)?;
            stream.read_exact(&mut buf)?;
        }
        made += 1;
    }
    println!("{made}");
    Ok(())
}
