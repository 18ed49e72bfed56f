//! Functions of the kernel that show what no tracepoint does: one row for each, with the stage that begins there.
//!
//! They are seen by fentry and fexit, or by kprobe where a kernel has no trampolines; which of them is found out by trying.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use libbpf_rs::btf::types::{Func, FuncProto, Ptr};
use libbpf_rs::btf::{Btf, ReferencesType};
use libbpf_rs::libbpf_sys;
use sockpath_bpf::trace::types::trace_hook as Hook;
use sockpath_protocol::stage::StageId;

use crate::switches;

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// The kernel's name.
    pub name: &'static str,
    /// What its events are numbered.
    pub hook: Hook,
    /// Whether its end is what is seen, which only fexit can.
    pub exit: bool,
    /// Whether a kprobe can take the place of fentry.
    kprobe: bool,
    /// Position (from 0) and type of the argument that is read, to know the function by more than its name.
    argument: (usize, &'static str),
    /// The module it may live in.
    module: Option<&'static str>,
    /// The stage that begins there in the sender's namespace, in one between, and in the receiver's.
    pub stages: [Option<StageId>; 3],
    /// What sees the same, and better, where it exists.
    pub unless: Option<Better>,
}

/// What makes a function superfluous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A tracepoint of this name.
    Tracepoint(&'static str),
    /// Netfilter links.
    Netfilter,
}

/// How programs are attached to functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// fentry and fexit.
    Fentry,
    /// kprobe.
    Kprobe,
}

const fn row(name: &'static str, hook: Hook, argument: usize, stages: [Option<StageId>; 3]) -> Function {
    Function { name, hook, exit: false, kprobe: true, argument: (argument, "sk_buff"), module: None, stages, unless: None }
}

const fn sends(name: &'static str, hook: Hook, argument: usize, stage: StageId) -> Function {
    row(name, hook, argument, [Some(stage), None, None])
}

const fn passes(name: &'static str, hook: Hook, argument: usize, stage: StageId) -> Function {
    row(name, hook, argument, [None, Some(stage), None])
}

const fn receives(name: &'static str, hook: Hook, argument: usize, stage: StageId) -> Function {
    row(name, hook, argument, [None, None, Some(stage)])
}

const fn only_fentry(function: Function) -> Function {
    Function { kprobe: false, ..function }
}

const fn at_its_end(function: Function) -> Function {
    Function { exit: true, kprobe: false, ..function }
}

const fn of_the_bridge(function: Function) -> Function {
    Function { module: Some("bridge"), ..function }
}

const fn unless(function: Function, better: Better) -> Function {
    Function { unless: Some(better), ..function }
}

const SENDMSG: Function = only_fentry(Function {
    argument: (0, "sock"),
    ..unless(sends("tcp_sendmsg_locked", Hook::TRACE_FN_TCP_SENDMSG, 0, StageId::SocketWrite), Better::Tracepoint("tcp_sendmsg_locked"))
});
const WRITE_XMIT: Function =
    only_fentry(Function { argument: (0, "sock"), ..sends("tcp_write_xmit", Hook::TRACE_FN_TCP_WRITE_XMIT, 0, StageId::SendStack) });
const DEF_READABLE: Function = only_fentry(Function {
    argument: (0, "sock"),
    ..unless(receives("sock_def_readable", Hook::TRACE_FN_SOCK_DEF_READABLE, 0, StageId::ReaderWoken), Better::Tracepoint("sk_data_ready"))
});
/// Its events are numbered as those of netfilter links are.
const HOOK_SLOW: Function = only_fentry(unless(row("nf_hook_slow", Hook::TRACE_NONE, 0, [None; 3]), Better::Netfilter));

/// The table, in the order of a packet's path.
pub const FUNCTIONS: &[Function] = &[
    SENDMSG,
    WRITE_XMIT,
    at_its_end(WRITE_XMIT),
    sends("__tcp_transmit_skb", Hook::TRACE_FN_TCP_TRANSMIT_SKB, 1, StageId::SendTransport),
    sends("udp_send_skb", Hook::TRACE_FN_UDP_SEND_SKB, 0, StageId::SendTransport),
    sends("udp_v6_send_skb", Hook::TRACE_FN_UDP6_SEND_SKB, 0, StageId::SendTransport),
    sends("__ip_queue_xmit", Hook::TRACE_FN_IP_QUEUE_XMIT, 1, StageId::SendNetwork),
    sends("ip6_xmit", Hook::TRACE_FN_IP6_XMIT, 1, StageId::SendNetwork),
    sends("__ip_local_out", Hook::TRACE_FN_IP_LOCAL_OUT, 2, StageId::SendNetwork),
    sends("__ip6_local_out", Hook::TRACE_FN_IP6_LOCAL_OUT, 2, StageId::SendNetwork),
    HOOK_SLOW,
    at_its_end(HOOK_SLOW),
    sends("ip_output", Hook::TRACE_FN_IP_OUTPUT, 2, StageId::OutputDevice),
    sends("ip6_output", Hook::TRACE_FN_IP6_OUTPUT, 2, StageId::OutputDevice),
    sends("ip_do_fragment", Hook::TRACE_FN_IP_DO_FRAGMENT, 2, StageId::Segment),
    sends("ip6_fragment", Hook::TRACE_FN_IP6_FRAGMENT, 2, StageId::Segment),
    row("ip_finish_output2", Hook::TRACE_FN_IP_FINISH_OUTPUT2, 2, [Some(StageId::LinkHeader), Some(StageId::NodeLinkHeader), None]),
    row("ip6_finish_output2", Hook::TRACE_FN_IP6_FINISH_OUTPUT2, 2, [Some(StageId::LinkHeader), Some(StageId::NodeLinkHeader), None]),
    row("tcf_classify", Hook::TRACE_FN_TCF_CLASSIFY, 0, [Some(StageId::TcEgress), None, Some(StageId::TcIngress)]),
    of_the_bridge(passes("br_handle_frame_finish", Hook::TRACE_FN_BR_HANDLE_FRAME_FINISH, 2, StageId::BridgeIn)),
    of_the_bridge(passes("br_forward", Hook::TRACE_FN_BR_FORWARD, 1, StageId::BridgeForward)),
    passes("ip_forward", Hook::TRACE_FN_IP_FORWARD, 0, StageId::NodeRoute),
    passes("ip6_forward", Hook::TRACE_FN_IP6_FORWARD, 0, StageId::NodeRoute),
    receives("ip_rcv_core", Hook::TRACE_FN_IP_RCV_CORE, 0, StageId::NetworkPulled),
    receives("ip6_rcv_core", Hook::TRACE_FN_IP6_RCV_CORE, 0, StageId::NetworkPulled),
    at_its_end(receives("ip_rcv_core", Hook::TRACE_FN_IP_RCV_CORE_DONE, 0, StageId::TransportNoted)),
    at_its_end(receives("ip6_rcv_core", Hook::TRACE_FN_IP6_RCV_CORE_DONE, 0, StageId::TransportNoted)),
    row("ip_rcv_finish", Hook::TRACE_FN_IP_RCV_FINISH, 2, [None, Some(StageId::NodeRoute), Some(StageId::RouteIn)]),
    row("ip6_rcv_finish", Hook::TRACE_FN_IP6_RCV_FINISH, 2, [None, Some(StageId::NodeRoute), Some(StageId::RouteIn)]),
    receives("tcp_v4_rcv", Hook::TRACE_FN_TCP_V4_RCV, 0, StageId::ReceiveTransport),
    receives("tcp_v6_rcv", Hook::TRACE_FN_TCP_V6_RCV, 0, StageId::ReceiveTransport),
    receives("udp_rcv", Hook::TRACE_FN_UDP_RCV, 0, StageId::ReceiveTransport),
    receives("udpv6_rcv", Hook::TRACE_FN_UDPV6_RCV, 0, StageId::ReceiveTransport),
    receives("icmp_rcv", Hook::TRACE_FN_ICMP_RCV, 0, StageId::ReceiveTransport),
    receives("icmpv6_rcv", Hook::TRACE_FN_ICMPV6_RCV, 0, StageId::ReceiveTransport),
    receives("tcp_v4_do_rcv", Hook::TRACE_FN_TCP_V4_DO_RCV, 1, StageId::SocketLookup),
    receives("tcp_v6_do_rcv", Hook::TRACE_FN_TCP_V6_DO_RCV, 1, StageId::SocketLookup),
    receives("tcp_queue_rcv", Hook::TRACE_FN_TCP_QUEUE_RCV, 1, StageId::ReceiveQueue),
    receives("__udp_enqueue_schedule_skb", Hook::TRACE_FN_UDP_ENQUEUE, 1, StageId::ReceiveQueue),
    DEF_READABLE,
];

/// The function whose events have this number.
#[must_use]
pub fn of(hook: Hook) -> Option<&'static Function> {
    // Hooks of functions are numbered behind all others.
    (hook.0 >= Hook::TRACE_FN_TCP_SENDMSG.0).then(|| FUNCTIONS.iter().find(|f| f.hook == hook)).flatten()
}

impl Function {
    /// How it is called in reports, e.g. `fentry/ip_output`.
    #[must_use]
    pub fn public_name(&self, attach: Attach) -> String {
        format!("{}/{}", self.kind(attach), self.name)
    }

    /// The program's name in the object.
    #[must_use]
    pub fn program(&self, attach: Attach) -> String {
        format!("{}_{}", self.kind(attach), self.name)
    }

    fn kind(&self, attach: Attach) -> &'static str {
        match attach {
            Attach::Fentry if self.exit => "fexit",
            Attach::Fentry => "fentry",
            Attach::Kprobe => "kprobe",
        }
    }
}

/// Whether a program of the object sees a function.
#[must_use]
pub fn is_program(name: &str) -> bool {
    ["fentry_", "fexit_", "kprobe_"].iter().any(|kind| name.starts_with(kind))
}

/// Which functions are seen, how, and why others are not.
#[derive(Debug, Default)]
pub struct Choice {
    /// Those that are seen.
    pub chosen: Vec<(&'static Function, Attach)>,
    /// Public names, or kinds of hook, and why they are not.
    pub refused: BTreeMap<String, String>,
    /// Whether programs can read the kernel's objects as plain memory (6.2+), which makes loading them faster.
    pub can_cast: bool,
}

impl Choice {
    /// Asks the kernel: by an attachment of each kind whether it allows any, then its BTF for each function.
    /// `seen_better` knows what makes a function superfluous.
    #[must_use]
    pub fn make(btf: &Btf<'_>, seen_better: impl Fn(Better) -> bool) -> Self {
        let mut choice = Self::default();
        let wanted = switches::functions().unwrap_or_default();
        let functions: HashMap<&str, Func<'_>> = btf
            .type_by_kind::<Func<'_>>()
            .filter_map(|f| Some((f.name()?.to_str()?, f)))
            .filter(|(name, _)| [TRIED, CAST].contains(name) || FUNCTIONS.iter().any(|f| f.name == *name))
            .collect();
        choice.can_cast = functions.contains_key(CAST);
        let fentry = fentry(functions.get(TRIED));
        let kprobe = match (&fentry, wanted.as_str()) {
            (Ok(()), _) => Err("not needed: fentry sees the same".to_owned()),
            (Err(_), "" | "kprobe") if Path::new(KPROBES).exists() => Ok(()),
            (Err(_), "" | "kprobe") => Err("the kernel was built without it".to_owned()),
            (Err(_), other) => Err(not_wanted(other)),
        };
        let attach = match (&fentry, &kprobe) {
            (Ok(()), _) => Some(Attach::Fentry),
            (_, Ok(())) => Some(Attach::Kprobe),
            _ => None,
        };
        for (kind, answer) in [("fentry", fentry), ("kprobe", kprobe)] {
            choice.refused.extend(answer.err().map(|why| (kind.to_owned(), why)));
        }
        let Some(attach) = attach else { return choice };
        let modules = modules();
        for function in FUNCTIONS.iter().filter(|f| !f.unless.is_some_and(&seen_better)) {
            match function.objection(btf, attach, functions.get(function.name), &modules) {
                None => choice.chosen.push((function, attach)),
                Some(why) => drop(choice.refused.insert(function.public_name(attach), why)),
            }
        }
        choice
    }

    /// None after all: the programs could not be loaded.
    pub fn give_up(&mut self, why: &str) {
        if let Some((_, attach)) = self.chosen.first() {
            let kind = if *attach == Attach::Kprobe { "kprobe" } else { "fentry" };
            self.refused.insert(kind.to_owned(), why.to_owned());
        }
        self.chosen.clear();
    }

    /// Whether a function is seen.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.chosen.iter().any(|(f, _)| f.name == name)
    }

    /// The kind of hook in use.
    #[must_use]
    pub fn attach_kind(&self) -> Option<Attach> {
        self.chosen.first().map(|(_, attach)| *attach)
    }
}

impl Function {
    fn objection(&self, btf: &Btf<'_>, attach: Attach, found: Option<&Func<'_>>, modules: &Result<(), String>) -> Option<String> {
        if attach == Attach::Kprobe && !self.kprobe {
            return Some("a kprobe cannot take its place".to_owned());
        }
        match (found, self.module) {
            (Some(f), _) if takes(btf, f, self.argument) => None,
            (Some(_), _) => Some("its arguments are others in this kernel".to_owned()),
            (None, Some(module)) if Path::new("/sys/kernel/btf").join(module).exists() => match (attach, modules) {
                (Attach::Fentry, Err(why)) => Some(why.clone()),
                _ => None,
            },
            (None, Some(module)) => Some(format!("module {module} is not loaded")),
            (None, None) => Some("this kernel has no function of that name".to_owned()),
        }
    }
}

/// A function of every kernel with IPv4, to try with.
const TRIED: &str = "tcp_v4_rcv";
/// The function that programs cast with (`bpf/src/trace/cast.bpf.h`).
const CAST: &str = "bpf_rdonly_cast";
/// A perf event source of that name is registered where kprobes are compiled in.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

fn takes(btf: &Btf<'_>, function: &Func<'_>, (position, wanted): (usize, &str)) -> bool {
    let Ok(prototype) = FuncProto::try_from(function.referenced_type()) else { return false };
    let Some(parameter) = prototype.iter().nth(position) else { return false };
    let Some(pointer) = btf.type_by_id::<Ptr<'_>>(parameter.ty) else { return false };
    pointer.referenced_type().skip_mods_and_typedefs().name().is_some_and(|n| n == wanted)
}

/// Whether the kernel allows fentry, or why not.
pub fn allows_fentry(btf: &Btf<'_>) -> Result<(), String> {
    fentry(btf.type_by_name::<Func<'_>>(TRIED).as_ref())
}

fn fentry(tried: Option<&Func<'_>>) -> Result<(), String> {
    match switches::functions().unwrap_or_default().as_str() {
        "" | "fentry" => try_fentry(tried).map_err(|e| format!("the kernel refuses it: {e}")),
        other => Err(not_wanted(other)),
    }
}

fn not_wanted(kind: &str) -> String {
    format!("a test switch allows {kind} only")
}

/// Attaches a program that does nothing, and takes it away again.
fn try_fentry(function: Option<&Func<'_>>) -> io::Result<()> {
    const MOVE_0_TO_R0: libbpf_sys::bpf_insn = libbpf_sys::bpf_insn { code: 0xb7, ..ZERO };
    const EXIT: libbpf_sys::bpf_insn = libbpf_sys::bpf_insn { code: 0x95, ..ZERO };
    let id = function.map(|f| u32::from(f.type_id())).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let program = [MOVE_0_TO_R0, EXIT];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: id,
        ..Default::default()
    };
    // SAFETY: name and license are strings with an end, program and options live through the call, and their sizes are given.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            c"sockpath_try".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            &raw mut options,
        )
    };
    let program = owned(fd)?;
    // SAFETY: without a name the call takes nothing but the descriptor.
    let link = owned(unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) })?;
    // The kernel waits for all tasks to leave the function: not at our expense.
    let _ = std::thread::Builder::new().name("detach".to_owned()).spawn(move || drop(link));
    Ok(())
}

const ZERO: libbpf_sys::bpf_insn =
    libbpf_sys::bpf_insn { code: 0, _bitfield_align_1: [], _bitfield_1: libbpf_sys::__BindgenBitfieldUnit::new([0]), off: 0, imm: 0 };

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this process may look at the BTF of modules, which fentry to a function of theirs takes.
fn modules() -> Result<(), String> {
    let mut next = 0;
    // SAFETY: next is writable for the call.
    match unsafe { libbpf_sys::bpf_btf_get_next_id(0, &raw mut next) } {
        0 => Ok(()),
        _ => Err("functions of modules need CAP_SYS_ADMIN".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hook_of_a_function_has_one_row() {
        for hook in Hook::TRACE_FN_TCP_SENDMSG.0..Hook::TRACE_HOOK_MAX.0 {
            let rows = FUNCTIONS.iter().filter(|f| f.hook.0 == hook && !(f.exit && f.name == "tcp_write_xmit")).count();
            assert_eq!(rows, 1, "hook {hook}");
        }
        assert!(of(Hook::TRACE_NONE).is_none());
    }
}
