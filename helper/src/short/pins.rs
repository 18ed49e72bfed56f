//! What another process finds of a running short path: its maps, in the directory of pins that the two paths of an acceleration share.
//!
//! Packets do not depend on the pins. They are there for `status` and `stop`, and for what a helper that was killed has left.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::time::ClockId;
use sockpath_kernel::clock::clock_ns;
use sockpath_kernel::netlink::word;
use sockpath_kernel::shared::Mapped;
use sockpath_protocol::accel::{ByPath, Carried, Carrier, Pair, PairState, PairsSnapshot, Reason};

use super::attach::remove_filters;
use super::flow_map;
use super::programs::{Control, Programs, Slot};
use super::report;
use crate::lease::{is_late, left_until};
use crate::node;
use crate::pins::Pins;

/// What the names of our pins begin with.
const PREFIX: &str = "short-";

/// The maps of each node, by name; the number of the node follows. The variables come last: without them the start was interrupted.
const SLOTS: &str = "slots";
const FLOWS4: &str = "flows4";
const FLOWS6: &str = "flows6";
const ATTACHED: &str = "attached";
const CONTROL: &str = "control";

/// What stands between the owner and who ends the short path.
const STOPPED_BY: &str = ", ended by ";

fn name(map: &str, node: usize) -> String {
    format!("{PREFIX}{map}-{node}")
}

/// Pins the maps of a node.
///
/// # Errors
/// When the kernel refuses.
pub fn pin(pins: &Pins, node: usize, programs: &mut Programs) -> Result<()> {
    let [control, slots, flows4, flows6, attached] = programs.pinnable();
    for (map, handle) in [(SLOTS, slots), (FLOWS4, flows4), (FLOWS6, flows6), (ATTACHED, attached), (CONTROL, control)] {
        handle.pin(pins.path(&name(map, node))).context("cannot pin a map of the short path")?;
    }
    Ok(())
}

/// Whether a pin of this name belongs to the short path.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The pinned maps of one node.
#[derive(Debug)]
pub struct Pinned {
    control: Mapped<Control>,
    slots: Mapped<Slot>,
    /// As far as they are of this version.
    flows: Vec<MapHandle>,
    attached: MapHandle,
}

impl Pinned {
    /// Those of each node that another process serves, or left. What another version left can be ended and removed as long as variables and
    /// slots have the same layout; only connections are missing then.
    ///
    /// # Errors
    /// When they cannot be read, as when they have another layout.
    pub fn all(pins: &Pins) -> Result<Vec<Self>> {
        (0..).map_while(|node| Self::open(pins, node).transpose()).collect()
    }

    fn open(pins: &Pins, node: usize) -> Result<Option<Self>> {
        if !pins.has(&name(CONTROL, node)) {
            return Ok(None);
        }
        let map = |map: &str| {
            let path = pins.path(&name(map, node));
            MapHandle::from_pinned_path(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let (control, slots) = (map(CONTROL)?, map(SLOTS)?);
        let left = || format!("{} was left by another version of sockpath: remove it when its lease is over", pins.dir().display());
        Ok(Some(Self {
            control: Mapped::new(control.as_fd(), control.value_size(), 1).with_context(left)?,
            slots: Mapped::new(slots.as_fd(), slots.value_size(), slots.max_entries()).with_context(left)?,
            flows: [FLOWS4, FLOWS6].into_iter().filter_map(|flows| map(flows).ok()).filter(flow_map::is_of_this_version).collect(),
            attached: map(ATTACHED)?,
        }))
    }

    fn read<T: Default>(&self, read: impl FnOnce(&Control) -> T) -> T {
        self.control.get(0).map(read).unwrap_or_default()
    }

    /// Ends every redirect at once, and has the process that serves it detach its programs.
    pub fn stop(&self, by: &str) {
        self.read(|control| {
            let owner = control.owner();
            if !by.is_empty() && !owner.contains(STOPPED_BY) {
                control.set_owner(&format!("{owner}{STOPPED_BY}{by}"));
            }
            control.stopped.store(1, Ordering::Release);
            control.deadline_ns.store(0, Ordering::Release);
        });
    }

    /// Whether its programs are detached.
    pub fn is_released(&self) -> bool {
        self.read(|c| c.released.load(Ordering::Acquire) != 0)
    }

    /// Inode of the network namespace of its node.
    pub fn netns(&self) -> u32 {
        self.read(|c| c.netns.load(Ordering::Relaxed))
    }

    /// Who started it.
    pub fn owner(&self) -> String {
        self.read(Control::owner)
    }

    /// When the lease ends (CLOCK_MONOTONIC, nanoseconds).
    pub fn deadline_ns(&self) -> u64 {
        self.read(|c| c.deadline_ns.load(Ordering::Relaxed))
    }

    fn left(&self, moment: fn(&Control) -> &AtomicU64) -> Result<Duration> {
        let moment = self.read(|c| moment(c).load(Ordering::Relaxed));
        left_until(moment)
    }

    /// Whether the process that renews the lease is late by more than one renewal.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn is_helper_gone(&self) -> Result<bool> {
        let left = self.left(|c| &c.deadline_ns)?;
        let renewed = Duration::from_nanos(self.read(|c| c.lease_ns.load(Ordering::Relaxed)));
        Ok(is_late(left, renewed))
    }

    /// How long it lasts if nothing else happens.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn time_left(&self) -> Result<Duration> {
        if self.is_detached() && !self.is_helper_gone()? { self.left(|c| &c.ends_ns) } else { self.left(|c| &c.deadline_ns) }
    }

    /// Whether it outlives the session that started it.
    pub fn is_detached(&self) -> bool {
        self.read(|c| c.detached.load(Ordering::Relaxed) != 0)
    }

    /// How long it has run.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn ran(&self) -> Result<Duration> {
        let started = self.read(|c| c.started_ns.load(Ordering::Relaxed));
        Ok(Duration::from_nanos(clock_ns(ClockId::CLOCK_MONOTONIC)?.saturating_sub(started)))
    }

    /// Removes filters that a process that is gone has left at devices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_filters(&self) -> Result<()> {
        let entries: Vec<(u32, u32)> = self
            .attached
            .keys()
            .filter_map(|key| Some((word(&key, 0)?, word(&self.attached.lookup(&key, MapFlags::ANY).ok()??, 0)?)))
            .collect();
        if entries.is_empty() {
            return Ok(());
        }
        // A namespace that is gone took its devices along.
        let Some(netns) = node::netns_by_inode(self.netns()) else { return Ok(()) };
        entries.into_iter().try_for_each(|(device, attachment)| {
            remove_filters(&netns, device, attachment)?;
            // What is not there need not be deleted.
            let _ = self.attached.delete(&device.to_ne_bytes());
            Ok(())
        })
    }

    /// Adds its connections, without the names of pods, and its sums.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn add_to(&self, snapshot: &mut PairsSnapshot) -> Result<()> {
        let epoch = self.read(|c| c.epoch.load(Ordering::Relaxed));
        let lease = !self.is_helper_gone()?;
        for flows in &self.flows {
            for key in flows.keys() {
                // One that has gone meanwhile is over.
                let Some(plan) = flows.lookup(&key, MapFlags::ANY).context("cannot read the flows")? else { continue };
                snapshot.pairs.extend(self.pair(&key, &plan, epoch, lease));
            }
        }
        self.read(|control| report::add_closed(&mut snapshot.totals, control));
        Ok(())
    }

    /// The connection of an original direction, which has an even slot.
    fn pair(&self, key: &[u8], plan: &[u8], epoch: u32, lease: bool) -> Option<Pair> {
        let tuple = flow_map::tuple(key)?;
        let (server, slot) = flow_map::destination(&tuple, plan)?;
        let slots = [slot, slot + 1].map(|s| self.slots.get(s as usize));
        let (0, [Some(there), Some(back)]) = (slot % 2, slots) else { return None };
        let armed = there.armed.load(Ordering::Relaxed) == epoch;
        let (state, reason) = match () {
            () if !lease => (PairState::Waiting, Some(Reason::Lease)),
            () if armed => (PairState::Accelerated, None),
            () if there.paused.load(Ordering::Relaxed) != 0 => (PairState::Paused, Some(Reason::Paused)),
            () => (PairState::Waiting, Some(Reason::AwaitingStack)),
        };
        let both = Some([there, back]);
        let (bytes, packets) = report::carried(both);
        Some(Pair {
            client_pod: None,
            server_pod: None,
            client: tuple.source,
            dialled: tuple.destination,
            server: Some(server),
            via_service: tuple.destination != server,
            via: if state == PairState::Accelerated { Carrier::Short } else { Carrier::Stack },
            state,
            reason,
            live: false,
            bypassed_bytes: bytes,
            bypassed_messages: packets,
            passes: report::passes(both),
            by_path: ByPath { short: Carried::of_one(bytes, packets), ..ByPath::default() },
            turnaround_before_ns: report::turnaround(both, |s| &s.before_ns),
            turnaround_after_ns: report::turnaround(both, |s| &s.after_ns),
        })
    }
}

/// All connections of these nodes, and the sums.
///
/// # Errors
/// When a map cannot be read.
pub fn snapshot(nodes: &[Pinned]) -> Result<PairsSnapshot> {
    let mut snapshot = PairsSnapshot::default();
    nodes.iter().try_for_each(|node| node.add_to(&mut snapshot))?;
    report::finish(&mut snapshot);
    Ok(snapshot)
}

/// Who ends it, by the text of its owner.
#[must_use]
pub fn stopped_by(owner: &str) -> Option<String> {
    owner.split_once(STOPPED_BY).map(|(_, by)| by.to_owned())
}
