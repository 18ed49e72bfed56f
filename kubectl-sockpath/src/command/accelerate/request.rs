//! Requests to accelerate: their leases, their owner, and what detached ones leave out.

use std::time::Duration;

use sockpath_protocol::accel::{AccelerateRequest, Via};
use sockpath_protocol::pod::{Node, Pod};

use super::by_node::{self, ByNode};
use crate::user::user_at_host;

/// The lease while a session renews it: how long connections stay accelerated after plugin and helper were killed.
pub const FOREGROUND_LEASE: Duration = Duration::from_secs(5);

/// The lease of `--detach` when none is given.
pub const DETACHED_LEASE: Duration = Duration::from_secs(3600);

/// What a detached acceleration on a cluster does not do: helpers have no credentials to watch anything with.
pub const UNWATCHED: &str = "a detached acceleration does not watch the cluster: pods that come later are not included, and connections go on past \
                             NetworkPolicies that change; after such a change run `stop`, then `accelerate --detach` again";

/// What `trace --compare` asks the helper of these nodes: accelerate the pods on this path while the session lasts.
#[must_use]
pub fn foreground(pods: &[Pod], nodes: Vec<Node>, via: Via) -> AccelerateRequest {
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let ByNode { here: pods, elsewhere } = by_node::at(pods, &names);
    let lease_ms = u64::try_from(FOREGROUND_LEASE.as_millis()).unwrap_or(u64::MAX);
    AccelerateRequest {
        pods,
        elsewhere,
        nodes,
        lease_ms,
        detach: false,
        dry_run_ms: None,
        stay: false,
        owner: owner(),
        leave_blocking_readers: true,
        via,
        socket_programs: Vec::new(),
    }
}

/// Who starts it: a second user sees this name.
#[must_use]
pub fn owner() -> String {
    format!("{} (process {})", user_at_host(), std::process::id())
}
