//! What is recorded of each tracked socket, and the only code that writes to it: connections are ordered into the sockmap and out of it here.

use std::path::Path;

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_order, accel_pass, accel_reinjection, accel_state};
use sockpath_kernel::shared::Mapped;

use super::super::connection::NONE;
use super::super::decide::Action;
use super::layout::Slot;
use super::map;

/// A tracked socket. Its slot may be another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// Its slot.
    pub slot: usize,
    /// Its cookie.
    pub cookie: u64,
}

/// All slots.
#[derive(Debug)]
pub struct Ends(Mapped<Slot>);

impl Ends {
    /// Maps the pinned slots.
    ///
    /// # Errors
    /// When they are missing, of another version's layout, or the kernel refuses.
    pub fn open(path: &Path) -> Result<Self> {
        map::open(path).map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One of them.
    pub fn get(&self, slot: usize) -> Option<&Slot> {
        self.0.get(slot)
    }

    /// The slot of a socket, unless it is another's by now.
    pub fn of(&self, socket: Socket) -> Option<&Slot> {
        self.get(socket.slot).filter(|slot| slot.cookie.get() == socket.cookie)
    }

    /// Those of a connection's slots that are still its own.
    fn both(&self, ends: [Socket; 2]) -> impl Iterator<Item = &Slot> {
        ends.into_iter().filter_map(|end| self.of(end))
    }

    /// Gives an order to a socket. It names its socket by cookie, so that it means nothing to another in the same slot.
    fn order(&self, socket: Socket, what: accel_order) {
        if let Some(slot) = self.get(socket.slot) {
            slot.ordered.set(socket.cookie);
            slot.order.set(what);
        }
    }

    /// Notes that these are the two ends of one connection, unless one of them is closed by now.
    pub fn pair(&self, [a, b]: [Socket; 2]) {
        let (Some(one), Some(other)) = (self.of(a), self.of(b)) else { return };
        for (end, peer) in [(one, b), (other, a)] {
            end.peer.set(u32::try_from(peer.slot).unwrap_or(u32::MAX));
            end.peer_cookie.set(peer.cookie);
        }
    }

    /// Carries out what was decided of a connection. The next look takes out what is ordered out, and the next insertion puts in what is
    /// ordered in.
    pub fn apply(&self, ends: [Socket; 2], action: Action) {
        match action {
            Action::OrderIn => ends.into_iter().for_each(|end| self.order(end, accel_order::ACCEL_INSERT)),
            Action::OrderOut(why) => {
                self.both(ends).for_each(|slot| slot.left.set(why));
                self.take_out(ends);
            }
            Action::TakeBack => self.take_out(ends),
            Action::KeepOut(why) => self.both(ends).for_each(|slot| slot.left.set(why)),
            Action::Release => self.both(ends).for_each(|slot| slot.hold.set(0)),
            Action::LetBack => self.both(ends).for_each(|slot| {
                // While it was out its sends may not have been observed.
                slot.profiled.set(0);
                slot.polled.set(0);
                slot.left.set(NONE);
                slot.result.set(0);
            }),
        }
    }

    /// From now on it goes by TCP, and leaves when nothing can be lost.
    fn take_out(&self, ends: [Socket; 2]) {
        self.both(ends).for_each(|slot| slot.hold.set(1));
        ends.into_iter().for_each(|end| self.order(end, accel_order::ACCEL_REMOVE));
    }

    /// Orders everything in the first `used` slots out of the map.
    pub fn order_all_out(&self, used: usize) {
        for slot in 0..used {
            if let Some(end) = self.get(slot)
                && end.state.get() == accel_state::ACCEL_INSERTED
            {
                self.order(Socket { slot, cookie: end.cookie.get() }, accel_order::ACCEL_REMOVE);
            }
        }
    }

    /// Notes of a socket without a peer why it has none.
    pub fn note_lone(&self, end: Socket, why: accel_pass) {
        if let Some(slot) = self.of(end) {
            slot.left.set(why);
        }
    }

    /// Whether this slot waits for its insertion.
    pub fn is_ordered_in(&self, slot: usize) -> bool {
        self.get(slot).is_some_and(|end| end.order.get() == accel_order::ACCEL_INSERT)
    }

    /// Ends orders that no insertion carried out: the socket was not found in its namespace.
    pub fn refuse(&self, slots: impl Iterator<Item = usize>) {
        for slot in slots.filter(|&slot| self.is_ordered_in(slot)) {
            if let Some(end) = self.get(slot) {
                end.order.set(accel_order::ACCEL_NOTHING);
                // The slot may be another's since the order.
                if end.ordered.get() == end.cookie.get() {
                    end.result.set(-libc::ESRCH);
                }
            }
        }
    }

    /// Adds what was observed of a socket (`enum accel_flag`).
    pub fn note_flags(&self, end: Socket, flags: u32) {
        if let Some(slot) = self.of(end) {
            slot.flags.or(flags);
        }
    }

    /// Notes that the program of this reader has been judged.
    pub fn note_judged(&self, end: Socket, reader: u64) {
        if let Some(slot) = self.of(end) {
            slot.judged.set(reader);
        }
    }

    /// How far user space is with reinjecting what the reader in this slot cannot see.
    pub fn set_reinjection(&self, slot: usize, state: accel_reinjection) {
        if let Some(end) = self.get(slot) {
            end.reinjection.set(state);
        }
    }

    /// Bytes for the reader in this slot that user space holds.
    pub fn set_hand(&self, slot: usize, bytes: usize) {
        if let Some(end) = self.get(slot) {
            end.hand.set(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }

    /// Forces a private socket to TCP, or lets it be redirected: self-tests need both.
    pub fn force_tcp(&self, slot: usize, forced: bool) {
        if let Some(end) = self.get(slot) {
            end.hold.set(u32::from(forced));
        }
    }

    /// Forgets what the socket in this slot has sent.
    pub fn forget_traffic(&self, slot: usize) {
        if let Some(end) = self.get(slot) {
            end.messages.set(0);
            end.bytes.set(0);
            end.passes.iter().for_each(|count| count.set(0));
        }
    }

    /// Forgets what was observed of the socket in this slot.
    #[cfg(test)]
    pub fn forget_flags(&self, slot: usize) {
        if let Some(end) = self.get(slot) {
            end.flags.set(0);
        }
    }
}

#[cfg(test)]
mod tests;
