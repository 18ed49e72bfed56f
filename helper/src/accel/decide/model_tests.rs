//! A model: the programs' side of one connection, to which everything happens in random order. Bytes have to arrive in order and whole.

use std::collections::VecDeque;

use sockpath_bpf::accel::types::{accel_flag, accel_order, accel_state};

use super::super::connection::PROFILE_READS;
use super::super::suspension::Suspension;
use super::*;

type Decider = fn(History, &Snapshot<'_>) -> (History, Vec<Action>);
type Checked = Result<(), String>;

/// Rules that the programs keep (`bpf/src/accel`). The model shows what it notices by doing without one.
#[derive(Debug, Clone, Copy)]
struct Programs {
    /// A message overtakes no TCP bytes (`gate`).
    in_order: bool,
    /// An end leaves when its writer is held and quiet, and its queue empty (`remove_end`).
    drain: bool,
}

const SOUND: Programs = Programs { in_order: true, drain: true };

/// One socket: what user space sees of it, and what only the kernel knows.
#[derive(Debug)]
struct Socket {
    end: End,
    order: accel_order,
    quiet: u32,
    /// Numbers of messages that are unread here: redirected ones, and those that TCP has brought.
    queue: VecDeque<u64>,
    tcp: VecDeque<u64>,
    /// A message of its own that the verdict has redirected, and that is not in the peer's queue yet.
    on_its_way: Option<u64>,
    sent: u64,
    received: u64,
    /// What the kernel finds when it is to be inserted.
    unfit: accel_pass,
    refused: bool,
}

/// What happened often enough to show something.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    inserted: u64,
    redirected: u64,
    left: u64,
    let_back: u64,
    taken_back: u64,
}

#[derive(Debug)]
struct Model {
    sockets: [Socket; 2],
    programs: Programs,
    decide: Decider,
    history: History,
    suspension: Suspension,
    /// As in `accel_control`.
    paused: bool,
    epoch: u32,
    epochs: u32,
    /// Messages that may be unread before the budget is used up.
    room: usize,
    lease_over: bool,
    apart: bool,
    now: Instant,
    seed: u64,
    /// It left, or was kept out, for a reason that lasts.
    is_gone: bool,
    seen: Seen,
}

/// Network namespaces of the two ends.
const NETNS: [u32; 2] = [1, 2];

impl Model {
    fn new(seed: u64, programs: Programs, decide: Decider) -> Self {
        let socket = |i: usize| Socket {
            end: End {
                cookie: i as u64 + 1,
                peer_cookie: 2 - i as u64,
                netns: NETNS[i],
                state: accel_state::ACCEL_WATCHED,
                ..End::default()
            },
            order: accel_order::ACCEL_NOTHING,
            quiet: 0,
            queue: VecDeque::new(),
            tcp: VecDeque::new(),
            on_its_way: None,
            sent: 0,
            received: 0,
            unfit: NONE,
            refused: false,
        };
        Self {
            sockets: [socket(0), socket(1)],
            programs,
            decide,
            history: History::default(),
            suspension: Suspension::default(),
            paused: false,
            epoch: 1,
            epochs: 1,
            room: 3,
            lease_over: false,
            apart: false,
            now: Instant::now(),
            seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            is_gone: false,
            seen: Seen::default(),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    fn end(&self, i: usize) -> &End {
        &self.sockets[i].end
    }

    /// What the verdict says of a message of this end; `None` is a redirect.
    fn verdict(&self, i: usize) -> Option<accel_pass> {
        let (me, peer) = (&self.sockets[i], &self.sockets[1 - i]);
        if !peer.end.is_in() {
            return Some(accel_pass::ACCEL_NO_PEER);
        }
        if self.programs.in_order && !peer.tcp.is_empty() {
            return Some(accel_pass::ACCEL_ORDER);
        }
        match () {
            () if self.paused || me.end.hold != 0 => Some(accel_pass::ACCEL_PAUSED),
            () if self.lease_over && (me.end.fast == 0 || peer.queue.is_empty()) => Some(accel_pass::ACCEL_LEASE),
            () if peer.queue.len() >= self.room => Some(accel_pass::ACCEL_BUDGET),
            () if me.end.fast != 0 => None,
            () if peer.end.profiled < PROFILE_READS => Some(accel_pass::ACCEL_LEARNING),
            () => None,
        }
    }

    fn write(&mut self, i: usize, bytes: u64) {
        if self.sockets[i].on_its_way.is_some() {
            return;
        }
        let why = if self.end(i).is_in() { self.verdict(i) } else { Some(NONE) };
        let me = &mut self.sockets[i];
        let message = me.sent;
        me.sent += 1;
        match why {
            None => {
                me.end.fast = 1;
                me.end.messages += 1;
                me.end.bytes += bytes;
                me.on_its_way = Some(message);
                self.seen.redirected += 1;
            }
            Some(why) => {
                if me.end.is_in() {
                    me.end.fast = 0;
                    me.end.pass_bytes += bytes;
                    me.end.as_the_last = if me.end.last_pass == why { me.end.as_the_last + 1 } else { 1 };
                    me.end.last_pass = why;
                    me.end.over_budget += u32::from(why == accel_pass::ACCEL_BUDGET);
                }
                self.sockets[1 - i].tcp.push_back(message);
            }
        }
    }

    /// The redirect of this end's message ends: it is in the queue of its peer.
    fn arrive(&mut self, i: usize) -> Checked {
        let Some(message) = self.sockets[i].on_its_way.take() else { return Ok(()) };
        let peer = &mut self.sockets[1 - i];
        if !peer.end.is_in() {
            return Err("a redirect finds that its reader has left the map: EPIPE".to_owned());
        }
        peer.queue.push_back(message);
        Ok(())
    }

    /// Redirected bytes come first (`tcp_bpf_recvmsg`); outside of the map there are those of TCP only.
    fn read(&mut self, i: usize) -> Checked {
        let epoch = self.epoch;
        let me = &mut self.sockets[i];
        let Some(message) = me.queue.pop_front().or_else(|| me.tcp.pop_front()) else { return Ok(()) };
        if message != me.received {
            return Err(format!("message {message} is read where {} is next", me.received));
        }
        me.received += 1;
        me.end.reads += 1;
        me.end.taken += 1;
        if epoch != 0 && me.end.epoch != epoch && !me.end.is_in() {
            (me.end.epoch, me.end.profiled, me.end.polled) = (epoch, 0, 0);
        }
        if epoch != 0 && me.end.profiled < PROFILE_READS {
            me.end.profiled += 1;
        }
        Ok(())
    }

    fn look(&mut self) -> Checked {
        for i in [0, 1] {
            let me = &mut self.sockets[i];
            let foreign = me.end.left == accel_pass::ACCEL_FOREIGN && me.end.is_out();
            me.quiet = match () {
                () if foreign => me.quiet + 1,
                () if (me.end.hold != 0 || self.paused) && me.on_its_way.is_none() => me.quiet + 1,
                () => 0,
            };
            if me.order == accel_order::ACCEL_REMOVE && me.end.is_in() {
                self.remove(i)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, i: usize) -> Checked {
        let (me, peer) = (&self.sockets[i], &self.sockets[1 - i]);
        if self.programs.drain && (!me.queue.is_empty() || !(self.paused || peer.end.hold != 0) || peer.quiet < 2) {
            return Ok(());
        }
        if !me.queue.is_empty() {
            return Err("an end leaves the map with redirected bytes unread".to_owned());
        }
        let me = &mut self.sockets[i];
        me.end.state = accel_state::ACCEL_WATCHED;
        me.order = accel_order::ACCEL_NOTHING;
        (me.end.result, me.end.fast) = (0, 0);
        self.seen.left += 1;
        Ok(())
    }

    /// The program `insert`, for both ends.
    fn insert(&mut self) -> Checked {
        if self.is_gone || self.paused {
            return Err(format!("a connection goes into the map that has to stay out: {:?}", State::of([self.end(0), self.end(1)])));
        }
        for me in &mut self.sockets {
            if me.end.hold != 0 || me.end.left != NONE {
                return Err(format!("an end goes into the map in spite of a reason: {:?}", me.end));
            }
            me.end.left = me.unfit;
            if me.unfit == NONE {
                me.end.result = if me.refused { -libc::ENOENT } else { 0 };
            }
            if me.end.left == NONE && me.end.result == 0 {
                me.end.state = accel_state::ACCEL_INSERTED;
                self.seen.inserted += 1;
            }
            me.order = accel_order::ACCEL_NOTHING;
        }
        Ok(())
    }

    /// As `memory/ends.rs` carries it out.
    fn apply(&mut self, action: Action) -> Checked {
        let both = |sockets: &mut [Socket; 2], f: fn(&mut Socket)| sockets.iter_mut().for_each(f);
        match action {
            Action::OrderIn => return self.insert(),
            Action::OrderOut(why) => {
                self.sockets.iter_mut().for_each(|s| s.end.left = why);
                both(&mut self.sockets, |s| (s.end.hold, s.order) = (1, accel_order::ACCEL_REMOVE));
            }
            Action::TakeBack => {
                self.seen.taken_back += 1;
                both(&mut self.sockets, |s| (s.end.hold, s.order) = (1, accel_order::ACCEL_REMOVE));
            }
            Action::KeepOut(why) => self.sockets.iter_mut().for_each(|s| s.end.left = why),
            Action::Release => both(&mut self.sockets, |s| s.end.hold = 0),
            Action::LetBack => {
                self.seen.let_back += 1;
                both(&mut self.sockets, |s| (s.end.profiled, s.end.polled, s.end.left, s.end.result) = (0, 0, NONE, 0));
            }
        }
        Ok(())
    }

    /// One decision, on what was so before some more happens.
    fn pass(&mut self, meanwhile: u64) -> Checked {
        let ends = [*self.end(0), *self.end(1)];
        let profiling = Profiling { epoch: self.epoch, reads: PROFILE_READS, polls: 0, judges_programs: false, selective: false };
        let wanted =
            Wanted { pause: self.suspension.reason(NETNS), resumes: self.suspension.is_active(), apart: self.apart, stopped: self.paused };
        let snapshot = Snapshot { ends: [&ends[0], &ends[1]], profiling: &profiling, wanted, now: self.now };
        let (history, actions) = (self.decide)(self.history, &snapshot);
        self.history = history;
        self.suspension.looked(comes_back(&snapshot));
        for _ in 0..meanwhile {
            self.carry()?;
        }
        for action in actions {
            if action == Action::OrderIn && (wanted.pause.is_some() || wanted.apart) {
                return Err("a connection goes into the map that a request keeps out".to_owned());
            }
            self.apply(action)?;
        }
        self.note_lasting();
        self.now += Duration::from_millis(50);
        Ok(())
    }

    fn note_lasting(&mut self) {
        let ends = [self.end(0), self.end(1)];
        let lasts = |why: accel_pass| why != NONE && why != accel_pass::ACCEL_SLOWER && !PASSING.contains(&why);
        let is_out = ends.iter().all(|end| end.is_out());
        let unsupported = ends.iter().any(|end| end.unsupported().is_some());
        self.is_gone |= is_out && (lasts(reason(ends)) || is_refused(ends) || unsupported);
    }

    /// Bytes are written, arrive and are read.
    fn carry(&mut self) -> Checked {
        let i = usize::from(self.random(2) == 1);
        match self.random(4) {
            0 => {
                let bytes = if self.random(8) == 0 { 300 << 10 } else { 1 };
                self.write(i, bytes);
            }
            1 => self.arrive(i)?,
            _ => self.read(i)?,
        }
        Ok(())
    }

    /// Something happens to it.
    fn happen(&mut self) -> Checked {
        let i = usize::from(self.random(2) == 1);
        match self.random(120) {
            0 => self.suspension.pause(vec![NETNS[i]], accel_pass::ACCEL_POLICY),
            1 | 2 => self.suspension.resume(&[NETNS[i]], accel_pass::ACCEL_POLICY),
            3 => self.suspension.limit(vec![NETNS[i]]),
            4 | 5 => self.suspension.limit(Vec::new()),
            6 if self.random(8) == 0 => self.apart = true,
            7 if self.random(4) == 0 => self.sockets[i].end.flags |= accel_flag::ACCEL_SAW_SPLICE.0,
            8 if self.random(4) == 0 => self.sockets[i].unfit = accel_pass::ACCEL_RCVLOWAT,
            9 if self.random(4) == 0 => self.sockets[i].unfit = accel_pass::ACCEL_FOREIGN,
            10 if self.random(4) == 0 => self.sockets[i].refused = true,
            11 => self.epoch = 0,
            12 | 13 => {
                self.epochs += 1;
                self.epoch = self.epochs;
            }
            14 => self.now += Duration::from_secs(3),
            15 => self.room = 1 + self.room % 4,
            16 => self.lease_over = !self.lease_over,
            17 if self.random(4) == 0 => {
                let end = &mut self.sockets[i].end;
                (end.fast, end.last_pass, end.as_the_last) = (0, accel_pass::ACCEL_ULP, 1);
            }
            18..28 => self.look()?,
            28..40 => {
                let meanwhile = self.random(4);
                self.pass(meanwhile)?;
            }
            _ => self.carry()?,
        }
        Ok(())
    }

    /// Nothing is written any more: what was redirected arrives, and all is read.
    fn drain(&mut self) -> Checked {
        for i in [0, 1] {
            self.arrive(i)?;
        }
        while self.sockets.iter().any(|s| !s.queue.is_empty() || !s.tcp.is_empty()) {
            self.read(0)?;
            self.read(1)?;
        }
        Ok(())
    }

    /// Undisturbed, it comes to rest: both ends are in the map, or both are out and none is held.
    fn rest(&mut self) -> Checked {
        for _ in 0..12 {
            self.drain()?;
            self.pass(0)?;
            self.look()?;
        }
        let state = State::of([self.end(0), self.end(1)]);
        if !matches!(state, State::Inserted | State::Out(_) | State::Refused | State::Tracked) {
            return Err(format!("it does not come to rest: {state:?}, {self:?}"));
        }
        self.is_complete()
    }

    /// The acceleration is ended, by this process or by another, while it goes on.
    fn stop(&mut self) -> Checked {
        self.paused = true;
        for round in 0..40 {
            let inserted = self.sockets.iter_mut().filter(|s| s.end.is_in());
            inserted.for_each(|s| s.order = accel_order::ACCEL_REMOVE);
            self.look()?;
            match round {
                0..30 => (0..5).try_for_each(|_| self.happen())?,
                _ => self.drain()?,
            }
        }
        if let Some(left) = self.sockets.iter().find(|s| s.end.is_in()) {
            return Err(format!("a socket is in the map at the end: {left:?}"));
        }
        self.drain()?;
        self.is_complete()
    }

    fn is_complete(&self) -> Checked {
        let is_whole = (0..2).all(|i| self.sockets[i].sent == self.sockets[1 - i].received);
        if is_whole { Ok(()) } else { Err(format!("messages are lost: {:?}", self.sockets)) }
    }
}

/// Runs sequences until one shows a fault.
fn run(sequences: u64, programs: Programs, decide: Decider) -> Result<Seen, String> {
    let mut all = Seen::default();
    for sequence in 0..sequences {
        let mut model = Model::new(sequence + 1, programs, decide);
        let outcome = (0..300).try_for_each(|_| model.happen());
        let outcome = outcome.and_then(|()| if sequence % 2 == 0 { model.rest() } else { Ok(()) }).and_then(|()| model.stop());
        outcome.map_err(|e| format!("sequence {sequence}: {e}"))?;
        let Seen { inserted, redirected, left, let_back, taken_back } = model.seen;
        all.inserted += inserted;
        all.redirected += redirected;
        all.left += left;
        all.let_back += let_back;
        all.taken_back += taken_back;
    }
    Ok(all)
}

#[test]
fn no_sequence_of_events_loses_bytes_or_leaves_an_end_in_the_map() {
    let seen = run(20_000, SOUND, decide).unwrap();
    let often = [seen.inserted, seen.redirected, seen.left, seen.let_back, seen.taken_back];
    assert!(often.iter().all(|n| *n > 1_000), "the model hardly ever does something: {seen:?}");
}

/// A decider with a fault.
fn without(history: History, now: &Snapshot<'_>, keep: fn(&Action) -> bool) -> (History, Vec<Action>) {
    let (history, actions) = decide(history, now);
    (history, actions.into_iter().filter(keep).collect())
}

#[test]
fn the_model_notices_faults_of_decisions() {
    let faults: [(&str, Decider); 5] = [
        ("a lone end stays", |h, now| without(h, now, |a| *a != Action::TakeBack)),
        ("held without end", |h, now| without(h, now, |a| *a != Action::Release)),
        ("requests mean nothing", |h, now| decide(h, &Snapshot { wanted: Wanted { pause: None, apart: false, ..now.wanted }, ..*now })),
        ("all come back", |h, now| match State::of(now.ends) {
            State::Out(_) | State::Refused => (h, vec![Action::LetBack]),
            _ => decide(h, now),
        }),
        ("goes in while it is ended", |h, now| decide(h, &Snapshot { wanted: Wanted { stopped: false, ..now.wanted }, ..*now })),
    ];
    for (name, decider) in faults {
        assert!(run(2_000, SOUND, decider).is_err(), "{name}: not noticed");
    }
}

#[test]
fn the_model_notices_faults_of_the_programs() {
    assert!(run(2_000, Programs { in_order: false, ..SOUND }, decide).is_err(), "messages overtake others");
    assert!(run(2_000, Programs { drain: false, ..SOUND }, decide).is_err(), "ends leave at once");
}
