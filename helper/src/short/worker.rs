//! The short path as a thread that takes commands: a session in the foreground, one that was detached, and one that uses the socket path,
//! too, drive it in the same manner.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, ChoosePods, PairsSnapshot, PodName, Reason};

use tokio::sync::Notify;

use super::nodes::ShortPath;
use crate::lease::LEASE;
use crate::site::Site;

/// Time between two reviews of all connections.
const REVIEW: Duration = Duration::from_secs(1);

/// Longest time until it is noticed that another session ends it.
const ATTENTION: Duration = Duration::from_millis(200);

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

/// What the thread is to do.
type Job = Box<dyn FnOnce(&mut Loop) + Send>;

/// Why nothing answers.
const ENDED: &str = "the short path has ended";

/// A short path that runs in a thread. Dropping it ends every redirect.
#[derive(Debug)]
pub struct Worker {
    /// Absent once it is dropped.
    jobs: Option<Sender<Job>>,
    wakeup: Arc<EventFd>,
    news: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts on the nodes of the request's pods; what there is to warn of. `None`: none of them is on this machine.
    ///
    /// # Errors
    /// When the kernel refuses the programs, connection tracking or netlink.
    pub fn start(site: &Site, request: &AccelerateRequest) -> Result<(Option<Self>, Vec<String>)> {
        let (jobs, inbox) = channel();
        let (started, outcome) = sync_channel(1);
        let wakeup = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?);
        let news = Arc::new(Notify::new());
        let (site, request, theirs, their_news) = (site.clone(), request.clone(), wakeup.clone(), news.clone());
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
                        let state =
                            Loop { short, inbox, wakeup: theirs, news: their_news, hold_until, reviewed: None, over: false, failed: None };
                        state.run();
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("short-path".to_owned()).spawn(work).context("cannot start a thread")?;
        let worker = Self { jobs: Some(jobs), wakeup, news, thread: Some(thread) };
        let (is_empty, warnings) = outcome.recv().context("the thread of the short path has ended")??;
        Ok(((!is_empty).then_some(worker), warnings))
    }

    /// Has the thread do something; what came of it.
    fn perform<T: Send + 'static>(&self, done: impl FnOnce(&mut Loop) -> Result<T> + Send + 'static) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        // An answer that is not waited for is dropped.
        let job: Job = Box::new(move |state| drop(answer.send(done(state))));
        self.jobs.as_ref().context(ENDED)?.send(job).map_err(|_| anyhow!(ENDED))?;
        self.wake();
        answered.recv().context(ENDED)?
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
        let request = request.clone();
        self.perform(move |state| state.working()?.choose(&request))
    }

    /// Has the connections of these pods take the stack, or no longer.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn pause(&self, pods: &[PodName], why: Option<Reason>) -> Result<()> {
        let pods = pods.to_vec();
        self.perform(move |state| state.working()?.pause(&pods, why))
    }

    /// Lets it go on for that long from now: it renews the kernel's lease by itself meanwhile.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn renew(&self, hold: Duration) -> Result<Standing> {
        self.perform(move |state| state.hold(hold))
    }

    /// Waits until approvals have changed since the last call. Cancel-safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// All connections.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn snapshot(&self) -> Result<PairsSnapshot> {
        self.perform(Loop::snapshot)
    }

    /// Names of chosen pods whose packets a limit or filter at their device has to see.
    ///
    /// # Errors
    /// Why it has failed, if so.
    pub fn limited(&self) -> Result<Vec<String>> {
        self.perform(|state| Ok(state.working()?.limited()))
    }

    /// Ends every redirect; what it achieved.
    ///
    /// # Errors
    /// When a program cannot be detached. It passes everything.
    pub fn stop(&self) -> Result<AccelSummary> {
        self.perform(Loop::stop)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
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
    inbox: Receiver<Job>,
    wakeup: Arc<EventFd>,
    /// Notified when approvals have changed.
    news: Arc<Notify>,
    /// Until then the lease is renewed.
    hold_until: Instant,
    /// When all connections were reviewed last.
    reviewed: Option<Instant>,
    /// Its redirects have ended.
    over: bool,
    /// Why it has failed.
    failed: Option<String>,
}

impl Loop {
    fn run(mut self) {
        self.failed = self.serve().err().map(|e| format!("{e:#}"));
        if !self.over {
            // Filters that stay pass everything, and `stop` removes them.
            let _ = self.short.stop();
        }
        if self.failed.is_some() {
            while let Ok(job) = self.inbox.recv() {
                job(&mut self);
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
                    Ok(job) => job(self),
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
            if self.short.look()? {
                self.news.notify_one();
            }
            if Instant::now() >= next {
                // Each snapshot is one, too.
                if self.reviewed.is_none_or(|at| at.elapsed() >= REVIEW) {
                    self.review()?;
                }
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

    fn review(&mut self) -> Result<()> {
        self.reviewed = Some(Instant::now());
        self.short.review()
    }

    /// The short path, unless it has failed.
    fn working(&mut self) -> Result<&mut ShortPath> {
        match &self.failed {
            Some(why) => Err(anyhow!("{why}")),
            None => Ok(&mut self.short),
        }
    }

    fn hold(&mut self, hold: Duration) -> Result<Standing> {
        self.working()?;
        self.hold_until = Instant::now() + hold;
        if !self.over {
            self.renew()?;
        }
        Ok(self.short.stopped().map_or(Standing::Running, Standing::Stopped))
    }

    fn snapshot(&mut self) -> Result<PairsSnapshot> {
        self.working()?;
        self.review()?;
        Ok(self.short.snapshot())
    }

    fn stop(&mut self) -> Result<AccelSummary> {
        if self.failed.is_some() {
            // Its redirects have ended.
            return Ok(self.short.summary());
        }
        self.over = true;
        self.short.stop()
    }
}
