//! What the programs are attached to: tracepoints, and netfilter's hooks in the namespaces of a trace. Attachments end with
//! their values; machine-wide ones can be detached and attached again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use libbpf_rs::{Link, Object, libbpf_sys};
use sockpath_kernel::netns::inside;

use super::environment::Environment;
use super::hooks::{HookKind, Offer, PROGRAMS, Program, When, public_name};

/// What is attached.
#[derive(Debug, Default)]
pub struct Attachments {
    steady: Held,
    functions: Functions,
    /// Absent while they rest.
    busy: Option<Held>,
    calls: bool,
}

#[derive(Debug, Default)]
struct Held {
    tracepoints: Vec<Link>,
    netfilter: Vec<OwnedFd>,
}

/// Programs at functions of the kernel.
#[derive(Debug, Default)]
struct Functions(Vec<Link>);

/// The kernel waits for all tasks to leave a function before it gives it back, one after another and 100 ms each on some kernels. That
/// is nothing to wait for: the links end with the process at the latest.
impl Drop for Functions {
    fn drop(&mut self) {
        struct Links(Vec<Link>);
        // SAFETY: a link is memory and descriptors that belong to no thread, and only the new thread knows these any more.
        unsafe impl Send for Links {}
        let links = Links(std::mem::take(&mut self.0));
        if !links.0.is_empty() {
            // Without a thread they are dropped here and now.
            let _ = std::thread::Builder::new().name("detach".to_owned()).spawn(move || {
                let Links(links) = { links };
                drop(links);
            });
        }
    }
}

/// Which hooks there are, by their public names.
#[derive(Debug, Default)]
pub struct Hooks {
    /// In use.
    pub used: Vec<String>,
    /// Not in use, and why.
    pub unavailable: BTreeMap<String, String>,
}

impl Attachments {
    /// Attaches every program that is loaded. A tracepoint that refuses is noted; netfilter's hooks have to be had.
    pub fn all(object: &mut Object, environment: &Environment, offer: &Offer, hooks: &mut Hooks) -> Result<Self> {
        let mut all = Self { steady: Held::default(), functions: Functions::default(), busy: Some(Held::default()), calls: false };
        all.attach_functions(object, offer, hooks);
        for known in PROGRAMS {
            all.attach(object, known, environment, hooks, true)?;
        }
        Ok(all)
    }

    /// Functions stay attached while the rest is at rest: to detach one takes the kernel tens of milliseconds, and its program leaves at once.
    fn attach_functions(&mut self, object: &mut Object, offer: &Offer, hooks: &mut Hooks) {
        for (function, attach) in &offer.functions.chosen {
            let name = function.program(*attach);
            let Some(program) = object.progs_mut().find(|p| *p.name() == *name) else { continue };
            match program.attach() {
                Ok(link) => {
                    self.functions.0.push(link);
                    hooks.used.push(function.public_name(*attach));
                }
                Err(e) => {
                    hooks.unavailable.insert(function.public_name(*attach), format!("cannot be attached: {e:#}"));
                }
            }
        }
    }

    /// Detaches the machine-wide hooks. A pod's first and last netfilter hook stay: they see the pair's packets only, or
    /// those of the pods it shares.
    pub fn rest(&mut self) {
        self.busy = None;
    }

    /// Attaches again what `rest` detached.
    pub fn wake(&mut self, object: &mut Object, environment: &Environment) -> Result<()> {
        if self.busy.is_some() {
            return Ok(());
        }
        self.busy = Some(Held::default());
        for known in PROGRAMS {
            self.attach(object, known, environment, &mut Hooks::default(), false)?;
        }
        Ok(())
    }

    /// From now on the begin of calls that write is noted.
    pub fn watch_calls(&mut self, object: &mut Object, environment: &Environment) -> Result<()> {
        self.calls = true;
        if self.busy.is_none() {
            return self.wake(object, environment);
        }
        for known in PROGRAMS.iter().filter(|p| p.when == When::Calls) {
            self.attach(object, known, environment, &mut Hooks::default(), false)?;
        }
        Ok(())
    }

    fn attach(&mut self, object: &mut Object, known: &Program, environment: &Environment, hooks: &mut Hooks, steady: bool) -> Result<()> {
        let Some(program) = object.progs_mut().find(|p| p.name() == known.name && p.autoload()) else { return Ok(()) };
        match known.hook {
            HookKind::Tracepoint(_) => {
                let held = match known.when {
                    When::Always if steady => &mut self.steady,
                    When::Busy => self.busy.get_or_insert_default(),
                    When::Calls if self.calls => self.busy.get_or_insert_default(),
                    When::Always | When::Calls => return Ok(()),
                };
                match program.attach_trace() {
                    Ok(link) => {
                        held.tracepoints.push(link);
                        hooks.used.push(public_name(known));
                    }
                    Err(e) => {
                        hooks.unavailable.insert(public_name(known), format!("cannot be attached: {e}"));
                    }
                }
            }
            HookKind::Netfilter { first } => {
                let fd = program.as_fd();
                for (netns, traced) in &environment.netns {
                    let node = environment.nodes.contains(&netns.inode);
                    let (stays, rests): (Vec<u32>, Vec<u32>) =
                        hooks_of(first, traced.source || traced.target, node).into_iter().partition(|h| node || is_edge(*h, first));
                    let attach = |hooks: Vec<u32>| {
                        attach_netfilter(&netns.file, fd.as_raw_fd(), hooks, first)
                            .with_context(|| format!("namespace {}", netns.path.display()))
                    };
                    if steady {
                        self.steady.netfilter.extend(attach(stays)?);
                    }
                    if !rests.is_empty() {
                        self.busy.get_or_insert_default().netfilter.extend(attach(rests)?);
                    }
                }
                let position = if first { "first" } else { "last" };
                let all = hooks_of(first, true, !environment.nodes.is_empty());
                hooks.used.extend(all.into_iter().map(|h| format!("netfilter/{} {position}", NF_HOOKS[h as usize])));
            }
        }
        Ok(())
    }
}

/// Where a packet begins and where it is delivered.
fn is_edge(hook: u32, first: bool) -> bool {
    if first { hook == LOCAL_OUT } else { hook == LOCAL_IN }
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
/// does not share its priority: not with another trace, nor with what else sits at the edge.
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
