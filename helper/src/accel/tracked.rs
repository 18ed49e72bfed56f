//! The tracked sockets at one moment: what decisions and reports go by.

use sockpath_bpf::accel::types::{accel_pass, accel_state};

use super::connection::{End, Profiling};
use super::instance::Instance;
use super::memory::ends::Socket;
use super::memory::layout::{Control, Slot};

/// A tracked socket.
#[derive(Debug, Clone, Copy)]
pub struct TrackedSocket {
    /// Its slot.
    pub slot: usize,
    /// What is recorded of it.
    pub end: End,
    /// Where in the list its peer is, if that is still open.
    peer_at: Option<u32>,
}

impl TrackedSocket {
    /// The socket itself.
    pub fn socket(&self) -> Socket {
        Socket { slot: self.slot, cookie: self.end.cookie }
    }
}

/// All tracked sockets, by slot.
pub fn tracked(instance: &Instance) -> Vec<TrackedSocket> {
    let used = instance.used();
    let mut all: Vec<TrackedSocket> = Vec::new();
    let mut places: Vec<Option<u32>> = vec![None; used];
    for (slot, place) in places.iter_mut().enumerate() {
        let end = instance.ends.get(slot).filter(|end| end.cookie.get() != 0).map(read);
        if let Some(end) = end.filter(|end| end.cookie != 0) {
            *place = u32::try_from(all.len()).ok();
            all.push(TrackedSocket { slot, end, peer_at: None });
        }
    }
    for i in 0..all.len() {
        let End { peer, peer_cookie, .. } = all[i].end;
        if peer_cookie != 0 {
            let place = places.get(peer as usize).copied().flatten();
            let is_mutual = |peer: &End| peer.cookie == peer_cookie && peer.peer_cookie == all[i].end.cookie;
            all[i].peer_at = place.filter(|&at| is_mutual(&all[at as usize].end));
        }
    }
    all
}

/// What is recorded of the socket in a slot.
pub fn read(slot: &Slot) -> End {
    let last_pass = slot.last_pass.get();
    End {
        cookie: slot.cookie.get(),
        peer_cookie: slot.peer_cookie.get(),
        reads: slot.reads.get(),
        taken: slot.taken.get(),
        messages: slot.messages.get(),
        bytes: slot.bytes.get(),
        pass_bytes: slot.pass_bytes.get(),
        netns: slot.netns.get(),
        peer: slot.peer.get(),
        hold: slot.hold.get(),
        left: slot.left.get(),
        state: slot.state.get(),
        result: slot.result.get(),
        spilled: slot.spilled.get(),
        profiled: slot.profiled.get(),
        epoch: slot.epoch.get(),
        polled: slot.polled.get(),
        flags: slot.flags.get(),
        fast: slot.fast.get(),
        last_pass,
        reader: slot.reader.get(),
        judged: slot.judged.get(),
        over_budget: slot.passes(accel_pass::ACCEL_BUDGET),
        as_the_last: slot.passes(last_pass),
    }
}

/// The peer of one of `all`, if it is still open.
pub fn peer_of<'a>(all: &'a [TrackedSocket], socket: &TrackedSocket) -> Option<&'a TrackedSocket> {
    all.get(socket.peer_at? as usize)
}

/// The connections of `all`: both ends of each, the one with the lower slot first.
pub fn connections(all: &[TrackedSocket]) -> impl Iterator<Item = [&TrackedSocket; 2]> {
    all.iter().filter_map(|a| Some([a, peer_of(all, a).filter(|b| a.slot < b.slot)?]))
}

/// What has to be observed of a connection before it goes into the map, as the programs have it now.
pub fn profiling(control: &Control) -> Profiling {
    let selective = control.selective.get() != 0;
    Profiling {
        epoch: control.observing.get(),
        reads: control.profile_reads.get(),
        polls: if control.leave_blocking.get() != 0 { control.profile_polls.get() } else { 0 },
        judges_programs: selective || control.fionread_lies.get() != 0,
        selective,
    }
}

fn in_state(instance: &Instance, state: accel_state) -> impl Iterator<Item = &Slot> {
    (0..instance.used()).filter_map(move |slot| instance.ends.get(slot)).filter(move |end| end.state.get() == state)
}

/// Whether slots of connections that are closed wait to be freed.
pub fn has_any_over(instance: &Instance) -> bool {
    in_state(instance, accel_state::ACCEL_OVER).next().is_some()
}

/// Sockets that are in the map.
pub fn inserted(instance: &Instance) -> u64 {
    in_state(instance, accel_state::ACCEL_INSERTED).count() as u64
}
