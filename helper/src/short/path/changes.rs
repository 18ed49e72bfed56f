//! What changes around the connections: devices, routes and rules. Every change sends all connections back to the stack before anything else.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use anyhow::Result;
use sockpath_kernel::change::Changes;
use sockpath_protocol::accel::Reason;

use super::Path;
use crate::short::attach::Role;
use crate::short::devices;
use crate::short::outdated::Extent;

impl Path {
    pub(super) fn begin_epoch(&mut self) {
        self.programs.set_epoch(self.programs.epoch().wrapping_add(1));
        self.known_routes.clear();
    }

    /// Finds the node's devices and the pods', and attaches to the pods'.
    pub(super) fn look_around(&mut self) -> Result<()> {
        self.looked = Instant::now();
        self.topology = devices::discover(&self.netns, &self.pods, self.elsewhere.keys().copied(), &self.ours)?;
        if self.dry {
            return Ok(());
        }
        let fit: HashSet<u32> = self.topology.ports.values().filter(|p| p.refusal.is_none()).map(|p| p.device).collect();
        self.attachments.keep_pods(&self.netns, &self.programs, &fit)?;
        for device in fit {
            if self.attachments.attach(&self.netns, &self.programs, device, Role::Pod).is_err() {
                let ports = self.topology.ports.values_mut().filter(|p| p.device == device);
                ports.for_each(|p| p.refusal = Some(Reason::Refused));
            }
        }
        Ok(())
    }

    /// What has changed sends every connection back to the stack before anything else is done.
    pub(super) fn take_in(&mut self, changes: &Changes) -> Result<()> {
        let uplinks = self.attachments.uplinks();
        let mut links = changes.links.iter();
        let device_changed = links
            .any(|l| devices::is_of_interest(&self.topology, &uplinks, l.index) && self.topology.links.get(&l.index) != Some(l))
            || changes.gone.iter().any(|index| devices::is_of_interest(&self.topology, &uplinks, *index));
        if !(changes.rules || changes.routes || changes.tc || changes.lost || device_changed) {
            return Ok(());
        }
        self.begin_epoch();
        if changes.rules || changes.lost {
            self.rules.changed();
        }
        for index in &changes.gone {
            self.attachments.detach(&self.netns, &self.programs, *index)?;
        }
        if changes.tc || changes.lost || device_changed {
            self.outdated.note(Extent::Devices);
        } else if changes.routes {
            self.outdated.note(Extent::Plans);
        }
        self.catch_up()?;
        self.review()
    }

    /// Looks at devices and plans anew, as far as something has changed and that is due; whether it was.
    pub(super) fn catch_up(&mut self) -> Result<bool> {
        let Some(extent) = self.outdated.due() else { return Ok(false) };
        let began = Instant::now();
        if extent == Extent::Devices {
            self.look_around()?;
        }
        self.plan_again()?;
        self.outdated.caught_up(began.elapsed());
        Ok(true)
    }

    /// Finds out anew what becomes of the packets of each connection.
    pub(super) fn plan_again(&mut self) -> Result<()> {
        let listed = if self.table.is_list_worth_it(self.connections.len()) { self.list_by_tuple()? } else { HashMap::new() };
        for tuple in self.connections.tuples() {
            let Some(mut connection) = self.connections.take(&tuple) else { continue };
            let entry = match listed.get(&tuple) {
                Some(entry) => Some(entry.clone()),
                None => self.table.get(&tuple)?,
            };
            let planned = match entry {
                Some(entry) if entry.id == connection.id => self.plan(&entry),
                _ => Err(Reason::NotTracked),
            };
            let same = planned.ok().is_some_and(|legs| connection.installed.as_ref().is_some_and(|(_, old)| **old == legs));
            if !same {
                self.uninstall(&mut connection);
                self.begin(&mut connection, planned)?;
            }
            self.connections.put(connection);
        }
        Ok(())
    }
}
