//! The peer processes inside the pods, as the controller sees them.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::{Report, Totals};
use crate::lab::Lab;

/// Priority of the load. On a node, the kubelet gives the pod of a helper its own share of the CPU, however many threads other pods run;
/// the lab has no such cgroups, and without a share a helper beside hundreds of runnable threads takes a minute for what costs it 0.4 s.
const NICE: &str = "10";

/// A `torture server` or `torture client` in a pod.
#[derive(Debug)]
pub struct Peer {
    /// For reports.
    pub name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    reports: Receiver<Report>,
    /// Faults that it has reported.
    pub faults: Vec<Report>,
    /// What it could not test.
    pub skipped: Vec<String>,
}

/// This program, to be started again inside a pod.
///
/// # Errors
/// When /proc does not tell.
pub fn torture_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program")?;
    if this.file_name().is_some_and(|n| n == "torture") {
        return Ok(this);
    }
    // An integration test runs from target/release/deps.
    let beside = this.parent().and_then(|p| p.parent()).map(|p| p.join("torture")).filter(|p| p.exists());
    beside.with_context(|| format!("no torture program beside {}: cargo build --release -p sockpath-tests --bins", this.display()))
}

/// A copy of [`torture_program`], removed when dropped: another program to whatever tells programs by their files.
#[derive(Debug)]
pub struct OwnProgram(PathBuf);

impl OwnProgram {
    /// Makes one.
    ///
    /// # Errors
    /// When the program is not found, or its copy does not fit.
    pub fn of_torture() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("torture-asking-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::copy(torture_program()?, &path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnProgram {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Peer {
    /// Starts `torture ARGS` in a pod.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(lab: &Lab, pod: &str, args: &[String]) -> Result<Self> {
        Self::start_program(&torture_program()?, lab, pod, args)
    }

    /// Starts a copy of `torture`, which is another program where programs are identified by their files.
    ///
    /// # Errors
    /// As [`Peer::start`].
    pub fn start_program(program: &Path, lab: &Lab, pod: &str, args: &[String]) -> Result<Self> {
        let mut words: Vec<OsString> = ["nice", "-n", NICE].map(Into::into).into();
        words.push(program.into());
        words.extend(args.iter().map(Into::into));
        Self::spawn(lab.exec(pod, words), format!("{pod}: {}", args.join(" ")))
    }

    fn spawn(mut command: Command, name: String) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stdin = child.stdin.take();
        let (tx, reports) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(report) => {
                        if tx.send(report).is_err() {
                            return;
                        }
                    }
                    Err(_) => eprintln!("{line}"),
                }
            }
        });
        Ok(Self { name, child, stdin, reports, faults: Vec::new(), skipped: Vec::new() })
    }

    /// Process id; `lab exec` becomes the program, so it is the peer's own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server listens.
    ///
    /// # Errors
    /// When it ends before.
    pub fn ready(&mut self) -> Result<()> {
        self.until(Duration::from_secs(10), |r| matches!(r, Report::Ready { .. }).then_some(()))
    }

    fn until<T>(&mut self, limit: Duration, mut pick: impl FnMut(&Report) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            let report = match self.reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(report) => report,
                Err(RecvTimeoutError::Timeout) => bail!("{}: no answer within {limit:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended early: {}", self.name, self.child.wait()?),
            };
            if let Some(found) = pick(&report) {
                return Ok(found);
            }
            match report {
                Report::Fault { .. } => self.faults.push(report),
                Report::Skipped { text } => self.skipped.push(text),
                Report::Ready { .. } | Report::Done(_) => {}
            }
        }
    }

    /// Waits for the sums of a client that ends by itself, or of a server whose stdin is closed now.
    ///
    /// # Errors
    /// When it ends without them, or not in time.
    pub fn totals(&mut self, limit: Duration) -> Result<Totals> {
        self.until(limit, |r| if let Report::Done(t) = r { Some(t.clone()) } else { None })
    }

    /// Asks a server to end.
    ///
    /// # Errors
    /// As [`Peer::totals`].
    pub fn end(&mut self, limit: Duration) -> Result<Totals> {
        self.stdin.take();
        self.totals(limit)
    }

    /// SIGKILL: its sockets are closed by the kernel, in the middle of whatever they were doing.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Ok(report) = self.reports.recv_timeout(Duration::from_millis(200)) {
            if matches!(report, Report::Fault { .. }) {
                self.faults.push(report);
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
