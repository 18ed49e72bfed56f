//! Which hooks this kernel has, asked of its BTF.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use libbpf_rs::btf::types::{Enum, FuncProto, Ptr, Typedef};
use libbpf_rs::btf::{Btf, ReferencesType};

use super::functions::{Better, Choice};

/// One program of the object, and what it needs of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Name in the object.
    pub name: &'static str,
    /// What it is attached to.
    pub hook: HookKind,
    /// When it is attached.
    pub when: When,
}

/// When a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As long as the trace lasts: it seldom runs.
    Always,
    /// Not while the trace rests: it is machine-wide, it fires for every packet.
    Busy,
    /// As `Busy`, and only when the pair sends datagrams or its bytes may go socket to socket: it fires for every system call.
    Calls,
}

/// What a program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// A tracepoint through BTF.
    Tracepoint(&'static str),
    /// Netfilter links in each namespace; `first` or last priority.
    Netfilter {
        /// Before all rules, or after them.
        first: bool,
    },
}

const fn busy(name: &'static str) -> Program {
    Program { name, hook: HookKind::Tracepoint(name), when: When::Busy }
}

const fn rare(name: &'static str) -> Program {
    Program { name, hook: HookKind::Tracepoint(name), when: When::Always }
}

/// The programs, in the order in which they are attached: what begins a packet comes last.
pub const PROGRAMS: &[Program] = &[
    busy("consume_skb"),
    rare("qdisc_drop"),
    rare("kfree_skb"),
    Program { name: "kfree_skb_rx_sk", hook: HookKind::Tracepoint("kfree_skb"), when: When::Always },
    busy("sock_recv_length"),
    busy("tcp_rcv_space_adjust"),
    busy("skb_copy_datagram_iovec"),
    busy("sk_data_ready"),
    busy("tcp_probe"),
    busy("netif_receive_skb"),
    busy("napi_gro_receive_entry"),
    busy("netif_rx"),
    busy("net_dev_start_xmit"),
    busy("qdisc_enqueue"),
    busy("net_dev_queue"),
    rare("neigh_event_send_done"),
    rare("neigh_event_send_dead"),
    rare("neigh_update"),
    rare("fib_table_lookup"),
    rare("fib6_table_lookup"),
    rare("tcp_send_reset"),
    rare("tcp_receive_reset"),
    rare("tcp_retransmit_skb"),
    rare("tcp_retransmit_synack"),
    rare("inet_sock_set_state"),
    rare("sock_rcvqueue_full"),
    Program { name: "system_call", hook: HookKind::Tracepoint("sys_enter"), when: When::Calls },
    busy("tcp_sendmsg_locked"),
    Program { name: "nf_last", hook: HookKind::Netfilter { first: false }, when: When::Always },
    Program { name: "nf_first", hook: HookKind::Netfilter { first: true }, when: When::Always },
];

/// What this kernel offers.
#[derive(Debug)]
pub struct Offer {
    /// Arguments of each tracepoint, by name.
    tracepoints: HashMap<&'static str, usize>,
    /// Netfilter links (6.4+).
    netfilter: bool,
    /// Functions that are seen.
    pub functions: Choice,
    /// Names of the drop reasons, without prefix.
    pub drop_reasons: HashMap<u32, String>,
}

impl Offer {
    /// Reads the kernel's BTF, and tries how functions can be seen.
    pub fn read() -> Result<Self> {
        Self::from_btf(true)
    }

    /// Reads the kernel's BTF only.
    pub fn without_functions() -> Result<Self> {
        Self::from_btf(false)
    }

    fn from_btf(with_functions: bool) -> Result<Self> {
        let btf = Btf::from_vmlinux().context("cannot read the kernel's BTF (/sys/kernel/btf/vmlinux): tracing needs it")?;
        if !has_value(&btf, "bpf_func_id", "BPF_FUNC_check_mtu") {
            bail!("tracing needs Linux 5.12 or later: packets are numbered with atomic operations that came with it");
        }
        let mut tracepoints = HashMap::new();
        for p in PROGRAMS {
            if let HookKind::Tracepoint(name) = p.hook
                && let Some(arguments) = arguments(&btf, name)
            {
                tracepoints.insert(name, arguments);
            }
        }
        let netfilter = has_value(&btf, "bpf_attach_type", "BPF_NETFILTER");
        let seen_better = |better| match better {
            Better::Tracepoint(name) => tracepoints.contains_key(name),
            Better::Netfilter => netfilter,
        };
        let functions = if with_functions { Choice::make(&btf, seen_better) } else { Choice::default() };
        Ok(Self { tracepoints, netfilter, functions, drop_reasons: drop_reasons(&btf) })
    }

    /// What speaks against using a program here, in words.
    #[must_use]
    pub fn objection(&self, program: &Program) -> Option<String> {
        match (program.hook, program.name) {
            (HookKind::Netfilter { .. }, _) => (!self.netfilter).then(|| "netfilter links need Linux 6.4".to_owned()),
            // The socket that a drop is about is an argument since 6.11; one of the two programs fits.
            (HookKind::Tracepoint(tp), "kfree_skb") if self.tracepoints.get(tp).is_some_and(|n| *n >= 4) => Some(String::new()),
            (HookKind::Tracepoint(tp), "kfree_skb_rx_sk") if self.tracepoints.get(tp).is_some_and(|n| *n < 4) => Some(String::new()),
            // Older kernels have the reasons of queueing disciplines in kfree_skb.
            (HookKind::Tracepoint(tp), "qdisc_drop") if !self.tracepoints.contains_key(tp) => Some(String::new()),
            // sock_recv_length (6.3) sees the end of the call, so it is preferred.
            (HookKind::Tracepoint(_), "tcp_rcv_space_adjust") if self.tracepoints.contains_key("sock_recv_length") => {
                Some("not needed: sock_recv_length sees the end of the call".to_owned())
            }
            (HookKind::Tracepoint(tp), _) => (!self.tracepoints.contains_key(tp)).then(|| "this kernel does not have it".to_owned()),
        }
    }

    /// Whether packets can be seen at netfilter's hooks.
    #[must_use]
    pub fn has_netfilter(&self) -> bool {
        self.netfilter
    }

    /// Whether packets without netfilter links begin where IP hands them to its output, which functions show.
    #[must_use]
    pub fn begins_at_output(&self) -> bool {
        !self.netfilter && self.functions.has("ip_output") && self.functions.has("ip6_output")
    }
}

/// What matters most to a trace, by name.
#[must_use]
pub fn features() -> Vec<(&'static str, bool)> {
    let offer = Offer::without_functions().ok();
    let has = |tracepoint: &str| offer.as_ref().is_some_and(|o| o.tracepoints.contains_key(tracepoint));
    vec![
        ("netfilter-link", offer.as_ref().is_some_and(|o| o.netfilter)),
        ("drop-reasons", offer.as_ref().is_some_and(|o| !o.drop_reasons.is_empty())),
        ("tcp-sendmsg-tracepoint", has("tcp_sendmsg_locked")),
        ("recv-length-tracepoint", has("sock_recv_length")),
        ("data-ready-tracepoint", has("sk_data_ready")),
    ]
}

/// How the hook is called in `Armed`.
#[must_use]
pub fn public_name(program: &Program) -> String {
    match program.hook {
        HookKind::Tracepoint(name) => format!("tp_btf/{name}"),
        HookKind::Netfilter { first } => format!("netfilter/* {}", if first { "first" } else { "last" }),
    }
}

/// Whether an enum of the kernel has this value.
fn has_value(btf: &Btf<'_>, name: &str, value: &str) -> bool {
    btf.type_by_name::<Enum<'_>>(name).is_some_and(|e| e.iter().any(|m| m.name.is_some_and(|n| n == value)))
}

/// Whether the kernel has a tracepoint.
#[must_use]
pub fn has_tracepoint(btf: &Btf<'_>, name: &str) -> bool {
    arguments(btf, name).is_some()
}

/// Arguments of a tracepoint, without the data pointer that comes first in its typedef.
fn arguments(btf: &Btf<'_>, tracepoint: &str) -> Option<usize> {
    let typedef: Typedef<'_> = btf.type_by_name(&format!("btf_trace_{tracepoint}"))?;
    let pointer = Ptr::try_from(typedef.referenced_type()).ok()?;
    let function = FuncProto::try_from(pointer.referenced_type()).ok()?;
    function.len().checked_sub(1)
}

fn drop_reasons(btf: &Btf<'_>) -> HashMap<u32, String> {
    let Some(reasons) = btf.type_by_name::<Enum<'_>>("skb_drop_reason") else { return HashMap::new() };
    reasons
        .iter()
        .filter_map(|m| {
            let name = m.name?.to_str()?;
            let name = name.strip_prefix("SKB_DROP_REASON_").or_else(|| name.strip_prefix("SKB_"))?;
            Some((u32::try_from(m.value).ok()?, name.to_owned()))
        })
        .collect()
}
