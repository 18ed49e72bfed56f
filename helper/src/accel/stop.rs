//! Ending: from this session or from a later one, of what runs or of what was left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::Message;
use sockpath_protocol::accel::{AccelStatus, AccelSummary, StopRequest};
use sockpath_protocol::message::EndReason;

use super::connections;
use super::instance::{Instance, RENEWED_WITHIN};
use super::pins::Pins;
use super::relay;
use super::report::{PodNames, Snapshot};
use super::shared::field;
use crate::node::{self, FoundPod};
use crate::session::Session;

/// How long `cleanup` waits for queues to drain.
const CLEANUP_DRAIN: Duration = Duration::from_secs(5);

/// Time between two looks at the queues; readers need some to empty them.
pub const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Answers `status`.
pub fn status(session: &mut Session) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    let status = match Instance::open(&pins)? {
        None => AccelStatus { active: pins.exist(), ..AccelStatus::default() },
        Some(instance) => AccelStatus {
            active: true,
            owner: Some(instance.owner()),
            lease_left_ms: u64::try_from(instance.time_left()?.as_millis()).unwrap_or(u64::MAX),
            detached: instance.is_detached(),
            helper_gone: instance.is_helper_gone()?,
            pairs: Snapshot { instance: &instance, all: &connections::known(&instance), pods: &PodNames::default() }.collect(),
        },
    };
    session.send(&Message::Status(status))?;
    Ok(EndReason::Done)
}

/// Puts connections back on their normal path.
pub async fn stop(session: &mut Session, request: &StopRequest) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    end(session, &pins, Duration::from_millis(request.drain_ms), &request.by).await?;
    Ok(EndReason::Done)
}

/// Removes every leftover of ours on this node. What somebody uses is none.
pub async fn cleanup(session: &mut Session) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    match user(&pins).await? {
        Some(owner) => session.warn(format!("what {owner} accelerates; `stop` ends it"))?,
        None => end(session, &pins, CLEANUP_DRAIN, "").await?,
    }
    Ok(EndReason::Done)
}

/// Who accelerates on this node, if somebody does: a lease that was left to run out by itself, or one that is renewed.
async fn user(pins: &Pins) -> Result<Option<String>> {
    let Some(instance) = Instance::open(pins)? else { return Ok(None) };
    let lease = || instance.control.read(0, field!(deadline_ns)).unwrap_or(0);
    let (before, until) = (lease(), Instant::now() + RENEWED_WITHIN);
    while !instance.is_stopped() && !instance.lease_left()?.is_zero() {
        if lease() > before {
            return Ok(Some(instance.owner()));
        }
        if Instant::now() >= until {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(None)
}

/// Drains, removes, unpins, and says what was done. The session that accelerates learns who it was.
async fn end(session: &mut Session, pins: &Pins, drain: Duration, by: &str) -> Result<()> {
    if !pins.exist() {
        return Ok(());
    }
    if let Some(instance) = Instance::open(pins)? {
        instance.note_who_stops(by);
        let summary = dismantle(&instance, &[], drain).await?;
        let left = summary.left_enrolled;
        session.send(&Message::Summary(summary))?;
        if left > 0 {
            session.warn(format!(
                "{left} sockets still have unread bytes in their queues; they go by TCP, and the pins in {} stay until a later `stop` finds them empty",
                pins.dir().display()
            ))?;
            return Ok(());
        }
    }
    let removed = pins.remove()?;
    session.send(&Message::Removed { what: format!("{} ({removed} pins)", pins.dir().display()) })
}

/// Pauses, waits until nothing can be lost, and takes every socket out of the map.
pub async fn dismantle(instance: &Instance, pods: &[FoundPod], drain: Duration) -> Result<AccelSummary> {
    instance.control.set(0, field!(paused), 1);
    let deadline = Instant::now() + drain;
    loop {
        connections::order_all_out(instance);
        instance.look()?;
        relay::recover(instance, &connections::known(instance))?;
        rearm(instance, pods)?;
        if connections::enrolled(instance) == 0 || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // Whoever comes next need not wait for the lease.
    instance.control.set(0, field!(deadline_ns), 0);
    summary(instance, false)
}

/// Rearms readers that may wait for an edge while bytes are unread: those that came to TCP bytes behind redirected ones, and those whose
/// socket has left the map.
pub fn rearm(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    let waiting: HashSet<u32> = (0..instance.used())
        .filter(|&slot| instance.ends.read(slot, field!(spilled)).is_some_and(|s| s != 0))
        .filter(|&slot| instance.ends.read(slot, field!(queued)) == Some(0))
        .filter_map(|slot| instance.ends.read(slot, field!(netns)))
        .collect();
    for netns in pods.iter().map(|p| &p.netns).filter(|n| waiting.contains(&n.inode)) {
        instance.rearm(netns)?;
    }
    for inode in waiting.iter().filter(|inode| pods.iter().all(|p| p.netns.inode != **inode)) {
        // A namespace whose last process has ended has no readers that wait.
        if let Some(netns) = node::netns_by_inode(*inode) {
            instance.rearm(&netns)?;
        }
    }
    Ok(())
}

/// What it achieved so far.
pub fn summary(instance: &Instance, detached: bool) -> Result<AccelSummary> {
    let snapshot = Snapshot { instance, all: &connections::known(instance), pods: &PodNames::default() };
    Ok(AccelSummary {
        totals: snapshot.totals(),
        ran_ms: u64::try_from(instance.ran()?.as_millis()).unwrap_or(u64::MAX),
        left_enrolled: if detached { 0 } else { connections::enrolled(instance) },
        detached,
        stopped_by: None,
    })
}
