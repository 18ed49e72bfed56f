//! Putting connections into the sockmap: both ends or none.

use std::time::Instant;

use anyhow::Result;

use super::connection::State;
use super::decide::{Action, History, Snapshot, Wanted, decide};
use super::instance::Instance;
use super::memory::ends::Socket;
use super::tracked::{self, TrackedSocket, connections};

/// Orders these connections into the map and has the kernel insert them. Where it takes one end only, that is taken back. How many were
/// ordered.
///
/// # Errors
/// When a namespace cannot be entered or the kernel refuses to run a program.
pub fn insert(instance: &Instance, connections: &[[Socket; 2]]) -> Result<usize> {
    if connections.is_empty() {
        return Ok(0);
    }
    connections.iter().for_each(|ends| instance.ends.apply(*ends, Action::OrderIn));
    instance.insert_ordered()?;
    // A lone end would only make its own writes slower.
    let mut is_any_lone = false;
    for &ends in connections {
        let [Some(a), Some(b)] = ends.map(|end| instance.ends.of(end).map(tracked::read)) else { continue };
        if State::of([&a, &b]) == State::Half {
            instance.ends.apply(ends, Action::TakeBack);
            is_any_lone = true;
        }
    }
    if is_any_lone {
        instance.look()?;
    }
    Ok(connections.len())
}

/// The same with all connections of `all` whose readers are profiled well enough, where nothing else is wanted of any.
///
/// # Errors
/// As [`insert`].
pub fn insert_ready(instance: &Instance, all: &[TrackedSocket]) -> Result<usize> {
    let profiling = tracked::profiling(instance.control());
    let is_ready = |ends: &[&TrackedSocket; 2]| {
        let [a, b] = ends;
        let now = Snapshot { ends: [&a.end, &b.end], profiling: &profiling, wanted: Wanted::default(), now: Instant::now() };
        decide(History::default(), &now).1 == [Action::OrderIn]
    };
    let ready: Vec<[Socket; 2]> = connections(all).filter(is_ready).map(|ends| ends.map(TrackedSocket::socket)).collect();
    insert(instance, &ready)
}

#[cfg(test)]
mod tests;
