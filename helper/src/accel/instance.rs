//! One running acceleration: its programs, maps and pins. Everything it consists of is pinned, so that any later process can
//! look at it, end it and clean up after it.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use sockpath_bpf::accel::types::{accel_end, accel_holder};
use sockpath_kernel::netns::{inside, inside_each};
use sockpath_kernel::shared::Mapped;

use super::calls::{self, Attachment};
use super::holders;
use super::links::{pinned, read_iterator, run_iterator, run_program};
use super::mechanism::{Mechanism, Mechanisms};
use super::memory::control;
use super::memory::ends::{Ends, Socket};
use super::memory::layout::{Control, Slot};
use super::namespaces::Namespaces;
use super::private::{connected_pair, in_private_netns};
use crate::node::{FoundPod, Netns};
use crate::pins::Pins;

/// Pin of the iterator over open files.
pub const HOLDERS: &str = "holders";

/// The pin of the iterator `track_live`. Helpers of other releases know it by this name.
pub const LIVE: &str = "meet_live";

/// Slots that one run of the program `look` goes through: it runs with softirqs off, some 0.1 ms for so many.
const LOOK_SLOTS: u32 = 1024;

/// A running (or left over) acceleration.
#[derive(Debug)]
pub struct Instance {
    pins: Pins,
    control: Mapped<Control>,
    /// What is recorded of each tracked socket.
    pub ends: Ends,
    /// The network namespaces whose sockets are tracked.
    pub namespaces: Namespaces,
    /// `accel_control.unsupported` when it was read last.
    unsupported_seen: AtomicU32,
    /// How optional mechanisms are had, where this process loaded the programs.
    mechanisms: Option<Mechanisms>,
}

impl Instance {
    /// Opens what another process left or runs; `None` when there is nothing.
    pub fn open(pins: &Pins) -> Result<Option<Self>> {
        if !pins.has("control") {
            return Ok(None);
        }
        if !fits(pins)? {
            // Its memory means something else, but a map without sockets cannot hold bytes of a connection.
            let left = count_sockets(pins)?;
            if left > 0 {
                bail!(
                    "{} was left by another version of sockpath and still has {left} sockets; run `stop` with that version",
                    pins.dir().display()
                );
            }
            return Ok(None);
        }
        let control = control::open(&pins.path("control"))?;
        // What another process found out is in its pins: a mechanism that was refused has none.
        Self::of(pins, control, None).map(Some)
    }

    pub(super) fn of(pins: &Pins, control: Mapped<Control>, mechanisms: Option<Mechanisms>) -> Result<Self> {
        let ends = Ends::open(&pins.path("ends"))?;
        let namespaces = Namespaces::open(pins, ends.len())?;
        Ok(Self { pins: pins.clone(), control, ends, namespaces, unsupported_seen: AtomicU32::new(0), mechanisms })
    }

    /// What controls the programs.
    pub fn control(&self) -> &Control {
        self.control.first()
    }

    /// Everything that is recorded of a tracked socket, unless it is gone.
    pub fn end_of(&self, socket: Socket) -> Option<accel_end> {
        self.ends.of(socket).map(Slot::copy).filter(|end| end.cookie == socket.cookie)
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether a process is ending it, or has.
    pub fn is_stopped(&self) -> bool {
        self.control().paused.get() != 0 || !self.pins.path("control").exists()
    }

    /// Both ends of a connection in a network namespace of its own, tracked: the one that connected first.
    ///
    /// # Errors
    /// When the namespace, the connection or the tracking cannot be had.
    pub fn private_pair(&self) -> Result<(TcpStream, TcpStream)> {
        in_private_netns(|| {
            let pair = connected_pair()?;
            let own = Netns::open("/proc/thread-self/ns/net").context("cannot open the own network namespace")?;
            self.namespaces.track(self.control(), &own)?;
            run_iterator(pinned(&self.pins, LIVE)?.as_raw_fd())?;
            Ok(pair)
        })
    }

    /// How its mechanisms are had; of an instance that another process loaded, as far as its pins show.
    pub fn mechanisms(&self) -> Mechanisms {
        self.mechanisms.clone().unwrap_or_else(|| {
            let absent = [(Mechanism::OpenFiles, HOLDERS)].into_iter().filter(|(_, pin)| !self.pins.path(pin).exists());
            Mechanisms::without(absent.map(|(mechanism, _)| mechanism))
        })
    }

    /// The tasks that hold tracked sockets, in the process namespace of the helper, and the process that reinjects: this one.
    pub fn holders(&self) -> Result<Vec<accel_holder>> {
        if !self.mechanisms().has(Mechanism::OpenFiles) {
            self.control().reinject_by_this_process();
            let sockets = (0..self.used()).filter_map(|slot| self.ends.get(slot)).map(|end| (end.inode.get(), end.cookie.get()));
            let found = sockets.filter(|(inode, cookie)| *inode != 0 && *cookie != 0).collect();
            return Ok(holders::by_proc(Path::new("/proc"), &found));
        }
        let written = read_iterator(pinned(&self.pins, HOLDERS)?.as_raw_fd())?;
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let holders = written.chunks_exact(size_of::<accel_holder>()).map(|h| accel_holder {
            cookie: u64::from_ne_bytes(h[..8].try_into().unwrap_or_default()),
            tgid: word(&h[8..12]),
            fd: word(&h[12..]),
        });
        Ok(holders.collect())
    }

    /// Rearms edge-triggered readers of a network namespace that may wait for an edge while bytes are unread.
    ///
    /// # Errors
    /// When the namespace cannot be entered or its sockets not be iterated over.
    pub fn rearm(&self, netns: &Netns) -> Result<()> {
        let link = pinned(&self.pins, "rearm")?;
        inside(&netns.file, || run_iterator(link.as_raw_fd()))
            .with_context(|| format!("cannot look at the sockets of {}", netns.path.display()))
    }

    /// Sockets on which unsupported calls were observed, and which; by cookie. Empty when there are no new ones.
    ///
    /// # Errors
    /// When the map of such calls cannot be read.
    pub fn unsupported_calls(&self) -> Result<HashMap<u64, u32>> {
        let count = self.control().unsupported.get();
        if self.unsupported_seen.swap(count, Ordering::Relaxed) == count {
            return Ok(HashMap::new());
        }
        let map = MapHandle::from_pinned_path(self.pins.path("unsupported")).context("cannot open the map of unsupported calls")?;
        let mut found = HashMap::new();
        for key in map.keys() {
            if let Some(value) = map.lookup(&key, MapFlags::ANY).context("cannot read the map of unsupported calls")?
                && let (Ok(key), Ok(value)) = (key.try_into(), value.try_into())
            {
                found.insert(u64::from_ne_bytes(key), u32::from_ne_bytes(value));
            }
        }
        Ok(found)
    }

    /// Programs that were observed to use FIONREAD on a tracked socket, by the identity of their files.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn asking_programs(&self) -> Result<Vec<u64>> {
        let map = MapHandle::from_pinned_path(self.pins.path("programs")).context("cannot open the map of programs")?;
        Ok(map.keys().filter_map(|key| key.try_into().ok()).map(u64::from_ne_bytes).collect())
    }

    /// Tracks the sockets that are open in a network namespace already.
    pub fn track_live(&self, pod: &FoundPod) -> Result<()> {
        let link = pinned(&self.pins, LIVE)?;
        inside(&pod.netns.file, || run_iterator(link.as_raw_fd()))
            .with_context(|| format!("cannot look at the sockets of {}", pod.netns.path.display()))
    }

    /// Looks at all tracked sockets: carries out orders to leave the map, measures queues, frees the slots of what is over.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn look(&self) -> Result<()> {
        let program = pinned(&self.pins, "look")?;
        let used = u32::try_from(self.used()).unwrap_or(u32::MAX);
        let mut from = 0;
        while from < used {
            let to = used.min(from + LOOK_SLOTS);
            run_program(program.as_raw_fd(), [from, to], 0)?;
            from = to;
        }
        Ok(())
    }

    /// Inserts the sockets into the map that are ordered there, in their namespaces. One that cannot be found there is excluded.
    ///
    /// # Errors
    /// When a namespace cannot be entered or the kernel refuses to run the program.
    pub fn insert_ordered(&self) -> Result<()> {
        let mut by_share: HashMap<u16, Vec<(usize, u32)>> = HashMap::new();
        for slot in (0..self.used()).filter(|&slot| self.ends.is_ordered_in(slot)) {
            let Some(end) = self.ends.get(slot) else { continue };
            by_share.entry(end.share.get()).or_default().push((slot, end.bound_to.get()));
        }
        let namespaces: Vec<_> = by_share.iter().filter_map(|(share, slots)| Some((self.namespaces.file(*share)?, slots))).collect();
        if !namespaces.is_empty() {
            let program = pinned(&self.pins, "insert")?;
            inside_each(&namespaces, |slots| slots.iter().try_for_each(|(slot, device)| self.insert(&program, *slot, *device)))?;
        }
        self.ends.refuse(by_share.into_values().flatten().map(|(slot, _)| slot));
        Ok(())
    }

    fn insert(&self, program: &OwnedFd, slot: usize, bound_to: u32) -> Result<()> {
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        match run_program(program.as_raw_fd(), [slot, 0], bound_to) {
            // The device that it is bound to is gone: it is excluded.
            Err(_) if bound_to != 0 => Ok(()),
            outcome => outcome,
        }
    }

    /// Observes calls on watched sockets until what is returned is dropped.
    pub fn observe_calls(&self) -> Result<Attachment> {
        match self.attach_to_functions() {
            Ok(links) => Ok(Attachment::at_functions(links)),
            Err(why) => Ok(Attachment::at_system_calls(self.attach_program(calls::SYSTEM_CALL)?, format!("{why:#}"))),
        }
    }

    fn attach_to_functions(&self) -> Result<Vec<OwnedFd>> {
        let pinned: Vec<String> = calls::programs().filter(|name| self.pins.path(name).exists()).collect();
        if pinned.is_empty() {
            let why = self.mechanisms.as_ref().and_then(|m| m.why_not(Mechanism::Functions));
            bail!("{}", why.unwrap_or("the kernel refused it at the start"));
        }
        pinned.iter().map(|name| self.attach_program(name)).collect()
    }

    /// Observes sends on watched sockets until the returned link is dropped.
    pub fn observe_sends(&self) -> Result<OwnedFd> {
        self.attach_program("sent")
    }

    /// Observes data that arrives at watched sockets until the returned link is dropped.
    pub fn observe_arrivals(&self) -> Result<OwnedFd> {
        self.attach_program("arrived")
    }

    /// Attaches a program that knows its tracepoint or function.
    pub(super) fn attach_program(&self, name: &str) -> Result<OwnedFd> {
        let program = pinned(&self.pins, name)?;
        // SAFETY: no name is needed, the program knows its place; the descriptor is open.
        let fd = unsafe { libbpf_rs::libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) };
        if fd < 0 {
            bail!("cannot observe calls on sockets (program {name}): {}", std::io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a fresh descriptor without another owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Wakeups by the programs; `on_wakeup` is called for each when it is consumed.
    pub fn wakeups<'a>(&self, on_wakeup: impl FnMut() + 'a) -> Result<RingBuffer<'a>> {
        let map = MapHandle::from_pinned_path(self.pins.path("wakeups")).context("cannot open the map of wakeups")?;
        let mut on_wakeup = on_wakeup;
        let mut builder = RingBufferBuilder::new();
        builder.add(&map, move |_| {
            on_wakeup();
            0
        })?;
        builder.build().context("cannot read the map of wakeups")
    }

    /// Slots that were ever used.
    pub fn used(&self) -> usize {
        (self.control().fresh.get() as usize).min(self.ends.len())
    }
}

/// Whether what is pinned has the layout of this version.
fn fits(pins: &Pins) -> Result<bool> {
    let size = |name: &str| -> Result<u32> {
        let path = pins.path(name);
        Ok(MapHandle::from_pinned_path(&path).with_context(|| format!("cannot open {}", path.display()))?.value_size())
    };
    Ok(size("control")? as usize == size_of::<Control>() && size("ends")? as usize == size_of::<Slot>())
}

/// Sockets in the sockmap, by asking for each slot.
fn count_sockets(pins: &Pins) -> Result<usize> {
    let socks = MapHandle::from_pinned_path(pins.path("socks")).context("cannot open the sockmap")?;
    let mut count = 0;
    for slot in 0..socks.max_entries() {
        count += usize::from(socks.lookup(&slot.to_ne_bytes(), MapFlags::ANY).context("cannot look into the sockmap")?.is_some());
    }
    Ok(count)
}
