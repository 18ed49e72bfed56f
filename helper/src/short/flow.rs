//! The life of a connection on the short path: its states, and what is to be done next. Pure; `path.rs` does it.

use std::time::Duration;

use sockpath_protocol::accel::Reason;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not fit, or no longer tracked as it has to be: conntrack is queried about it again from time to time.
    Refused(Reason),
    /// The programs know it; its packets take the stack until that has passed both directions.
    Watched,
    /// Its packets may be redirected for as long as this epoch lasts.
    Armed {
        /// The epoch of its approval.
        epoch: u32,
    },
    /// Nothing in the kernel refers to it any more.
    Removed,
}

/// What connection tracking says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// It was not asked.
    NotAsked,
    /// There is no such entry, or another with the same addresses.
    Gone,
    /// The entry is there.
    Entry {
        /// ESTABLISHED and ASSURED.
        sound: bool,
        /// Why it may not use the short path, if so.
        refusal: Option<Reason>,
        /// Packets outside its windows are let through.
        liberal: bool,
        /// It expires noticeably sooner than after a packet through the stack.
        aged: bool,
    },
}

/// All that a decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The current epoch.
    pub epoch: u32,
    /// The stack has passed packets of both directions in the current epoch.
    pub passed: bool,
    /// The programs saw it end.
    pub ended: bool,
    /// It has to take the stack for the time being.
    pub paused: bool,
    /// Packets were redirected since the entry was refreshed last.
    pub active: bool,
    /// Time since connection tracking was asked.
    pub asked: Duration,
    /// How often it is to be asked.
    pub ask_every: Duration,
    /// Its answer.
    pub tracking: Tracking,
}

/// Something to be done, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask connection tracking, then decide again.
    Ask,
    /// Make the programs know it.
    Install,
    /// Let the entry accept packets outside its windows: it will not see all of them.
    MakeLiberal,
    /// Let its packets be redirected in this epoch.
    Arm(u32),
    /// Let them take the stack.
    Disarm,
    /// Put off the entry's expiry: it does not see the packets that would.
    Refresh,
    /// Take it out of the programs' maps.
    Remove,
}

/// The next state, and what has to be done to get there.
#[must_use]
pub fn decide(state: State, now: &Snapshot) -> (State, Vec<Action>) {
    match state {
        State::Removed => (State::Removed, Vec::new()),
        State::Refused(reason) => reconsider(reason, now),
        _ if now.ended => (State::Removed, vec![Action::Disarm, Action::Remove]),
        State::Watched => approve(now),
        State::Armed { epoch } if epoch != now.epoch || now.paused => (State::Watched, vec![Action::Disarm]),
        State::Armed { .. } => look_after(state, now),
    }
}

fn due(now: &Snapshot) -> bool {
    now.asked >= now.ask_every
}

fn reconsider(reason: Reason, now: &Snapshot) -> (State, Vec<Action>) {
    match now.tracking {
        Tracking::NotAsked if due(now) => (State::Refused(reason), vec![Action::Ask]),
        Tracking::NotAsked => (State::Refused(reason), Vec::new()),
        Tracking::Gone => (State::Removed, Vec::new()),
        Tracking::Entry { refusal: Some(reason), .. } => (State::Refused(reason), Vec::new()),
        Tracking::Entry { sound: false, .. } => (State::Refused(Reason::NotTracked), Vec::new()),
        Tracking::Entry { .. } => (State::Watched, vec![Action::Install]),
    }
}

fn approve(now: &Snapshot) -> (State, Vec<Action>) {
    let ready = now.passed && !now.paused;
    match now.tracking {
        Tracking::NotAsked if ready || due(now) => (State::Watched, vec![Action::Ask]),
        Tracking::NotAsked => (State::Watched, Vec::new()),
        Tracking::Gone => (State::Removed, vec![Action::Disarm, Action::Remove]),
        Tracking::Entry { refusal: Some(reason), .. } => (State::Refused(reason), vec![Action::Disarm, Action::Remove]),
        Tracking::Entry { sound: true, liberal, .. } if ready => {
            let make_liberal = (!liberal).then_some(Action::MakeLiberal);
            (State::Armed { epoch: now.epoch }, make_liberal.into_iter().chain([Action::Arm(now.epoch)]).collect())
        }
        Tracking::Entry { .. } => (State::Watched, Vec::new()),
    }
}

fn look_after(state: State, now: &Snapshot) -> (State, Vec<Action>) {
    match now.tracking {
        Tracking::NotAsked if due(now) => (state, vec![Action::Ask]),
        Tracking::NotAsked => (state, Vec::new()),
        Tracking::Gone => (State::Removed, vec![Action::Disarm, Action::Remove]),
        Tracking::Entry { refusal: Some(reason), .. } => (State::Refused(reason), vec![Action::Disarm, Action::Remove]),
        Tracking::Entry { sound: false, .. } => (State::Watched, vec![Action::Disarm]),
        Tracking::Entry { liberal: false, .. } => (State::Watched, vec![Action::Disarm]),
        Tracking::Entry { aged: true, .. } if now.active => (state, vec![Action::Refresh]),
        Tracking::Entry { .. } => (state, Vec::new()),
    }
}

#[cfg(test)]
mod tests;
