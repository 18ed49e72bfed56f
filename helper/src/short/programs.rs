//! The programs of `bpf/src/short.bpf.c`: loading them, and the memory shared with them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use memchr::memmem;
use nix::time::ClockId;
use sockpath_bpf::short::ShortSkelBuilder;
use sockpath_bpf::short::types::{bss, short_control, short_event, short_event_kind, short_key, short_pass, short_slot};
use sockpath_kernel::clock::clock_ns;
use sockpath_kernel::conntrack::Tuple;
use sockpath_kernel::shared::{Mapped, Shared};
use sockpath_protocol::accel::Reason;

use super::eligible::Leg;
use super::flow_map::{self, Key};
use crate::switches;

/// Why packets of a known flow take the stack, in the order of `enum short_pass`.
pub const PASSES: [Reason; short_pass::SHORT_PASSES.0 as usize] =
    [Reason::AwaitingStack, Reason::Ending, Reason::PacketTooLarge, Reason::TtlExceeded, Reason::NotTracked, Reason::Lease];

/// `struct short_slot` in shared memory.
#[derive(Debug)]
#[repr(C)]
pub struct Slot {
    pub armed: AtomicU32,
    pub seen: AtomicU32,
    pub delivered: AtomicU32,
    pub asked: AtomicU32,
    pub ended: AtomicU32,
    pub paused: AtomicU32,
    pub packets: AtomicU64,
    pub bytes: AtomicU64,
    pub last_tick: AtomicU64,
    request_ns: AtomicU64,
    pub before_ns: AtomicU32,
    pub after_ns: AtomicU32,
    pub passes: [AtomicU32; PASSES.len()],
}

// SAFETY: atomics only.
unsafe impl Shared for Slot {}

const _: () = {
    assert!(size_of::<Slot>() == size_of::<short_slot>());
    assert!(offset_of!(Slot, ended) == offset_of!(short_slot, ended));
    assert!(offset_of!(Slot, paused) == offset_of!(short_slot, paused));
    assert!(offset_of!(Slot, packets) == offset_of!(short_slot, packets));
    assert!(offset_of!(Slot, last_tick) == offset_of!(short_slot, last_tick));
    assert!(offset_of!(Slot, before_ns) == offset_of!(short_slot, before_ns));
    assert!(offset_of!(Slot, passes) == offset_of!(short_slot, passes));
};

impl Slot {
    /// Makes it as new.
    pub fn clear(&self) {
        let words = [&self.armed, &self.seen, &self.delivered, &self.asked, &self.ended, &self.paused, &self.before_ns, &self.after_ns];
        for word in words.into_iter().chain(&self.passes) {
            word.store(0, Ordering::Relaxed);
        }
        for count in [&self.packets, &self.bytes, &self.last_tick, &self.request_ns] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// Bytes of the name of who started it, with the NUL.
const OWNER: usize = size_of::<short_control>() - offset_of!(short_control, owner);

/// The programs' variables: `struct short_control`.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    pub deadline_ns: AtomicU64,
    pub epoch: AtomicU32,
    pub stopped: AtomicU32,
    pub released: AtomicU32,
    pub detached: AtomicU32,
    pub netns: AtomicU32,
    unused: AtomicU32,
    pub lease_ns: AtomicU64,
    pub started_ns: AtomicU64,
    pub ends_ns: AtomicU64,
    pub closed_connections: AtomicU64,
    pub closed_carried: AtomicU64,
    pub closed_packets: AtomicU64,
    pub closed_bytes: AtomicU64,
    owner: [AtomicI8; OWNER],
}

// SAFETY: atomics only.
unsafe impl Shared for Control {}

const _: () = {
    assert!(size_of::<Control>() == size_of::<bss>());
    assert!(offset_of!(Control, deadline_ns) == offset_of!(short_control, deadline_ns));
    assert!(offset_of!(Control, epoch) == offset_of!(short_control, epoch));
    assert!(offset_of!(Control, netns) == offset_of!(short_control, netns));
    assert!(offset_of!(Control, lease_ns) == offset_of!(short_control, lease_ns));
    assert!(offset_of!(Control, closed_connections) == offset_of!(short_control, closed_connections));
    assert!(offset_of!(Control, closed_bytes) == offset_of!(short_control, closed_bytes));
    assert!(offset_of!(Control, owner) == offset_of!(short_control, owner));
};

impl Control {
    /// Lets packets be redirected for that long from now.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let lease = nanos(lease);
        self.lease_ns.store(lease, Ordering::Relaxed);
        self.deadline_ns.store(clock_ns(ClockId::CLOCK_MONOTONIC)?.saturating_add(lease), Ordering::Release);
        Ok(())
    }

    /// Who started it and, behind that, who ends it.
    pub fn owner(&self) -> String {
        let bytes: Vec<u8> = self.owner.iter().map(|b| b.load(Ordering::Relaxed).cast_unsigned()).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Notes who that is; what is too long is cut.
    pub fn set_owner(&self, owner: &str) {
        let bytes = owner.bytes().take(OWNER - 1).chain(std::iter::repeat(0));
        self.owner.iter().zip(bytes).for_each(|(to, from)| to.store(from.cast_signed(), Ordering::Relaxed));
    }

    /// Adds a connection that is over to the sums.
    pub fn add_closed(&self, packets: u64, bytes: u64) {
        self.closed_connections.fetch_add(1, Ordering::Relaxed);
        self.closed_carried.fetch_add(u64::from(packets > 0), Ordering::Relaxed);
        self.closed_packets.fetch_add(packets, Ordering::Relaxed);
        self.closed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A time as the programs count it.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// What a program reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A flow of a chosen pod that is not known and lasts.
    Candidate(Tuple),
    /// The stack has passed both directions of the connection with this (even) slot.
    Ready(u32),
    /// It has ended.
    Over(u32),
}

/// The loaded programs and their maps. The kernel frees everything when this is dropped and nothing is attached.
pub struct Programs {
    /// What chosen pods send.
    pub from_pod: OwnedFd,
    /// What comes in from other nodes.
    pub from_node: OwnedFd,
    /// What the stack sends out.
    pub delivered: OwnedFd,
    flows4: MapHandle,
    flows6: MapHandle,
    attached: MapHandle,
    /// The maps behind `slots` and `control`, to be pinned.
    shared: [MapHandle; 2],
    slots: Mapped<Slot>,
    control: Mapped<Control>,
    /// They ask connection tracking by themselves.
    pub asks_conntrack: bool,
    ring: RingBuffer<'static>,
    /// The ring buffer is waited for by the descriptor of this handle.
    _reports: MapHandle,
    events: Arc<Mutex<Vec<Event>>>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

/// The type information of the kernel, or of a module, in which the names of functions and values are; `None` where there is none.
fn type_information(file: &str) -> Option<Vec<u8>> {
    std::fs::read(format!("/sys/kernel/btf/{file}")).ok()
}

/// Whether the kernel has the function by which the programs ask connection tracking in each tick (5.18).
///
/// # Errors
/// When the kernel is older than 5.12, for which the programs are made: it refuses them without a reason that a user understands.
fn has_conntrack_lookup() -> Result<bool> {
    let kernel = type_information("vmlinux");
    let has = |text: &Option<Vec<u8>>, name: &str| text.as_ref().is_some_and(|text| memmem::find(text, name.as_bytes()).is_some());
    // The function came with that release.
    if kernel.is_some() && !has(&kernel, "BPF_FUNC_check_mtu") {
        anyhow::bail!("the short path needs Linux 5.12 or later: boot a newer kernel on this node");
    }
    const LOOKUP: &str = "bpf_skb_ct_lookup";
    Ok(has(&type_information("nf_conntrack"), LOOKUP) || has(&kernel, LOOKUP))
}

impl Programs {
    /// Loads them.
    pub fn load() -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        if switches::is_absent("short") {
            anyhow::bail!("a test switch takes the short path away");
        }
        let asks_conntrack = has_conntrack_lookup()?;
        let mut open = ShortSkelBuilder::default().open(&mut storage).context("cannot open the programs of the short path")?;
        let constants = open.maps.rodata_data.as_deref_mut().context("the programs of the short path have no constants")?;
        constants.tally_seed = RandomState::new().build_hasher().finish();
        constants.can_ask_conntrack = asks_conntrack.into();
        let skel = open.load().context("the kernel refused the programs of the short path")?;
        let owned = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context("cannot keep a program");
        let slots = &skel.maps.slots;
        let variables = &skel.maps.bss;
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = events.clone();
        let reports = MapHandle::try_from(&skel.maps.events).context("cannot keep the ring buffer")?;
        let ring = {
            let mut builder = RingBufferBuilder::new();
            let take = move |bytes: &[u8]| {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend(event(bytes));
                0
            };
            builder.add(&reports, take).context("cannot read the events of the short path")?;
            builder.build().context("cannot read the events of the short path")?
        };
        let programs = Self {
            from_pod: owned(skel.progs.short_from_pod.as_fd())?,
            from_node: owned(skel.progs.short_from_node.as_fd())?,
            delivered: owned(skel.progs.short_delivered.as_fd())?,
            flows4: MapHandle::try_from(&skel.maps.flows4).context("cannot keep the map of flows over IPv4")?,
            flows6: MapHandle::try_from(&skel.maps.flows6).context("cannot keep the map of flows over IPv6")?,
            attached: MapHandle::try_from(&skel.maps.attached).context("cannot keep the map of devices")?,
            shared: [
                MapHandle::try_from(&skel.maps.slots).context("cannot keep the slots")?,
                MapHandle::try_from(&skel.maps.bss).context("cannot keep the programs' variables")?,
            ],
            slots: Mapped::new(slots.as_fd(), slots.value_size(), slots.max_entries()).context("cannot map the slots")?,
            control: Mapped::new(variables.as_fd(), variables.value_size(), 1).context("cannot map the programs' variables")?,
            asks_conntrack,
            ring,
            _reports: reports,
            events,
        };
        programs.set_epoch(1);
        Ok(programs)
    }

    /// The programs' variables.
    pub fn control(&self) -> &Control {
        self.control.get(0).expect("the programs' variables are one value")
    }

    /// The descriptor that is readable when there are events.
    pub fn event_fd(&self) -> i32 {
        self.ring.epoll_fd()
    }

    /// The events that have come.
    pub fn events(&self) -> Result<Vec<Event>> {
        self.ring.consume().context("cannot read the events of the short path")?;
        Ok(std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A direction's state.
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    /// The current epoch.
    pub fn epoch(&self) -> u32 {
        self.control().epoch.load(Ordering::Relaxed)
    }

    /// Begins an epoch: every connection takes the stack until it is approved again. 0 is not one.
    pub fn set_epoch(&self, epoch: u32) {
        self.control().epoch.store(epoch.max(1), Ordering::Release);
    }

    /// What another process finds by its pin: variables, slots, flows and devices.
    pub fn pinnable(&mut self) -> [&mut MapHandle; 5] {
        let [slots, control] = &mut self.shared;
        [control, slots, &mut self.flows4, &mut self.flows6, &mut self.attached]
    }

    /// Notes how programs stay attached to a device without their process (`enum short_attachment`).
    pub fn note_attachment(&self, device: u32, attachment: u32) -> Result<()> {
        self.attached.update(&device.to_ne_bytes(), &attachment.to_ne_bytes(), MapFlags::ANY).context("cannot note a device")
    }

    /// Notes that none are.
    pub fn forget_attachment(&self, device: u32) {
        // It may be gone.
        let _ = self.attached.delete(&device.to_ne_bytes());
    }

    /// Ends every redirect.
    pub fn end_lease(&self) {
        self.control().deadline_ns.store(0, Ordering::Release);
    }

    /// Makes a direction known under a slot.
    pub fn install(&self, (from, to): &(Tuple, Tuple), leg: &Leg, slot: u32) -> Result<()> {
        let key = Key::of(from, leg.device);
        let plan = flow_map::plan(from, to, leg, slot);
        self.flows_of(&key).update(key.bytes(), &plan, MapFlags::ANY).context("cannot add a flow to the map")
    }

    /// Makes a direction unknown.
    pub fn remove(&self, from: &Tuple, leg: &Leg) {
        let key = Key::of(from, leg.device);
        // It may be gone: a map entry that is not there is what is wanted.
        let _ = self.flows_of(&key).delete(key.bytes());
    }

    fn flows_of(&self, key: &Key) -> &MapHandle {
        match key {
            Key::V4(_) => &self.flows4,
            Key::V6(_) => &self.flows6,
        }
    }
}

/// An event as the program wrote it.
fn event(bytes: &[u8]) -> Option<Event> {
    let word = |at: usize| sockpath_kernel::netlink::word(bytes, at);
    let slot = word(offset_of!(short_event, slot))?;
    let kind = word(offset_of!(short_event, kind))?;
    if kind == short_event_kind::SHORT_READY.0 {
        return Some(Event::Ready(slot));
    }
    if kind == short_event_kind::SHORT_OVER.0 {
        return Some(Event::Over(slot));
    }
    let key = offset_of!(short_event, key);
    flow_map::tuple(bytes.get(key..key + size_of::<short_key>())?).map(Event::Candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_read_as_it_was_written() {
        for tuple in flow_map::tests::tuples() {
            let mut bytes = [0u32, 0].iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
            bytes.extend(flow_map::tests::reported(&tuple, 7));
            assert_eq!(event(&bytes), Some(Event::Candidate(tuple)));
            assert_eq!(event(&bytes[..20]), None);
        }
    }
}
