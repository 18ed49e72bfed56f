//! What the BPF programs report, as Rust values.

use std::mem::size_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ptr;

use sockpath_bpf::trace::types::{trace_attach, trace_ct, trace_event, trace_flag, trace_hook};
use sockpath_protocol::packet::{Context, Flow, HeaderOffsets};
use sockpath_protocol::request::Protocol;

use super::functions::{self, Attach};

/// The hook an event comes from, as the programs number them.
pub type Hook = trace_hook;

/// One event of a program: a packet or a socket was observed at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    /// Where it was seen.
    pub hook: Hook,
    /// `skb->head`; for events of a socket its `struct sock`.
    pub object: u64,
    /// Number of the recorded packet; 0 when the hook knows no packet or the packet is not recorded.
    pub id: u32,
    /// Inode of the network namespace; 0 when the hook does not know it.
    pub netns: u32,
    /// Device; 0 when the hook does not know one.
    pub ifindex: u32,
    /// `skb->len`; bytes of the call for socket events.
    pub len: u32,
    /// TCP sequence number, or what stands for it in other protocols; a sequence of the socket for socket events.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Payload bytes.
    pub payload: u32,
    /// As the hook says: drop reason, queue length, device out, states.
    pub arg: u32,
    /// For a drop: the address of the code that dropped it.
    pub location: u64,
    /// Addresses and ports; unspecified addresses when the hook does not know them.
    pub flow: Flow,
    /// Transport protocol; `None` when it is none that is followed.
    pub protocol: Option<Protocol>,
    /// TCP flags or ICMP type.
    pub kind: u8,
    /// `trace_flag` bits.
    pub flags: u8,
    /// For a drop: whether the data is shared with a clone, which may go on.
    pub shared: bool,
    /// For a drop: state of the socket that dropped it, as the kernel numbers them; 0 where the kernel names none (before 6.11).
    pub socket_state: u8,
    /// By which kind of hook a function was seen; `None` when it was not a function.
    pub attach: Option<Attach>,
    /// CPU it ran on.
    pub cpu: u16,
    /// GSO segments; 0 when it is not a GSO packet.
    pub segments: u16,
    /// Process id, when it was not a softirq.
    pub pid: u32,
    /// The process's name, padded with zeros.
    pub comm: [u8; 16],
    /// Where the headers lie, for events of an skb.
    pub offsets: Option<HeaderOffsets>,
    /// What rules see besides the headers, at netfilter hooks and of a drop.
    pub facts: Option<Facts>,
}

/// What rules see of a packet besides its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Packet mark.
    pub mark: u32,
    /// Its connection; `None` when conntrack has none for it (yet).
    pub connection: Option<Tracked>,
    /// Whether it was taken out of connection tracking.
    pub untracked: bool,
}

/// A packet's connection as conntrack has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tracked {
    /// `enum ip_conntrack_info`.
    pub info: u8,
    /// `nf_conn.status`; 0 where it could not be read.
    pub status: u32,
    /// `nf_conn.mark`.
    pub mark: u32,
}

impl Tracked {
    /// Whether the packet goes in the direction of replies (`IP_CT_IS_REPLY`).
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.info >= 3
    }
}

fn facts(e: &trace_event) -> Option<Facts> {
    const INFO: u8 = trace_ct::TRACE_CT_INFO.0 as u8;
    /// `IP_CT_UNTRACKED`.
    const UNTRACKED: u8 = 7;
    /// `IPS_TEMPLATE`: not a connection, but how to make one.
    const TEMPLATE: u32 = 1 << 11;
    let flag = |f: trace_ct| u32::from(e.ct) & f.0 != 0;
    let connection = Tracked { info: e.ct & INFO, status: e.ct_status, mark: e.ct_mark };
    let has = flag(trace_ct::TRACE_CT_HAS);
    flag(trace_ct::TRACE_CT_READ).then(|| Facts {
        mark: e.mark,
        connection: (has && connection.status & TEMPLATE == 0).then_some(connection),
        untracked: !has && e.ct & INFO == UNTRACKED,
    })
}

impl Event {
    /// Reads an event from the ring buffer; `None` when it is not one.
    #[must_use]
    pub fn read(raw: &[u8]) -> Option<Self> {
        if raw.len() < size_of::<trace_event>() {
            return None;
        }
        // SAFETY: the slice is long enough, trace_event consists of integers only, so every bit pattern is a value of it,
        // and read_unaligned asks for no alignment.
        let e: trace_event = unsafe { ptr::read_unaligned(raw.as_ptr().cast()) };
        let flag = |f: trace_flag| u32::from(e.flags) & f.0 != 0;
        let offsets = (e.network != 0 || e.mac != 0).then(|| HeaderOffsets {
            mac: flag(trace_flag::TRACE_F_MAC_SET).then_some(e.mac),
            network: e.network,
            transport: flag(trace_flag::TRACE_F_TRANSPORT_SET).then_some(e.transport),
        });
        Some(Self {
            at: e.at,
            hook: trace_hook(u32::from(e.hook)),
            object: e.object,
            id: e.id,
            netns: e.netns,
            ifindex: e.ifindex,
            len: e.len,
            seq: e.seq,
            ack: e.ack,
            payload: e.payload,
            arg: e.arg,
            location: e.location,
            flow: Flow { from: SocketAddr::new(address(e.saddr), e.sport), to: SocketAddr::new(address(e.daddr), e.dport) },
            protocol: match e.protocol {
                6 => Some(Protocol::Tcp),
                17 => Some(Protocol::Udp),
                1 => Some(Protocol::Icmp),
                _ => None,
            },
            kind: e.kind,
            flags: e.flags,
            shared: e.shared != 0,
            socket_state: e.socket_state,
            attach: match trace_attach(u32::from(e.attach)) {
                trace_attach::TRACE_ATTACH_FENTRY => Some(Attach::Fentry),
                trace_attach::TRACE_ATTACH_KPROBE => Some(Attach::Kprobe),
                _ => None,
            },
            cpu: e.cpu,
            segments: e.segments,
            pid: e.pid,
            comm: e.comm.map(i8::cast_unsigned),
            offsets,
            facts: facts(&e),
        })
    }

    /// Who ran it. ksoftirqd serves softirqs on its own stack, where the programs take it for a process.
    #[must_use]
    pub fn context(&self) -> Context {
        if self.has(trace_flag::TRACE_F_SOFTIRQ) || self.pid == 0 || self.comm.starts_with(b"ksoftirqd/") {
            return Context::Softirq;
        }
        let end = self.comm.iter().position(|c| *c == 0).unwrap_or(self.comm.len());
        Context::Process { pid: self.pid, comm: String::from_utf8_lossy(&self.comm[..end]).into_owned() }
    }

    /// The hook's name in the protocol.
    #[must_use]
    pub fn hook_name(&self) -> String {
        if let Some(function) = functions::of(self.hook) {
            return function.public_name(self.attach.unwrap_or(Attach::Fentry));
        }
        match (self.attach, rules_of(self.hook)) {
            // Netfilter without links: the function that runs the rules.
            (Some(_), Some((_, true))) => "fentry/nf_hook_slow".to_owned(),
            (Some(_), Some((_, false))) => "fexit/nf_hook_slow".to_owned(),
            _ if self.hook == Hook::TRACE_FIB_LOOKUP && self.has(trace_flag::TRACE_F_IPV6) => "tp_btf/fib6_table_lookup".to_owned(),
            _ => hook_name(self.hook).to_owned(),
        }
    }

    /// Whether the event has this flag.
    #[must_use]
    pub fn has(&self, flag: trace_flag) -> bool {
        u32::from(self.flags) & flag.0 != 0
    }
}

fn address(raw: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(raw).to_canonical()
}

/// Netfilter's hook, and whether it is where its rules begin.
#[must_use]
pub fn rules_of(hook: Hook) -> Option<(&'static str, bool)> {
    let (hook, position) = hook_name(hook).strip_prefix("netfilter/")?.split_once(' ')?;
    Some((hook, position == "first"))
}

/// The name of a hook that is not a function.
fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::TRACE_TCP_SENDMSG => "tp_btf/tcp_sendmsg_locked",
        Hook::TRACE_FIB_LOOKUP => "tp_btf/fib_table_lookup",
        Hook::TRACE_NF_FIRST_PRE_ROUTING => "netfilter/PRE_ROUTING first",
        Hook::TRACE_NF_FIRST_LOCAL_IN => "netfilter/LOCAL_IN first",
        Hook::TRACE_NF_FIRST_FORWARD => "netfilter/FORWARD first",
        Hook::TRACE_NF_FIRST_LOCAL_OUT => "netfilter/LOCAL_OUT first",
        Hook::TRACE_NF_FIRST_POST_ROUTING => "netfilter/POST_ROUTING first",
        Hook::TRACE_NF_LAST_PRE_ROUTING => "netfilter/PRE_ROUTING last",
        Hook::TRACE_NF_LAST_LOCAL_IN => "netfilter/LOCAL_IN last",
        Hook::TRACE_NF_LAST_FORWARD => "netfilter/FORWARD last",
        Hook::TRACE_NF_LAST_LOCAL_OUT => "netfilter/LOCAL_OUT last",
        Hook::TRACE_NF_LAST_POST_ROUTING => "netfilter/POST_ROUTING last",
        Hook::TRACE_NEIGH_SEND => "tp_btf/neigh_event_send_done",
        Hook::TRACE_NEIGH_DEAD => "tp_btf/neigh_event_send_dead",
        Hook::TRACE_NEIGH_UPDATE => "tp_btf/neigh_update",
        Hook::TRACE_DEV_QUEUE => "tp_btf/net_dev_queue",
        Hook::TRACE_QDISC_ENQUEUE => "tp_btf/qdisc_enqueue",
        Hook::TRACE_DEV_XMIT => "tp_btf/net_dev_start_xmit",
        Hook::TRACE_NETIF_RX => "tp_btf/netif_rx",
        Hook::TRACE_GRO_RECEIVE => "tp_btf/napi_gro_receive_entry",
        Hook::TRACE_RECEIVE_SKB => "tp_btf/netif_receive_skb",
        Hook::TRACE_TCP_PROBE => "tp_btf/tcp_probe",
        Hook::TRACE_DATA_READY => "tp_btf/sk_data_ready",
        Hook::TRACE_COPY_DATAGRAM => "tp_btf/skb_copy_datagram_iovec",
        Hook::TRACE_RCV_SPACE_ADJUST => "tp_btf/tcp_rcv_space_adjust",
        Hook::TRACE_RECV_LENGTH => "tp_btf/sock_recv_length",
        Hook::TRACE_CONSUME_SKB => "tp_btf/consume_skb",
        Hook::TRACE_KFREE_SKB => "tp_btf/kfree_skb",
        Hook::TRACE_SEND_RESET => "tp_btf/tcp_send_reset",
        Hook::TRACE_RECEIVE_RESET => "tp_btf/tcp_receive_reset",
        Hook::TRACE_RETRANSMIT => "tp_btf/tcp_retransmit_skb",
        Hook::TRACE_RETRANSMIT_SYNACK => "tp_btf/tcp_retransmit_synack",
        Hook::TRACE_SET_STATE => "tp_btf/inet_sock_set_state",
        Hook::TRACE_RCVQUEUE_FULL => "tp_btf/sock_rcvqueue_full",
        Hook::TRACE_WRITE_CALL => "tp_btf/sys_enter",
        Hook::TRACE_BYPASS_READY => "tp_btf/sk_data_ready",
        Hook::TRACE_BYPASS_READ => "tp_btf/sock_recv_length",
        _ => "unknown",
    }
}
