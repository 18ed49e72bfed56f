//! The event loop of an acceleration: answers wakeups of the BPF programs, reviews pairs, renews the lease.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_bpf::accel::types::accel_pass;
use sockpath_protocol::accel::{ChoosePods, PauseRequest, PodName, ResumeRequest};
use sockpath_protocol::message::EndReason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::burst::Bursts;
use super::chosen::Chosen;
use super::insertion;
use super::instance::Instance;
use super::observation::Observation;
use super::pairing;
use super::programs::Programs;
use super::proven::Proven;
use super::reinject;
use super::stop::rearm;
use super::suspension;
use super::tracked::{self, TrackedSocket, tracked};
use super::upkeep::Upkeep;
use crate::schedule::{Schedule, timed, timed_in_all_threads};

/// At least this long between two passes over the connections, and this many times the CPU time that the last one took: 20 % of
/// a CPU while there are connections to pair and insert, 2 % for looking after those that are, 10 % while they go over.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
const PASS_SHARE: u32 = 5;
const REVIEW_SHARE: u32 = 50;
const MOVING_SHARE: u32 = 10;

/// The client of an acceleration: it gives commands, gets reports and decides when it ends.
pub trait Client {
    /// Time between two renewals of the lease.
    fn renewal_interval(&self) -> Duration;

    /// The next command. Cancel-safe.
    async fn command(&mut self) -> Result<Command>;

    /// Renews the lease, or finds that the acceleration is over: its time has passed, or another session is ending it.
    fn renew(&mut self, instance: &Instance) -> Result<bool>;

    /// Names of pods whose packets a limit or filter at their device has to see, as far as that matters; asked after each renewal.
    fn limited(&mut self) -> Vec<String>;

    /// Warns the user.
    fn warn(&mut self, text: String) -> Result<()>;

    /// Reports all pairs.
    fn report(&mut self, instance: &Instance, chosen: &Chosen) -> Result<()>;
}

/// What a client wants while connections are accelerated.
#[derive(Debug)]
pub enum Command {
    /// End for this reason.
    End(EndReason),
    /// These pods are chosen from now on.
    Choose(ChoosePods),
    /// Their pairs go by TCP.
    Pause(PauseRequest),
    /// No longer.
    Resume(ResumeRequest),
    /// There is news to report, from elsewhere than the sockets.
    News,
}

/// All tracked sockets for a report, with what has been found out about them since the last one.
pub fn refreshed(instance: &Instance, chosen: &Chosen) -> Result<Vec<TrackedSocket>> {
    pairing::note_unsupported(instance)?;
    pairing::pair(instance);
    let mut all = tracked(instance);
    pairing::note_elsewhere(instance, &mut all, |ip| chosen.is_elsewhere(ip));
    Ok(all)
}

/// Time between two looks while pairs are in the map or may go there, and while none is: each wakes a CPU that others use.
const REVIEW: Duration = Duration::from_millis(50);
const IDLE_REVIEW: Duration = Duration::from_millis(250);

/// What a look found.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// A pair is leaving the map or needs help.
    unsettled: bool,
    /// Sockets send by the map that did not at the last look, or are gone.
    moving: bool,
}

impl Found {
    /// Pairs whose first bytes have gone by the map are news.
    fn announce(self, reports: &mut Schedule) {
        if self.moving {
            reports.bring_forward();
        }
    }
}

/// The state of the event loop.
struct EventLoop<'a> {
    instance: &'a Instance,
    chosen: &'a mut Chosen,
    upkeep: Upkeep,
    observation: Observation<'a>,
    bursts: Bursts,
    programs: Programs,
    /// Sockets that had sent by the map at the last look.
    bypassing: usize,
}

impl EventLoop<'_> {
    /// Answers a wakeup: there are sockets to pair and to insert.
    fn pass(&mut self) -> Result<Found> {
        self.instance.control().answer_wakeup();
        pairing::pair(self.instance);
        self.review()
    }

    /// Reviews the connections in the map.
    fn review(&mut self) -> Result<Found> {
        if tracked::has_any_over(self.instance) {
            self.instance.look()?;
        }
        self.bursts.look(self.instance, self.chosen.pods())?;
        pairing::note_unsupported(self.instance)?;
        let mut all = tracked(self.instance);
        self.programs.judge(self.instance, &mut all)?;
        reinject::recover(self.instance, &all)?;
        pairing::note_elsewhere(self.instance, &mut all, |ip| self.chosen.is_elsewhere(ip));
        self.observation.adjust(&all)?;
        // What was observed in an epoch that has ended by now does not count.
        let profiling = tracked::profiling(self.instance.control());
        let ready = self.upkeep.decide(self.instance, &all, &profiling, |netns| self.chosen.are_apart(netns));
        // Not as `all` has it: some have been ordered out since.
        let leaving = all.iter().any(|k| self.instance.ends.get(k.slot).is_some_and(|end| end.hold.get() != 0));
        let spilled = all.iter().any(|k| k.end.spilled != 0);
        if leaving || spilled {
            self.instance.look()?;
            // Sockets that have just left the map, too.
            rearm(self.instance, self.chosen.pods())?;
        }
        insertion::insert(self.instance, &ready)?;
        let bypassing = all.iter().filter(|k| k.end.messages != 0).count();
        let moving = std::mem::replace(&mut self.bypassing, bypassing) != bypassing;
        Ok(Found { unsettled: leaving || spilled, moving })
    }

    /// When to look again after a look that took this long.
    fn next_review(&self, found: Found, took: Duration) -> Instant {
        let interval = match () {
            () if found.unsettled => PASS_INTERVAL,
            () if self.observation.is_on() => REVIEW,
            () => IDLE_REVIEW,
        };
        let interval = self.observation.due().map_or(interval, |due| interval.min(due.saturating_duration_since(Instant::now())));
        Instant::now() + interval.max(took * if found.moving { MOVING_SHARE } else { REVIEW_SHARE })
    }

    /// Executes a command; what there is to warn of.
    fn execute(&mut self, command: Command) -> Result<Vec<String>> {
        match command {
            Command::End(_) | Command::News => {}
            Command::Choose(request) => {
                let change = self.chosen.change(self.instance, &request.pods, &request.elsewhere)?;
                self.upkeep.suspension.pause(change.let_go, accel_pass::ACCEL_UNCHOSEN);
                self.upkeep.suspension.resume(&change.joined, accel_pass::ACCEL_UNCHOSEN);
                return Ok(change.warnings);
            }
            Command::Pause(r) => self.upkeep.suspension.pause(self.chosen.netns_of(names(&r.pods)), suspension::pass(r.reason)),
            Command::Resume(r) => self.upkeep.suspension.resume(&self.chosen.netns_of(names(&r.pods)), accel_pass::ACCEL_POLICY),
        }
        Ok(Vec::new())
    }
}

fn names(pods: &[PodName]) -> impl Iterator<Item = String> {
    pods.iter().map(PodName::to_string)
}

/// Runs the event loop until the client ends it, or another session has ended the acceleration. `proven` are the programs whose pairs may go into
/// the map where not all may.
pub async fn run(instance: &Instance, chosen: &mut Chosen, client: &mut impl Client, proven: Proven) -> Result<EndReason> {
    let outcome = run_loop(instance, chosen, client, proven).await;
    if !instance.is_stopped() {
        return outcome;
    }
    // With the pins gone, any of their uses may have failed first.
    let who = instance.control().stopped_by().unwrap_or_else(|| "another session".to_owned());
    client.warn(format!("{who} has ended this acceleration with `stop` or `cleanup`"))?;
    Ok(outcome.unwrap_or(EndReason::Done))
}

/// The loop: lease, wakeups, reviews and snapshots.
async fn run_loop(instance: &Instance, chosen: &mut Chosen, client: &mut impl Client, proven: Proven) -> Result<EndReason> {
    let wakeups = instance.wakeups(|| {})?;
    // SAFETY: `wakeups` owns the descriptor and lives longer than this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(wakeups.epoll_fd()) }.try_clone_to_owned().context("cannot wait for wakeups")?;
    // SAFETY: an OwnedFd is one descriptor from its creation to its end.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.context("cannot wait for wakeups")?;
    let mut event_loop = EventLoop {
        instance,
        chosen,
        upkeep: Upkeep::default(),
        observation: Observation::new(instance),
        bursts: Bursts::new(instance),
        programs: Programs::new(proven),
        bypassing: 0,
    };
    let mut reports = Schedule::default();
    let mut renewals = tokio::time::interval(client.renewal_interval());
    let mut next_pass = Instant::now();
    let mut next_review = Instant::now() + REVIEW;
    let mut pending = true;
    loop {
        tokio::select! {
            command = client.command() => {
                let command = command?;
                reports.bring_forward();
                match command {
                    Command::End(reason) => return Ok(reason),
                    Command::News => continue,
                    _ => {}
                }
                for text in event_loop.execute(command)? {
                    client.warn(text)?;
                }
                // Drained pairs are taken out by the next look.
                event_loop.review()?;
                next_review = Instant::now() + PASS_INTERVAL;
            }
            _ = renewals.tick() => {
                if client.renew(instance)? {
                    return Ok(EndReason::Done);
                }
                event_loop.chosen.release_gone(instance)?;
                let limited = event_loop.chosen.netns_of(client.limited());
                event_loop.upkeep.suspension.limit(limited);
            }
            ready = fd.readable() => {
                ready.context("cannot wait for wakeups")?.clear_ready();
                wakeups.consume()?;
                pending = true;
            }
            () = tokio::time::sleep_until(next_pass.into()), if pending => {
                pending = false;
                let (found, took) = timed(|| event_loop.pass())?;
                next_pass = Instant::now() + PASS_INTERVAL.max(took * PASS_SHARE);
                next_review = next_review.min(event_loop.next_review(found, took));
                found.announce(&mut reports);
            }
            () = tokio::time::sleep_until(next_review.into()) => {
                let (found, took) = timed(|| event_loop.review())?;
                next_review = event_loop.next_review(found, took);
                found.announce(&mut reports);
            }
            () = tokio::time::sleep_until(reports.next().into()) => {
                let chosen = &*event_loop.chosen;
                let ((), took) = timed_in_all_threads(|| {
                    instance.look()?;
                    client.report(instance, chosen)
                })?;
                reports.done(took);
            }
        }
    }
}
