//! An acceleration while its session lasts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};

use super::attend::{Audience, SNAPSHOT, attend, tell};
use super::bypassed;
use super::canary;
use super::chosen::Chosen;
use super::detached;
use super::instance::{Instance, Start};
use super::meeting;
use super::pins::Pins;
use super::stop::{LOOK_AGAIN, dismantle, summary};
use crate::node::FoundPod;
use crate::session::{Coded, Inbound, Session};
use crate::switches;

/// How long queues may take to drain when the session ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves an acceleration until it is done or the session has to end.
pub async fn run(session: &mut Session, request: AccelerateRequest) -> Result<EndReason> {
    let mut chosen = find_pods(session, &request)?;
    let pins = Pins::of(session.site());
    clear_the_way(session, &pins).await?;
    if request.dry_run_ms.is_some() {
        let bypassed::Findings { bypassed, unknown } = bypassed::find(&chosen, &request);
        session.send(&Message::Bypassed { found: bypassed })?;
        for text in unknown {
            session.warn(text)?;
        }
    }
    let lease = Duration::from_millis(request.lease_ms);
    let start = Start {
        owner: &request.owner,
        lease,
        leave_blocking_readers: request.leave_blocking_readers,
        detached: request.detach,
        without: &[],
    };
    let instance = match Instance::create(&pins, &start) {
        Ok(instance) => instance,
        Err(e) => {
            pins.remove().context("after a failed start")?;
            return Err(e);
        }
    };
    let reason = match prepare(session, &instance, chosen.pods()) {
        Err(e) => Err(e),
        Ok(()) if request.dry_run_ms.is_some() => watch(session, &instance, &chosen, &request).await,
        Ok(()) => attend(&instance, &mut chosen, Audience::Session { session: &mut *session, lease }).await,
    };
    if request.dry_run_ms.is_some() {
        pins.remove()?;
        return reason;
    }
    if request.detach && reason.is_ok() {
        instance.end_after(lease)?;
        instance.renew(lease)?;
        session.send(&Message::Summary(summary(&instance, true)?))?;
        if request.stay {
            session.stay(request);
        } else if let Err(e) = detached::spawn(&request) {
            session.warn(format!("connections that are made from now on are not accelerated: {e:#}"))?;
        }
        return reason;
    }
    if instance.is_stopped() {
        // Whoever stopped it drains and removes; two at once would get in each other's way.
        let until = Instant::now() + DRAIN;
        while pins.exist() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let stopped_by = Some(instance.stopped_by().unwrap_or_else(|| "somebody".to_owned()));
        session.send(&Message::Summary(AccelSummary { stopped_by, ..summary(&instance, false)? }))?;
        return reason;
    }
    let summary = dismantle(&instance, chosen.pods(), DRAIN).await?;
    let left = summary.left_enrolled;
    session.send(&Message::Summary(summary))?;
    if left == 0 {
        drop(instance);
        pins.remove()?;
    }
    reason
}

/// The pods of the request as this node has them.
fn find_pods(session: &mut Session, request: &AccelerateRequest) -> Result<Chosen> {
    let (chosen, warnings) = Chosen::find(session.site(), &request.pods, &request.elsewhere);
    for text in warnings {
        session.warn(text)?;
    }
    if chosen.pods().is_empty() {
        return Err(Coded::new("no-pods", "none of the chosen pods runs on this node"));
    }
    Ok(chosen)
}

/// Makes sure that nobody else accelerates here; leftovers of an ended lease are drained and removed.
async fn clear_the_way(session: &mut Session, pins: &Pins) -> Result<()> {
    if pins.claim(session.site())? {
        return Ok(());
    }
    if let Some(instance) = Instance::open(pins)? {
        let left = instance.time_left()?;
        if !instance.is_helper_gone()? {
            return Err(Coded::new(
                "held",
                format!(
                    "{} accelerates on this node already (ends in {} s unless renewed); end it with `kubectl sockpath stop{}`",
                    instance.owner(),
                    left.as_secs().max(1),
                    if session.site().is_lab() { " --lab" } else { "" }
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
    if pins.claim(session.site())? { Ok(()) } else { Err(Coded::new("held", "somebody else has just started to accelerate on this node")) }
}

/// Tries the kernel out on private sockets, then meets the sockets of the pods.
fn prepare(session: &mut Session, instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    let canaries = canary::run(instance).context("the kernel could not be tried out on private sockets")?;
    let failed = canaries.iter().find(|c| !c.passed && c.corruption_risk).cloned();
    for canary in canaries {
        session.send(&Message::Canary(canary))?;
    }
    if let Some(failed) = failed.filter(|_| !switches::without_order_gate()) {
        return Err(Coded::new(
            "canary",
            format!(
                "this kernel's sockmap does not keep the bytes of a connection safe ({}: {}); nothing was touched",
                failed.name, failed.detail
            ),
        ));
    }
    meeting::attach(instance, pods)?;
    meet_all(instance, pods)
}

/// Only tells what would be done.
async fn watch(session: &mut Session, instance: &Instance, chosen: &Chosen, request: &AccelerateRequest) -> Result<EndReason> {
    let _observers = (instance.observe_calls()?, instance.observe_sends()?, instance.observe_arrivals()?);
    instance.begin_lesson();
    instance.learn_sleepers(true);
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
            _ = snapshots.tick() => tell(session, instance, chosen)?,
        }
    };
    tell(session, instance, chosen)?;
    session.send(&Message::Summary(summary(instance, false)?))?;
    Ok(reason)
}

fn meet_all(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    for pod in pods {
        instance.meet_live(pod)?;
    }
    Ok(())
}
