//! A connection between two tracked sockets: what is known of its ends, and where it stands. Pure.

use std::ops::BitOrAssign;

use sockpath_bpf::accel::types::{accel_flag, accel_pass, accel_state};

/// Observed receive calls that have to be seen on a socket before bytes go to it directly.
pub const PROFILE_READS: u32 = 4;

/// Bytes for each turn of a conversation above which TCP carries them at least as fast: a writer that is ahead of its reader
/// fills the budget, and TCP moves large pieces, or pages of files, without the copy a redirect makes.
pub const MOST_PER_TURN: u64 = 256 << 10;

/// No reason.
pub const NONE: accel_pass = accel_pass(0);

/// What was observed of one end that keeps its connection out of the map, and the reason that is reported; the gravest first.
const UNSUPPORTED: [(accel_flag, accel_pass); 8] = [
    (accel_flag::ACCEL_SAW_WAITALL, accel_pass::ACCEL_WAITALL),
    (accel_flag::ACCEL_SAW_SPLICE, accel_pass::ACCEL_SPLICE),
    (accel_flag::ACCEL_SAW_ASLEEP, accel_pass::ACCEL_BLOCKING),
    (accel_flag::ACCEL_SAW_OOB, accel_pass::ACCEL_URGENT),
    (accel_flag::ACCEL_SAW_FIONREAD, accel_pass::ACCEL_FIONREAD),
    (accel_flag::ACCEL_PROGRAM_ASKS, accel_pass::ACCEL_FIONREAD),
    (accel_flag::ACCEL_SAW_TWO_TASKS, accel_pass::ACCEL_TWO_TASKS),
    (accel_flag::ACCEL_PROGRAM_UNPROVEN, accel_pass::ACCEL_UNPROVEN),
];

/// What is known of one end, as far as decisions and reports need it many times a second. Fields are those of `accel_end`
/// (`bpf/include/wire.h`) but for the two counts: a copy of everything would be four times as much memory to go through, which is felt with
/// ten thousand connections.
#[allow(missing_docs, reason = "wire.h describes the fields")]
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    pub cookie: u64,
    pub peer_cookie: u64,
    pub reads: u64,
    pub taken: u64,
    pub messages: u64,
    pub bytes: u64,
    pub pass_bytes: u64,
    pub netns: u32,
    pub peer: u32,
    pub hold: u32,
    pub left: accel_pass,
    pub state: accel_state,
    pub result: i32,
    pub spilled: u32,
    pub profiled: u32,
    pub epoch: u32,
    pub polled: u32,
    pub flags: u32,
    pub fast: u32,
    pub last_pass: accel_pass,
    pub reader: u64,
    pub judged: u64,
    /// Messages that it sent by TCP because the budget was used up.
    pub over_budget: u32,
    /// Messages that it sent by TCP for the reason of the last one.
    pub as_the_last: u32,
}

impl End {
    /// Whether this was observed of it.
    pub fn has(&self, flag: accel_flag) -> bool {
        self.flags & flag.0 != 0
    }

    /// Whether its program is known and was judged.
    pub fn is_judged(&self) -> bool {
        self.reader != 0 && self.judged == self.reader
    }

    /// What was observed of it that keeps its connection out of the map.
    pub fn unsupported(&self) -> Option<accel_pass> {
        UNSUPPORTED.iter().find(|(flag, _)| self.has(*flag)).map(|(_, why)| *why)
    }

    /// Whether it is in the map.
    pub fn is_in(&self) -> bool {
        self.state == accel_state::ACCEL_INSERTED
    }

    /// Whether it is open and not in the map.
    pub fn is_out(&self) -> bool {
        self.state == accel_state::ACCEL_WATCHED
    }

    /// Whether nothing keeps it out of the map.
    fn is_fresh(&self) -> bool {
        self.is_out() && self.result == 0 && self.hold == 0 && self.left == NONE && self.unsupported().is_none()
    }
}

/// Where a connection stands. What was observed of its readers does not matter here: it keeps a tracked one out, and makes one in the map
/// leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Neither end is in the map, and the kernel refused none.
    Tracked,
    /// Both ends are in the map: each message goes there or by TCP, as the verdict decides.
    Inserted,
    /// One end is in the map without the other, and nothing takes it out.
    Half,
    /// It goes by TCP and is leaving the map, for this reason.
    Leaving(accel_pass),
    /// Both ends have left, for this reason. Writers are still forced to TCP.
    Left(accel_pass),
    /// Neither end is in the map, for this reason.
    Out(accel_pass),
    /// Neither end is in the map, because the kernel refused one.
    Refused,
}

impl State {
    /// By what is known of both ends.
    pub fn of(ends: [&End; 2]) -> Self {
        let is_held = ends.iter().any(|end| end.hold != 0);
        let why = reason(ends);
        if ends.iter().all(|end| end.is_out()) {
            return match () {
                () if is_held => Self::Left(why),
                () if why != NONE => Self::Out(why),
                () if is_refused(ends) => Self::Refused,
                () => Self::Tracked,
            };
        }
        match () {
            () if is_held => Self::Leaving(why),
            () if ends.iter().all(|end| end.is_in()) => Self::Inserted,
            () => Self::Half,
        }
    }
}

/// Why a connection is kept out or leaves; [`NONE`] where nothing was noted.
pub fn reason(ends: [&End; 2]) -> accel_pass {
    ends.iter().map(|end| end.left).find(|left| *left != NONE).unwrap_or(NONE)
}

/// Whether the kernel refused to insert an end, or to remove one.
pub fn is_refused(ends: [&End; 2]) -> bool {
    ends.iter().any(|end| end.result != 0)
}

/// Whether a connection goes by TCP because it moves much in one direction and little in turns.
pub fn streams(ends: [&End; 2]) -> bool {
    reads_often(ends) && bytes_per_turn(ends) > MOST_PER_TURN
}

/// Whether counting the receive calls of its readers may bring a connection into the map.
pub fn is_undecided(ends: [&End; 2]) -> bool {
    ends.iter().all(|end| end.is_fresh()) && !streams(ends)
}

/// Whether a side read often enough for short connections to cost nothing, and what is read goes in turns that redirection
/// makes faster. Connections that were open before are not short.
fn converses(ends: [&End; 2]) -> bool {
    let open_before = ends.iter().all(|end| end.has(accel_flag::ACCEL_LIVE));
    // The reader of the other direction may use splice(2), and has to be observed for that to be known. A stream whose reader says nothing is
    // not made slower by being observed.
    let in_turns = turns(ends) > 0 || ends.iter().any(|end| end.has(accel_flag::ACCEL_ANSWERED));
    (reads_often(ends) && in_turns || open_before) && bytes_per_turn(ends) <= MOST_PER_TURN
}

/// One of them is enough.
fn reads_often(ends: [&End; 2]) -> bool {
    ends[0].reads.max(ends[1].reads) >= u64::from(PROFILE_READS)
}

/// How often the side has read that reads less often.
fn turns(ends: [&End; 2]) -> u64 {
    ends[0].reads.min(ends[1].reads)
}

/// Bytes that were read for each of them.
fn bytes_per_turn(ends: [&End; 2]) -> u64 {
    (ends[0].taken + ends[1].taken) / turns(ends).max(1)
}

/// What has to be observed at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Calls that redirected bytes would break.
    pub calls: bool,
    /// Sends: readers are profiled, so that an observation epoch goes on.
    pub sends: bool,
    /// Data that arrives: of a reader that is profiled the calls may sleep.
    pub arrivals: bool,
}

impl BitOrAssign for Needs {
    fn bitor_assign(&mut self, other: Self) {
        self.calls |= other.calls;
        self.sends |= other.sends;
        self.arrivals |= other.arrivals;
    }
}

/// What has to be observed of a connection before it goes into the map.
#[derive(Debug, Clone, Copy)]
pub struct Profiling {
    /// Number of the observation epoch, 0 when there is none.
    pub epoch: u32,
    /// Receive calls, observed in one epoch, that show how a socket is read.
    pub reads: u32,
    /// How often the reader has to have been seen in poll where its calls may sleep, and that matters.
    pub polls: u32,
    /// Whether programs that may use FIONREAD stay out.
    pub judges_programs: bool,
    /// Whether all programs but some stay out, so that nothing is observed of a connection before both of its programs are known.
    pub selective: bool,
}

impl Profiling {
    /// Whether this connection may go into the map once its readers are profiled, and may be observed for that.
    pub fn is_candidate(&self, ends: [&End; 2]) -> bool {
        ends.iter().all(|end| end.is_fresh()) && converses(ends) && (!self.selective || ends.iter().all(|end| end.is_judged()))
    }

    /// The variant without the order gate observes nothing, and takes everything.
    fn takes_all(&self) -> bool {
        self.reads < PROFILE_READS
    }

    /// Whether enough calls of this reader were observed: in one epoch, unless it is in the map already. Its program has to be known, too,
    /// where that matters.
    pub fn is_profiled(&self, end: &End) -> bool {
        let counts = end.epoch == self.epoch || end.is_in() || self.takes_all();
        let judged = !self.judges_programs || end.is_judged();
        counts
            && (judged || self.takes_all())
            && end.profiled >= self.reads
            && (!end.has(accel_flag::ACCEL_MAY_SLEEP) || end.polled >= self.polls)
    }

    /// What has to be observed because of this end.
    pub fn needs(&self, end: &End, peer: Option<&End>) -> Needs {
        let candidate = peer.is_some_and(|peer| self.is_candidate([end, peer]));
        let sends = candidate || (end.is_in() && !self.is_profiled(end));
        Needs { calls: candidate || end.is_in(), sends, arrivals: sends && end.has(accel_flag::ACCEL_MAY_SLEEP) }
    }

    /// Whether this connection may go into the map.
    pub fn is_ready(&self, ends: [&End; 2]) -> bool {
        ends.iter().all(|end| end.is_fresh() && self.is_profiled(end)) && (self.takes_all() || converses(ends))
    }
}

#[cfg(test)]
mod tests;
