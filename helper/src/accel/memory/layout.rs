//! The structs of `wire.h` that lie in shared memory, as typed fields.

use std::mem::offset_of;

use sockpath_bpf::accel::types::{
    accel_control, accel_end, accel_order, accel_pass, accel_reinjection, accel_role, accel_share, accel_sleeper, accel_state,
};
use sockpath_kernel::shared::Shared;

use super::field::{Plain, laid_over};

/// Elements of an array by reason.
const PASSES: usize = accel_pass::ACCEL_PASSES.0 as usize;

laid_over! {
    /// One socket; its number is its slot.
    Slot over accel_end {
        cookie: u64,
        sk: u64,
        tracked_ns: u64,
        laddr: [u32; 4],
        raddr: [u32; 4],
        lport: u16,
        rport: u16,
        family: u16,
        share: u16,
        bound_to: u32,
        role: accel_role,
        iss: u32,
        irs: u32,
        netns: u32,
        base: u32,
        peer_cookie: u64,
        peer: u32,
        order: accel_order,
        ordered: u64,
        hold: u32,
        left: accel_pass,
        state: accel_state,
        result: i32,
        queued: u32,
        quiet: u32,
        profiled: u32,
        epoch: u32,
        polled: u32,
        spilled: u32,
        unsupported: u32,
        reinjection: accel_reinjection,
        hand: u32,
        inode: u64,
        reinjection_since: u64,
        taken: u64,
        reads: u64,
        counted: u32,
        flags: u32,
        reader_mm: u64,
        reader_tgid: u32,
        fast: u32,
        messages: u64,
        bytes: u64,
        pass_bytes: u64,
        last_pass: accel_pass,
        passes: [u32; PASSES],
        reader: u64,
        program: u64,
        program_name: [i8; 32],
        judged: u64,
        peer_reads: u32,
        cycles: u32,
        samples: u32,
        cycle_start: u64,
        cycle_messages: u64,
        before_ns: [u32; 16],
        after_ns: [u32; 16],
    }
}

laid_over! {
    /// What controls the programs, and the sums over connections that are closed.
    Control over accel_control {
        deadline_ns: u64,
        lease_ns: u64,
        ends_ns: u64,
        lease_seen: u64,
        memory_limit: u64,
        memory_limit_seen: u64,
        started_ns: u64,
        paused: u32,
        budget: u32,
        profile_reads: u32,
        profile_polls: u32,
        observing: u32,
        epochs: u32,
        counting: u32,
        counts: u32,
        observing_arrivals: u32,
        leave_blocking: u32,
        wakeup_pending: u32,
        used: u32,
        fair_share: u32,
        fresh: u32,
        detached: u32,
        fionread_lies: u32,
        selective: u32,
        programs: u32,
        unsupported: u32,
        wake_function: u64,
        poll_function: u64,
        epoll_function: u64,
        frame_offset: u32,
        reinjection_tgid: u32,
        native_from: [u64; 3],
        native_to: [u64; 3],
        closed_pairs: u64,
        closed_carried: u64,
        closed_messages: u64,
        closed_bytes: u64,
        closed_passes: [u64; PASSES],
        owner: [i8; 128],
    }
}

laid_over! {
    /// The share of a network namespace.
    Share over accel_share {
        cookie: u64,
        open: u32,
        used: u32,
        refused: u32,
        opened: u32,
        wake_at: u32,
        burst: u32,
    }
}

laid_over! {
    /// A task that waits for a socket, as the kernel has it.
    Sleeper over accel_sleeper {
        wake_function: u64,
        stack: [u64; 64],
    }
}

impl Slot {
    /// Messages that it sent by TCP for one reason.
    pub fn passes(&self, why: accel_pass) -> u32 {
        self.passes.get(why.0 as usize).map_or(0, |count| count.get())
    }
}
