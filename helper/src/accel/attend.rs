//! Attending to an acceleration: answering the doorbell, looking after pairs, renewing the lease.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;
use sockpath_bpf::accel::types::accel_pass;
use sockpath_protocol::accel::{ChoosePods, PauseRequest, PodName, ResumeRequest};
use sockpath_protocol::message::EndReason;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::burst::Bursts;
use super::chosen::Chosen;
use super::insertion;
use super::instance::Instance;
use super::known::{self, Known, known};
use super::observation::Observation;
use super::pairing;
use super::programs::Programs;
use super::proven::Proven;
use super::relay;
use super::stop::rearm;
use super::suspension;
use super::upkeep::Upkeep;
use crate::session::clock_ns;

/// Time between two snapshots.
pub const SNAPSHOT: Duration = Duration::from_secs(1);

/// At least this long between two passes over the connections, and this many times the CPU time that the last one took: 20 % of
/// a CPU while there are connections to pair and insert, 2 % for looking after those that are, 10 % while they go over.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
const PASS_SHARE: u32 = 5;
const REVIEW_SHARE: u32 = 50;
const MOVING_SHARE: u32 = 10;

/// Does something; what came of it, and the CPU time that it took: others may have had the CPU in between, or the reader of what is
/// written was slow.
fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let began = clock_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let done = f()?;
    Ok((done, Duration::from_nanos(clock_ns(ClockId::CLOCK_THREAD_CPUTIME_ID)?.saturating_sub(began))))
}

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
}

/// All known sockets for a report, with what has been found out about them since the last one.
pub fn refreshed(instance: &Instance, chosen: &Chosen) -> Result<Vec<Known>> {
    pairing::note_unsupported(instance)?;
    pairing::pair(instance);
    let mut all = known(instance);
    pairing::note_elsewhere(instance, &mut all, |ip| chosen.is_elsewhere(ip));
    Ok(all)
}

/// Time between two looks while pairs are in the map or may go there, and while none is: each wakes a CPU that others use.
const REVIEW: Duration = Duration::from_millis(50);
const IDLE_REVIEW: Duration = Duration::from_millis(250);

/// Pairs whose first bytes have gone by the map are reported at once, but not sooner than this after the last snapshot, and not so
/// often that telling takes more than 10 % of a CPU.
const NEWS: Duration = Duration::from_millis(200);
const NEWS_SHARE: u32 = 10;

/// What a look found.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// A pair is leaving the map or needs help.
    unsettled: bool,
    /// Sockets send by the map that did not at the last look, or are gone.
    moving: bool,
}

/// When snapshots are due.
#[derive(Debug)]
struct Telling {
    next: Instant,
    last: Instant,
    took: Duration,
}

impl Telling {
    fn new() -> Self {
        Self { next: Instant::now(), last: Instant::now(), took: Duration::ZERO }
    }

    /// Takes note of a look.
    fn consider(&mut self, found: Found) {
        if found.moving {
            self.next = self.next.min(self.last + NEWS.max(self.took * NEWS_SHARE));
        }
    }

    fn done(&mut self, took: Duration) {
        self.last = Instant::now();
        self.next = self.last + SNAPSHOT;
        self.took = took;
    }
}

/// What goes on while a session lasts.
struct Attendance<'a> {
    instance: &'a Instance,
    chosen: &'a mut Chosen,
    upkeep: Upkeep,
    observation: Observation<'a>,
    bursts: Bursts,
    programs: Programs,
    /// Sockets that had sent by the map at the last look.
    bypassing: usize,
}

impl Attendance<'_> {
    /// Answers the doorbell: sockets to pair and to insert.
    fn pass(&mut self) -> Result<Found> {
        self.instance.control().answer_wakeup();
        pairing::pair(self.instance);
        self.look_after()
    }

    /// Looks after the pairs in the map.
    fn look_after(&mut self) -> Result<Found> {
        if known::has_any_over(self.instance) {
            self.instance.look()?;
        }
        self.bursts.look(self.instance, self.chosen.pods())?;
        pairing::note_unsupported(self.instance)?;
        let mut all = known(self.instance);
        self.programs.judge(self.instance, &mut all)?;
        relay::recover(self.instance, &all)?;
        pairing::note_elsewhere(self.instance, &mut all, |ip| self.chosen.is_elsewhere(ip));
        self.observation.adjust(&all)?;
        // What was observed in an epoch that has ended by now does not count.
        let profiling = known::profiling(self.instance.control());
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
            Command::End(_) => {}
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

/// Attends until the client wants an end, or another session has ended the acceleration. `proven` are the programs whose pairs may go into
/// the map where not all may.
pub async fn attend(instance: &Instance, chosen: &mut Chosen, client: &mut impl Client, proven: Proven) -> Result<EndReason> {
    let outcome = serve(instance, chosen, client, proven).await;
    if !instance.is_stopped() {
        return outcome;
    }
    // With the pins gone, any of their uses may have failed first.
    let who = instance.control().stopped_by().unwrap_or_else(|| "another session".to_owned());
    client.warn(format!("{who} has ended this acceleration with `stop` or `cleanup`"))?;
    Ok(outcome.unwrap_or(EndReason::Done))
}

/// The loop: lease, doorbell, reviews and snapshots.
async fn serve(instance: &Instance, chosen: &mut Chosen, client: &mut impl Client, proven: Proven) -> Result<EndReason> {
    let bell = instance.doorbell(|| {})?;
    // SAFETY: `bell` owns the descriptor and lives longer than this borrow.
    let bell_fd = unsafe { BorrowedFd::borrow_raw(bell.epoll_fd()) }.try_clone_to_owned().context("cannot wait for the doorbell")?;
    // SAFETY: an OwnedFd is one descriptor from its creation to its end.
    let bell_fd = unsafe { AsyncFd::register_with_interest(bell_fd, Interest::READABLE) }.context("cannot wait for the doorbell")?;
    let mut attendance = Attendance {
        instance,
        chosen,
        upkeep: Upkeep::default(),
        observation: Observation::new(instance),
        bursts: Bursts::new(instance),
        programs: Programs::new(proven),
        bypassing: 0,
    };
    let mut telling = Telling::new();
    let mut renewals = tokio::time::interval(client.renewal_interval());
    let mut next_pass = Instant::now();
    let mut next_review = Instant::now() + REVIEW;
    let mut pending = true;
    loop {
        tokio::select! {
            command = client.command() => {
                let command = command?;
                if let Command::End(reason) = command {
                    return Ok(reason);
                }
                for text in attendance.execute(command)? {
                    client.warn(text)?;
                }
                // Drained pairs are taken out by the next look.
                telling.consider(attendance.look_after()?);
                next_review = Instant::now() + PASS_INTERVAL;
            }
            _ = renewals.tick() => {
                if client.renew(instance)? {
                    return Ok(EndReason::Done);
                }
                attendance.chosen.release_gone(instance)?;
                let limited = attendance.chosen.netns_of(client.limited());
                attendance.upkeep.suspension.limit(limited);
            }
            ready = bell_fd.readable() => {
                ready.context("cannot wait for the doorbell")?.clear_ready();
                bell.consume()?;
                pending = true;
            }
            () = tokio::time::sleep_until(next_pass.into()), if pending => {
                pending = false;
                let (found, took) = timed(|| attendance.pass())?;
                next_pass = Instant::now() + PASS_INTERVAL.max(took * PASS_SHARE);
                next_review = next_review.min(attendance.next_review(found, took));
                telling.consider(found);
            }
            () = tokio::time::sleep_until(next_review.into()) => {
                let (found, took) = timed(|| attendance.look_after())?;
                next_review = attendance.next_review(found, took);
                telling.consider(found);
            }
            () = tokio::time::sleep_until(telling.next.into()) => {
                let chosen = &*attendance.chosen;
                let ((), took) = timed(|| {
                    instance.look()?;
                    client.report(instance, chosen)
                })?;
                telling.done(took);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STILL: Found = Found { unsettled: false, moving: false };
    const MOVING: Found = Found { unsettled: false, moving: true };

    #[test]
    fn news_bring_the_next_snapshot_forward_but_leave_time_between_two() {
        let mut telling = Telling::new();
        telling.done(Duration::from_millis(1));
        let regular = telling.next;
        telling.consider(STILL);
        assert_eq!(telling.next, regular);
        telling.consider(MOVING);
        assert_eq!(telling.next, telling.last + NEWS);
    }

    #[test]
    fn costly_snapshots_come_no_more_often_for_news() {
        let mut telling = Telling::new();
        telling.done(Duration::from_millis(60));
        telling.consider(MOVING);
        assert_eq!(telling.next, telling.last + Duration::from_millis(600));
        telling.done(Duration::from_secs(1));
        telling.consider(MOVING);
        assert_eq!(telling.next, telling.last + SNAPSHOT);
    }
}
