//! Pods whose connections go by TCP because of a request.

use std::collections::HashMap;

use sockpath_bpf::accel::types::accel_pass;
use sockpath_protocol::accel::PauseReason;

/// How the programs' table of reasons has this one.
pub fn pass(reason: PauseReason) -> accel_pass {
    match reason {
        PauseReason::NetworkPolicy => accel_pass::ACCEL_POLICY,
    }
}

/// The paused pods, by the inode of their network namespace, and why.
#[derive(Debug, Default)]
pub struct Suspension {
    paused: HashMap<u32, Vec<accel_pass>>,
    /// A pod was resumed, and not all of its connections are back.
    resumed: bool,
}

impl Suspension {
    /// Begins to keep these pods' connections on TCP.
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

    /// Whether there are requests to carry out.
    pub fn is_active(&self) -> bool {
        !self.paused.is_empty() || self.resumed
    }

    /// Why a connection between these two has to go by TCP.
    pub fn reason(&self, netns: [u32; 2]) -> Option<accel_pass> {
        netns.iter().find_map(|n| self.paused.get(n)?.first()).copied()
    }

    /// All connections were looked at; `comes_back` says whether one of them is still to come back.
    pub fn looked(&mut self, comes_back: bool) {
        if self.is_active() {
            self.resumed = comes_back;
        }
    }
}
