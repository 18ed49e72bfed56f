//! Single decisions, and a model: a kernel of one connection to which everything happens in random order.

use super::*;

const QUIET: Snapshot = Snapshot {
    epoch: 1,
    passed: false,
    ended: false,
    paused: false,
    active: false,
    asked: Duration::ZERO,
    ask_every: Duration::from_secs(10),
    tracking: Tracking::NotAsked,
};
const SOUND: Tracking = Tracking::Entry { sound: true, refusal: None, liberal: true, aged: true };
const ARMED: State = State::Armed { epoch: 1 };

#[test]
fn the_stack_approves_first() {
    assert_eq!(decide(State::Watched, &QUIET), (State::Watched, Vec::new()));
    let passed = Snapshot { passed: true, ..QUIET };
    assert_eq!(decide(State::Watched, &passed), (State::Watched, vec![Action::Ask]));
    let fresh = Tracking::Entry { sound: true, refusal: None, liberal: false, aged: false };
    let answer = Snapshot { tracking: fresh, ..passed };
    assert_eq!(decide(State::Watched, &answer), (ARMED, vec![Action::MakeLiberal, Action::Arm(1)]));
    let young = Snapshot { tracking: Tracking::Entry { sound: false, refusal: None, liberal: false, aged: false }, ..passed };
    assert_eq!(decide(State::Watched, &young), (State::Watched, Vec::new()));
}

#[test]
fn a_change_sends_it_back_to_the_stack() {
    assert_eq!(decide(ARMED, &Snapshot { epoch: 2, ..QUIET }), (State::Watched, vec![Action::Disarm]));
    assert_eq!(decide(ARMED, &Snapshot { paused: true, ..QUIET }), (State::Watched, vec![Action::Disarm]));
    assert_eq!(decide(ARMED, &Snapshot { ended: true, ..QUIET }), (State::Removed, vec![Action::Disarm, Action::Remove]));
}

#[test]
fn the_entry_is_refreshed_while_packets_come_and_followed_when_it_goes() {
    let due = Snapshot { asked: Duration::from_secs(10), active: true, ..QUIET };
    assert_eq!(decide(ARMED, &due), (ARMED, vec![Action::Ask]));
    assert_eq!(decide(ARMED, &Snapshot { tracking: SOUND, ..due }), (ARMED, vec![Action::Refresh]));
    assert_eq!(decide(ARMED, &Snapshot { tracking: SOUND, active: false, ..due }), (ARMED, Vec::new()));
    let young = Tracking::Entry { sound: true, refusal: None, liberal: true, aged: false };
    assert_eq!(decide(ARMED, &Snapshot { tracking: young, ..due }), (ARMED, Vec::new()));
    let gone = Snapshot { tracking: Tracking::Gone, ..due };
    assert_eq!(decide(ARMED, &gone), (State::Removed, vec![Action::Disarm, Action::Remove]));
}

/// A connection in a kernel, as far as the short path touches it.
#[derive(Debug, Default)]
struct Kernel {
    epoch: u32,
    entry: Option<Model>,
    installed: bool,
    armed: u32,
    passed_in: u32,
    ended: bool,
    refused: bool,
    paused: bool,
    active: bool,
    asked_ago: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Model {
    sound: bool,
    liberal: bool,
    /// Seconds without a packet through the stack, or a refresh.
    age: u64,
}

/// Seconds after which an entry expires.
const EXPIRES: u64 = 12;

impl Kernel {
    fn snapshot(&self, tracking: Tracking) -> Snapshot {
        Snapshot {
            epoch: self.epoch,
            passed: self.installed && self.passed_in == self.epoch,
            ended: self.ended,
            paused: self.paused,
            active: self.active,
            asked: Duration::from_secs(self.asked_ago),
            ask_every: Duration::from_secs(3),
            tracking,
        }
    }

    fn answer(&self) -> Tracking {
        let refusal = self.refused.then_some(Reason::ForeignProgram);
        self.entry.map_or(Tracking::Gone, |e| Tracking::Entry { sound: e.sound, refusal, liberal: e.liberal, aged: e.age > 0 })
    }

    /// Whether a packet would be redirected: what the programs check.
    fn redirects(&self) -> bool {
        self.installed && !self.ended && self.armed == self.epoch && self.entry.is_some_and(|e| e.sound)
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Ask => {}
            Action::Install => {
                self.installed = true;
                (self.armed, self.passed_in, self.ended) = (0, 0, false);
            }
            Action::MakeLiberal => self.entry.iter_mut().for_each(|e| e.liberal = true),
            Action::Arm(epoch) => {
                let entry = self.entry.expect("armed without an entry");
                assert!(entry.sound && entry.liberal, "armed too early: {self:?}");
                assert!(self.installed && self.passed_in == epoch && epoch == self.epoch, "armed without approval: {self:?}");
                assert!(!self.paused && !self.refused && !self.ended, "armed in spite of a reason: {self:?}");
                self.armed = epoch;
            }
            Action::Disarm => self.armed = 0,
            Action::Refresh => {
                self.entry.as_mut().expect("nothing to refresh").age = 0;
                self.active = false;
            }
            Action::Remove => (self.installed, self.armed) = (false, 0),
        }
    }

    fn apply_all(&mut self, actions: Vec<Action>) {
        let changes_entry = |action: &Action| matches!(action, Action::MakeLiberal | Action::Refresh);
        assert!(!actions.iter().skip(1).any(changes_entry), "an entry is changed before anything else is done: {actions:?}");
        actions.into_iter().for_each(|action| self.apply(action));
    }

    fn step(&mut self, mut state: State) -> State {
        for _ in 0..3 {
            let (next, actions) = decide(state, &self.snapshot(Tracking::NotAsked));
            state = next;
            if actions == [Action::Ask] {
                let snapshot = self.snapshot(self.answer());
                let (next, actions) = decide(state, &snapshot);
                assert!(!actions.contains(&Action::Ask), "asked twice");
                (state, self.asked_ago) = (next, 0);
                self.apply_all(actions);
            } else {
                self.apply_all(actions);
            }
        }
        state
    }

    /// Something happens.
    fn happen(&mut self, what: u64) {
        match what {
            0 => self.epoch += 1,
            1 => self.entry = None,
            // A new entry comes from a packet that took the stack, because the programs missed the old one and ended the flow.
            2 if self.entry.is_none() => {
                self.ended |= self.armed == self.epoch;
                self.entry = Some(Model { sound: true, liberal: false, age: 0 });
            }
            3 => self.entry.iter_mut().for_each(|e| e.sound = !e.sound),
            4 => self.refused = !self.refused,
            5 => self.paused = !self.paused,
            6 => self.ended |= self.installed,
            7 => {
                self.asked_ago += 2;
                self.entry.iter_mut().for_each(|e| e.age += 2);
                if self.entry.is_some_and(|e| e.age >= EXPIRES) {
                    assert!(!(self.redirects() && self.active), "expired under traffic: {self:?}");
                    self.entry = None;
                }
            }
            // Most of the time packets pass.
            _ if self.redirects() => self.active = true,
            _ if self.installed && self.entry.is_some() => {
                self.passed_in = self.epoch;
                self.entry.iter_mut().for_each(|e| e.age = 0);
            }
            _ => {}
        }
    }
}

#[test]
fn no_sequence_of_events_redirects_what_was_not_approved() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut armed = 0;
    for sequence in 0..20_000 {
        let mut kernel = Kernel { epoch: 1, installed: true, entry: Some(Model { sound: true, ..Model::default() }), ..Kernel::default() };
        let mut state = State::Watched;
        for _ in 0..40 {
            kernel.happen(random(24));
            state = kernel.step(state);
            armed += u32::from(kernel.redirects());
            match state {
                State::Armed { epoch } => assert!(kernel.installed && kernel.armed == epoch, "sequence {sequence}: {kernel:?}"),
                State::Watched => assert!(kernel.installed && !kernel.redirects(), "sequence {sequence}: {kernel:?}"),
                State::Refused(_) | State::Removed => assert!(!kernel.installed, "sequence {sequence}: {kernel:?}"),
            }
            if state == State::Removed {
                break;
            }
            assert!(!kernel.redirects() || kernel.entry.is_some_and(|e| e.liberal), "sequence {sequence}: {kernel:?}");
        }
    }
    assert!(armed > 10_000, "the model hardly ever redirects: {armed}");
}
