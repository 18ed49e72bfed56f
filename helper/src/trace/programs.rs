//! The BPF programs of a trace: loaded, attached, read, and gone with this value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject, RingBuffer, RingBufferBuilder};
use sockpath_bpf::trace::types::{trace_endpoint, trace_net, trace_packet, trace_role, trace_stats};
use sockpath_bpf::trace::{TraceSkel, TraceSkelBuilder};

use super::event::Sight;
use super::hooks::{HookKind, Offer, PROGRAMS, public_name, unused_kinds};
use super::netns::inside;
use super::scene::{Endpoint, Scene};

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
    seen: Rc<RefCell<Vec<Sight>>>,
    links: Vec<Link>,
    netfilter: Vec<OwnedFd>,
    /// Hooks in use.
    pub hooks: Vec<String>,
    /// Hooks that are not, and why.
    pub unavailable: BTreeMap<String, String>,
}

impl<'a> Programs<'a> {
    /// Loads and attaches what this kernel offers. `packets_per_second` 0 records every packet.
    pub fn start(storage: &'a mut MaybeUninit<OpenObject>, scene: &Scene, offer: &Offer, packets_per_second: u32) -> Result<Self> {
        let mut open = TraceSkelBuilder::default().open(storage).context("cannot open the trace programs")?;
        let mut unavailable = unused_kinds();
        for mut program in open.open_object_mut().progs_mut() {
            let Some(known) = PROGRAMS.iter().find(|p| program.name() == p.name) else { continue };
            if let Some(why) = offer.objection(known) {
                program.set_autoload(false);
                if !why.is_empty() {
                    unavailable.insert(public_name(known), why);
                }
            }
        }
        configure(&mut open, scene, offer, packets_per_second)?;
        let mut skel = open.load().context("cannot load the trace programs (that needs CAP_BPF and CAP_PERFMON)")?;
        set_namespaces(&mut skel, scene)?;

        let seen = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&seen);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&skel.maps.events, move |raw: &[u8]| {
                sink.borrow_mut().extend(Sight::read(raw));
                0
            })
            .context("cannot read the ring buffer")?;
        let ring = builder.build().context("cannot map the ring buffer")?;
        let mut programs = Self { skel, ring, seen, links: Vec::new(), netfilter: Vec::new(), hooks: Vec::new(), unavailable };
        programs.attach(scene)?;
        if let Some(bss) = programs.skel.maps.bss_data.as_mut() {
            bss.armed = true;
        }
        Ok(programs)
    }

    fn attach(&mut self, scene: &Scene) -> Result<()> {
        for known in PROGRAMS {
            let Some(program) = self.skel.object().progs_mut().find(|p| p.name() == known.name && p.autoload()) else { continue };
            match known.hook {
                HookKind::Tracepoint(_) => match program.attach_trace() {
                    Ok(link) => {
                        self.links.push(link);
                        self.hooks.push(public_name(known));
                    }
                    Err(e) => {
                        self.unavailable.insert(public_name(known), format!("cannot be attached: {e}"));
                    }
                },
                HookKind::Netfilter { first } => {
                    let fd = program.as_fd();
                    for (netns, territory) in &scene.netns {
                        let node = scene.nodes.contains(&netns.inode);
                        let pod = territory.source || territory.target;
                        let links = attach_netfilter(&netns.file, fd.as_raw_fd(), hooks_of(first, pod, node), first)
                            .with_context(|| format!("namespace {}", netns.path.display()))?;
                        self.netfilter.extend(links);
                    }
                    let position = if first { "first" } else { "last" };
                    let all = hooks_of(first, true, !scene.nodes.is_empty());
                    self.hooks.extend(all.into_iter().map(|h| format!("netfilter/{} {position}", NF_HOOKS[h as usize])));
                }
            }
        }
        Ok(())
    }

    /// Takes observations that have been made since the last call, at most [`CHUNK`]; none when there are no more.
    pub fn consume(&self) -> Result<Vec<Sight>> {
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

    /// Forgets packets whose way is over and of which the programs saw no end.
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
        let counter = if at_the_socket { &raw mut bss.gate.at_the_socket } else { &raw mut bss.gate.on_the_way };
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
                let known = PROGRAMS.iter().find(|k| p.name() == k.name)?;
                Some((public_name(known), p.as_fd().try_clone_to_owned().ok()?))
            })
            .collect()
    }
}

fn configure(open: &mut sockpath_bpf::trace::OpenTraceSkel<'_>, scene: &Scene, offer: &Offer, packets_per_second: u32) -> Result<()> {
    let rodata = open.maps.rodata_data.as_mut().context("the trace programs have no configuration")?;
    fill(&mut rodata.sources, &mut rodata.source_count, &scene.sources).context("too many addresses of the source")?;
    fill(&mut rodata.targets, &mut rodata.target_count, &scene.targets).context("too many addresses of targets and Services")?;
    rodata.packets_per_second = packets_per_second;
    rodata.origin_at_queue = offer.objection(&PROGRAMS[PROGRAMS.len() - 1]).is_some();
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

fn set_namespaces(skel: &mut TraceSkel<'_>, scene: &Scene) -> Result<()> {
    let bss = skel.maps.bss_data.as_mut().context("the trace programs have no state")?;
    for (netns, territory) in &scene.netns {
        let mut role = 0;
        for (is, bit) in [
            (territory.source, trace_role::TRACE_ROLE_SOURCE),
            (territory.target, trace_role::TRACE_ROLE_TARGET),
            (scene.nodes.contains(&netns.inode), trace_role::TRACE_ROLE_NODE),
        ] {
            if is {
                role |= bit.0;
            }
        }
        let slots = bss.nets.len();
        let slot = (0..NET_PROBES)
            .map(|i| (netns.inode as usize + i) % slots)
            .find(|s| bss.nets[*s].inum == 0)
            .with_context(|| format!("too many namespaces to watch ({})", scene.netns.len()))?;
        bss.nets[slot] = trace_net { inum: netns.inode, role };
    }
    for (slot, (netns, ifindex)) in bss.uplinks.iter_mut().zip(&scene.uplinks) {
        *slot = u64::from(*netns) << 32 | u64::from(*ifindex);
        bss.uplink_count += 1;
    }
    Ok(())
}

/// Priorities that are tried at either end of a hook.
const EDGE: i32 = 32;

/// In the order of `enum nf_inet_hooks`.
const NF_HOOKS: [&str; 5] = ["PRE_ROUTING", "LOCAL_IN", "FORWARD", "LOCAL_OUT", "POST_ROUTING"];
const PRE_ROUTING: u32 = 0;
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;

/// The hooks worth a link. What follows LOCAL_OUT and FORWARD at once is another hook, so their end needs none.
fn hooks_of(first: bool, pod: bool, node: bool) -> Vec<u32> {
    let mut hooks = vec![PRE_ROUTING, LOCAL_IN, POST_ROUTING];
    if first {
        hooks.push(LOCAL_OUT);
        if node {
            hooks.push(FORWARD);
        }
    }
    debug_assert!(pod || node, "a namespace is a pod's or a node's");
    hooks
}

/// Attaches a program to hooks of a namespace, for IPv4 and IPv6. The links end with the returned descriptors.
fn attach_netfilter(netns: &File, program: i32, hooks: Vec<u32>, first: bool) -> Result<Vec<OwnedFd>> {
    inside(netns, move || {
        let mut links = Vec::with_capacity(hooks.len() * 2);
        for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
            for hook in &hooks {
                let link = link_at_the_edge(program, family.cast_unsigned(), *hook, first);
                links.push(link.with_context(|| format!("cannot attach to netfilter's {}", NF_HOOKS[*hook as usize]))?);
            }
        }
        Ok(links)
    })
}

/// The very first and last priorities belong to the kernel (bridge netfilter, conntrack's confirmation), and a BPF link
/// shares its priority with nobody: not with another trace, nor with what else sits at the edge.
fn link_at_the_edge(program: i32, family: u32, hook: u32, first: bool) -> io::Result<OwnedFd> {
    let mut distance = 1;
    loop {
        let priority = if first { i32::MIN + distance } else { i32::MAX - distance };
        match link_netfilter(program, family, hook, priority) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && distance < EDGE => distance += 1,
            result => return result,
        }
    }
}

fn link_netfilter(program: i32, family: u32, hook: u32, priority: i32) -> io::Result<OwnedFd> {
    let mut options = libbpf_sys::bpf_link_create_opts { sz: size_of::<libbpf_sys::bpf_link_create_opts>() as u64, ..Default::default() };
    options.__bindgen_anon_1.netfilter.pf = family;
    options.__bindgen_anon_1.netfilter.hooknum = hook;
    options.__bindgen_anon_1.netfilter.priority = priority;
    // SAFETY: options lives through the call and says its own size; program is a descriptor that the caller holds.
    let fd = unsafe { libbpf_sys::bpf_link_create(program, 0, libbpf_sys::BPF_NETFILTER, &raw const options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
