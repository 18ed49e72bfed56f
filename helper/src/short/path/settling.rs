//! What `flow.rs` decides about connections is done here.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_kernel::conntrack::{Entry, Tuple, Update};
use sockpath_protocol::accel::Reason;

use super::Path;
use crate::short::connection::Connection;
use crate::short::eligible::{Leg, refusal};
use crate::short::flow::{Action, Snapshot, State, Tracking, decide};
use crate::short::programs::Slot;
use crate::short::table::MAKE_LIBERAL;

/// How long an answer of connection tracking is valid for an approval of a connection without translation: a new entry of its tuple would
/// translate nothing either, and the programs look up the entry when they redirect.
const ANSWER_HOLDS: Duration = Duration::from_secs(2);

/// A connection whose entry is to be changed before the rest is done.
struct Pending {
    connection: Connection,
    update: Update,
    rest: Vec<Action>,
}

impl Path {
    /// Whether nothing is to be done about a connection.
    pub(super) fn is_settled(&self, connection: &Connection) -> bool {
        let snapshot = self.snapshot(connection, Tracking::NotAsked);
        self.note_pause(connection, snapshot.paused);
        let (state, actions) = decide(connection.state, &snapshot);
        state == connection.state && actions.is_empty()
    }

    /// The entries of our connections; of one that is absent here, the entry is gone, or was missed by the list.
    pub(super) fn list_by_tuple(&mut self) -> Result<HashMap<Tuple, Entry>> {
        let listed = self.table.list(|entry| self.connections.get(&entry.original).is_some_and(|c| c.id == entry.id))?;
        Ok(listed.into_iter().map(|entry| (entry.original, entry)).collect())
    }

    /// Decides about connections until there is nothing left to do. `listed` are entries of a list made just now: a connection in it is not
    /// asked about again.
    pub(super) fn settle(&mut self, tuples: &[Tuple], listed: Option<&HashMap<Tuple, Entry>>) -> Result<()> {
        let mut pending = Vec::new();
        for tuple in tuples {
            if let Some(connection) = self.connections.take(tuple) {
                pending.extend(self.advance(connection, listed)?);
            }
        }
        // Entries are changed together: a system call for each would take most of the time.
        let updates: Vec<_> = pending.iter().map(|p| (p.connection.original(), p.update)).collect();
        for (Pending { mut connection, update, rest }, exists) in pending.into_iter().zip(self.table.update_each(&updates)?) {
            if (update.liberal && !exists) || !self.apply_all(&mut connection, &rest, None)? {
                self.untrack(&mut connection);
            }
            self.connections.put(connection);
        }
        Ok(())
    }

    /// Decides about a connection and does what comes before a change of its entry; returns it if there is one.
    fn advance(&mut self, mut connection: Connection, listed: Option<&HashMap<Tuple, Entry>>) -> Result<Option<Pending>> {
        let tuple = connection.original();
        let mut tracking = Tracking::NotAsked;
        let mut planned = None;
        loop {
            let mut snapshot = self.snapshot(&connection, tracking);
            if listed.is_some() {
                snapshot.ask_every = Duration::ZERO;
            }
            self.note_pause(&connection, snapshot.paused);
            let (state, actions) = decide(connection.state, &snapshot);
            let settled = state == connection.state;
            let is_armed = |state| matches!(state, State::Armed { .. });
            self.approvals += u64::from(is_armed(state) != is_armed(connection.state) && state != State::Removed);
            connection.state = state;
            if actions == [Action::Ask] {
                (tracking, planned) = match (self.lasting_answer(&connection), listed.and_then(|entries| entries.get(&tuple))) {
                    (Some(answer), None) => answer,
                    (_, Some(entry)) => self.understand(&mut connection, Some(entry.clone()), self.listed)?,
                    (None, None) => self.ask(&mut connection)?,
                };
                continue;
            }
            if let Some((update, rest)) = self.change_of_entry(&actions, connection.protocol()) {
                if !update.liberal {
                    connection.last_tick = self.last_tick(&connection);
                }
                return Ok(Some(Pending { connection, update, rest: rest.to_vec() }));
            }
            if !self.apply_all(&mut connection, &actions, planned)? {
                self.untrack(&mut connection);
                break;
            }
            // What was decided on an answer is not decided on it again.
            if settled || tracking != Tracking::NotAsked {
                break;
            }
        }
        if connection.state == State::Removed {
            self.close(connection);
        } else {
            self.connections.put(connection);
        }
        Ok(None)
    }

    /// The change of the entry that actions begin with, if so, and the others.
    fn change_of_entry<'a>(&self, actions: &'a [Action], protocol: u8) -> Option<(Update, &'a [Action])> {
        match actions.split_first()? {
            (Action::MakeLiberal, rest) => Some((MAKE_LIBERAL, rest)),
            (Action::Refresh, rest) => Some((self.table.refreshing(protocol), rest)),
            _ => None,
        }
    }

    /// Gives up a connection without a usable entry; conntrack is queried about it again.
    fn untrack(&mut self, connection: &mut Connection) {
        self.uninstall(connection);
        connection.state = State::Refused(Reason::NotTracked);
    }

    /// For processes that look at the slots.
    fn note_pause(&self, connection: &Connection, paused: bool) {
        if let Some([slot, _]) = self.slots(connection) {
            slot.paused.store(paused.into(), Ordering::Relaxed);
        }
    }

    /// Jiffy in which a packet of the connection was redirected last; 0: never.
    fn last_tick(&self, connection: &Connection) -> u64 {
        self.slots(connection).into_iter().flatten().map(|slot| slot.last_tick.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    fn snapshot(&self, connection: &Connection, tracking: Tracking) -> Snapshot {
        let epoch = self.programs.epoch();
        let slots = self.slots(connection);
        let read = |word: fn(&Slot) -> u32| slots.map(|s| s.map(word));
        let all_now = |word: fn(&Slot) -> u32| read(word).is_some_and(|w| w == [epoch; 2]);
        Snapshot {
            epoch,
            passed: !self.outdated.any() && all_now(|s| s.seen.load(Ordering::Relaxed)) && all_now(|s| s.delivered.load(Ordering::Relaxed)),
            ended: read(|s| s.ended.load(Ordering::Relaxed)).is_some_and(|e| e != [0; 2]),
            paused: self.paused(connection).is_some(),
            active: self.last_tick(connection) > connection.last_tick,
            asked: connection.asked.elapsed(),
            ask_every: self.table.ask_every(connection.protocol()),
            tracking,
        }
    }

    /// What connection tracking has said of a connection that is to be approved, if that still holds.
    fn lasting_answer(&self, connection: &Connection) -> Option<(Tracking, Option<[Leg; 2]>)> {
        let (answer, epoch) = connection.answer;
        let is_good = matches!(answer, Tracking::Entry { sound: true, refusal: None, .. }) && connection.state == State::Watched;
        let is_translated = connection.original() != connection.reply().reversed();
        let holds = is_good && !is_translated && epoch == self.programs.epoch() && connection.asked.elapsed() < ANSWER_HOLDS;
        connection.installed.as_ref().filter(|_| holds).map(|(_, legs)| (answer, Some(**legs)))
    }

    /// Asks connection tracking about a connection that may have to be planned, too.
    fn ask(&mut self, connection: &mut Connection) -> Result<(Tracking, Option<[Leg; 2]>)> {
        let at = Instant::now();
        let entry = self.table.get(&connection.original())?;
        self.understand(connection, entry, at)
    }

    /// What the entry of a connection means for it, if there is one.
    fn understand(&mut self, connection: &mut Connection, entry: Option<Entry>, at: Instant) -> Result<(Tracking, Option<[Leg; 2]>)> {
        connection.asked = at;
        let Some(entry) = entry.filter(|e| e.id == connection.id && e.original == connection.original()) else {
            return Ok((Tracking::Gone, None));
        };
        let planned = match &connection.installed {
            Some((_, legs)) => refusal(&entry).map_or(Ok(**legs), Err),
            None => self.plan(&entry),
        };
        let answer = self.table.answer(&entry, planned.err());
        connection.answer = (answer, self.programs.epoch());
        Ok((answer, planned.ok()))
    }

    /// Does things in their order; false when one cannot be done.
    fn apply_all(&mut self, connection: &mut Connection, actions: &[Action], planned: Option<[Leg; 2]>) -> Result<bool> {
        for action in actions {
            if !self.apply(connection, *action, planned)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does one thing; false when it cannot be done.
    fn apply(&mut self, connection: &mut Connection, action: Action, planned: Option<[Leg; 2]>) -> Result<bool> {
        match action {
            // An entry is changed before anything else is done.
            Action::Ask | Action::MakeLiberal | Action::Refresh => {}
            Action::Install => return planned.map_or(Ok(false), |legs| self.install(connection, legs)),
            Action::Arm(epoch) => connection.installed.iter().for_each(|(slot, _)| self.arm(*slot, epoch)),
            Action::Disarm => connection.installed.iter().for_each(|(slot, _)| self.arm(*slot, 0)),
            Action::Remove => self.uninstall(connection),
        }
        Ok(true)
    }
}
