//! Acceleration switched on and off by driving `sockpath-lab session` with JSON lines, as the plugin does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockpath_protocol::accel::{AccelStatus, AccelSummary, AccelerateRequest, PairsSnapshot, SelfTest, StopRequest, Via};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::pod::{Node, Pod};
use sockpath_protocol::{HEARTBEAT_INTERVAL_MS, Message, Request};

use crate::lab::Lab;
use crate::state::look;

/// Makes a helper with test switches use the programs without the order gate.
const WITHOUT_ORDER_GATE: &str = "SOCKPATH_TEST_NO_ORDER_GATE";

/// Makes a helper with test switches take mechanisms of the kernel for absent.
const WITHOUT: &str = "SOCKPATH_TEST_WITHOUT";

/// Longest wait for the helper to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A session of the helper.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    messages: Receiver<Message>,
    /// The last table of pairs that came.
    pub pairs: PairsSnapshot,
    /// Warnings that came.
    pub warnings: Vec<String>,
    /// Number of the last question for the helper's clocks.
    asked: u64,
}

/// An error line of the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperError {
    /// The word for scripts.
    pub code: String,
    /// The words for people.
    pub text: String,
}

impl std::fmt::Display for HelperError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.code)
    }
}

impl std::error::Error for HelperError {}

impl Session {
    /// Starts a helper for `lab` and reads its hello.
    ///
    /// # Errors
    /// When it does not start or does not say hello.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_command(lab.helper())
    }

    /// The same with the programs without the order gate, which corrupt data.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_without_order_gate(lab: &Lab) -> Result<Self> {
        let mut command = lab.helper_with_test_switches();
        command.env(WITHOUT_ORDER_GATE, "1");
        Self::start_command(command)
    }

    /// The same where the kernel's mechanisms of this list with commas are taken for absent.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_without(lab: &Lab, mechanisms: &str) -> Result<Self> {
        let mut command = lab.helper_with_test_switches();
        command.env(WITHOUT, mechanisms);
        Self::start_command(command)
    }

    fn start_command(mut command: Command) -> Result<Self> {
        command.arg("session").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stdin = Arc::new(Mutex::new(child.stdin.take()));
        let stdout = child.stdout.take().context("no stdout")?;
        let (tx, messages) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                match serde_json::from_str(&line) {
                    Ok(message) => {
                        if tx.send(message).is_err() {
                            return;
                        }
                    }
                    Err(e) => eprintln!("a line of the helper cannot be read: {e}: {line}"),
                }
            }
        });
        let heart = stdin.clone();
        std::thread::spawn(move || {
            while say(&heart, &Request::Heartbeat).is_ok() {
                std::thread::sleep(Duration::from_millis(HEARTBEAT_INTERVAL_MS / 2));
            }
        });
        let mut session = Self { child, stdin, messages, pairs: PairsSnapshot::default(), warnings: Vec::new(), asked: 0 };
        session.expect("hello", |m| matches!(m, Message::Hello(_)).then_some(()))?;
        Ok(session)
    }

    /// Process id of the helper.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// When the helper is gone.
    pub fn say(&mut self, request: &Request) -> Result<()> {
        say(&self.stdin, request)
    }

    /// Waits for a message that `pick` takes; tables and warnings are kept, others skipped.
    ///
    /// # Errors
    /// The helper's own [`HelperError`], its end, or that nothing came in time.
    pub fn expect<T>(&mut self, what: &str, mut pick: impl FnMut(&Message) -> Option<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let message = match self.messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => bail!("the helper did not send {what} within {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the helper ended without {what}: {:?}", self.child.wait()),
            };
            if let Message::Pairs(pairs) = &message {
                self.pairs = pairs.clone();
            }
            if let Some(found) = pick(&message) {
                return Ok(found);
            }
            match message {
                Message::Error { text, code } => return Err(HelperError { code, text }.into()),
                Message::Warning { text } => self.warnings.push(text),
                Message::End(end) => bail!("the helper ended ({:?}) without {what}", end.reason),
                _ => {}
            }
        }
    }

    /// Takes what has come so far without waiting.
    pub fn drain(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Pairs(pairs) => self.pairs = pairs,
                Message::Warning { text } => self.warnings.push(text),
                _ => {}
            }
        }
    }

    /// Closes stdin and waits for the end.
    ///
    /// # Errors
    /// When the helper does not end in time.
    pub fn hang_up(mut self) -> Result<EndReason> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reason = self.expect("end", |m| if let Message::End(end) = m { Some(end.reason) } else { None })?;
        self.child.wait()?;
        Ok(reason)
    }

    /// Sends a signal to the helper.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("cannot signal the helper")
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When that fails.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(stdin: &Mutex<Option<ChildStdin>>, request: &Request) -> Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut stdin = stdin.lock().unwrap_or_else(PoisonError::into_inner);
    stdin.as_mut().context("stdin is closed")?.write_all(&line).context("the helper does not read")
}

/// A running acceleration.
#[derive(Debug)]
pub struct Accelerator(pub Session);

/// What to accelerate.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Names of the pods; empty means all.
    pub pods: Vec<String>,
    /// Length of the lease.
    pub lease: Duration,
    /// Leave it running when the session ends.
    pub detach: bool,
    /// Use the copy of the programs without the order gate, which corrupts data: it shows that a test would see that.
    pub without_order_gate: bool,
    /// Carry readers, too, that sleep in their receive call.
    pub blocking_readers: bool,
    /// The path. Except on the socket path all pods of both nodes are chosen where none is named.
    pub via: Via,
    /// Programs that are proven for the socket path beyond those that the helper knows of.
    pub socket_programs: Vec<String>,
    /// Mechanisms of the kernel that a helper with test switches takes for absent, in a list with commas.
    pub without: String,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            pods: Vec::new(),
            lease: Duration::from_secs(10),
            detach: false,
            without_order_gate: false,
            blocking_readers: false,
            via: Via::Socket,
            socket_programs: Vec::new(),
            without: String::new(),
        }
    }
}

impl Choice {
    /// The request for one node's pods (a helper serves one node).
    ///
    /// # Panics
    /// When the protocol demands what is not set here.
    #[must_use]
    pub fn request(&self, lab: &Lab) -> AccelerateRequest {
        let status = lab.status();
        let chosen = |name: &str| self.pods.is_empty() || self.pods.iter().any(|p| p == name);
        let on_nodes = |node: &str| self.via != Via::Socket || node == "node-1";
        let pods: Vec<Pod> = status.pods.iter().filter(|p| on_nodes(&p.node) && chosen(&p.name)).map(Pod::from).collect();
        let nodes: Vec<Node> = status.nodes.iter().map(Node::from).collect();
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let owner = format!("torture-{}", std::process::id());
        // As JSON: options that the protocol gains later keep their defaults.
        let leave_alone = !self.blocking_readers;
        let request = serde_json::json!({
            "pods": pods, "lease_ms": lease_ms, "detach": self.detach, "owner": owner, "leave_blocking_readers": leave_alone,
            "via": self.via, "nodes": nodes, "socket_programs": self.socket_programs,
        });
        serde_json::from_value(request).unwrap_or_else(|e| panic!("the protocol has changed: {e}"))
    }
}

impl Accelerator {
    /// Switches acceleration on for all pods of node-1 and waits until it is.
    ///
    /// # Errors
    /// What the helper says.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_with(lab, &Choice::default())
    }

    /// The same for a choice of pods.
    ///
    /// # Errors
    /// What the helper says.
    pub fn start_with(lab: &Lab, choice: &Choice) -> Result<Self> {
        Self::begin(lab, choice, |_| {})
    }

    /// As [`Accelerator::start`]; `see` gets the self-tests of the kernel.
    ///
    /// # Errors
    /// What the helper says.
    pub fn start_watching(lab: &Lab, see: impl FnMut(&SelfTest)) -> Result<Self> {
        Self::begin(lab, &Choice::default(), see)
    }

    /// The same for pods that the lab does not know of.
    ///
    /// # Errors
    /// What the helper says.
    pub fn start_requested(lab: &Lab, request: &AccelerateRequest) -> Result<Self> {
        Self::ask(Session::start(lab)?, request, |_| {})
    }

    fn begin(lab: &Lab, choice: &Choice, see: impl FnMut(&SelfTest)) -> Result<Self> {
        let session = match choice {
            Choice { without_order_gate: true, .. } => Session::start_without_order_gate(lab)?,
            Choice { without, .. } if !without.is_empty() => Session::start_without(lab, without)?,
            _ => Session::start(lab)?,
        };
        Self::ask(session, &choice.request(lab), see)
    }

    fn ask(mut session: Session, request: &AccelerateRequest, mut see: impl FnMut(&SelfTest)) -> Result<Self> {
        session.say(&Request::Accelerate(Box::new(request.clone())))?;
        session.expect("the sign that it is armed", |m| {
            if let Message::Canary(test) = m {
                see(test);
            }
            matches!(m, Message::Armed(_) | Message::Pairs(_)).then_some(())
        })?;
        Ok(Self(session))
    }

    /// The next table of pairs that the helper makes: those that it has sent already are older than what the caller just did.
    ///
    /// # Errors
    /// When the helper ends or falls silent.
    pub fn next_pairs(&mut self) -> Result<PairsSnapshot> {
        let id = self.0.asked.wrapping_add(1);
        self.0.asked = id;
        self.0.say(&Request::Clock { id })?;
        self.0.expect("its clocks", |m| matches!(m, Message::Clock(reading) if reading.id == id).then_some(()))?;
        self.0.expect("a table of pairs", |m| if let Message::Pairs(p) = m { Some(p.clone()) } else { None })
    }

    /// Waits until a table of pairs satisfies `fine`.
    ///
    /// # Errors
    /// The last table, when none did within `limit`.
    pub fn await_pairs(&mut self, limit: Duration, mut fine: impl FnMut(&PairsSnapshot) -> bool) -> Result<PairsSnapshot> {
        let end = Instant::now() + limit;
        loop {
            let pairs = self.next_pairs()?;
            if fine(&pairs) {
                return Ok(pairs);
            }
            if Instant::now() > end {
                bail!("not within {limit:?}; the last table is {pairs:#?}");
            }
        }
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When the helper does not drain and end.
    pub fn finish(mut self) -> Result<AccelSummary> {
        self.0.say(&Request::Finish)?;
        self.summary()
    }

    /// Ends it by a signal that the helper handles.
    ///
    /// # Errors
    /// When the helper does not drain and end.
    pub fn terminate(mut self, signal: Signal) -> Result<AccelSummary> {
        self.0.signal(signal)?;
        self.summary()
    }

    /// Ends it as when the plugin dies: stdin closes.
    ///
    /// # Errors
    /// When the helper does not drain and end.
    pub fn hang_up(self) -> Result<AccelSummary> {
        self.0.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.summary()
    }

    fn summary(mut self) -> Result<AccelSummary> {
        let summary = self.0.expect("a summary", |m| if let Message::Summary(s) = m { Some(s.clone()) } else { None })?;
        self.0.expect("end", |m| matches!(m, Message::End(_)).then_some(()))?;
        self.0.child.wait()?;
        Ok(summary)
    }
}

/// The process that goes on with a detached acceleration of this lab.
///
/// # Errors
/// When there is none.
pub fn detached_helper(lab: &Lab) -> Result<i32> {
    let ours = format!("SOCKPATH_LAB={}", lab.instance());
    let goes_on = |dir: &std::path::Path| {
        let read = |file: &str| std::fs::read(dir.join(file)).unwrap_or_default();
        let words = |bytes: Vec<u8>| bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>();
        words(read("cmdline")).iter().any(|word| word == "serve-detached") && words(read("environ")).contains(&ours)
    };
    let processes = std::fs::read_dir("/proc")?.flatten().map(|e| e.path()).filter(|dir| goes_on(dir));
    let pid = processes.filter_map(|dir| dir.file_name()?.to_str()?.parse().ok()).next();
    pid.ok_or_else(|| anyhow::anyhow!("no helper goes on in lab {}", lab.instance()))
}

/// Waits until the lease of what is accelerated on this node is over.
///
/// # Errors
/// When nothing is accelerated, or the lease is still renewed after a time that is longer than any lease of the kernel.
pub fn await_lease_end(lab: &Lab) -> Result<()> {
    let over = look(Duration::from_secs(20), || match status(lab) {
        Ok(status) if !status.active => Some(Err(anyhow::anyhow!("nothing is accelerated, so no lease can end"))),
        Ok(status) if status.lease_left_ms > 0 => None,
        outcome => Some(outcome.map(|_| ())),
    });
    over.unwrap_or_else(|| bail!("the lease goes on although no process renews it"))
}

/// What is accelerated on this node.
///
/// # Errors
/// What the helper says.
pub fn status(lab: &Lab) -> Result<AccelStatus> {
    let mut session = Session::start(lab)?;
    session.say(&Request::Status)?;
    let status = session.expect("a status", |m| if let Message::Status(s) = m { Some(s.clone()) } else { None })?;
    session.hang_up()?;
    Ok(status)
}

/// Drains and removes whatever is left of an acceleration; yields what it achieved, if there was one.
///
/// # Errors
/// What the helper says.
pub fn stop(lab: &Lab) -> Result<Option<AccelSummary>> {
    let mut session = Session::start(lab)?;
    session.say(&Request::Stop(StopRequest { drain_ms: 10_000, by: String::new() }))?;
    session.say(&Request::Finish)?;
    let mut summary = None;
    session.expect("end", |m| {
        if let Message::Summary(s) = m {
            summary = Some(s.clone());
        }
        matches!(m, Message::End(_)).then_some(())
    })?;
    Ok(summary)
}

/// Removes sockpath's remaining resources on this node; yields what was removed.
///
/// # Errors
/// What the helper says.
pub fn cleanup(lab: &Lab) -> Result<Vec<String>> {
    let mut session = Session::start(lab)?;
    session.say(&Request::Cleanup)?;
    session.say(&Request::Finish)?;
    let mut removed = Vec::new();
    session.expect("end", |m| {
        if let Message::Removed { what } = m {
            removed.push(what.clone());
        }
        matches!(m, Message::End(_)).then_some(())
    })?;
    Ok(removed)
}
