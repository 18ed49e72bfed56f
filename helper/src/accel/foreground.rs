//! An acceleration while its session lasts.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_protocol::accel::AccelerateRequest;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::request::Pod;
use sockpath_protocol::{Message, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

use super::canary;
use super::connections;
use super::instance::{Instance, Start};
use super::pins::Pins;
use super::report::{self, PodNames};
use super::review::Review;
use super::shared::field;
use super::stop::{dismantle, kick, summary};
use crate::node::{self, FoundPod};
use crate::session::{Coded, Inbound, Session};

/// How long queues may take to drain when the session ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Time between two snapshots.
const SNAPSHOT: Duration = Duration::from_secs(1);

/// At least this long between two passes over the connections, and this many times as long as the last one took: 2 % of a CPU.
const PASS_INTERVAL: Duration = Duration::from_millis(5);
const PASS_SHARE: u32 = 50;

/// Serves an acceleration until it is done or the session has to end.
pub async fn run(session: &mut Session, request: AccelerateRequest) -> Result<EndReason> {
    let (pods, names) = find_pods(session, &request.pods)?;
    let pins = Pins::of_this_instance()?;
    clear_the_way(session, &pins).await?;
    let lease = Duration::from_millis(request.lease_ms);
    let start = Start { owner: &request.owner, lease, leave_blocking_readers: request.leave_blocking_readers, detached: request.detach };
    let instance = match Instance::create(&pins, &start) {
        Ok(instance) => instance,
        Err(e) => {
            pins.remove().context("after a failed start")?;
            return Err(e);
        }
    };
    let reason = match prepare(session, &instance, &pods) {
        Err(e) => Err(e),
        Ok(_observers) if request.dry_run_ms.is_some() => watch(session, &instance, &names, &request).await,
        Ok(_observers) => attend(session, &instance, &pods, &names, lease).await,
    };
    if request.dry_run_ms.is_some() {
        pins.remove()?;
        return reason;
    }
    if request.detach && reason.is_ok() {
        instance.renew(lease)?;
        session.send(&Message::Summary(summary(&instance, true)?))?;
        return reason;
    }
    let summary = dismantle(&instance, &pods, DRAIN).await?;
    let left = summary.left_enrolled;
    session.send(&Message::Summary(summary))?;
    if left == 0 {
        drop(instance);
        pins.remove()?;
    }
    reason
}

/// The pods of the request as this node has them, and their names by namespace.
fn find_pods(session: &mut Session, pods: &[Pod]) -> Result<(Vec<FoundPod>, PodNames)> {
    let mut found = Vec::new();
    let mut names = PodNames::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if pod.host_network {
            session.warn(format!("pod {name} uses the node's network namespace and is left alone"))?;
            continue;
        }
        match node::find(pod) {
            Ok(f) if f.cgroup.is_none() => {
                session.warn(format!("pod {name} has no cgroup v2 directory; only connections that are open now are accelerated"))?;
                names.insert(f.netns.inode, name);
                found.push(f);
            }
            Ok(f) => {
                names.insert(f.netns.inode, name);
                found.push(f);
            }
            Err(e) => session.warn(format!("pod {name} is left alone: {e:#}"))?,
        }
    }
    if found.is_empty() {
        return Err(Coded::new("no-pods", "none of the chosen pods runs on this node"));
    }
    Ok((found, names))
}

/// Makes sure that nobody else accelerates here; leftovers of an ended lease are drained and removed.
async fn clear_the_way(session: &mut Session, pins: &Pins) -> Result<()> {
    if pins.claim()? {
        return Ok(());
    }
    if let Some(instance) = Instance::open(pins)? {
        let left = instance.lease_left()?;
        if !left.is_zero() {
            return Err(Coded::new(
                "held",
                format!(
                    "{} accelerates on this node already (lease ends in {} s); end it with `kubectl sockpath stop`",
                    instance.owner(),
                    left.as_secs().max(1)
                ),
            ));
        }
        if dismantle(&instance, &[], DRAIN).await?.left_enrolled > 0 {
            return Err(Coded::new(
                "held",
                "what an earlier run left still holds unread bytes; read or close those connections and try again",
            ));
        }
        session.warn(format!("removed what {} left behind", instance.owner()))?;
    }
    pins.remove()?;
    if pins.claim()? { Ok(()) } else { Err(Coded::new("held", "somebody else has just started to accelerate on this node")) }
}

/// Tries the kernel out on private sockets, then meets the sockets of the pods. What it returns has to be held.
fn prepare(session: &mut Session, instance: &Instance, pods: &[FoundPod]) -> Result<[OwnedFd; 2]> {
    // What the canaries do must not be observed.
    instance.control.set(0, field!(observing), 1);
    let canaries = canary::run(instance).context("the kernel could not be tried out on private sockets")?;
    let failed = canaries.iter().find(|c| !c.passed && c.corruption_risk).cloned();
    for canary in canaries {
        session.send(&Message::Canary(canary))?;
    }
    if let Some(failed) = failed {
        return Err(Coded::new(
            "canary",
            format!(
                "this kernel's sockmap does not keep the bytes of a connection safe ({}: {}); nothing was touched",
                failed.name, failed.detail
            ),
        ));
    }
    let observers = instance.observe()?;
    instance.attach(pods)?;
    meet_all(instance, pods)?;
    Ok(observers)
}

/// Only tells what would be done.
async fn watch(session: &mut Session, instance: &Instance, names: &PodNames, request: &AccelerateRequest) -> Result<EndReason> {
    let end = Instant::now() + Duration::from_millis(request.dry_run_ms.unwrap_or(0));
    let mut snapshots = tokio::time::interval(SNAPSHOT);
    let reason = loop {
        tokio::select! {
            inbound = session.next() => match inbound {
                Inbound::Request(Request::Finish) => break EndReason::Finished,
                Inbound::Request(_) => {}
                Inbound::Stop(reason) => break reason,
            },
            () = tokio::time::sleep_until(end.into()) => break EndReason::Done,
            _ = snapshots.tick() => tell(session, instance, names)?,
        }
    };
    tell(session, instance, names)?;
    session.send(&Message::Summary(summary(instance, false)?))?;
    Ok(reason)
}

fn tell(session: &mut Session, instance: &Instance, names: &PodNames) -> Result<()> {
    connections::note_peculiar(instance)?;
    connections::pair(instance);
    let snapshot = report::snapshot(instance, &connections::known(instance), names);
    session.send(&Message::Pairs(snapshot))
}

fn meet_all(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    for pod in pods {
        instance.meet_live(pod)?;
    }
    Ok(())
}

/// Time between two looks at pairs in the map.
const REVIEW: Duration = Duration::from_millis(50);

/// What goes on while a session lasts.
struct Attendance<'a> {
    instance: &'a Instance,
    pods: &'a [FoundPod],
    review: Review,
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
async fn attend(session: &mut Session, instance: &Instance, pods: &[FoundPod], names: &PodNames, lease: Duration) -> Result<EndReason> {
    let bell = instance.doorbell(|| {})?;
    // SAFETY: `bell` owns the descriptor and lives longer than this borrow.
    let bell_fd = unsafe { BorrowedFd::borrow_raw(bell.epoll_fd()) }.try_clone_to_owned().context("cannot wait for the doorbell")?;
    // SAFETY: an OwnedFd is one descriptor from its creation to its end.
    let bell_fd = unsafe { AsyncFd::register_with_interest(bell_fd, Interest::READABLE) }.context("cannot wait for the doorbell")?;
    let mut attendance = Attendance { instance, pods, review: Review::default() };
    let mut snapshots = tokio::time::interval(SNAPSHOT);
    snapshots.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewals = tokio::time::interval(SNAPSHOT.min(lease / 3).max(Duration::from_millis(10)));
    let mut next_pass = Instant::now();
    let mut next_review = Instant::now() + REVIEW;
    let mut pending = true;
    loop {
        tokio::select! {
            inbound = session.next() => match inbound {
                Inbound::Request(Request::Finish) => return Ok(EndReason::Finished),
                Inbound::Request(Request::Heartbeat) => {}
                Inbound::Request(_) => session.warn("only `finish` is understood while connections are accelerated")?,
                Inbound::Stop(reason) => return Ok(reason),
            },
            _ = renewals.tick() => instance.renew(lease)?,
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
                tell(session, instance, names)?;
            }
        }
    }
}
