//! Attending to an acceleration: answering the doorbell, looking after pairs, renewing the lease.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_bpf::accel::types::accel_pass;
use sockpath_protocol::accel::PodName;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

use super::connections;
use super::instance::Instance;
use super::report::{self, PodNames};
use super::review::Review;
use super::shared::field;
use super::stop::kick;
use super::suspension::{self, Suspension};
use crate::node::FoundPod;
use crate::session::{Inbound, Session};

/// Time between two snapshots.
pub const SNAPSHOT: Duration = Duration::from_secs(1);

/// At least this long between two passes over the connections, and this many times as long as the last one took: 2 % of a CPU.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
const PASS_SHARE: u32 = 50;

/// Who is told, and who decides when it ends.
pub enum Audience<'a> {
    /// A plugin; the lease is renewed while it listens.
    Session {
        /// The session.
        session: &'a mut Session,
        /// The pods by name.
        names: &'a PodNames,
        /// The lease.
        lease: Duration,
    },
    /// Nobody: it ends with the lease, or when somebody stops it.
    Nobody,
}

impl Audience<'_> {
    fn renewal_interval(&self) -> Duration {
        match self {
            Self::Session { lease, .. } => SNAPSHOT.min(*lease / 3).max(Duration::from_millis(10)),
            Self::Nobody => SNAPSHOT,
        }
    }

    /// Waits until the plugin wants something. Cancel-safe.
    async fn wish(&mut self) -> Result<Wish> {
        let Self::Session { session, names, .. } = self else { return std::future::pending().await };
        loop {
            match session.next().await {
                Inbound::Request(Request::Finish) => return Ok(Wish::End(EndReason::Finished)),
                Inbound::Request(Request::Pause(request)) => {
                    return Ok(Wish::Pause(netns_of(names, &request.pods), suspension::pass(request.reason)));
                }
                Inbound::Request(Request::Resume(request)) => return Ok(Wish::Resume(netns_of(names, &request.pods))),
                Inbound::Request(Request::Heartbeat) => {}
                Inbound::Request(_) => {
                    session.warn("only `pause`, `resume` and `finish` are understood while connections are accelerated")?;
                }
                Inbound::Stop(reason) => return Ok(Wish::End(reason)),
            }
        }
    }

    /// Renews the lease, or finds that it has ended or that somebody else is ending it.
    fn is_over(&self, instance: &Instance) -> Result<bool> {
        match self {
            Self::Session { lease, .. } => instance.renew(*lease).map(|()| false),
            Self::Nobody => Ok(instance.lease_left()?.is_zero() || instance.control.read(0, field!(paused)) != Some(0)),
        }
    }

    fn tell(&mut self, instance: &Instance) -> Result<()> {
        match self {
            Self::Session { session, names, .. } => tell(session, instance, names),
            Self::Nobody => {
                connections::pair(instance);
                Ok(())
            }
        }
    }
}

/// What the plugin wants while connections are accelerated; pods are named by their network namespaces.
enum Wish {
    End(EndReason),
    Pause(Vec<u32>, accel_pass),
    Resume(Vec<u32>),
}

/// The network namespaces of these pods, as far as they are chosen ones.
fn netns_of(names: &PodNames, pods: &[PodName]) -> Vec<u32> {
    let wanted: HashSet<String> = pods.iter().map(PodName::to_string).collect();
    names.iter().filter(|(_, name)| wanted.contains(*name)).map(|(netns, _)| *netns).collect()
}

/// Sends a snapshot of all pairs.
pub fn tell(session: &mut Session, instance: &Instance, names: &PodNames) -> Result<()> {
    connections::note_peculiar(instance)?;
    connections::pair(instance);
    let snapshot = report::snapshot(instance, &connections::known(instance), names);
    session.send(&Message::Pairs(snapshot))
}

/// Time between two looks at pairs in the map.
const REVIEW: Duration = Duration::from_millis(50);

/// What goes on while a session lasts.
struct Attendance<'a> {
    instance: &'a Instance,
    pods: &'a [FoundPod],
    review: Review,
    suspension: Suspension,
}

impl Attendance<'_> {
    /// Answers the doorbell: sockets to pair and to enrol.
    fn pass(&mut self) -> Result<bool> {
        self.instance.control.set(0, field!(rung), 0);
        connections::pair(self.instance);
        self.look_after()
    }

    /// Looks after the pairs in the map; `true` while one is on its way out or needs help.
    fn look_after(&mut self) -> Result<bool> {
        self.instance.recycle()?;
        connections::note_peculiar(self.instance)?;
        let all = connections::known(self.instance);
        self.review.look(self.instance, &all);
        self.suspension.apply(self.instance);
        let leaving = all.iter().any(|k| k.end.hold != 0);
        let spilled = all.iter().any(|k| k.end.spilled != 0);
        if leaving || spilled {
            self.instance.serve()?;
        }
        if spilled {
            kick(self.instance, self.pods)?;
        }
        connections::enrol(self.instance)?;
        Ok(leaving || spilled)
    }
}

/// The loop: lease, doorbell, reviews and snapshots, until the session has to end.
pub async fn attend(instance: &Instance, pods: &[FoundPod], mut audience: Audience<'_>) -> Result<EndReason> {
    let bell = instance.doorbell(|| {})?;
    // SAFETY: `bell` owns the descriptor and lives longer than this borrow.
    let bell_fd = unsafe { BorrowedFd::borrow_raw(bell.epoll_fd()) }.try_clone_to_owned().context("cannot wait for the doorbell")?;
    // SAFETY: an OwnedFd is one descriptor from its creation to its end.
    let bell_fd = unsafe { AsyncFd::register_with_interest(bell_fd, Interest::READABLE) }.context("cannot wait for the doorbell")?;
    let mut attendance = Attendance { instance, pods, review: Review::default(), suspension: Suspension::default() };
    let mut snapshots = tokio::time::interval(SNAPSHOT);
    snapshots.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewals = tokio::time::interval(audience.renewal_interval());
    let mut next_pass = Instant::now();
    let mut next_review = Instant::now() + REVIEW;
    let mut pending = true;
    loop {
        tokio::select! {
            wish = audience.wish() => {
                match wish? {
                    Wish::End(reason) => return Ok(reason),
                    Wish::Pause(netns, why) => attendance.suspension.pause(netns, why),
                    Wish::Resume(netns) => attendance.suspension.resume(&netns),
                }
                // Drained pairs are taken out by the next look.
                attendance.look_after()?;
                next_review = Instant::now() + PASS_INTERVAL;
            }
            _ = renewals.tick() => if audience.is_over(instance)? {
                return Ok(EndReason::Done);
            },
            ready = bell_fd.readable() => {
                ready.context("cannot wait for the doorbell")?.clear_ready();
                bell.consume()?;
                pending = true;
            }
            () = tokio::time::sleep_until(next_pass.into()), if pending => {
                pending = false;
                let began = Instant::now();
                if attendance.pass()? {
                    next_review = Instant::now();
                }
                next_pass = Instant::now() + PASS_INTERVAL.max(began.elapsed() * PASS_SHARE);
            }
            () = tokio::time::sleep_until(next_review.into()) => {
                let began = Instant::now();
                let leaving = attendance.look_after()?;
                let interval = if leaving { PASS_INTERVAL } else { REVIEW };
                next_review = Instant::now() + interval.max(began.elapsed() * PASS_SHARE);
            }
            _ = snapshots.tick() => {
                instance.forget_gone()?;
                audience.tell(instance)?;
            }
        }
    }
}
