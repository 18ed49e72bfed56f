//! Connections that begin and end, and their entries in the maps of the programs.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use sockpath_kernel::conntrack::{Entry, Tuple};
use sockpath_kernel::route;
use sockpath_protocol::accel::Reason;

use super::Path;
use crate::short::attach::Role;
use crate::short::connection::Connection;
use crate::short::eligible::{Leg, Target, directions, legs};
use crate::short::flow::State;

impl Path {
    /// Takes every connection of the chosen pods that connection tracking has.
    pub(super) fn track_all(&mut self, live: bool) -> Result<()> {
        let at = Instant::now();
        let ports = &self.topology.ports;
        let found = self.table.list(|entry| [entry.original, entry.reply].iter().any(|t| ports.contains_key(&t.source.ip())))?;
        found.iter().try_for_each(|entry| self.track(entry, live, at))
    }

    /// A flow that the programs do not know has lasted for some packets.
    pub(super) fn consider(&mut self, tuple: &Tuple) -> Result<()> {
        match self.table.get(tuple)? {
            Some(entry) => self.track(&entry, false, Instant::now()),
            None => Ok(()),
        }
    }

    /// Takes a connection that connection tracking holds as established and assured.
    fn track(&mut self, entry: &Entry, live: bool, asked: Instant) -> Result<()> {
        if !entry.assured || !entry.established || entry.dying {
            return Ok(());
        }
        match self.connections.get(&entry.original) {
            Some(known) if known.id == entry.id => return Ok(()),
            Some(_) => self.drop_connection(&entry.original),
            None => {}
        }
        let answer = (self.table.answer(entry, None), self.programs.epoch());
        let mut connection = self.connections.begin(entry, answer, live, asked);
        let planned = self.plan(entry);
        self.begin(&mut connection, planned)?;
        self.connections.put(connection);
        Ok(())
    }

    /// Has a connection wait for its approval by the stack, or refuses it.
    pub(super) fn begin(&mut self, connection: &mut Connection, planned: Result<[Leg; 2], Reason>) -> Result<()> {
        connection.state = match planned {
            Ok(legs) if self.install(connection, legs)? => State::Watched,
            Ok(_) => State::Refused(Reason::Refused),
            Err(reason) => State::Refused(reason),
        };
        Ok(())
    }

    /// Connection tracking has forgotten an entry.
    pub(super) fn forget(&mut self, entry: &Entry) {
        if self.connections.get(&entry.original).is_some_and(|c| c.id == entry.id) {
            self.drop_connection(&entry.original);
        }
    }

    pub(super) fn drop_connection(&mut self, tuple: &Tuple) {
        if let Some(connection) = self.connections.take(tuple) {
            self.close(connection);
        }
    }

    /// A connection is over.
    pub(super) fn close(&mut self, mut connection: Connection) {
        self.uninstall(&mut connection);
        self.control().add_closed(connection.packets, connection.bytes);
    }

    pub(super) fn plan(&mut self, entry: &Entry) -> Result<[Leg; 2], Reason> {
        let Self { topology, routes, known_routes, .. } = self;
        let planned = legs(entry, topology, |source, destination, device| {
            let ask = || route::forwarding(routes, source, destination, device).ok();
            known_routes.entry((source, destination, device)).or_insert_with(ask).clone()
        })?;
        if self.rules.concern(entry) {
            return Err(Reason::PacketRule);
        }
        for leg in &planned {
            if let Target::Hop { device, .. } = leg.target
                && !self.dry
                && self.attachments.attach(&self.netns, &self.programs, device, Role::Uplink).is_err()
            {
                return Err(Reason::Refused);
            }
        }
        Ok(planned)
    }

    /// Enters a connection into the maps of the programs; false when no slot is free.
    pub(super) fn install(&mut self, connection: &mut Connection, legs: [Leg; 2]) -> Result<bool> {
        if self.dry {
            return Ok(true);
        }
        let Some(slot) = self.connections.take_slot(self.programs.slots()) else { return Ok(false) };
        let tuples = directions(connection.original(), connection.reply());
        for ((number, leg), tuples) in (slot..).zip(&legs).zip(&tuples) {
            if let Some(state) = self.programs.slot(number) {
                state.clear();
            }
            self.programs.install(tuples, leg, number)?;
        }
        connection.installed = Some((slot, self.connections.share(legs)));
        connection.last_tick = 0;
        Ok(true)
    }

    /// Removes it from the maps of the programs: its packets take the stack.
    pub(super) fn uninstall(&mut self, connection: &mut Connection) {
        let Some((slot, legs)) = connection.installed.take() else { return };
        self.arm(slot, 0);
        for ((number, leg), from) in (slot..).zip(&*legs).zip([connection.original(), connection.reply()]) {
            self.programs.remove(&from, leg);
            if let Some(state) = self.programs.slot(number) {
                connection.bytes += state.bytes.load(Ordering::Relaxed);
                connection.packets += state.packets.load(Ordering::Relaxed);
            }
        }
        self.connections.free_slot(slot);
    }

    pub(super) fn arm(&self, slot: u32, epoch: u32) {
        for state in [slot, slot + 1].into_iter().filter_map(|number| self.programs.slot(number)) {
            state.armed.store(epoch, Ordering::Release);
        }
    }
}
