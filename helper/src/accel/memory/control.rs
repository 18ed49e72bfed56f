//! What controls the programs, and the only code that writes to it: the lease, observation epochs, counts, the end.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use libbpf_rs::MapCore;
use nix::time::ClockId;
use sockpath_bpf::accel::types::accel_control;
use sockpath_kernel::clock::clock_ns;
use sockpath_kernel::shared::Mapped;

use super::layout::Control;
use super::map;
use crate::lease::{LEASE, is_late, left_until};

/// Maps the pinned control.
///
/// # Errors
/// When it is missing, of another version's layout, or the kernel refuses.
pub fn open(path: &Path) -> Result<Mapped<Control>> {
    map::open(path)
}

/// Maps the control of programs that this process has loaded.
///
/// # Errors
/// When the kernel refuses.
pub fn of(map: &impl MapCore) -> Result<Mapped<Control>> {
    map::of(map)
}

/// What stands between the owner and who has ended the acceleration.
const STOPPED_BY: &str = ", ended by ";

/// 0 means that there is none.
fn next(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

impl Control {
    /// Begins an acceleration that lasts for `lease` unless it is renewed, with these settings and addresses of the kernel.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn begin(&self, initial: &accel_control, owner: &str, lease: Duration) -> Result<()> {
        self.budget.set(initial.budget);
        self.profile_reads.set(initial.profile_reads);
        self.profile_polls.set(initial.profile_polls);
        self.detached.set(initial.detached);
        self.leave_blocking.set(initial.leave_blocking);
        self.wake_function.set(initial.wake_function);
        self.poll_function.set(initial.poll_function);
        self.epoll_function.set(initial.epoll_function);
        self.frame_offset.set(initial.frame_offset);
        self.native_from.iter().zip(initial.native_from).for_each(|(to, from)| to.set(from));
        self.native_to.iter().zip(initial.native_to).for_each(|(to, from)| to.set(from));
        self.set_owner(owner);
        self.started_ns.set(clock_ns(ClockId::CLOCK_MONOTONIC)?);
        self.end_after(lease)?;
        self.renew(lease)
    }

    /// Extends the lease to this long from now, but not beyond [`LEASE`].
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        let lease = nanos(lease.min(LEASE));
        self.lease_ns.set(lease);
        self.deadline_ns.set(clock_ns(ClockId::CLOCK_MONOTONIC)?.saturating_add(lease));
        Ok(())
    }

    /// Ends the lease: whatever accelerates next need not wait for it.
    pub fn expire(&self) {
        self.deadline_ns.set(0);
    }

    /// Sets when a detached run ends: this long from now.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn end_after(&self, duration: Duration) -> Result<()> {
        self.ends_ns.set(clock_ns(ClockId::CLOCK_MONOTONIC)?.saturating_add(nanos(duration)));
        Ok(())
    }

    /// Time left until verdicts pass without a renewal.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn lease_left(&self) -> Result<Duration> {
        left_until(self.deadline_ns.get())
    }

    /// Time left until a detached run ends.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn run_left(&self) -> Result<Duration> {
        left_until(self.ends_ns.get())
    }

    /// Whether the process that renews the lease is late by more than one renewal: it was killed, or stands still.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn is_helper_gone(&self) -> Result<bool> {
        Ok(is_late(self.lease_left()?, Duration::from_nanos(self.lease_ns.get())))
    }

    /// How long connections stay accelerated if nothing else happens: as long as the helper of a detached run lives, until that ends.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn time_left(&self) -> Result<Duration> {
        if self.is_detached() && !self.is_helper_gone()? { self.run_left() } else { self.lease_left() }
    }

    /// How long it has run.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn ran(&self) -> Result<Duration> {
        Ok(Duration::from_nanos(clock_ns(ClockId::CLOCK_MONOTONIC)?.saturating_sub(self.started_ns.get())))
    }

    /// Whether it was started to outlive its session.
    pub fn is_detached(&self) -> bool {
        self.detached.get() == 1
    }

    /// Every message goes by TCP from now on, without end.
    pub fn pause(&self) {
        self.paused.set(1);
    }

    /// The wakeup is answered: the next one comes when there is something to do again.
    pub fn answer_wakeup(&self) {
        self.wakeup_pending.set(0);
    }

    /// An observation epoch begins: calls and sends are observed.
    pub fn begin_epoch(&self) {
        let number = next(self.epochs.get());
        self.epochs.set(number);
        self.observing.set(number);
    }

    /// It ends. Called before observers are detached, and for an epoch of a process before this one.
    pub fn end_epoch(&self) {
        self.observing.set(0);
    }

    /// Whether data that arrives is observed, so that calls which may sleep count.
    pub fn observe_arrivals(&self, observed: bool) {
        self.observing_arrivals.set(u32::from(observed));
    }

    /// Receive calls are counted from now on.
    pub fn begin_count(&self) {
        let number = next(self.counts.get());
        self.counts.set(number);
        self.counting.set(number);
    }

    /// They no longer are.
    pub fn end_count(&self) {
        self.counting.set(0);
    }

    /// Whether readers that sleep in their receive call are excluded; what was set before.
    pub fn set_leave_blocking(&self, leave: u32) -> u32 {
        let before = self.leave_blocking.get();
        self.leave_blocking.set(leave);
        before
    }

    /// Whether the kernel's FIONREAD does not count TCP bytes of a socket in a sockmap.
    pub fn set_fionread_lies(&self, lies: bool) {
        self.fionread_lies.set(u32::from(lies));
    }

    /// Whether only sockets of some programs may go into the map.
    pub fn set_selective(&self, selective: bool) {
        self.selective.set(u32::from(selective));
    }

    /// This process reinjects what readers cannot see.
    pub fn reinject_by_this_process(&self) {
        self.reinjection_tgid.set(std::process::id());
    }

    /// How many slots each namespace may have while less than half are free.
    pub fn set_fair_share(&self, slots: u32) {
        self.fair_share.set(slots);
    }

    /// Starts the sums over closed connections afresh.
    pub fn forget_totals(&self) {
        [&self.closed_pairs, &self.closed_carried, &self.closed_messages, &self.closed_bytes].iter().for_each(|sum| sum.set(0));
        self.closed_passes.iter().for_each(|sum| sum.set(0));
    }

    fn set_owner(&self, name: &str) {
        // It is cut where it is too long, and has a zero at its end.
        let bytes = name.bytes().take(self.owner.len() - 1).chain(std::iter::repeat(0));
        self.owner.iter().zip(bytes).for_each(|(to, from)| to.set(i8::from_ne_bytes([from])));
    }

    /// Who started it.
    pub fn owner(&self) -> String {
        let bytes: Vec<u8> = self.owner.iter().map(|c| c.get().cast_unsigned()).take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Notes who ends it, behind its owner.
    pub fn note_who_stops(&self, by: &str) {
        if !by.is_empty() && self.stopped_by().is_none() {
            self.set_owner(&format!("{}{STOPPED_BY}{by}", self.owner()));
        }
    }

    /// Who ends it, where that is known.
    pub fn stopped_by(&self) -> Option<String> {
        self.owner().split_once(STOPPED_BY).map(|(_, by)| by.to_owned())
    }

    /// As if so many slots were in use, and so many were a fair share.
    #[cfg(test)]
    pub fn pretend(&self, used: u32, fair_share: u32) {
        self.used.set(used);
        self.fair_share.set(fair_share);
    }
}
