//! A packet, the hops it was seen at, and the places they lie in.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use crate::mechanism::Mechanism;
use crate::request::Protocol;
use crate::stage::StageId;

/// A network namespace on the path, and a device in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Index that hops use; unique within one helper's session.
    pub index: u32,
    /// Name of the node.
    pub node: String,
    /// `namespace/name` of the pod whose network namespace this is; absent for the node's own.
    pub pod: Option<String>,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Device, when the hop has one.
    pub device: Option<Device>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its name in its namespace.
    pub name: String,
    /// Its index in its namespace.
    pub ifindex: u32,
    /// What it is.
    pub kind: DeviceKind,
    /// For a veth: its peer, as `device@pod` or `device@node`.
    pub peer: Option<String>,
    /// For a bridge port: its bridge.
    pub bridge: Option<String>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Loopback.
    Loopback,
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A tunnel (VXLAN, IPIP, GRE, WireGuard).
    Tunnel,
    /// Anything else: a physical or virtual NIC.
    Other,
}

/// The direction of a packet in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From source to target.
    Request,
    /// From target to source.
    Reply,
}

/// What a packet is in its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PacketKind {
    /// TCP SYN.
    Syn,
    /// TCP SYN and ACK.
    SynAck,
    /// TCP without payload.
    Ack,
    /// TCP or UDP with payload.
    Data,
    /// TCP FIN (with or without payload).
    Fin,
    /// TCP RST.
    Rst,
    /// ICMP echo request.
    EchoRequest,
    /// ICMP echo reply.
    EchoReply,
    /// ICMP error about a packet of the conversation.
    IcmpError,
    /// ICMP redirect: a router's hint about a better route.
    IcmpRedirect,
    /// Bytes that went socket to socket, without a packet.
    Bypass,
}

/// Addresses and ports as one hop saw them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// Source address and port (port 0 for ICMP).
    pub from: SocketAddr,
    /// Destination address and port (port 0 for ICMP).
    pub to: SocketAddr,
}

/// The path of one packet as one helper observed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Packet {
    /// Sequence number of the packet in this helper's session, from 1, in order of first observation.
    pub id: u64,
    /// Number of the conversation (both directions of one connection) in this session.
    pub conversation: u64,
    /// Its direction.
    pub direction: Direction,
    /// Transport protocol.
    pub protocol: Protocol,
    /// What it is.
    pub kind: PacketKind,
    /// Addresses at its first hop.
    pub flow: Flow,
    /// First TCP sequence number, or the UDP/ICMP identification; with the flow it names the packet on other nodes.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Payload bytes.
    pub payload: u32,
    /// The hops, in order of time.
    pub hops: Vec<Hop>,
    /// How it ended.
    pub outcome: Outcome,
}

/// One observation of a packet. It marks the beginning of its stage; the stage lasts until the next hop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// The stage that begins here.
    pub stage: StageId,
    /// The kernel's hook that saw it, e.g. `tp_btf/net_dev_queue`.
    pub hook: String,
    /// `CLOCK_MONOTONIC` of the node, in nanoseconds.
    pub at_ns: u64,
    /// Index of the [`Place`].
    pub place: u32,
    /// CPU it ran on.
    pub cpu: u16,
    /// Who ran it.
    pub context: Context,
    /// `skb->len` in bytes (payload bytes for socket hops).
    pub len: u32,
    /// GSO segments this skb stands for; 1 when it is a single one.
    pub segments: u16,
    /// Addresses, when they differ from the hop before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewritten: Option<Flow>,
    /// The netfilter rule that rewrote it before this hop, when it could be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Box<Rule>>,
    /// Offsets of the MAC, network and transport header from `skb->head`, in bytes, where set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<HeaderOffsets>,
    /// What is worth saying about this hop: cached route, noqueue, rule that rewrote, queue length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// At a netfilter hook: what its rules see of the packet besides its headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<RuleFacts>>,
}

/// What rules see of a packet besides its headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleFacts {
    /// State of its connection.
    pub connection: ConnectionState,
    /// Whether it goes in the direction of the connection's replies.
    #[serde(default)]
    pub reply: bool,
    /// Packet mark.
    pub mark: u32,
    /// Mark of its connection.
    #[serde(default)]
    pub connection_mark: u32,
    /// Device it came in by, where the hook has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Device it leaves by, where the hook has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// TCP's byte of flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<u8>,
}

/// State of a packet's connection, as rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionState {
    /// The first packet of a connection, or one before the first reply.
    New,
    /// Of a connection with packets in both directions.
    Established,
    /// Of a connection that another one announced, or an error about one.
    Related,
    /// Taken out of connection tracking.
    Untracked,
    /// Conntrack has no connection for it: it has not seen the packet yet (before its own place in PRE_ROUTING and LOCAL_OUT), or found
    /// it invalid.
    None,
}

/// A netfilter rule, or the policy of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Family and name of its table: `ip nat`.
    pub table: String,
    /// Its chain: `KUBE-SEP-...`.
    pub chain: String,
    /// Its number, as `nft -a list` shows it; absent for a policy.
    pub handle: Option<u64>,
    /// Its comment.
    pub comment: Option<String>,
    /// The chains that lead there, from the hook's own on; empty if it is in that one or the path is unknown.
    #[serde(default)]
    pub via: Vec<String>,
    /// It is the policy of its chain, not a rule.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policy: bool,
    /// It is a table of iptables-legacy; `handle` is then its position in the chain.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub legacy: bool,
    /// The element of a verdict map that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<Element>,
    /// Its packet counter, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<Counter>,
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Element {
    /// Name of the set or map.
    pub set: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// A packet counter's readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counter {
    /// Before the packet; absent when it was not read then.
    pub before: Option<u64>,
    /// After the packet.
    pub after: u64,
}

impl Rule {
    /// The chains that lead there and its own: `FORWARD > cali-FORWARD > cali-tw-x`.
    #[must_use]
    pub fn path(&self) -> String {
        self.via.iter().chain([&self.chain]).map(String::as_str).collect::<Vec<_>>().join(" > ")
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = if self.legacy { " of iptables-legacy" } else { "" };
        if self.policy {
            return write!(f, "the policy of chain {}, table {}{of}", self.chain, self.table);
        }
        write!(f, "chain {} of table {}{of}", self.chain, self.table)?;
        if let Some(handle) = self.handle {
            write!(f, ", {} {handle}", if self.legacy { "rule" } else { "handle" })?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " ({comment})")?;
        }
        if let Some(element) = &self.element {
            write!(f, ", map {}", element.set)?;
            if let Some(comment) = &element.comment {
                write!(f, " ({comment})")?;
            }
        }
        Ok(())
    }
}

/// How sure it is that this did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// It may have been this, or something else.
    Possible,
    /// What is known leaves nothing else.
    Inferred,
    /// What is known leaves nothing else, and a counter rose with it.
    ProvenByCounters,
    /// The kernel itself shows it.
    Observed,
}

/// What did something to a packet, as far as that can be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// A word scripts can rely on.
    pub mechanism: Mechanism,
    /// How sure that is.
    pub certainty: Certainty,
    /// What speaks for it, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// When no rule is named: those that may have done it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Rule>,
}

/// Where an skb's headers lie, in bytes from `skb->head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderOffsets {
    /// `skb->mac_header`, absent when not set (0xffff).
    pub mac: Option<u16>,
    /// `skb->network_header`.
    pub network: u16,
    /// `skb->transport_header`, absent when not set.
    pub transport: Option<u16>,
}

/// Who ran the code at a hop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Context {
    /// A system call of this process.
    Process {
        /// Process id as the helper's PID namespace sees it.
        pid: u32,
        /// Its command name.
        comm: String,
    },
    /// Softirq, on top of whatever ran.
    Softirq,
}

/// How a packet's path ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "as", rename_all = "kebab-case")]
pub enum Outcome {
    /// It reached the socket (and the reader, where the hops say so).
    Delivered,
    /// It left the traced namespaces of this node through a device; another node's helper may have the rest.
    Left,
    /// The kernel dropped it.
    Dropped(Drop),
    /// It was no longer observed, and no drop was reported.
    Vanished {
        /// The stage that should have come next.
        expected: StageId,
    },
}

/// A drop as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// `enum skb_drop_reason` without its prefix, e.g. `NETFILTER_DROP`, `NO_SOCKET`; or the enumerator of a subsystem, e.g.
    /// `OVS_DROP_EXPLICIT`.
    pub reason: String,
    /// Kernel function that dropped it, with offset, when symbols can be read.
    pub location: Option<String>,
    /// Index of the [`Place`].
    pub place: u32,
    /// The stage it was in.
    pub stage: StageId,
    /// State of the socket that dropped it, as the kernel names it: `TIME_WAIT`; absent where no socket did, or the kernel does not say
    /// which (before 6.11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// What is known besides: the queue, the sysctl.
    pub detail: Option<String>,
    /// The netfilter rule that dropped it, when it could be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Box<Rule>>,
    /// What in netfilter dropped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<Cause>>,
}

/// Something that happened to the conversation besides hops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// `CLOCK_MONOTONIC` of the node, in nanoseconds.
    pub at_ns: u64,
    /// What happened.
    pub what: IncidentKind,
    /// The addresses concerned, as seen there.
    pub flow: Option<Flow>,
    /// Index of the [`Place`], where known.
    pub place: Option<u32>,
    /// More, in words.
    pub detail: Option<String>,
}

/// Kinds of incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncidentKind {
    /// A reset was sent (`tcp_send_reset`).
    ResetSent,
    /// A reset arrived (`tcp_receive_reset`).
    ResetReceived,
    /// A segment was sent again (`tcp_retransmit_skb`).
    Retransmit,
    /// A SYN and ACK was sent again (`tcp_retransmit_synack`).
    RetransmitSynAck,
    /// A listener's backlog was full.
    BacklogOverflow,
    /// A socket's receive queue was full.
    ReceiveQueueFull,
    /// SYNs were answered with cookies.
    SynCookies,
    /// The queue of half-open connections was full.
    SynQueueFull,
    /// A receive window was closed: the reader is too slow.
    ZeroWindow,
    /// A pod used up its CPU limit.
    CpuThrottled,
    /// A neighbour was resolved, or could not be.
    Neighbour,
    /// The connection changed state.
    State,
}

/// What a rewrite (NAT) did, as the report lists it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rewrite {
    /// Destination or source was changed, or changed back.
    pub kind: RewriteKind,
    /// Address before.
    pub from: SocketAddr,
    /// Address after.
    pub to: SocketAddr,
}

/// Kinds of rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewriteKind {
    /// Destination translated.
    Dnat,
    /// Source translated.
    Snat,
    /// Source restored in replies of a DNATed connection.
    UnDnat,
    /// Destination restored in replies of an SNATed connection.
    UnSnat,
}

impl Flow {
    /// The same conversation seen from the other side.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    /// Whether one of the two addresses is `ip`.
    #[must_use]
    pub fn touches(&self, ip: IpAddr) -> bool {
        self.from.ip() == ip || self.to.ip() == ip
    }
}
