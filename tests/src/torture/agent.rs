//! A process inside a pod that does one socket call after the other, as a test tells it: JSON lines in, JSON lines out.
//!
//! Calls run on numbered threads, so that a test can leave one reader asleep while it goes on with another.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::content::{Content, Direction};
use super::net::{self, Kind, Socket};
use super::prng::Prng;
use super::reader::{Reader, ReaderKind};
use super::report::tell;
use super::sockmap;

/// A call on a socket, which a test names by a number of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the arguments of the calls")]
pub enum Op {
    /// Listen on a port of all addresses; options as level, name, value.
    Listen { port: u16, v6: bool, mptcp: bool, options: Vec<(i32, i32, i32)> },
    /// Accept from the socket; the new one gets the number `into`.
    Accept { into: u32 },
    /// Connect, from a local address if one is given.
    Connect { to: SocketAddr, from: Option<SocketAddr>, v6: bool, mptcp: bool },
    /// send(2).
    Send { data: Vec<u8>, flags: i32 },
    /// send(2) of bytes that only this connection has: `len` from offset `from` of content `id`, until all are taken.
    SendContent { id: u64, from: u64, len: usize },
    /// send(2) without blocking until the socket has been full for so many milliseconds; answers how much it took.
    Fill { id: u64, idle_ms: u64, limit: u64 },
    /// recv(2).
    Recv { len: usize, flags: i32 },
    /// Reads as a kind of reader does, once.
    Read { kind: ReaderKind, len: usize },
    /// Reads and checks content `id` from offset `from`, until `to` or the end of the stream; answers where it got to.
    ReadContent { id: u64, from: u64, to: u64, kind: ReaderKind, pause_us: u64 },
    /// splice(2) into a pipe and read from that.
    Splice { len: usize, flags: u32 },
    /// poll(2); answers the events.
    Poll { events: i16, ms: u64 },
    /// `FIONREAD`.
    Unread,
    /// setsockopt(2) of an integer.
    Set { level: i32, name: i32, value: i32 },
    /// setsockopt(2) of bytes.
    SetBytes { level: i32, name: i32, value: Vec<u8> },
    /// getsockopt(2) of an integer.
    Get { level: i32, name: i32 },
    /// `SO_LINGER`.
    Linger { seconds: Option<u32> },
    /// `SO_RCVTIMEO`.
    ReceiveTimeout { ms: u64 },
    /// `O_NONBLOCK`.
    Nonblocking { on: bool },
    /// shutdown(2).
    Shutdown { how: i32 },
    /// close(2).
    Close,
    /// The local address.
    Local,
    /// Puts the socket into a sockmap of this process, as another owner would.
    IntoSockmap,
}

/// A request to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// For the answer.
    pub id: u64,
    /// The thread that does it.
    pub thread: u32,
    /// The socket.
    pub socket: u32,
    /// What to do.
    pub op: Op,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing to tell.
    Done,
    /// Bytes that were read.
    Bytes(Vec<u8>),
    /// A count or value.
    Number(i64),
    /// An address.
    Address(SocketAddr),
    /// The call failed with this errno.
    Errno(i32),
    /// Something no socket may do, in words.
    Fault(String),
}

/// An answer and the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    pub id: u64,
    /// What came of it.
    pub answer: Answer,
}

#[derive(Debug, Default)]
struct Agent {
    sockets: Mutex<BTreeMap<u32, Arc<Socket>>>,
    maps: Mutex<Vec<OwnedFd>>,
}

/// Serves until stdin closes.
///
/// # Errors
/// When a request cannot be read.
pub fn run() -> Result<()> {
    let agent = Arc::new(Agent::default());
    let mut threads: BTreeMap<u32, Sender<Request>> = BTreeMap::new();
    for line in io::stdin().lines() {
        let request: Request = serde_json::from_str(&line?).context("not a request")?;
        let thread = threads.entry(request.thread).or_insert_with(|| {
            let (tx, rx) = channel::<Request>();
            let agent = agent.clone();
            let work = move || {
                for request in rx {
                    let answer = agent.perform(request.socket, request.op).unwrap_or_else(|e| match (e.kind(), e.raw_os_error()) {
                        (io::ErrorKind::InvalidData, None) => Answer::Fault(e.to_string()),
                        (_, Some(n)) => Answer::Errno(n),
                        (_, None) => Answer::Fault(e.to_string()),
                    });
                    tell(&Response { id: request.id, answer });
                }
            };
            // A thread that cannot be started drops the receiver: the test hears nothing and says so.
            let _ = std::thread::Builder::new().name(thread_name(request.thread)).spawn(work);
            tx
        });
        let _ = thread.send(request);
    }
    Ok(())
}

/// Name of a numbered thread, by which a test finds it in /proc.
#[must_use]
pub fn thread_name(number: u32) -> String {
    format!("call-{number}")
}

fn number(n: usize) -> Answer {
    Answer::Number(i64::try_from(n).unwrap_or(i64::MAX))
}

impl Agent {
    fn socket(&self, id: u32) -> io::Result<Arc<Socket>> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.get(&id).cloned().ok_or_else(|| io::Error::other(format!("no socket {id}")))
    }

    fn keep(&self, id: u32, socket: Socket) -> Answer {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(socket));
        Answer::Done
    }

    fn perform(&self, id: u32, op: Op) -> io::Result<Answer> {
        let done = |()| Answer::Done;
        match op {
            Op::Listen { port, v6, mptcp, options } => {
                let set = |s: &Socket| options.iter().try_for_each(|(level, name, value)| s.set(*level, *name, *value));
                Ok(self.keep(id, Socket::listen(Kind { v6, mptcp }, port, set)?))
            }
            Op::Accept { into } => {
                let accepted = self.socket(id)?.accept()?;
                Ok(self.keep(into, accepted))
            }
            Op::Connect { to, from, v6, mptcp } => {
                let socket = Socket::new(Kind { v6: v6 || to.is_ipv6(), mptcp })?;
                socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
                if let Some(from) = from {
                    socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
                    socket.bind(from)?;
                }
                socket.connect(to)?;
                Ok(self.keep(id, socket))
            }
            Op::Send { data, flags } => self.socket(id)?.send(&data, flags).map(number),
            Op::SendContent { id: content, from, len } => {
                let data = Content::new(content, 0, Direction::ToServer).bytes(from, len);
                let (socket, mut at) = (self.socket(id)?, 0);
                while at < len {
                    at += socket.send(&data[at..], 0)?;
                }
                Ok(number(at))
            }
            Op::Fill { id: content, idle_ms, limit } => fill(&*self.socket(id)?, content, idle_ms, limit),
            Op::Recv { len, flags } => {
                let mut buf = vec![0; len];
                let n = self.socket(id)?.recv(&mut buf, flags)?;
                buf.truncate(n);
                Ok(Answer::Bytes(buf))
            }
            Op::Read { kind, len } => {
                let mut buf = vec![0; len];
                let n = Reader::new(&*self.socket(id)?, kind, Prng::new(1, 1))?.read(&mut buf)?;
                buf.truncate(n);
                Ok(Answer::Bytes(buf))
            }
            Op::ReadContent { id: content, from, to, kind, pause_us } => {
                read_content(&*self.socket(id)?, content, from, to, kind, pause_us)
            }
            Op::Splice { len, flags } => {
                let (out, into) = net::pipe()?;
                let mut buf = vec![0; net::splice(&*self.socket(id)?, &into, len, flags)?];
                let n = if buf.is_empty() { 0 } else { net::read(&out, &mut buf)? };
                buf.truncate(n);
                Ok(Answer::Bytes(buf))
            }
            Op::Poll { events, ms } => self.socket(id)?.poll(events, Some(Duration::from_millis(ms))).map(|r| Answer::Number(i64::from(r))),
            Op::Unread => self.socket(id)?.unread().map(number),
            Op::Set { level, name, value } => self.socket(id)?.set(level, name, value).map(done),
            Op::SetBytes { level, name, value } => self.socket(id)?.set_bytes(level, name, &value).map(done),
            Op::Get { level, name } => self.socket(id)?.get(level, name).map(|v| Answer::Number(i64::from(v))),
            Op::Linger { seconds } => self.socket(id)?.linger(seconds).map(done),
            Op::ReceiveTimeout { ms } => self.socket(id)?.receive_timeout(Duration::from_millis(ms)).map(done),
            Op::Nonblocking { on } => self.socket(id)?.nonblocking(on).map(done),
            Op::Shutdown { how } => self.socket(id)?.shutdown(how).map(done),
            Op::Close => {
                let socket = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                let socket = socket.ok_or_else(|| io::Error::other(format!("no socket {id}")))?;
                // A call still in progress on another thread keeps the socket, as a second descriptor would; tell the test.
                Arc::try_unwrap(socket).map_err(|_| io::Error::other("the socket is in use by another thread"))?.close().map(done)
            }
            Op::Local => self.socket(id)?.local().map(Answer::Address),
            Op::IntoSockmap => {
                let map = sockmap::hold(self.socket(id)?.as_raw_fd())?;
                self.maps.lock().unwrap_or_else(PoisonError::into_inner).push(map);
                Ok(Answer::Done)
            }
        }
    }
}

fn fill(socket: &Socket, content: u64, idle_ms: u64, limit: u64) -> io::Result<Answer> {
    let content = Content::new(content, 0, Direction::ToServer);
    let (mut sent, mut last) = (0, Instant::now());
    while sent < limit && last.elapsed() < Duration::from_millis(idle_ms) {
        match socket.send(&content.bytes(sent, 64 << 10), libc::MSG_DONTWAIT) {
            Ok(n) => {
                sent += n as u64;
                last = Instant::now();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                socket.poll(libc::POLLOUT, Some(Duration::from_millis(20)))?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(Answer::Number(i64::try_from(sent).unwrap_or(i64::MAX)))
}

fn read_content(socket: &Socket, content: u64, from: u64, to: u64, kind: ReaderKind, pause_us: u64) -> io::Result<Answer> {
    let content = Content::new(content, 0, Direction::ToServer);
    let mut reader = Reader::new(socket, kind, Prng::new(1, 1))?;
    let (mut at, mut buf) = (from, vec![0; 64 << 10]);
    while at < to {
        let most = buf.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        let n = reader.read(&mut buf[..most])?;
        if n == 0 {
            break;
        }
        content.check(at, &buf[..n]).map_err(|w| io::Error::new(io::ErrorKind::InvalidData, w.to_string()))?;
        at += n as u64;
        std::thread::sleep(Duration::from_micros(pause_us));
    }
    Ok(Answer::Number(i64::try_from(at).unwrap_or(i64::MAX)))
}
