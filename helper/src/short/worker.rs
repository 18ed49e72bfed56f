//! The short path as a thread that takes commands: a session in the foreground, one that was detached, and one that uses the socket path,
//! too, drive it in the same manner.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, ChoosePods, PairsSnapshot, PodName, Reason};

use super::nodes::ShortPath;
use crate::site::Site;

/// Time between two reviews of all connections.
const REVIEW: Duration = Duration::from_secs(1);

/// Longest time until it is noticed that another session ends it.
const ATTENTION: Duration = Duration::from_millis(200);

/// How long packets are redirected without a renewal: what is left of a short path whose process was killed.
const LEASE: Duration = Duration::from_secs(5);

/// How long the start of a session may take before it renews the lease.
const START: Duration = Duration::from_secs(60);

/// How a short path stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It goes on.
    Running,
    /// Another session has ended it; the owner, with who that was.
    Stopped(String),
}

type Answer<T> = SyncSender<Result<T>>;

enum Command {
    Choose(ChoosePods, Answer<Vec<String>>),
    Pause(Vec<PodName>, Option<Reason>, Answer<()>),
    Renew(Duration, Answer<Standing>),
    Snapshot(Answer<PairsSnapshot>),
    Limited(Answer<Vec<String>>),
    Stop(Answer<AccelSummary>),
}

/// A short path that runs in a thread. Dropping it ends every redirect.
#[derive(Debug)]
pub struct Worker {
    /// Absent once it is dropped.
    commands: Option<Sender<Command>>,
    wakeup: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts on the nodes of the request's pods; what there is to warn of. `None`: none of them is on this machine.
    ///
    /// # Errors
    /// When the kernel refuses the programs, connection tracking or netlink.
    pub fn start(site: &Site, request: &AccelerateRequest) -> Result<(Option<Self>, Vec<String>)> {
        let (commands, inbox) = channel();
        let (started, outcome) = sync_channel(1);
        let wakeup = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?);
        let (site, request, theirs) = (site.clone(), request.clone(), wakeup.clone());
        // Everything is made where it is used: the ring buffer's reader does not leave its thread.
        let work = move || {
            let begun = ShortPath::start(&site, &request).and_then(|(short, warnings)| {
                short.wait_for(&theirs)?;
                Ok((short, warnings))
            });
            match begun {
                Err(e) => drop(started.send(Err(e))),
                Ok((short, warnings)) => {
                    let is_empty = short.is_empty();
                    let hold_until = Instant::now() + START;
                    if started.send(Ok((is_empty, warnings))).is_ok() && !is_empty {
                        Loop { short, inbox, wakeup: theirs, hold_until, over: false }.run();
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("short-path".to_owned()).spawn(work).context("cannot start a thread")?;
        let worker = Self { commands: Some(commands), wakeup, thread: Some(thread) };
        let (is_empty, warnings) = outcome.recv().context("the thread of the short path has ended")??;
        Ok(((!is_empty).then_some(worker), warnings))
    }

    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let commands = self.commands.as_ref().context("the short path has ended")?;
        commands.send(command(answer)).map_err(|_| anyhow!("the short path has ended"))?;
        self.wake();
        answered.recv().context("the short path has ended")?
    }

    fn wake(&self) {
        // A counter that is full wakes, too.
        let _ = self.wakeup.write(1);
    }

    /// Makes these the chosen pods; what there is to warn of.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn choose(&self, request: &ChoosePods) -> Result<Vec<String>> {
        self.ask(|answer| Command::Choose(request.clone(), answer))
    }

    /// Has the connections of these pods take the stack, or no longer.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn pause(&self, pods: &[PodName], why: Option<Reason>) -> Result<()> {
        self.ask(|answer| Command::Pause(pods.to_vec(), why, answer))
    }

    /// Lets it go on for that long from now: it renews the kernel's lease by itself meanwhile.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn renew(&self, hold: Duration) -> Result<Standing> {
        self.ask(|answer| Command::Renew(hold, answer))
    }

    /// All connections.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn snapshot(&self) -> Result<PairsSnapshot> {
        self.ask(Command::Snapshot)
    }

    /// Names of chosen pods whose packets a limit or filter at their device has to see.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn limited(&self) -> Result<Vec<String>> {
        self.ask(Command::Limited)
    }

    /// Ends every redirect; what it achieved.
    ///
    /// # Errors
    /// When a program cannot be detached. It passes everything.
    pub fn stop(&self) -> Result<AccelSummary> {
        self.ask(Command::Stop)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic was written to stderr.
            let _ = thread.join();
        }
    }
}

/// What the thread does.
struct Loop {
    short: ShortPath,
    inbox: Receiver<Command>,
    wakeup: Arc<EventFd>,
    /// Until then the lease is renewed.
    hold_until: Instant,
    /// Its redirects have ended.
    over: bool,
}

impl Loop {
    fn run(mut self) {
        let failed = self.serve().err().map(|e| format!("{e:#}"));
        if !self.over {
            // Filters that stay pass everything, and `stop` removes them.
            let _ = self.short.stop();
        }
        // Later commands get the reason.
        if let Some(why) = failed {
            while let Ok(command) = self.inbox.recv() {
                self.refuse(command, &why);
            }
        }
    }

    /// Serves until no command can come any more.
    fn serve(&mut self) -> Result<()> {
        self.renew()?;
        let mut next = Instant::now() + REVIEW;
        loop {
            self.short.wait(ATTENTION.min(next.saturating_duration_since(Instant::now())))?;
            let _ = self.wakeup.read();
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.execute(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            if self.over {
                continue;
            }
            if self.short.stopped().is_some() {
                self.over = true;
                self.short.stop()?;
                continue;
            }
            self.short.look()?;
            if Instant::now() >= next {
                self.short.review()?;
                self.renew()?;
                next = Instant::now() + REVIEW;
            }
        }
    }

    fn renew(&self) -> Result<()> {
        let hold = self.hold_until.saturating_duration_since(Instant::now());
        // What another session has ended is not renewed.
        if self.short.stopped().is_none() { self.short.renew(hold.min(LEASE)) } else { Ok(()) }
    }

    /// An answer that is not waited for is dropped.
    fn execute(&mut self, command: Command) {
        let short = &mut self.short;
        match command {
            Command::Choose(request, answer) => drop(answer.send(short.choose(&request))),
            Command::Pause(pods, why, answer) => drop(answer.send(short.pause(&pods, why))),
            Command::Snapshot(answer) => drop(answer.send(short.review().map(|()| short.snapshot()))),
            Command::Limited(answer) => drop(answer.send(Ok(short.limited()))),
            Command::Renew(hold, answer) => {
                self.hold_until = Instant::now() + hold;
                let standing = short.stopped().map_or(Standing::Running, Standing::Stopped);
                let renewed = if self.over { Ok(()) } else { self.renew() };
                drop(answer.send(renewed.map(|()| standing)));
            }
            Command::Stop(answer) => {
                self.over = true;
                drop(answer.send(short.stop()));
            }
        }
    }

    fn refuse(&self, command: Command, why: &str) {
        match command {
            Command::Choose(_, answer) => drop(answer.send(Err(anyhow!("{why}")))),
            Command::Pause(.., answer) => drop(answer.send(Err(anyhow!("{why}")))),
            Command::Renew(_, answer) => drop(answer.send(Err(anyhow!("{why}")))),
            Command::Snapshot(answer) => drop(answer.send(Err(anyhow!("{why}")))),
            Command::Limited(answer) => drop(answer.send(Err(anyhow!("{why}")))),
            // Its redirects have ended.
            Command::Stop(answer) => drop(answer.send(Ok(self.short.summary()))),
        }
    }
}
