//! Deciding on all connections, and carrying out what was decided.

use std::collections::HashMap;
use std::time::Instant;

use super::connection::Profiling;
use super::decide::{self, Action, History, Snapshot, Wanted};
use super::instance::Instance;
use super::memory::ends::Socket;
use super::suspension::Suspension;
use super::tracked::{TrackedSocket, connections};

/// What is remembered of connections, by the cookie of the end with the lower slot.
#[derive(Debug, Default)]
pub struct Upkeep {
    histories: HashMap<u64, History>,
    /// Connections that have to go by TCP because of a request.
    pub suspension: Suspension,
}

impl Upkeep {
    /// Decides on each connection of `all` once, and carries out all but insertions: these are returned, as what leaves comes first.
    /// `apart` says of two network namespaces whether they are those of pods on different nodes.
    pub fn decide(
        &mut self,
        instance: &Instance,
        all: &[TrackedSocket],
        profiling: &Profiling,
        apart: impl Fn([u32; 2]) -> bool,
    ) -> Vec<[Socket; 2]> {
        let (now, stopped, resumes) = (Instant::now(), instance.control().paused.get() != 0, self.suspension.is_active());
        let mut histories = HashMap::with_capacity(self.histories.len());
        let (mut ready, mut comes_back) = (Vec::new(), false);
        for [a, b] in connections(all) {
            let netns = [a.end.netns, b.end.netns];
            let wanted = Wanted { pause: self.suspension.reason(netns), resumes, apart: apart(netns), stopped };
            let snapshot = Snapshot { ends: [&a.end, &b.end], profiling, wanted, now };
            let history = self.histories.get(&a.end.cookie).copied().unwrap_or_default();
            let (history, actions) = decide::decide(history, &snapshot);
            histories.insert(a.end.cookie, history);
            comes_back |= decide::comes_back(&snapshot);
            let ends = [a.socket(), b.socket()];
            for action in actions {
                match action {
                    Action::OrderIn => ready.push(ends),
                    action => instance.ends.apply(ends, action),
                }
            }
        }
        self.histories = histories;
        self.suspension.looked(comes_back);
        ready
    }
}
