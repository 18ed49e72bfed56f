//! Agents in pods as a test uses them: connections whose both ends it holds. Everything panics with what it was doing.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::agent::{Answer, Op, Request, Response, thread_name};
use super::peers::{OwnProgram, torture_program};
use super::reader::ReaderKind;
use crate::lab::Lab;
use crate::state::look;

/// Longest wait for a call that is not meant to block. A plain run on a busy machine of two CPUs stays far below.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// An agent in a pod; its sockets are closed by the kernel when this is dropped or killed.
#[derive(Debug, Clone)]
pub struct Pod(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    child: Mutex<Child>,
    stdin: Mutex<ChildStdin>,
    waiting: Arc<Mutex<BTreeMap<u64, Sender<Answer>>>>,
    next_request: AtomicU64,
    next_socket: AtomicU32,
}

/// A call that is in progress.
#[derive(Debug)]
pub struct Ticket {
    what: String,
    pid: u32,
    thread: u32,
    answer: Receiver<Answer>,
}

/// A thread that sleeps in a system call: how often it has gone to sleep so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asleep(u64);

/// A socket of an agent.
#[derive(Debug, Clone)]
pub struct Remote {
    pod: Pod,
    id: u32,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    /// Starts an agent in a pod of the lab.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn new(lab: &Lab, pod: &str) -> Self {
        Self::start(&torture_program().unwrap_or_else(|e| panic!("{e:#}")), lab, pod)
    }

    /// Starts an agent that is a program of its own.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn of_program(program: &OwnProgram, lab: &Lab, pod: &str) -> Self {
        Self::start(program.path(), lab, pod)
    }

    fn start(program: &Path, lab: &Lab, pod: &str) -> Self {
        let mut command = lab.exec(pod, [program.as_os_str(), "agent".as_ref()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("cannot start an agent");
        let stdin = Mutex::new(child.stdin.take().expect("no stdin"));
        let stdout = child.stdout.take().expect("no stdout");
        let waiting: Arc<Mutex<BTreeMap<u64, Sender<Answer>>>> = Arc::default();
        let answers = waiting.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(response) = serde_json::from_str::<Response>(&line) else {
                    eprintln!("{line}");
                    continue;
                };
                if let Some(tx) = lock(&answers).remove(&response.id) {
                    let _ = tx.send(response.answer);
                }
            }
            // Waiting callers see that no answer will come.
            lock(&answers).clear();
        });
        let (next_request, next_socket) = (AtomicU64::new(1), AtomicU32::new(1));
        Self(Arc::new(Inner { name: pod.to_owned(), child: Mutex::new(child), stdin, waiting, next_request, next_socket }))
    }

    /// The agent's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.0.child).id()
    }

    /// SIGKILL, as when a pod dies.
    pub fn kill(&self) {
        let mut child = lock(&self.0.child);
        let _ = child.kill();
        let _ = child.wait();
    }

    fn new_socket(&self) -> Remote {
        Remote { pod: self.clone(), id: self.0.next_socket.fetch_add(1, Ordering::Relaxed) }
    }

    /// Listens on a port with options (level, name, value) set before.
    #[must_use]
    pub fn listen(&self, port: u16, options: &[(i32, i32, i32)]) -> Remote {
        let socket = self.new_socket();
        socket.done(Op::Listen { port, v6: true, mptcp: false, options: options.to_vec() });
        socket
    }

    /// Listens with MPTCP.
    #[must_use]
    pub fn listen_mptcp(&self, port: u16) -> Remote {
        let socket = self.new_socket();
        socket.done(Op::Listen { port, v6: true, mptcp: true, options: Vec::new() });
        socket
    }

    /// Connects.
    #[must_use]
    pub fn connect(&self, to: SocketAddr) -> Remote {
        self.connect_from(to, None)
    }

    /// Connects from a local address.
    #[must_use]
    pub fn connect_from(&self, to: SocketAddr, from: Option<SocketAddr>) -> Remote {
        let socket = self.new_socket();
        socket.done(Op::Connect { to, from, v6: false, mptcp: false });
        socket
    }

    /// Connects with MPTCP.
    #[must_use]
    pub fn connect_mptcp(&self, to: SocketAddr) -> Remote {
        let socket = self.new_socket();
        socket.done(Op::Connect { to, from: None, v6: false, mptcp: true });
        socket
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Ticket {
    /// Waits for the answer.
    ///
    /// # Panics
    /// When none comes in time, which is a hang, or the agent died.
    #[must_use]
    pub fn wait(self) -> Answer {
        self.wait_for(DEADLINE)
    }

    /// Waits so long for the answer.
    ///
    /// # Panics
    /// As [`Ticket::wait`].
    #[must_use]
    pub fn wait_for(self, limit: Duration) -> Answer {
        self.answer.recv_timeout(limit).unwrap_or_else(|e| panic!("{} hangs or its agent died: {e}", self.what))
    }

    /// The answer, if it has come.
    #[must_use]
    pub fn ready(&self) -> Option<Answer> {
        self.answer.try_recv().ok()
    }

    /// Waits until the thread that makes the call sleeps in it.
    ///
    /// # Panics
    /// When the call ends instead, or the thread is not asleep in time.
    #[track_caller]
    pub fn await_sleep(&self) -> Asleep {
        self.sleep_after(None).unwrap_or_else(|answer| panic!("{} ends instead of waiting: {answer:?}", self.what))
    }

    /// Waits until the thread, which was asleep, has been woken and sleeps in the call again; the answer when the call ended instead.
    ///
    /// # Errors
    /// That answer.
    ///
    /// # Panics
    /// When neither happens in time.
    #[track_caller]
    pub fn sleep_after(&self, before: Option<Asleep>) -> Result<Asleep, Answer> {
        let again = |now: &Asleep| before.is_none_or(|before| now.0 > before.0);
        let found = look(DEADLINE, || match self.ready() {
            Some(answer) => Some(Err(answer)),
            None => asleep(self.pid, self.thread).filter(again).map(Ok),
        });
        found.unwrap_or_else(|| panic!("{} neither sleeps nor ends", self.what))
    }

    /// The bytes that were read.
    ///
    /// # Panics
    /// When it gave something else.
    #[must_use]
    pub fn bytes(self) -> Vec<u8> {
        let what = self.what.clone();
        match self.wait() {
            Answer::Bytes(bytes) => bytes,
            other => panic!("{what}: {other:?} instead of bytes"),
        }
    }

    /// The number that it gave.
    ///
    /// # Panics
    /// When it gave something else.
    #[must_use]
    pub fn number(self) -> i64 {
        let what = self.what.clone();
        match self.wait_for(Duration::from_secs(60)) {
            Answer::Number(n) => n,
            other => panic!("{what}: {other:?} instead of a number"),
        }
    }
}

/// Whether a numbered thread of an agent sleeps in a system call of its own, and not while it waits for work (futex(2)).
fn asleep(pid: u32, thread: u32) -> Option<Asleep> {
    let is_it = |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == thread_name(thread));
    let task = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().map(|t| t.path()).find(|t| is_it(t))?;
    // "running", or the number of the call and its arguments.
    let call = std::fs::read_to_string(task.join("syscall")).ok()?;
    let number: libc::c_long = call.split(' ').next()?.parse().ok()?;
    let status = std::fs::read_to_string(task.join("status")).ok()?;
    let switches = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()?;
    (number != libc::SYS_futex).then_some(Asleep(switches))
}

impl Remote {
    /// Starts a call on a thread of the agent.
    #[must_use]
    pub fn start_on(&self, thread: u32, op: Op) -> Ticket {
        let inner = &self.pod.0;
        let id = inner.next_request.fetch_add(1, Ordering::Relaxed);
        let (tx, answer) = channel();
        lock(&inner.waiting).insert(id, tx);
        let short = format!("{op:?}").chars().take(160).collect::<String>();
        let what = format!("{short} on socket {} in {}", self.id, inner.name);
        let mut line = serde_json::to_vec(&Request { id, thread, socket: self.id, op }).unwrap_or_default();
        line.push(b'\n');
        if lock(&inner.stdin).write_all(&line).is_err() {
            lock(&inner.waiting).remove(&id);
        }
        Ticket { what, pid: self.pod.pid(), thread, answer }
    }

    /// Makes a call on thread 0 of the agent and waits for it.
    ///
    /// # Panics
    /// When it hangs.
    #[must_use]
    pub fn call(&self, op: Op) -> Answer {
        self.start_on(0, op).wait()
    }

    /// Makes a call that may take up to a minute and gives a number.
    #[must_use]
    pub fn number(&self, op: Op) -> i64 {
        self.start_on(0, op).number()
    }

    /// Makes a call that has to succeed and has nothing to tell.
    ///
    /// # Panics
    /// When it fails.
    pub fn done(&self, op: Op) {
        let what = format!("{op:?}");
        match self.call(op) {
            Answer::Done => {}
            other => panic!("{what} in {}: {other:?}", self.pod.0.name),
        }
    }

    /// Accepts a connection.
    #[must_use]
    pub fn accept(&self) -> Remote {
        let accepted = self.pod.new_socket();
        self.done(Op::Accept { into: accepted.id });
        accepted
    }

    /// Sends everything.
    ///
    /// # Panics
    /// When the socket takes less.
    pub fn send(&self, data: &[u8]) {
        match self.call(Op::Send { data: data.to_vec(), flags: 0 }) {
            Answer::Number(n) if n == i64::try_from(data.len()).unwrap_or(-1) => {}
            other => panic!("send of {} bytes in {}: {other:?}", data.len(), self.pod.0.name),
        }
    }

    /// Sends bytes `from..from + len` of content `id`; they have to fit into the socket's buffers or be read meanwhile.
    pub fn send_content(&self, id: u64, from: u64, len: usize) {
        assert_eq!(self.number(Op::SendContent { id, from, len }), i64::try_from(len).unwrap_or(-1));
    }

    /// Reads at most `len` bytes as an event loop does: poll(2), then recv. Readers that sleep inside recv are excluded by default.
    #[must_use]
    pub fn recv(&self, len: usize) -> Vec<u8> {
        self.start_on(0, Op::Read { kind: ReaderKind::Poll, len }).bytes()
    }

    /// Receives exactly `len` bytes.
    ///
    /// # Panics
    /// At an end of the stream before.
    #[must_use]
    pub fn recv_exactly(&self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let more = self.recv(len - all.len());
            assert!(!more.is_empty(), "end of stream after {} of {len} bytes in {}", all.len(), self.pod.0.name);
            all.extend(more);
        }
        all
    }

    /// setsockopt(2).
    pub fn set(&self, level: i32, name: i32, value: i32) {
        self.done(Op::Set { level, name, value });
    }

    /// `FIONREAD`.
    #[must_use]
    pub fn unread(&self) -> i64 {
        self.number(Op::Unread)
    }

    /// poll(2); the events that happened.
    #[must_use]
    pub fn poll(&self, events: i16, ms: u64) -> i16 {
        i16::try_from(self.number(Op::Poll { events, ms })).unwrap_or(-1)
    }

    /// close(2).
    pub fn close(&self) {
        self.done(Op::Close);
    }

    /// The local address.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        match self.call(Op::Local) {
            Answer::Address(a) => a,
            other => panic!("no local address: {other:?}"),
        }
    }
}

/// Requests and answers in turn, by one thread on each side.
///
/// # Panics
/// When a byte is wrong, or a call fails.
pub fn exchange(client: &Remote, server: &Remote, times: usize) {
    for i in 0..times {
        let request = format!("request {i}").into_bytes();
        client.send(&request);
        assert_eq!(server.recv_exactly(request.len()), request);
        let answer = format!("answer {i}").into_bytes();
        server.send(&answer);
        assert_eq!(client.recv_exactly(answer.len()), answer);
    }
}

/// Twenty pieces of content `id`, each read after poll(2) and answered by a byte.
///
/// # Panics
/// When a byte is wrong, or a call fails.
pub fn converse(client: &Remote, server: &Remote, id: u64) {
    for step in 0..20 {
        client.send_content(id, step * 50, 50);
        let read = server.number(Op::ReadContent { id, from: step * 50, to: step * 50 + 50, kind: ReaderKind::Poll, pause_us: 0 });
        assert_eq!(read, i64::try_from(step * 50 + 50).expect("a small number"));
        server.send(b"!");
        assert_eq!(client.recv_exactly(1), b"!");
    }
}
