//! Starting an acceleration: its programs are loaded, its maps, programs and links are pinned, and what its programs need to know of this
//! kernel is measured.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::IterOpts;
use libbpf_rs::skel::Skel;
use sockpath_bpf::accel::types::accel_control;
use sockpath_bpf::accel::{AccelSkel, OpenAccelSkel};

use super::calibrate::{self, Stack};
use super::calls;
use super::connection::PROFILE_READS;
use super::counting;
use super::instance::{HOLDERS, Instance, LIVE};
use super::kernel;
use super::mechanism::{self, Loaded, Mechanism};
use super::memory::control;
use super::memory::sleeper::Sleeper;
use super::namespaces;
use super::tracking;
use crate::pins::Pins;
use crate::switches;

/// Bytes that may lie unread at a reader before its writer goes by TCP. Smaller budgets spill at every time slice when writer
/// and reader share a CPU.
const BUDGET: u32 = 4 << 20;

/// Times that data has to have found the reader in poll(2) or the like, where its receive calls may sleep: one that seldom sleeps in
/// them has to be distinguished from one that never does.
const PROFILE_POLLS: u32 = 32;

/// How an acceleration is started.
#[derive(Debug)]
pub struct Start<'a> {
    /// Who starts it.
    pub owner: &'a str,
    /// How long it lasts unless it is renewed: the lease is not longer than [`LEASE`](crate::lease::LEASE), a detached run ends after this
    /// time.
    pub lease: Duration,
    /// Whether readers that sleep in their receive call are excluded.
    pub leave_blocking_readers: bool,
    /// Whether it outlives its session.
    pub detached: bool,
    /// Mechanisms that are not tried: tests show that the rest does without.
    pub without: &'a [Mechanism],
}

#[cfg(test)]
impl Start<'_> {
    /// One for tests: a session in the foreground, for a minute.
    pub fn sample(leave_blocking_readers: bool) -> Self {
        Self { owner: "test", lease: Duration::from_secs(60), leave_blocking_readers, detached: false, without: &[] }
    }
}

impl Instance {
    /// Loads, attaches and pins everything. The caller has claimed the pins; `control` is pinned last: where it is missing, a start was
    /// interrupted, which has inserted nothing into the sockmap.
    ///
    /// # Errors
    /// When the kernel refuses something, with the reason.
    pub fn create(pins: &Pins, start: &Start<'_>) -> Result<Self> {
        let mut storage = [const { MaybeUninit::uninit() }; 3];
        let Loaded { mut skel, mechanisms, at_functions } =
            mechanism::load(&mut storage, kernel::require()?, start.without, apply_switches)?;
        skel.progs.verdict.attach_sockmap(skel.maps.socks.as_fd().as_raw_fd()).context("cannot attach the verdict to the sockmap")?;
        pin_maps(&mut skel, pins)?;
        pin_iterators(&mut skel, pins, mechanisms.has(Mechanism::OpenFiles))?;
        pin_programs(&mut skel, pins, &at_functions)?;
        let stack = measure(&skel)?;
        let control = control::of(&skel.maps.control)?;
        control.first().begin(&settings(start, &stack), start.owner, start.lease)?;
        let instance = Self::of(pins, control, Some(mechanisms))?;
        counting::begin(&instance)?;
        skel.maps.control.pin(pins.path("control"))?;
        Ok(instance)
    }
}

fn pin_maps(skel: &mut AccelSkel<'_>, pins: &Pins) -> Result<()> {
    skel.maps.socks.pin(pins.path("socks"))?;
    skel.maps.conns.pin(pins.path("conns"))?;
    skel.maps.slots.pin(pins.path("slots"))?;
    skel.maps.ends.pin(pins.path("ends"))?;
    skel.maps.unsupported.pin(pins.path("unsupported"))?;
    skel.maps.wakeups.pin(pins.path("wakeups"))?;
    skel.maps.calls.pin(pins.path(counting::CALLS))?;
    skel.maps.namespaces.pin(pins.path(namespaces::NAMESPACES))?;
    skel.maps.shares.pin(pins.path(namespaces::SHARES))?;
    skel.maps.programs.pin(pins.path("programs"))?;
    Ok(())
}

fn pin_iterators(skel: &mut AccelSkel<'_>, pins: &Pins, open_files: bool) -> Result<()> {
    let sockets = skel.progs.track_live.attach_iter_with_opts(IterOpts::None);
    sockets.context("cannot make the iterator over TCP sockets")?.pin(pins.path(LIVE))?;
    let readers = skel.progs.rearm.attach_iter_with_opts(IterOpts::None);
    readers.context("cannot make the iterator over readers")?.pin(pins.path("rearm"))?;
    if open_files {
        let files = skel.progs.holders.attach_iter_with_opts(IterOpts::None);
        files.context("cannot make the iterator over open files")?.pin(pins.path(HOLDERS))?;
    }
    Ok(())
}

fn pin_programs(skel: &mut AccelSkel<'_>, pins: &Pins, at_functions: &calls::Choice) -> Result<()> {
    skel.progs.look.pin(pins.path("look"))?;
    skel.progs.insert.pin(pins.path("insert"))?;
    skel.progs.received.pin(pins.path(counting::RECEIVED))?;
    skel.progs.system_call.pin(pins.path(calls::SYSTEM_CALL))?;
    for mut program in skel.object_mut().progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        if at_functions.has(&name) {
            program.pin(pins.path(&name))?;
        }
    }
    skel.progs.sent.pin(pins.path("sent"))?;
    skel.progs.arrived.pin(pins.path("arrived"))?;
    skel.progs.established.pin(pins.path(tracking::PROGRAM))?;
    Ok(())
}

/// What a task that waits for a socket looks like on this kernel.
fn measure(skel: &AccelSkel<'_>) -> Result<Stack> {
    let link = skel.progs.show_sleeper.attach_iter_with_opts(IterOpts::None).context("cannot make the iterator over sleepers")?;
    calibrate::measure(link.as_fd().as_raw_fd(), &Sleeper::of(&skel.maps.sleeper)?)
}

fn settings(start: &Start<'_>, stack: &Stack) -> accel_control {
    let profiles = !switches::without_order_gate();
    accel_control {
        budget: BUDGET,
        profile_reads: if profiles { PROFILE_READS } else { 0 },
        profile_polls: if profiles { PROFILE_POLLS } else { 0 },
        detached: u32::from(start.detached),
        leave_blocking: u32::from(start.leave_blocking_readers),
        wake_function: stack.wake_function,
        poll_function: stack.poll_function,
        epoll_function: stack.epoll_function,
        frame_offset: stack.frame_offset,
        native_from: stack.native.clone().map(|r| r.start),
        native_to: stack.native.clone().map(|r| r.end),
        ..Default::default()
    }
}

/// Applies test switches to programs before they are loaded.
fn apply_switches(open: &mut OpenAccelSkel<'_>) {
    #[cfg(feature = "test-switches")]
    if switches::without_order_gate()
        && let Some(rodata) = open.maps.rodata_data.as_deref_mut()
    {
        rodata.no_order_gate = true;
    }
    #[cfg(not(feature = "test-switches"))]
    let _ = open;
}
