//! The BPF programs of a trace: loaded, attached, read, and gone with this value.

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, RingBuffer, RingBufferBuilder};
use sockpath_bpf::trace::types::{trace_endpoint, trace_net, trace_packet, trace_rest, trace_role, trace_stats};
use sockpath_bpf::trace::{TraceSkel, TraceSkelBuilder};

use super::attachment::{Attachments, Hooks};
use super::duty_cycle::Mode;
use super::environment::{Endpoint, Environment};
use super::event::Event;
use super::functions::is_program;
use super::hooks::{Offer, PROGRAMS, public_name};

/// How many slots of the table of namespaces are looked at (TRACE_NET_PROBES).
const NET_PROBES: usize = 4;

/// Observations that are taken from the ring buffer at a time: what they become has to fit into memory.
const CHUNK: usize = 4096;

/// Entries of the kernel's table that are examined in one sweep.
const SWEEP: usize = 1024;

/// The programs of one trace.
pub struct Programs<'a> {
    skel: TraceSkel<'a>,
    ring: RingBuffer<'a>,
    seen: Rc<RefCell<Vec<Event>>>,
    attachments: Attachments,
    /// Hooks in use, and those that are not.
    pub hooks: Hooks,
}

impl<'a> Programs<'a> {
    /// Loads and attaches what this kernel offers. `packets_per_second` 0 records every packet.
    pub fn start(
        storage: &'a mut MaybeUninit<OpenObject>,
        environment: &Environment,
        offer: &Offer,
        packets_per_second: u32,
    ) -> Result<Self> {
        let mut open = TraceSkelBuilder::default().open(storage).context("cannot open the trace programs")?;
        let mut hooks = Hooks { used: Vec::new(), unavailable: offer.functions.refused.clone() };
        for mut program in open.open_object_mut().progs_mut() {
            if program.name().to_str().is_some_and(is_program) {
                let name = program.name().to_owned();
                program.set_autoload(offer.functions.chosen.iter().any(|(f, attach)| *name == *f.program(*attach)));
                continue;
            }
            let Some(known) = PROGRAMS.iter().find(|p| program.name() == p.name) else { continue };
            if let Some(why) = offer.objection(known) {
                program.set_autoload(false);
                if !why.is_empty() {
                    hooks.unavailable.insert(public_name(known), why);
                }
            }
        }
        configure(&mut open, environment, offer, packets_per_second)?;
        let mut skel = open.load().context("cannot load the trace programs (that needs CAP_BPF and CAP_PERFMON)")?;
        set_namespaces(&mut skel, environment)?;

        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&seen);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&skel.maps.events, move |raw: &[u8]| {
                sink.borrow_mut().extend(Event::read(raw));
                0
            })
            .context("cannot read the ring buffer")?;
        let ring = builder.build().context("cannot map the ring buffer")?;
        let attachments = Attachments::all(skel.object_mut(), environment, offer, &mut hooks)?;
        if let Some(bss) = skel.maps.bss_data.as_mut() {
            bss.armed = true;
        }
        Ok(Self { skel, ring, seen, attachments, hooks })
    }

    /// Attaches and detaches the machine-wide hooks as this mode says. A packet in transit or at its socket when they are detached would lose the
    /// rest of its path: false while there is one, and then nothing is detached yet.
    pub fn set_mode(&mut self, mode: Mode, environment: &Environment) -> Result<bool> {
        let bss = self.skel.maps.bss_data.as_mut().context("the trace programs have no state")?;
        if mode == Mode::Watching {
            self.attachments.wake(self.skel.object_mut(), environment)?;
            if let Some(bss) = self.skel.maps.bss_data.as_mut() {
                bss.resting = trace_rest::TRACE_WATCHING.0;
            }
            return Ok(true);
        }
        bss.resting = if mode == Mode::Paused { trace_rest::TRACE_PAUSED.0 } else { trace_rest::TRACE_SILENT.0 };
        let busy = bss.gate.in_transit != 0 || bss.gate.at_the_socket != 0;
        if !busy {
            self.attachments.rest();
        }
        Ok(!busy)
    }

    /// From now on bytes that go socket to socket are looked for, too.
    pub fn look_for_bypass(&mut self, environment: &Environment) -> Result<()> {
        self.watch_calls(environment)?;
        if let Some(bss) = self.skel.maps.bss_data.as_mut() {
            bss.bypass = true;
        }
        Ok(())
    }

    /// From now on the begin of calls that write is noted.
    pub fn watch_calls(&mut self, environment: &Environment) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_mut().context("the trace programs have no state")?;
        if !bss.calls_watched {
            bss.calls_watched = true;
            self.attachments.watch_calls(self.skel.object_mut(), environment)?;
        }
        Ok(())
    }

    /// Packets of the pair that were seen, recorded or not.
    #[must_use]
    pub fn pair_packets(&self) -> u64 {
        self.skel.maps.bss_data.as_ref().map_or(0, |bss| bss.pair_packets)
    }

    /// Takes observations that have been made since the last call, at most [`CHUNK`]; none when there are no more.
    pub fn consume(&self) -> Result<Vec<Event>> {
        let taken = self.ring.consume_raw_n(CHUNK);
        if taken < 0 {
            return Err(io::Error::from_raw_os_error(-taken)).context("cannot read the ring buffer");
        }
        Ok(self.seen.take())
    }

    /// The programs' counters, summed over all CPUs.
    pub fn stats(&self) -> Result<trace_stats> {
        let per_cpu = self.skel.maps.stats.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).context("cannot read the counters")?;
        let mut sum = trace_stats::default();
        for raw in per_cpu.into_iter().flatten() {
            let field = |i: usize| raw.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
            sum.matched += field(0);
            sum.recorded += field(1);
            sum.sampled_out += field(2);
            sum.lost_events += field(3);
            sum.untracked += field(4);
        }
        Ok(sum)
    }

    /// Forgets packets whose path has ended and of which the programs saw no end.
    pub fn sweep(&mut self, is_done_with: impl Fn(u32) -> bool) {
        let packets = &self.skel.maps.packets;
        let mut over = Vec::new();
        for key in packets.keys().take(SWEEP) {
            // The entry may be gone by now: then the programs have counted it themselves.
            let Ok(Some(raw)) = packets.lookup(&key, MapFlags::ANY) else { continue };
            let id = raw.get(..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let at_the_socket = raw.get(std::mem::offset_of!(trace_packet, at_the_socket)).is_some_and(|b| *b != 0);
            if is_done_with(id) {
                over.push((key, at_the_socket));
            }
        }
        for (key, at_the_socket) in over {
            if self.skel.maps.packets.delete(&key).is_ok() {
                self.count_down(at_the_socket);
            }
        }
    }

    fn count_down(&mut self, at_the_socket: bool) {
        let Some(bss) = self.skel.maps.bss_data.as_mut() else { return };
        let counter = if at_the_socket { &raw mut bss.gate.at_the_socket } else { &raw mut bss.gate.in_transit };
        // SAFETY: the pointer is into the map's memory, which stays mapped as long as the skeleton lives, is aligned for a
        // u32, and is changed by the programs with atomic instructions only.
        unsafe { AtomicU32::from_ptr(counter) }.fetch_sub(1, Ordering::Relaxed);
    }

    /// The loaded programs, by the name of their hook.
    pub fn fds(&self) -> Vec<(String, OwnedFd)> {
        self.skel
            .object()
            .progs()
            .filter(|p| p.autoload())
            .filter_map(|p| {
                let known = PROGRAMS.iter().find(|k| p.name() == k.name).map(public_name);
                let name = known.or_else(|| p.name().to_str().map(|n| n.replacen('_', "/", 1)))?;
                Some((name, p.as_fd().try_clone_to_owned().ok()?))
            })
            .collect()
    }
}

fn configure(
    open: &mut sockpath_bpf::trace::OpenTraceSkel<'_>,
    environment: &Environment,
    offer: &Offer,
    packets_per_second: u32,
) -> Result<()> {
    let rodata = open.maps.rodata_data.as_mut().context("the trace programs have no configuration")?;
    fill(&mut rodata.sources, &mut rodata.source_count, &environment.sources).context("too many addresses of the source")?;
    fill(&mut rodata.targets, &mut rodata.target_count, &environment.targets).context("too many addresses of targets and Services")?;
    rodata.packets_per_second = packets_per_second;
    rodata.origin_at_output = offer.begins_at_output();
    rodata.origin_at_queue = !offer.has_netfilter() && !rodata.origin_at_output;
    rodata.can_cast = offer.functions.can_cast;
    rodata.functions = !offer.functions.chosen.is_empty();
    Ok(())
}

fn fill(slots: &mut [trace_endpoint], count: &mut u32, endpoints: &[Endpoint]) -> Result<()> {
    if endpoints.len() > slots.len() {
        return Err(anyhow!("{} of at most {}", endpoints.len(), slots.len()));
    }
    for (slot, e) in slots.iter_mut().zip(endpoints) {
        let octets = match e.ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let (high, low) = octets.split_at(8);
        let word = |b: &[u8]| b.try_into().map_or(0, u64::from_ne_bytes);
        slot.addr = [word(high), word(low)];
        slot.port = e.port;
    }
    *count = u32::try_from(endpoints.len()).unwrap_or(0);
    Ok(())
}

fn set_namespaces(skel: &mut TraceSkel<'_>, environment: &Environment) -> Result<()> {
    let bss = skel.maps.bss_data.as_mut().context("the trace programs have no state")?;
    for (netns, traced) in &environment.netns {
        let mut role = 0;
        for (is, bit) in [
            (traced.source, trace_role::TRACE_ROLE_SOURCE),
            (traced.target, trace_role::TRACE_ROLE_TARGET),
            (environment.nodes.contains(&netns.inode), trace_role::TRACE_ROLE_NODE),
        ] {
            if is {
                role |= bit.0;
            }
        }
        let slots = bss.nets.len();
        let slot = (0..NET_PROBES)
            .map(|i| (netns.inode as usize + i) % slots)
            .find(|s| bss.nets[*s].inum == 0)
            .with_context(|| format!("too many namespaces to watch ({})", environment.netns.len()))?;
        bss.nets[slot] = trace_net { inum: netns.inode, role };
    }
    for (slot, (netns, ifindex)) in bss.uplinks.iter_mut().zip(&environment.uplinks) {
        *slot = u64::from(*netns) << 32 | u64::from(*ifindex);
        bss.uplink_count += 1;
    }
    Ok(())
}
