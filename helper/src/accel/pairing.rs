//! Which tracked sockets belong together, and what is known of those whose peer is not tracked.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use sockpath_bpf::accel::types::accel_pass;

use super::connection::NONE;
use super::instance::Instance;
use super::matching::{self, Identity};
use super::memory::ends::Socket;
use super::tracked::TrackedSocket;

/// Notes the peers of sockets that have none yet. Returns the cookies of those whose match is not unique.
pub fn pair(instance: &Instance) -> HashSet<u64> {
    let single: Vec<Identity> = (0..instance.used())
        .filter_map(|slot| Some((slot, instance.ends.get(slot)?)))
        .filter(|(_, end)| end.cookie.get() != 0 && end.peer_cookie.get() == 0)
        .map(|(slot, end)| Identity::of(slot, &end.copy()))
        .filter(|identity| identity.cookie != 0)
        .collect();
    let matches = matching::find(&single);
    for &(a, b) in &matches.pairs {
        instance.ends.pair([a, b].map(|i| Socket { slot: single[i].slot, cookie: single[i].cookie }));
    }
    matches.ambiguous.iter().map(|&i| single[i].cookie).collect()
}

/// Notes calls that were observed on sockets no receive call returned from since.
///
/// # Errors
/// When the map of such calls cannot be read.
pub fn note_unsupported(instance: &Instance) -> Result<()> {
    let observed = instance.unsupported_calls()?;
    if observed.is_empty() {
        return Ok(());
    }
    for slot in 0..instance.used() {
        let Some(cookie) = instance.ends.get(slot).map(|end| end.cookie.get()) else { continue };
        if let Some(seen) = observed.get(&cookie) {
            instance.ends.note_flags(Socket { slot, cookie }, *seen);
        }
    }
    Ok(())
}

/// Notes of sockets of `all` without a peer whether a chosen pod of another node is at the other end.
pub fn note_elsewhere(instance: &Instance, all: &mut [TrackedSocket], elsewhere: impl Fn(IpAddr) -> bool) {
    for k in all.iter_mut().filter(|k| k.end.peer_cookie == 0) {
        let Some(end) = instance.end_of(k.socket()) else { continue };
        let remote = Identity::of(k.slot, &end).remote.ip();
        let why = if elsewhere(remote) { accel_pass::ACCEL_OTHER_NODE } else { NONE };
        if k.end.left != why && (k.end.left == NONE || k.end.left == accel_pass::ACCEL_OTHER_NODE) {
            instance.ends.note_lone(k.socket(), why);
            k.end.left = why;
        }
    }
}
