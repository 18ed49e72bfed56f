//! The connections of an instance: pairing their ends, and ordering them into the map and out of it.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_flag, accel_pass, accel_state};

use super::instance::{Instance, LEARN_READS};
use super::matching::{self, Identity};
use super::memory::ends::Socket;
use super::memory::layout::Slot;

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
            fn read(slot: &Slot) -> Self {
                Self { $($name: slot.$name.get(),)* }
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
    /// The socket itself.
    pub fn socket(&self) -> Socket {
        Socket { slot: self.slot, cookie: self.end.cookie }
    }

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
        let end = instance.ends.get(slot).filter(|end| end.cookie.get() != 0).map(Standing::read);
        if let Some(end) = end.filter(|end| end.cookie != 0) {
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
    instance.ends.get(k.slot).map_or(0, |end| end.passes(why))
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
        let Some(cookie) = instance.ends.get(slot).map(|end| end.cookie.get()) else { continue };
        if let Some(seen) = observed.get(&cookie) {
            instance.ends.note_flags(Socket { slot, cookie }, *seen);
        }
    }
    Ok(())
}

/// Notes the peers of sockets that have none yet. Returns the cookies of those whose match is not unique.
pub fn pair(instance: &Instance) -> HashSet<u64> {
    let is_single = |slot: &usize| instance.ends.get(*slot).is_some_and(|end| end.cookie.get() != 0 && end.peer_cookie.get() == 0);
    let single: Vec<Identity> = (0..instance.used())
        .filter(is_single)
        .filter_map(|slot| instance.ends.get(slot).map(|end| Identity::of(slot, &end.copy())))
        .filter(|identity| identity.cookie != 0)
        .collect();
    let matches = matching::find(&single);
    for &(a, b) in &matches.pairs {
        instance.ends.pair([a, b].map(|i| Socket { slot: single[i].slot, cookie: single[i].cookie }));
    }
    matches.ambiguous.iter().map(|&i| single[i].cookie).collect()
}

/// Orders pairs of `all` into the map whose readers are known well enough; both ends or none.
pub fn enrol(instance: &Instance, all: &[Known]) -> Result<usize> {
    let lesson = Lesson::of(instance);
    let mut ordered = Vec::new();
    // `all` may be older than what was decided since.
    let stays_out = |k: &Known| instance.ends.get(k.slot).is_none_or(|end| end.hold.get() != 0 || end.left.get() != accel_pass(0));
    for k in all {
        let Some(peer) = peer_of(all, k) else { continue };
        if k.slot < peer.slot && is_ready(k, peer, &lesson) && !stays_out(k) && !stays_out(peer) {
            instance.ends.order_in([k.socket(), peer.socket()]);
            ordered.extend([k, peer]);
        }
    }
    if ordered.is_empty() {
        return Ok(0);
    }
    instance.insert_ordered()?;
    // A lone end would only make its own writes slower.
    let mut lone = false;
    for pair in ordered.chunks_exact(2) {
        let enrolled = |k: &Known| is_in(instance, k.slot);
        for (k, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            if enrolled(k) && !enrolled(other) {
                instance.ends.order_end_out(k.socket());
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
    /// As the programs have it now.
    pub fn of(instance: &Instance) -> Self {
        let control = instance.control();
        let polls = if control.leave_blocking.get() != 0 { control.learn_polls.get() } else { 0 };
        let selective = control.selective.get() != 0;
        let judges_programs = selective || control.fionread_lies.get() != 0;
        Self { number: control.observing.get(), reads: control.learn_reads.get(), polls, judges_programs, selective }
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

/// Keeps pairs of `all` out whose ends are `apart`, by their network namespaces, before they were ever in.
pub fn keep_apart(instance: &Instance, all: &[Known], apart: impl Fn([u32; 2]) -> bool) {
    for a in all {
        let Some(b) = peer_of(all, a).filter(|b| a.slot < b.slot) else { continue };
        if a.end.left.0 == 0 && a.end.state == accel_state::ACCEL_WATCHED && apart([a.end.netns, b.end.netns]) {
            instance.ends.keep_out([a.socket(), b.socket()], accel_pass::ACCEL_OTHER_NODE);
        }
    }
}

/// Notes of lone ends of `all` whether a chosen pod of another node is at the other end.
pub fn note_elsewhere(instance: &Instance, all: &mut [Known], elsewhere: impl Fn(IpAddr) -> bool) {
    for k in all.iter_mut().filter(|k| k.end.peer_cookie == 0) {
        let Some(end) = instance.end_of(k.socket()) else { continue };
        let remote = Identity::of(k.slot, &end).remote.ip();
        let why = if elsewhere(remote) { accel_pass::ACCEL_OTHER_NODE } else { accel_pass(0) };
        if k.end.left != why && (k.end.left.0 == 0 || k.end.left == accel_pass::ACCEL_OTHER_NODE) {
            instance.ends.note_lone(k.socket(), why);
            k.end.left = why;
        }
    }
}

/// Ends the hold of pairs that are out.
pub fn release_those_out(instance: &Instance, all: &[Known]) {
    for k in all {
        let Some(peer) = peer_of(all, k) else { continue };
        if k.end.hold != 0 && [k, peer].iter().all(|k| k.end.state == accel_state::ACCEL_WATCHED) {
            instance.ends.release([k.socket(), peer.socket()]);
        }
    }
}

/// Whether slots of connections that are over wait to be freed.
pub fn has_any_over(instance: &Instance) -> bool {
    (0..instance.used()).any(|slot| instance.ends.get(slot).is_some_and(|end| end.state.get() == accel_state::ACCEL_OVER))
}

/// Sockets that are in the map.
pub fn enrolled(instance: &Instance) -> u64 {
    (0..instance.used()).filter(|&slot| is_in(instance, slot)).count() as u64
}

fn is_in(instance: &Instance, slot: usize) -> bool {
    instance.ends.get(slot).is_some_and(|end| end.state.get() == accel_state::ACCEL_ENROLLED)
}

#[cfg(test)]
mod tests;
