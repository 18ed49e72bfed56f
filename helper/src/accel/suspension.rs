//! Pods whose pairs go by TCP because somebody asked for it.

use std::collections::HashMap;

use sockpath_bpf::accel::types::{accel_pass, accel_state};
use sockpath_protocol::accel::PauseReason;

use super::connections::{self, Known, peer_of};
use super::instance::Instance;

/// How the programs' table of reasons has this one.
pub fn pass(reason: PauseReason) -> accel_pass {
    match reason {
        PauseReason::NetworkPolicy => accel_pass::ACCEL_POLICY,
    }
}

/// Reasons that a request takes back.
const PASSING: [accel_pass; 3] = [accel_pass::ACCEL_POLICY, accel_pass::ACCEL_UNCHOSEN, accel_pass::ACCEL_LIMITED];

/// The paused pods, by the inode of their network namespace, and why.
#[derive(Debug, Default)]
pub struct Suspension {
    paused: HashMap<u32, Vec<accel_pass>>,
    /// Somebody resumed since the last look.
    resumed: bool,
}

impl Suspension {
    /// Begins to keep these pods' pairs on TCP; takes effect at the next [`Suspension::apply`].
    pub fn pause(&mut self, netns: Vec<u32>, why: accel_pass) {
        for n in netns {
            let reasons = self.paused.entry(n).or_default();
            if !reasons.contains(&why) {
                reasons.push(why);
            }
        }
    }

    /// Lets them go again, as far as this reason is concerned.
    pub fn resume(&mut self, netns: &[u32], why: accel_pass) {
        for n in netns {
            let Some(reasons) = self.paused.get_mut(n) else { continue };
            reasons.retain(|r| *r != why);
            if reasons.is_empty() {
                self.paused.remove(n);
                self.resumed = true;
            }
        }
    }

    /// Makes these the pods whose packets a limit or filter at their device has to see.
    pub fn limit(&mut self, netns: Vec<u32>) {
        let why = accel_pass::ACCEL_LIMITED;
        let limited = self.paused.iter().filter(|(_, reasons)| reasons.contains(&why));
        let over: Vec<u32> = limited.map(|(n, _)| *n).filter(|n| !netns.contains(n)).collect();
        self.resume(&over, why);
        self.pause(netns, why);
    }

    /// Orders the paused pairs out and keeps them out; lets those back that nobody keeps any more.
    pub fn apply(&mut self, instance: &Instance) {
        if self.paused.is_empty() && !self.resumed {
            return;
        }
        let all = connections::known(instance);
        let mut leaving = false;
        for a in &all {
            let Some(b) = peer_of(&all, a).filter(|b| a.slot < b.slot) else { continue };
            let out = is_out(a) && is_out(b);
            match self.verdict(a, b) {
                Some(why) if out => keep_out(instance, a, b, why),
                Some(why) if a.end.hold == 0 => instance.ends.order_out([a.socket(), b.socket()], why),
                // On its way out; if for a reason that passes, this one is noted when it is there.
                Some(_) => {}
                None if !PASSING.contains(&a.end.left) => {}
                None if out && a.end.hold == 0 => instance.ends.let_back([a.socket(), b.socket()]),
                // It comes back when it is out.
                None => leaving = true,
            }
        }
        self.resumed = leaving;
    }

    fn verdict(&self, a: &Known, b: &Known) -> Option<accel_pass> {
        [a, b].iter().find_map(|k| self.paused.get(&k.end.netns)?.first()).copied()
    }
}

fn is_out(k: &Known) -> bool {
    k.end.state == accel_state::ACCEL_WATCHED
}

/// Notes why a pair stays out, unless something lasting keeps it out anyway.
fn keep_out(instance: &Instance, a: &Known, b: &Known, why: accel_pass) {
    if may_come_back(a) && may_come_back(b) {
        instance.ends.keep_out([a.socket(), b.socket()], why);
    }
}

/// Whether nothing lasting keeps this end out.
fn may_come_back(k: &Known) -> bool {
    k.end.result == 0 && (k.end.left.0 == 0 || k.end.left == accel_pass::ACCEL_SLOWER)
}
