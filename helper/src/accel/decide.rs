//! What is to be done with a connection next: one decision, by what the kernel's side knows of it and what user space wants. Pure;
//! `memory/ends.rs` carries it out.

use std::time::{Duration, Instant};

use sockpath_bpf::accel::types::accel_pass;

use super::connection::{End, MOST_PER_TURN, NONE, Profiling, State, is_refused, reason};

/// A connection that sent less by TCP since the last look is not judged by it.
const JUDGED_BYTES: u64 = 256 << 10;

/// Passes for a reason that does not go away by itself before the connection leaves.
const PERSISTENT: u32 = 16;

/// Reasons that do not go away at all: a wrong wake-up of a reader may follow (completions of MSG_ZEROCOPY), or plaintext.
const AT_ONCE: [accel_pass; 2] = [accel_pass::ACCEL_ULP, accel_pass::ACCEL_ZEROCOPY];

/// Reasons of the verdict that do not go away by themselves.
const LASTING: [accel_pass; 6] = [
    accel_pass::ACCEL_ULP,
    accel_pass::ACCEL_ZEROCOPY,
    accel_pass::ACCEL_RCVLOWAT,
    accel_pass::ACCEL_UNACCOUNTED,
    accel_pass::ACCEL_URGENT,
    accel_pass::ACCEL_BLOCKING,
];

/// Reasons that a request takes back.
const PASSING: [accel_pass; 3] = [accel_pass::ACCEL_POLICY, accel_pass::ACCEL_UNCHOSEN, accel_pass::ACCEL_LIMITED];

/// How long a connection for which TCP was faster stays with TCP, the first time and at most.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What user space wants of a connection that its own facts do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// It has to go by TCP for the time being, for this reason.
    pub pause: Option<accel_pass>,
    /// Requests to pause and to resume are carried out: connections that one has taken out come back when none keeps them out. A process
    /// that takes over does not know the requests of the one before it, and leaves those as they are until it gets one itself.
    pub resumes: bool,
    /// Its ends are on different nodes.
    pub apart: bool,
    /// The acceleration is being ended.
    pub stopped: bool,
}

/// All that a decision depends on, but for what is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// What is known of both ends.
    pub ends: [&'a End; 2],
    /// What has to be observed before it goes into the map.
    pub profiling: &'a Profiling,
    /// What user space wants.
    pub wanted: Wanted,
    /// When this was so.
    pub now: Instant,
}

/// How a connection did up to a look.
#[derive(Debug, Clone, Copy)]
struct Look {
    bytes: u64,
    pass_bytes: u64,
    reads: [u64; 2],
    over_budget: u32,
    at: Instant,
}

/// What is remembered of a connection from one decision to the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct History {
    look: Option<Look>,
    /// Until when it stays with TCP, and how often that was so: TCP was faster.
    backoff: Option<(Instant, u32)>,
}

/// Something to be done, in the order given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Order both ends into the map, or none.
    OrderIn,
    /// Force both writers to TCP and order both ends out of the map, for this reason.
    OrderOut(accel_pass),
    /// The same for one end that is in the map without the other; the reason is noted already.
    TakeBack,
    /// Keep it out of the map, for this reason.
    KeepOut(accel_pass),
    /// Its writers may do without TCP again: both ends have left.
    Release,
    /// Nothing keeps it out any more; its readers are profiled afresh.
    LetBack,
}

/// What is remembered from now on, and what has to be done.
#[must_use]
pub fn decide(history: History, now: &Snapshot<'_>) -> (History, Vec<Action>) {
    let look = Look::of(now);
    let mut after = History { look: Some(look), ..history };
    let actions = match State::of(now.ends) {
        State::Leaving(_) => Vec::new(),
        State::Half => vec![Action::TakeBack],
        State::Inserted => match judge(now.ends, history.look.as_ref(), &look).or(now.wanted.pause) {
            Some(why) => {
                if why == accel_pass::ACCEL_SLOWER {
                    after.backoff = Some(back_off(history.backoff, now.now));
                }
                vec![Action::OrderOut(why)]
            }
            None => Vec::new(),
        },
        State::Left(_) => std::iter::once(Action::Release).chain(outside(&history, now, &look)).collect(),
        State::Out(_) | State::Refused | State::Tracked => outside(&history, now, &look).into_iter().collect(),
    };
    (after, actions)
}

/// Whether it will be let back when it is out, unless something else comes.
#[must_use]
pub fn comes_back(now: &Snapshot<'_>) -> bool {
    let leaves = matches!(State::of(now.ends), State::Leaving(why) if PASSING.contains(&why));
    leaves && now.wanted.pause.is_none()
}

/// What to do with a connection that has no end in the map.
fn outside(history: &History, now: &Snapshot<'_>, look: &Look) -> Option<Action> {
    let why = reason(now.ends);
    let is_held = now.ends.iter().any(|end| end.hold != 0);
    if why == NONE && now.wanted.apart {
        return Some(Action::KeepOut(accel_pass::ACCEL_OTHER_NODE));
    }
    match now.wanted.pause {
        // Unless something lasting keeps it out anyway.
        Some(pause) => ((why == NONE || why == accel_pass::ACCEL_SLOWER) && !is_refused(now.ends)).then_some(Action::KeepOut(pause)),
        None if why == accel_pass::ACCEL_SLOWER => {
            let is_over = history.backoff.is_none_or(|(until, _)| now.now >= until);
            let is_faster = history.look.is_some_and(|before| converses(&before, look));
            (!is_held && is_over && is_faster).then_some(Action::LetBack)
        }
        None if PASSING.contains(&why) => now.wanted.resumes.then_some(Action::LetBack),
        None => (!now.wanted.stopped && now.profiling.is_ready(now.ends)).then_some(Action::OrderIn),
    }
}

/// The next time that a connection stays with TCP for: twice as long as the last one.
fn back_off(before: Option<(Instant, u32)>, now: Instant) -> (Instant, u32) {
    let times = before.map_or(0, |(_, times)| times.saturating_add(1));
    let length = FIRST_BACKOFF.saturating_mul(1 << times.min(5)).min(LONGEST_BACKOFF);
    (now + length, times)
}

/// Why a connection has to leave the map, if so.
fn judge(ends: [&End; 2], before: Option<&Look>, now: &Look) -> Option<accel_pass> {
    if let Some(why) = ends.iter().find_map(|reader| reader.unsupported()) {
        return Some(why);
    }
    let persists = |writer: &&End| {
        let why = writer.last_pass;
        writer.fast == 0 && LASTING.contains(&why) && (AT_ONCE.contains(&why) || writer.as_the_last >= PERSISTENT)
    };
    if let Some(writer) = ends.into_iter().find(persists) {
        return Some(writer.last_pass);
    }
    // TCP below a socket in a sockmap is slower than TCP alone: a connection that mostly goes by TCP is better off outside.
    let before = before?;
    let by_tcp = now.pass_bytes.wrapping_sub(before.pass_bytes);
    let redirected = now.bytes.wrapping_sub(before.bytes);
    let turns = [0, 1].map(|i| now.reads[i].wrapping_sub(before.reads[i])).into_iter().min().unwrap_or(0);
    // A spill over the budget makes the reader cross between two queues, and holds TCP up: not twice.
    let spills = now.over_budget != before.over_budget;
    let streams = redirected >= 4 * MOST_PER_TURN && redirected / turns.max(1) > MOST_PER_TURN;
    let is_slower = spills || streams || by_tcp >= JUDGED_BYTES && by_tcp > redirected / 2;
    is_slower.then_some(accel_pass::ACCEL_SLOWER)
}

impl Look {
    fn of(now: &Snapshot<'_>) -> Self {
        let [a, b] = now.ends;
        Self {
            bytes: a.bytes + b.bytes,
            pass_bytes: a.pass_bytes + b.pass_bytes,
            reads: [a.reads, b.reads],
            over_budget: a.over_budget.wrapping_add(b.over_budget),
            at: now.now,
        }
    }
}

/// Whether both sides read in turn since the last look, as requests and answers do.
fn converses(before: &Look, now: &Look) -> bool {
    let [a, b] = [0, 1].map(|i| now.reads[i].wrapping_sub(before.reads[i]));
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let turns = a.min(b);
    turns as f64 >= 20.0 * seconds && turns >= 2 && a.max(b) <= turns.saturating_mul(4)
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
