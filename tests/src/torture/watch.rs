//! Deadlines: every read and write is watched, and one that does not end is reported with its state and then broken.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::net::Socket;

/// Longest time that one read or write may take, and that a connection may move no byte. A plain run on a busy machine of two CPUs stays far
/// below, but for peers with tiny buffers: TCP may send a window of 300 bytes by its persist timer, five times a second.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Calls in progress on one end of one connection.
#[derive(Debug)]
pub struct Watched {
    label: String,
    fd: RawFd,
    ports: (u16, u16),
    start: Instant,
    reading: Operation,
    writing: Operation,
    hung: AtomicBool,
    sent: Sent,
}

/// Bytes of this end that the peer has acknowledged, and when their number last grew, as in [`Operation`].
#[derive(Debug, Default)]
struct Sent {
    acknowledged: AtomicU64,
    at: AtomicU64,
}

/// One direction of [`Watched`]: when the call in progress began (milliseconds since the start plus one, 0 when none is), and where.
#[derive(Debug, Default)]
struct Operation {
    since: AtomicU64,
    offset: AtomicU64,
}

/// Which call is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A read.
    Read,
    /// A write.
    Write,
}

/// All connections of this process.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    all: Arc<Mutex<BTreeMap<u64, Arc<Watched>>>>,
    next: Arc<AtomicU64>,
}

/// Keeps a connection watched until dropped, which has to happen before its socket is closed.
#[derive(Debug)]
pub struct Guard {
    watch: Watch,
    key: u64,
    watched: Arc<Watched>,
}

impl Watch {
    /// Starts the thread that looks for hangs; `report` gets each in words.
    #[must_use]
    pub fn start(report: impl Fn(&str) + Send + 'static) -> Self {
        let watch = Self::default();
        let seen = watch.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(250));
                for hang in seen.hangs() {
                    report(&hang);
                }
            }
        });
        watch
    }

    /// Watches a connection from now on.
    #[must_use]
    pub fn add(&self, label: String, socket: &Socket) -> Guard {
        let ports = (socket.local().map_or(0, |a| a.port()), socket.peer().map_or(0, |a| a.port()));
        let watched = Arc::new(Watched {
            label,
            fd: socket.as_raw_fd(),
            ports,
            start: Instant::now(),
            reading: Operation::default(),
            writing: Operation::default(),
            hung: AtomicBool::new(false),
            sent: Sent::default(),
        });
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(key, watched.clone());
        Guard { watch: self.clone(), key, watched }
    }

    /// Number of connections that are watched now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Watched>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hangs(&self) -> Vec<String> {
        // The lock is held to the end: a guard that goes away would let the descriptor be closed and used for something else.
        let all = self.lock();
        let mut hangs = Vec::new();
        for w in all.values() {
            let now = w.now();
            let late = |o: &Operation| {
                let since = o.since.load(Ordering::Relaxed);
                (since != 0 && u128::from(now.saturating_sub(since)) > DEADLINE.as_millis())
                    .then(|| (now - since, o.offset.load(Ordering::Relaxed)))
            };
            for (call, operation) in [("read", &w.reading), ("write", &w.writing)] {
                let Some((ms, offset)) = late(operation) else { continue };
                // The answer to what still has to arrive may come later.
                if call == "read" && w.is_sending(now) {
                    continue;
                }
                if w.hung.swap(true, Ordering::Relaxed) {
                    continue;
                }
                let (r, s) = (w.reading.offset.load(Ordering::Relaxed), w.writing.offset.load(Ordering::Relaxed));
                hangs.push(format!(
                    "{}: {call} at offset {offset} hangs for {ms} ms (read {r}, written {s}); {}",
                    w.label,
                    socket_state(w.ports)
                ));
                // SAFETY: the descriptor is open as long as its guard lives, and guards wait for the lock.
                unsafe { libc::shutdown(w.fd, libc::SHUT_RDWR) };
            }
        }
        hangs
    }
}

impl Watched {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// Whether this end has bytes that the peer has not acknowledged, and some of them got through lately.
    fn is_sending(&self, now: u64) -> bool {
        let Some((acknowledged, left)) = send_queue(self.fd) else { return false };
        if self.sent.acknowledged.swap(acknowledged, Ordering::Relaxed) < acknowledged {
            self.sent.at.store(now, Ordering::Relaxed);
        }
        left && u128::from(now.saturating_sub(self.sent.at.load(Ordering::Relaxed))) <= DEADLINE.as_millis()
    }

    fn operation(&self, call: Call) -> &Operation {
        if call == Call::Read { &self.reading } else { &self.writing }
    }

    /// A call begins (or gets on) at `offset`.
    pub fn begin(&self, call: Call, offset: u64) {
        self.operation(call).offset.store(offset, Ordering::Relaxed);
        self.operation(call).since.store(self.now(), Ordering::Relaxed);
    }

    /// The call has ended, at `offset`.
    pub fn end(&self, call: Call, offset: u64) {
        self.operation(call).offset.store(offset, Ordering::Relaxed);
        self.operation(call).since.store(0, Ordering::Relaxed);
    }

    /// Whether a hang was found and the connection broken.
    pub fn hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }
}

impl std::ops::Deref for Guard {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watch.lock().remove(&self.key);
    }
}

/// Bytes that a TCP socket's peer has acknowledged, and whether there are others; nothing where the kernel does not say.
fn send_queue(fd: RawFd) -> Option<(u64, bool)> {
    // SAFETY: tcp_info consists of integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the descriptor is open as its guard lives; info and len are live, and the kernel writes no more than `len`.
    let r = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len) };
    (r == 0).then_some((info.tcpi_bytes_acked, info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0))
}

/// What ss(8) knows about the sockets between two ports in this namespace.
fn socket_state((local, peer): (u16, u16)) -> String {
    let (local, peer) = (format!(":{local}"), format!(":{peer}"));
    match Command::new("ss").args(["-tinmoH", "state", "connected", "sport", "=", &local, "and", "dport", "=", &peer]).output() {
        Ok(out) => format!("ss: {}", String::from_utf8_lossy(&out.stdout).split_whitespace().take(200).collect::<Vec<_>>().join(" ")),
        Err(e) => format!("no socket state: ss: {e}"),
    }
}
