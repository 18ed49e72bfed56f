//! The connections of an instance: pairing their ends, and ordering them into the map and out of it.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_control, accel_end, accel_flag, accel_order, accel_pass, accel_state};

use super::instance::{Instance, LEARN_READS};
use super::matching::{self, Identity};
use super::shared::{Ends, field};

/// What was seen at one end that keeps a pair out of the map, and the reason that is told; the gravest first.
const PECULIARITIES: [(accel_flag, accel_pass); 8] = [
    (accel_flag::ACCEL_SAW_WAITALL, accel_pass::ACCEL_WAITALL),
    (accel_flag::ACCEL_SAW_SPLICE, accel_pass::ACCEL_SPLICE),
    (accel_flag::ACCEL_SAW_ASLEEP, accel_pass::ACCEL_BLOCKING),
    (accel_flag::ACCEL_SAW_OOB, accel_pass::ACCEL_URGENT),
    (accel_flag::ACCEL_SAW_FIONREAD, accel_pass::ACCEL_FIONREAD),
    (accel_flag::ACCEL_PROGRAM_ASKS, accel_pass::ACCEL_FIONREAD),
    (accel_flag::ACCEL_SAW_TWO_TASKS, accel_pass::ACCEL_TWO_TASKS),
    (accel_flag::ACCEL_PROGRAM_UNPROVEN, accel_pass::ACCEL_UNPROVEN),
];

/// Bytes for each turn of a conversation above which TCP carries them at least as fast: a writer that is ahead of its reader
/// fills the budget, and TCP moves large pieces, or pages of files, without the copy a redirect makes.
pub const MOST_PER_TURN: u64 = 256 << 10;

/// Declares what is looked at of every socket many times a second, and how it is read: a copy of everything would be four times as
/// much memory to go through, which is felt with ten thousand connections.
macro_rules! standing {
    ($($name:ident: $type:ty),* $(,)?) => {
        /// Fields of `accel_end`, which says what they mean.
        #[allow(missing_docs)]
        #[derive(Debug, Clone, Copy)]
        pub struct Standing {
            $(pub $name: $type,)*
        }

        impl Standing {
            fn read(ends: &Ends, slot: usize) -> Option<Self> {
                Some(Self { $($name: ends.read(slot, field!($name))?,)* })
            }
        }
    };
}

standing! {
    cookie: u64,
    peer_cookie: u64,
    reads: u64,
    taken: u64,
    messages: u64,
    bytes: u64,
    pass_bytes: u64,
    netns: u32,
    peer: u32,
    hold: u32,
    left: accel_pass,
    state: accel_state,
    result: i32,
    spilled: u32,
    learned: u32,
    lesson: u32,
    polled: u32,
    flags: u32,
    fast: u32,
    last_pass: accel_pass,
    reader: u64,
    judged: u64,
}

/// A known socket at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its slot.
    pub slot: usize,
    /// How it stands.
    pub end: Standing,
    /// Where in the list its peer is, if that is still there.
    peer_at: Option<u32>,
}

impl Known {
    /// Whether this was seen of it.
    pub fn has(&self, flag: accel_flag) -> bool {
        self.end.flags & flag.0 != 0
    }

    /// Whether its program is known and was judged.
    pub fn is_judged(&self) -> bool {
        self.end.reader != 0 && self.end.judged == self.end.reader
    }

    /// What was seen of it that keeps its pair out of the map.
    pub fn peculiarity(&self) -> Option<accel_pass> {
        PECULIARITIES.iter().find(|(flag, _)| self.has(*flag)).map(|(_, why)| *why)
    }
}

/// All known sockets, by slot.
pub fn known(instance: &Instance) -> Vec<Known> {
    let used = instance.used();
    let mut all: Vec<Known> = Vec::new();
    let mut places: Vec<Option<u32>> = vec![None; used];
    for (slot, place) in places.iter_mut().enumerate() {
        if instance.ends.read(slot, field!(cookie)).is_some_and(|c| c != 0)
            && let Some(end) = Standing::read(&instance.ends, slot).filter(|end| end.cookie != 0)
        {
            *place = u32::try_from(all.len()).ok();
            all.push(Known { slot, end, peer_at: None });
        }
    }
    for i in 0..all.len() {
        let Standing { peer, peer_cookie, .. } = all[i].end;
        if peer_cookie != 0 {
            let place = places.get(peer as usize).copied().flatten();
            let is_mutual = |peer: &Standing| peer.cookie == peer_cookie && peer.peer_cookie == all[i].end.cookie;
            all[i].peer_at = place.filter(|&at| is_mutual(&all[at as usize].end));
        }
    }
    all
}

/// Messages that this end sent by TCP for one reason.
pub fn passes(instance: &Instance, k: &Known, why: accel_pass) -> u32 {
    let offset = why.0 as usize;
    instance.ends.read(k.slot, field!(passes)).and_then(|passes| passes.get(offset).copied()).unwrap_or(0)
}

/// The peer of one of `all`, if it is still there.
pub fn peer_of<'a>(all: &'a [Known], known: &Known) -> Option<&'a Known> {
    all.get(known.peer_at? as usize)
}

/// Notes calls that were observed on sockets no receive call returned from since.
pub fn note_peculiar(instance: &Instance) -> Result<()> {
    let observed = instance.peculiar()?;
    if observed.is_empty() {
        return Ok(());
    }
    for slot in 0..instance.used() {
        let Some(seen) = instance.ends.read(slot, field!(cookie)).and_then(|cookie| observed.get(&cookie)) else { continue };
        instance.ends.or(slot, field!(flags), *seen);
    }
    Ok(())
}

/// Notes the peers of sockets that have none yet. Returns the cookies of those whose match is not unique.
pub fn pair(instance: &Instance) -> HashSet<u64> {
    let is_single = |slot: &usize| {
        instance.ends.read(*slot, field!(cookie)).is_some_and(|c| c != 0) && instance.ends.read(*slot, field!(peer_cookie)) == Some(0)
    };
    let single: Vec<Identity> = (0..instance.used())
        .filter(is_single)
        .filter_map(|slot| instance.ends.get(slot).map(|end| Identity::of(slot, &end)))
        .filter(|identity| identity.cookie != 0)
        .collect();
    let matches = matching::find(&single);
    for &(a, b) in &matches.pairs {
        let (a, b) = (&single[a], &single[b]);
        // The slot of a connection that has closed since may be another's.
        if [a, b].iter().any(|end| instance.ends.read(end.slot, field!(cookie)) != Some(end.cookie)) {
            continue;
        }
        for (end, peer) in [(a, b), (b, a)] {
            instance.ends.set(end.slot, field!(peer), u32::try_from(peer.slot).unwrap_or(u32::MAX));
            instance.ends.set(end.slot, field!(peer_cookie), peer.cookie);
        }
    }
    matches.ambiguous.iter().map(|&i| single[i].cookie).collect()
}

/// Gives an order to the socket with this cookie. Its slot may have another socket by now, for which the order means nothing.
fn order(instance: &Instance, slot: usize, cookie: u64, what: accel_order) {
    instance.ends.set(slot, field!(ordered), cookie);
    instance.ends.set(slot, field!(order), what);
}

/// Orders pairs of `all` into the map whose readers are known well enough; both ends or none.
pub fn enrol(instance: &Instance, all: &[Known]) -> Result<usize> {
    let Some(lesson) = Lesson::of(instance) else { return Ok(0) };
    let mut ordered = Vec::new();
    // `all` may be older than what was decided since.
    let stays_out = |k: &Known| {
        let read = |f: fn(*mut accel_end) -> *mut u32| instance.ends.read(k.slot, f);
        read(field!(hold)) != Some(0) || instance.ends.read(k.slot, field!(left)) != Some(accel_pass(0))
    };
    for k in all {
        let Some(peer) = peer_of(all, k) else { continue };
        if k.slot < peer.slot && is_ready(k, peer, &lesson) && !stays_out(k) && !stays_out(peer) {
            for k in [k, peer] {
                order(instance, k.slot, k.end.cookie, accel_order::ACCEL_ENROL);
                ordered.push(k);
            }
        }
    }
    if ordered.is_empty() {
        return Ok(0);
    }
    instance.insert_ordered()?;
    // A lone end would only make its own writes slower.
    let mut lone = false;
    for pair in ordered.chunks_exact(2) {
        let enrolled = |k: &Known| instance.ends.read(k.slot, field!(state)) == Some(accel_state::ACCEL_ENROLLED);
        for (k, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            if enrolled(k) && !enrolled(other) {
                order(instance, k.slot, k.end.cookie, accel_order::ACCEL_REMOVE);
                lone = true;
            }
        }
    }
    if lone {
        instance.look()?;
    }
    Ok(ordered.len() / 2)
}

/// Whether counting the calls of this one's readers may bring its pair into the map.
pub fn is_undecided(all: &[Known], k: &Known) -> bool {
    peer_of(all, k).is_some_and(|peer| is_fresh(k) && is_fresh(peer) && !streams(k, peer))
}

/// Whether nothing keeps this end out of the map.
fn is_fresh(k: &Known) -> bool {
    let end = &k.end;
    end.state == accel_state::ACCEL_WATCHED && end.result == 0 && end.hold == 0 && end.left.0 == 0 && k.peculiarity().is_none()
}

/// Whether a side read often enough for short connections to cost nothing, and what is read goes in turns that redirection
/// makes faster. Connections that were open before are not short.
fn converses(a: &Known, b: &Known) -> bool {
    let open_before = [a, b].iter().all(|k| k.has(accel_flag::ACCEL_LIVE));
    // Who reads the other way may do so by splice(2), and has to be observed for that to be known. A stream whose reader says nothing is
    // not made slower by being observed.
    let in_turns = a.end.reads.min(b.end.reads) > 0 || [a, b].iter().any(|k| k.has(accel_flag::ACCEL_ANSWERED));
    (reads_often(a, b) && in_turns || open_before) && bytes_per_turn(a, b) <= MOST_PER_TURN
}

/// Whether a pair is left alone because it moves much in one direction and little in turns.
pub fn streams(a: &Known, b: &Known) -> bool {
    reads_often(a, b) && bytes_per_turn(a, b) > MOST_PER_TURN
}

/// One of them is enough.
fn reads_often(a: &Known, b: &Known) -> bool {
    a.end.reads.max(b.end.reads) >= u64::from(LEARN_READS)
}

/// Bytes that were read for each time that the side which reads less often has read.
fn bytes_per_turn(a: &Known, b: &Known) -> u64 {
    (a.end.taken + b.end.taken) / a.end.reads.min(b.end.reads).max(1)
}

/// The lesson that goes on, and how many receive calls observed in it tell how a socket is read.
#[derive(Debug, Clone, Copy)]
pub struct Lesson {
    /// 0 when there is none.
    number: u32,
    reads: u32,
    /// How often the reader has to have been seen in poll where its calls may sleep, and that matters.
    polls: u32,
    /// Whether programs that may ask FIONREAD stay out.
    judges_programs: bool,
    /// Whether all programs but some stay out, so that nothing is observed of a pair before both of its programs are known.
    selective: bool,
}

impl Lesson {
    /// `None` when the instance tells nothing.
    pub fn of(instance: &Instance) -> Option<Self> {
        let read = |f: fn(*mut accel_control) -> *mut u32| instance.control.read(0, f);
        let reads = read(field!(learn_reads))?;
        let polls = if read(field!(leave_blocking))? != 0 { read(field!(learn_polls))? } else { 0 };
        let selective = read(field!(selective))? != 0;
        let judges_programs = selective || read(field!(fionread_lies))? != 0;
        Some(Self { number: read(field!(observing))?, reads, polls, judges_programs, selective })
    }

    /// Whether this pair may go into the map once its readers are known, and may be observed for that.
    pub fn is_candidate(&self, a: &Known, b: &Known) -> bool {
        is_fresh(a) && is_fresh(b) && converses(a, b) && (!self.selective || a.is_judged() && b.is_judged())
    }

    /// The variant without the order gate learns nothing, and takes everything.
    fn takes_all(&self) -> bool {
        self.reads < LEARN_READS
    }

    /// Whether enough calls of this reader were observed: in one lesson, unless it is in the map already. Its program has to be known,
    /// too, where that matters.
    pub fn is_learned(&self, k: &Known) -> bool {
        let counts = k.end.lesson == self.number || k.end.state == accel_state::ACCEL_ENROLLED || self.takes_all();
        let judged = !self.judges_programs || k.is_judged();
        counts
            && (judged || self.takes_all())
            && k.end.learned >= self.reads
            && (!k.has(accel_flag::ACCEL_MAY_SLEEP) || k.end.polled >= self.polls)
    }
}

fn is_ready(a: &Known, b: &Known, lesson: &Lesson) -> bool {
    let learned = [a, b].iter().all(|k| lesson.is_learned(k));
    is_fresh(a) && is_fresh(b) && learned && (lesson.takes_all() || converses(a, b))
}

/// Writes one field of both ends of a pair, unless they are gone.
fn set_both<F: Copy>(instance: &Instance, a: &Known, b: &Known, field: impl Fn(*mut accel_end) -> *mut F, value: F) {
    for known in [a, b] {
        if instance.ends.read(known.slot, field!(cookie)) == Some(known.end.cookie) {
            instance.ends.set(known.slot, &field, value);
        }
    }
}

/// Begins to take a pair out of the map: from now on it goes by TCP, and leaves when nothing can be lost.
pub fn order_out(instance: &Instance, a: &Known, b: &Known, why: accel_pass) {
    set_both(instance, a, b, field!(left), why);
    set_both(instance, a, b, field!(hold), 1);
    for k in [a, b] {
        order(instance, k.slot, k.end.cookie, accel_order::ACCEL_REMOVE);
    }
}

/// Keeps a pair that is not in the map out of it.
pub fn keep_out(instance: &Instance, a: &Known, b: &Known, why: accel_pass) {
    set_both(instance, a, b, field!(left), why);
}

/// Keeps pairs of `all` out whose ends are `apart`, by their network namespaces, before they were ever in.
pub fn keep_apart(instance: &Instance, all: &[Known], apart: impl Fn([u32; 2]) -> bool) {
    for a in all {
        let Some(b) = peer_of(all, a).filter(|b| a.slot < b.slot) else { continue };
        if a.end.left.0 == 0 && a.end.state == accel_state::ACCEL_WATCHED && apart([a.end.netns, b.end.netns]) {
            keep_out(instance, a, b, accel_pass::ACCEL_OTHER_NODE);
        }
    }
}

/// Notes of lone ends of `all` whether a chosen pod of another node is at the other end.
pub fn note_elsewhere(instance: &Instance, all: &mut [Known], elsewhere: impl Fn(IpAddr) -> bool) {
    for k in all.iter_mut().filter(|k| k.end.peer_cookie == 0) {
        let Some(end) = instance.ends.get(k.slot).filter(|end| end.cookie == k.end.cookie) else { continue };
        let remote = Identity::of(k.slot, &end).remote.ip();
        let why = if elsewhere(remote) { accel_pass::ACCEL_OTHER_NODE } else { accel_pass(0) };
        if k.end.left != why && (k.end.left.0 == 0 || k.end.left == accel_pass::ACCEL_OTHER_NODE) {
            instance.ends.set(k.slot, field!(left), why);
            k.end.left = why;
        }
    }
}

/// Lets a pair that had left come back when its readers have been learned afresh: while it was out its sends may not have been observed.
pub fn let_back(instance: &Instance, a: &Known, b: &Known) {
    set_both(instance, a, b, field!(learned), 0);
    set_both(instance, a, b, field!(polled), 0);
    set_both(instance, a, b, field!(left), accel_pass(0));
    set_both(instance, a, b, field!(result), 0);
}

/// Ends the hold of pairs that are out.
pub fn release_those_out(instance: &Instance, all: &[Known]) {
    for k in all {
        let Some(peer) = peer_of(all, k) else { continue };
        if k.end.hold != 0 && [k, peer].iter().all(|k| k.end.state == accel_state::ACCEL_WATCHED) {
            set_both(instance, k, peer, field!(hold), 0);
        }
    }
}

/// Orders everything out of the map. With `paused` set nothing goes in any more.
pub fn order_all_out(instance: &Instance) {
    for slot in 0..instance.used() {
        if instance.ends.read(slot, field!(state)) == Some(accel_state::ACCEL_ENROLLED)
            && let Some(cookie) = instance.ends.read(slot, field!(cookie))
        {
            order(instance, slot, cookie, accel_order::ACCEL_REMOVE);
        }
    }
}

/// Whether slots of connections that are over wait to be freed.
pub fn has_any_over(instance: &Instance) -> bool {
    (0..instance.used()).any(|slot| instance.ends.read(slot, field!(state)) == Some(accel_state::ACCEL_OVER))
}

/// Sockets that are in the map.
pub fn enrolled(instance: &Instance) -> u64 {
    (0..instance.used()).filter(|&s| instance.ends.read(s, field!(state)) == Some(accel_state::ACCEL_ENROLLED)).count() as u64
}

#[cfg(test)]
mod tests;
