//! Ending the socket path: from this session or from a later one, of what runs or of what was left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::accel::AccelSummary;

use super::instance::Instance;
use super::reinject;
use super::report::{PodNames, Snapshot};
use super::tracked::{self, tracked};
use crate::node::{self, FoundPod};

/// Time between two looks at the queues; readers need some to empty them.
pub const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Pauses, waits until nothing can be lost, and takes every socket out of the map.
pub async fn dismantle(instance: &Instance, pods: &[FoundPod], drain: Duration) -> Result<AccelSummary> {
    instance.control().pause();
    let deadline = Instant::now() + drain;
    loop {
        instance.ends.order_all_out(instance.used());
        instance.look()?;
        reinject::recover(instance, &tracked(instance))?;
        rearm(instance, pods)?;
        if tracked::inserted(instance) == 0 || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // The next acceleration need not wait for the lease.
    instance.control().expire();
    summary(instance, false)
}

/// Rearms readers that may wait for an edge while bytes are unread: those that came to TCP bytes behind redirected ones, and those whose
/// socket has left the map.
pub fn rearm(instance: &Instance, pods: &[FoundPod]) -> Result<()> {
    let waiting: HashSet<u32> = (0..instance.used())
        .filter_map(|slot| instance.ends.get(slot))
        .filter(|end| end.spilled.get() != 0 && end.queued.get() == 0)
        .map(|end| end.netns.get())
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
    let snapshot = Snapshot { instance, all: &tracked(instance), pods: &PodNames::default(), dry: false };
    Ok(AccelSummary {
        totals: snapshot.totals(),
        ran_ms: u64::try_from(instance.control().ran()?.as_millis()).unwrap_or(u64::MAX),
        left_enrolled: if detached { 0 } else { tracked::inserted(instance) },
        detached,
        stopped_by: None,
    })
}
