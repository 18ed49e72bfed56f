//! The client of an acceleration: the plugin of a session, or none once it was detached. Both paths follow its commands.

use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::accel::Reason;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};

use super::merge;
use crate::accel::chosen::Chosen;
use crate::accel::event_loop::{Client, Command, refreshed};
use crate::accel::instance::Instance;
use crate::accel::pairing;
use crate::accel::report::Snapshot;
use crate::lease::RENEWAL;
use crate::memory;
use crate::schedule::{Schedule, timed_in_all_threads};
use crate::session::{Inbound, Session};
use crate::short::{Standing, Worker};

/// Who gives commands and gets reports.
pub enum Controller<'a> {
    /// A plugin; the lease is renewed while it listens.
    Plugin {
        /// The session.
        session: &'a mut Session,
        /// The lease.
        lease: Duration,
    },
    /// No plugin: it ends with its time, when another session stops it, or when the process that served the session gets a signal.
    Nobody {
        /// The session that it was.
        session: Option<&'a mut Session>,
        /// When it ends.
        until: Instant,
    },
}

/// The client of both paths.
pub struct Driver<'a> {
    controller: Controller<'a>,
    short: Option<&'a Worker>,
    /// There is no socket path, which would warn of the same.
    alone: bool,
    /// The owner of the short path with who has ended it, once another session has.
    pub stopped: Option<String>,
}

impl<'a> Driver<'a> {
    /// One that drives the short path, too, where there is one.
    pub fn new(controller: Controller<'a>, short: Option<&'a Worker>) -> Self {
        Self { controller, short, alone: false, stopped: None }
    }

    /// Runs the event loop of the short path alone until the client ends it, or another session has ended it.
    ///
    /// # Errors
    /// When the short path fails.
    pub async fn run_short(&mut self) -> Result<EndReason> {
        self.alone = true;
        let mut renewals = tokio::time::interval(self.renewal_interval());
        let mut reports = Schedule::default();
        loop {
            tokio::select! {
                command = self.command() => match command? {
                    Command::End(reason) => return Ok(reason),
                    _ => reports.bring_forward(),
                },
                _ = renewals.tick() => if self.renew_short(false)? || self.is_time_over() {
                    return Ok(EndReason::Done);
                },
                () = tokio::time::sleep_until(reports.next().into()) => {
                    let ((), took) = timed_in_all_threads(|| self.report_short())?;
                    reports.done(took);
                }
            }
        }
    }

    fn is_time_over(&self) -> bool {
        matches!(&self.controller, Controller::Nobody { until, .. } if Instant::now() >= *until)
    }

    /// Renews the lease of the short path; true when another session has ended it. One that has failed is done without where the socket
    /// path goes on.
    fn renew_short(&mut self, goes_on: bool) -> Result<bool> {
        let Some(worker) = self.short else { return Ok(false) };
        let hold = match &self.controller {
            Controller::Plugin { lease, .. } => *lease,
            Controller::Nobody { until, .. } => until.saturating_duration_since(Instant::now()),
        };
        match worker.renew(hold) {
            Ok(Standing::Running) => Ok(false),
            Ok(Standing::Stopped(owner)) => {
                self.stopped = Some(owner);
                Ok(true)
            }
            Err(e) if goes_on => self.do_without_short(&e).map(|()| false),
            Err(e) => Err(e),
        }
    }

    fn do_without_short(&mut self, why: &anyhow::Error) -> Result<()> {
        self.short = None;
        self.warn(format!("the short path has failed, its connections take the stack again: {why:#}"))
    }

    fn report_short(&mut self) -> Result<()> {
        let (Controller::Plugin { session, .. }, Some(worker)) = (&mut self.controller, self.short) else { return Ok(()) };
        session.stream(&Message::Pairs(worker.snapshot()?))?;
        memory::trim();
        Ok(())
    }

    /// Has the short path execute a command; what there is to warn of.
    fn forward(&self, command: &Command) -> Result<Vec<String>> {
        let Some(worker) = self.short else { return Ok(Vec::new()) };
        match command {
            Command::End(_) | Command::News => Ok(Vec::new()),
            Command::Choose(request) => worker.choose(request),
            Command::Pause(request) => worker.pause(&request.pods, Some(Reason::NetworkPolicy)).map(|()| Vec::new()),
            Command::Resume(request) => worker.pause(&request.pods, None).map(|()| Vec::new()),
        }
    }
}

/// Waits until approvals of the short path have changed. Cancel-safe.
async fn news(short: Option<&Worker>) {
    match short {
        Some(worker) => worker.news().await,
        None => std::future::pending().await,
    }
}

impl Controller<'_> {
    /// The next command. Cancel-safe.
    async fn command(&mut self) -> Result<Command> {
        let session = match self {
            Self::Plugin { session, .. } => session,
            Self::Nobody { session: Some(session), .. } => {
                session.signalled().await;
                return Ok(Command::End(EndReason::Signal));
            }
            Self::Nobody { session: None, .. } => return std::future::pending().await,
        };
        loop {
            return Ok(match session.next().await {
                Inbound::Request(Request::Finish) => Command::End(EndReason::Finished),
                Inbound::Request(Request::Pause(request)) => Command::Pause(request),
                Inbound::Request(Request::Resume(request)) => Command::Resume(request),
                Inbound::Request(Request::Choose(request)) => Command::Choose(request),
                Inbound::Request(_) => {
                    session.warn("only `choose`, `pause`, `resume` and `finish` are understood while connections are accelerated")?;
                    continue;
                }
                Inbound::Stop(reason) => Command::End(reason),
            });
        }
    }
}

impl Client for Driver<'_> {
    fn renewal_interval(&self) -> Duration {
        match &self.controller {
            Controller::Plugin { lease, .. } => RENEWAL.min(*lease / 3).max(Duration::from_millis(10)),
            Controller::Nobody { .. } => RENEWAL,
        }
    }

    async fn command(&mut self) -> Result<Command> {
        let command = tokio::select! {
            // Without a plugin nothing is reported.
            () = news(self.short), if matches!(self.controller, Controller::Plugin { .. }) => Command::News,
            command = self.controller.command() => command?,
        };
        match self.forward(&command) {
            Ok(warnings) if self.alone => warnings.into_iter().try_for_each(|text| self.warn(text))?,
            Ok(_) => {}
            // The next renewal finds out why.
            Err(e) => self.warn(format!("the short path does not follow: {e:#}"))?,
        }
        Ok(command)
    }

    fn renew(&mut self, instance: &Instance) -> Result<bool> {
        if instance.is_stopped() {
            return Ok(true);
        }
        let over = match &self.controller {
            Controller::Plugin { lease, .. } => instance.control().renew(*lease).map(|()| false)?,
            Controller::Nobody { .. } => {
                let left = instance.control().run_left()?;
                instance.control().renew(left)?;
                left.is_zero()
            }
        };
        Ok(self.renew_short(true)? || over)
    }

    fn limited(&mut self) -> Vec<String> {
        self.short.and_then(|worker| worker.limited().ok()).unwrap_or_default()
    }

    fn warn(&mut self, text: String) -> Result<()> {
        match &mut self.controller {
            Controller::Plugin { session, .. } => session.warn(text),
            Controller::Nobody { .. } => Ok(()),
        }
    }

    fn report(&mut self, instance: &Instance, chosen: &Chosen) -> Result<()> {
        let Controller::Plugin { session, .. } = &mut self.controller else {
            pairing::pair(instance);
            return Ok(());
        };
        let all = refreshed(instance, chosen)?;
        let sockets = Snapshot { instance, all: &all, pods: chosen.names(), dry: false };
        match self.short.map(Worker::snapshot) {
            None => session.stream(&sockets)?,
            Some(Ok(short)) => session.stream(&Message::Pairs(merge::snapshots(sockets.collect(), short)))?,
            Some(Err(e)) => self.do_without_short(&e)?,
        }
        memory::trim();
        Ok(())
    }
}
