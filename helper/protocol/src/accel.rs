//! Acceleration: requests, reports, and the one table of reasons why a connection is not accelerated.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::pod::{Node, Pod};

/// Accelerate the connections between these pods of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccelerateRequest {
    /// The chosen pods.
    pub pods: Vec<Pod>,
    /// The chosen pods of other nodes, for the reason shown for connections with them.
    #[serde(default)]
    pub elsewhere: Vec<PodElsewhere>,
    /// The nodes of these pods, whose network namespaces a dry run looks at.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// The lease: without renewal the kernel falls back to TCP after this many milliseconds.
    pub lease_ms: u64,
    /// Leave it running for `lease_ms` after the session ends.
    pub detach: bool,
    /// Only watch and report what would be done, for this many milliseconds.
    #[serde(default)]
    pub dry_run_ms: Option<u64>,
    /// Leave readers alone that sleep inside their receive calls. While such a socket is in the sockmap, a signal or a reset ends the
    /// call with EAGAIN instead of EINTR, a restart, or ECONNRESET (kernel function `tcp_bpf_recvmsg`). A call that could sleep
    /// (neither `O_NONBLOCK` nor `MSG_DONTWAIT`) but always finds data, as after poll(2), is not one of them.
    #[serde(default = "yes")]
    pub leave_blocking_readers: bool,
    /// With `detach`: go on in the process that served the session, because it is the one that keeps the helper's pod; otherwise in
    /// a process of its own.
    #[serde(default)]
    pub stay: bool,
    /// The user, shown to a second user.
    pub owner: String,
    /// The path that connections are put on.
    #[serde(default)]
    pub via: Via,
    /// With [`Via::Auto`]: names of the files of programs that are proven for the socket path beyond those that the helper knows of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub socket_programs: Vec<String>,
}

/// The path that connections are put on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// The short path, and from there the socket path where both programs are proven for it.
    #[default]
    Auto,
    /// The socket path: bytes go from socket to socket.
    Socket,
    /// The short path: packets go from device to device, past the node's bridge, netfilter, routing and connection tracking.
    Short,
}

/// The pods that are chosen from now on, all of them: others join, those that are not named are let go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoosePods {
    /// The chosen pods of this node.
    pub pods: Vec<Pod>,
    /// Those of other nodes.
    #[serde(default)]
    pub elsewhere: Vec<PodElsewhere>,
}

/// A chosen pod on a node that this helper does not serve: it sees only this side's ends of connections with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodElsewhere {
    /// Its name.
    pub pod: PodName,
    /// Its addresses, both families.
    pub ips: Vec<IpAddr>,
}

impl From<&Pod> for PodElsewhere {
    fn from(pod: &Pod) -> Self {
        Self { pod: PodName { namespace: pod.namespace.clone(), name: pod.name.clone() }, ips: pod.ips.clone() }
    }
}

fn yes() -> bool {
    true
}

/// Put connections back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Wait at most this many milliseconds for queues to drain.
    pub drain_ms: u64,
    /// Who asks, for the one whose acceleration it ends.
    #[serde(default)]
    pub by: String,
}

/// A pod by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Return the pairs of these pods to TCP, those that come later too, until [`ResumeRequest`] names the pod or the acceleration ends.
/// Its messages go by TCP from the next one on; the pair leaves the map when nothing is unread, within a second.
/// Names of pods that are not accelerated are ignored; asking twice is the same as asking once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRequest {
    /// Whose pairs: each that has one of these pods at either end.
    pub pods: Vec<PodName>,
    /// Why; tables show it.
    pub reason: PauseReason,
}

/// Let the pairs of these pods be accelerated again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// Pods that were named in a [`PauseRequest`]; others are ignored. A pair comes back when neither of its pods is paused.
    pub pods: Vec<PodName>,
}

/// Why connections are to use TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseReason {
    /// A NetworkPolicy that selects the pod changed: only packets on the network can be filtered.
    NetworkPolicy,
}

/// What carries the bytes of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// The whole network stack.
    #[default]
    Stack,
    /// The short path: from device to device.
    Short,
    /// The socket path: from socket to socket.
    Socket,
}

impl Carrier {
    /// Its word in tables and JSON.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Short => "short",
            Self::Socket => "socket",
        }
    }

    /// The path in words.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Stack => "network stack",
            Self::Short => "device to device",
            Self::Socket => "socket to socket",
        }
    }
}

/// What one path has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Connections of which it carried bytes, open and closed.
    pub connections: u64,
    /// Bytes: of the stream on the socket path, of packets without link layer headers on the short path.
    pub bytes: u64,
    /// Messages on the socket path, packets on the short path.
    pub units: u64,
}

impl Carried {
    /// That of one connection.
    #[must_use]
    pub fn of_one(bytes: u64, units: u64) -> Self {
        Self { connections: u64::from(units > 0), bytes, units }
    }
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.units += other.units;
    }
}

/// What each path has carried, beside the whole stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByPath {
    /// From device to device.
    pub short: Carried,
    /// From socket to socket.
    pub socket: Carried,
}

impl std::ops::AddAssign for ByPath {
    fn add_assign(&mut self, other: Self) {
        self.short += other.short;
        self.socket += other.socket;
    }
}

/// All pairs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PairsSnapshot {
    /// The connections, in the order in which they were tracked.
    pub pairs: Vec<Pair>,
    /// Sums over all pairs since the start, closed ones included.
    pub totals: Totals,
}

/// Sums over all pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Pairs that exist now.
    pub open: u64,
    /// Pairs that are accelerated now.
    pub accelerated: u64,
    /// Pairs that have closed.
    pub closed: u64,
    /// Bytes that went by the short path or socket to socket.
    pub bypassed_bytes: u64,
    /// Packets and messages that did.
    pub bypassed_messages: u64,
    /// Messages that went by TCP, and packets that took the stack, by reason.
    pub passes: BTreeMap<Reason, u64>,
    /// What each path has carried.
    #[serde(default)]
    pub by_path: ByPath,
}

impl Totals {
    /// Adds an open pair.
    pub fn add(&mut self, pair: &Pair) {
        self.open += 1;
        self.accelerated += u64::from(pair.state == PairState::Accelerated);
        self.bypassed_bytes += pair.bypassed_bytes;
        self.bypassed_messages += pair.bypassed_messages;
        self.add_passes(&pair.passes);
        self.by_path += pair.by_path;
    }

    fn add_passes(&mut self, passes: &BTreeMap<Reason, u64>) {
        for (reason, count) in passes {
            *self.passes.entry(*reason).or_default() += count;
        }
    }
}

/// Adds the sums over other pairs.
impl std::ops::AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        self.open += other.open;
        self.accelerated += other.accelerated;
        self.closed += other.closed;
        self.bypassed_bytes += other.bypassed_bytes;
        self.bypassed_messages += other.bypassed_messages;
        self.add_passes(&other.passes);
        self.by_path += other.by_path;
    }
}

/// One connection between two pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The client's pod, `namespace/name`; absent when it is not a chosen pod.
    pub client_pod: Option<String>,
    /// The server's pod.
    pub server_pod: Option<String>,
    /// The client's own address.
    pub client: SocketAddr,
    /// Where the client dialled (a Service address when `via_service`).
    pub dialled: SocketAddr,
    /// The server's own address, when its end is known.
    pub server: Option<SocketAddr>,
    /// Whether an address translation lies between.
    pub via_service: bool,
    /// What carries its bytes now.
    #[serde(default)]
    pub via: Carrier,
    /// How it is.
    pub state: PairState,
    /// Why no more is done for it: why it takes the stack, or why it is on the short path and not on the socket path.
    pub reason: Option<Reason>,
    /// Taken over while open.
    pub live: bool,
    /// Bytes that went by the short path or socket to socket.
    pub bypassed_bytes: u64,
    /// Packets and messages that did.
    pub bypassed_messages: u64,
    /// Messages that went by TCP, and packets that took the stack, by reason.
    pub passes: BTreeMap<Reason, u64>,
    /// What each path has carried.
    #[serde(default)]
    pub by_path: ByPath,
    /// Median turnaround (request written to answer read) before, in nanoseconds, when measured.
    pub turnaround_before_ns: Option<u64>,
    /// The same while accelerated.
    pub turnaround_after_ns: Option<u64>,
}

/// How a pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairState {
    /// Seen, not yet taken over.
    Waiting,
    /// Bytes go socket to socket.
    Accelerated,
    /// TCP carries the bytes now, for a reason that may go away.
    Paused,
    /// Returned to TCP and out of the map.
    Returned,
    /// Never taken over.
    LeftAlone,
    /// Leaving: queues are drained.
    Draining,
}

/// Why a message or a pair goes by TCP. The one table of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The other end is not in the sockmap (yet).
    NoPeer,
    /// How the reader reads is not known yet: its first reads go by TCP.
    Learning,
    /// TCP bytes are still unread at the peer.
    Order,
    /// A reader may sleep inside plain `tcp_recvmsg`.
    WaitingForReaders,
    /// Too many redirected bytes are unread at the peer.
    Budget,
    /// Memory for TCP is scarce: a redirect that finds none would fail with ENOMEM.
    Memory,
    /// Paused by stop, policy or lease.
    Paused,
    /// The lease has run out.
    Lease,
    /// The peer went away.
    PeerGone,
    /// The other pod is not chosen.
    PeerNotChosen,
    /// The other end is not a pod with an address of its own: an address outside the cluster, of a node, or of a pod with hostNetwork.
    PeerNotPod,
    /// The other pod is on another node.
    OtherNode,
    /// A ULP such as kTLS.
    Ulp,
    /// MPTCP.
    Mptcp,
    /// MSG_ZEROCOPY or TCP_ZEROCOPY_RECEIVE.
    Zerocopy,
    /// SO_RCVLOWAT above 1.
    RcvLowat,
    /// The reader uses splice(2).
    Splice,
    /// Bytes were taken by something else than a receive call: splice(2), TCP_ZEROCOPY_RECEIVE, a socket of the kernel.
    UnaccountedReads,
    /// The reader asks with FIONREAD, which this kernel answers wrongly for a socket in a sockmap.
    Fionread,
    /// One task may sleep in a receive call on the socket while another sends: the kernel wakes the sleeper without data when the
    /// send buffer has room again, and its blocking call returns EAGAIN.
    TwoTasks,
    /// The reader was observed blocked inside a receive call, and the request excludes such readers: a signal or a reset wakes
    /// them with EAGAIN.
    BlockingReader,
    /// The reader uses MSG_WAITALL.
    WaitAll,
    /// Urgent data.
    Urgent,
    /// Another sockmap owns the socket.
    ForeignOwner,
    /// TCP is faster for this pair.
    SlowerThanTcp,
    /// A NetworkPolicy that touches it changed.
    NetworkPolicy,
    /// Its identity was not unique.
    Ambiguous,
    /// The kernel refused the socket.
    Refused,
    /// A program at one of its ends is not proven for the socket path.
    Unproven,
    /// Short path: the stack has not yet passed packets of both directions since the start or the last change of rules, routes or devices.
    AwaitingStack,
    /// Short path: a SYN, FIN or RST was seen.
    Ending,
    /// Short path: connection tracking does not hold the connection as assured.
    NotTracked,
    /// Short path: connection tracking adjusts its sequence numbers.
    SequenceAdjusted,
    /// Short path: a helper of connection tracking (FTP, SIP, ...) follows it.
    ConntrackHelper,
    /// Short path: it is in a conntrack zone of its own.
    ConntrackZone,
    /// Short path: a flow table carries its packets already.
    Offloaded,
    /// Short path: a queue discipline shapes or delays packets at the node's end of a pod's device.
    QueueDiscipline,
    /// Short path: another tc or XDP program is attached to a device.
    ForeignProgram,
    /// Short path: a tc filter of a device redirects, copies or marks packets.
    TcFilter,
    /// Short path: a pod connects its interface to a bridge or tap of its own.
    PodBridge,
    /// Short path: a pod's address is not on a veth device whose other end is on the node.
    NoVeth,
    /// Short path: the MTUs of the two pods differ.
    MtuDiffers,
    /// Short path: both ends are the same pod.
    Hairpin,
    /// Short path: an end is the node itself.
    HostNetwork,
    /// Short path: the node has IPsec policies.
    Ipsec,
    /// Short path: no route to the other node by a device with Ethernet headers.
    NoRoute,
    /// Short path: a netfilter rule limits, counts, logs or copies its packets.
    PacketRule,
    /// Short path: the packet is larger than the next link's MTU.
    PacketTooLarge,
    /// Short path: the packet's TTL or hop limit is used up.
    TtlExceeded,
}

impl Reason {
    /// What a user can do about it, and at what risk; `None` where it goes away by itself.
    #[must_use]
    pub fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::NoPeer | Self::Learning | Self::Order | Self::WaitingForReaders | Self::Paused | Self::PeerGone => return None,
            Self::AwaitingStack | Self::Ending => return None,
            Self::BlockingReader => {
                "it blocks inside recv(); --blocking-readers accelerates such connections, too, at the risk that a signal or a reset \
                 ends that call with EAGAIN, which programs do not expect of a blocking socket"
            }
            Self::PeerNotChosen => "both ends must be chosen pods: name both, or choose all with -A",
            Self::PeerNotPod => {
                "only connections between two pods are accelerated, not those with addresses of nodes or outside the cluster"
            }
            Self::OtherNode => "the socket path needs two pods on one node: podAffinity places them together",
            Self::Budget => "the reader is slower than the writer: no data is lost, TCP flow control slows the writer down",
            Self::Memory => "the node lacks memory: kubectl describe node shows MemoryPressure",
            Self::Lease => "the helper has not renewed the lease: its node or the plugin was unreachable; run accelerate again",
            Self::Ulp => "encryption in the kernel needs TCP's own path: encrypt in the program, or keep it on TCP",
            Self::Mptcp => "MPTCP needs its own path: GODEBUG=multipathtcp=0 for Go programs, or a socket of plain TCP",
            Self::Zerocopy => "MSG_ZEROCOPY and TCP_ZEROCOPY_RECEIVE need TCP's own path: switch them off in the program",
            Self::RcvLowat => "SO_RCVLOWAT above 1 needs TCP's own path: keep it at 1 in the program",
            Self::Splice => "splice(2) cannot read from a sockmap socket: configure the program to copy (haproxy: no option splice-auto)",
            Self::UnaccountedReads => "something other than a receive call reads it (splice, zero-copy, a socket of the kernel)",
            Self::Fionread => {
                "this kernel returns wrong FIONREAD values for sockets in a sockmap: use a newer kernel, or the short path (--via short)"
            }
            Self::TwoTasks => "one task reads while another writes, and a reader could be woken without data: use non-blocking sockets",
            Self::WaitAll => "MSG_WAITALL needs TCP's own path: read in a loop instead",
            Self::Urgent => "urgent data needs TCP's own path",
            Self::ForeignOwner => "the socket is in another program's sockmap: kubectl sockpath doctor lists such programs",
            Self::SlowerThanTcp => "no action needed: TCP is faster for this connection",
            Self::NetworkPolicy => "only packets can be filtered: run stop, then accelerate again to start with the current policies",
            Self::Ambiguous => "two connections have the same sequence numbers: sockpath retries",
            Self::Refused => "the kernel refused the socket: kubectl sockpath doctor checks the node",
            Self::Unproven => {
                "only programs that the test suite runs socket to socket go there by themselves: --socket-program NAME adds one"
            }
            Self::QueueDiscipline => {
                "a bandwidth limit must process every packet: remove the pod's bandwidth annotations to use the short path"
            }
            Self::ForeignProgram => "a network plugin or agent with programs at the pod's device often has its own short path",
            Self::NotTracked => "connection tracking must list it as ASSURED: NOTRACK rules and one-way traffic prevent that",
            Self::SequenceAdjusted => "connection tracking changes its sequence numbers, and the short path cannot",
            Self::ConntrackHelper => "a helper of connection tracking (FTP, SIP, ...) reads its packets, so each must take the stack",
            Self::ConntrackZone => {
                "a CT rule or a virtual router puts it in a separate zone: the short path supports the default zone only"
            }
            Self::Offloaded => "no action needed: a flow table already bypasses the rules for its packets",
            Self::TcFilter => "the filter must process every packet: tc filter show dev DEVICE ingress (or egress) shows it on the node",
            Self::PodBridge => "packets to the pod's bridge or tap are for others behind it, such as a virtual machine",
            Self::NoVeth => "the short path needs pods with a veth device, not ipvlan, macvlan or SR-IOV",
            Self::MtuDiffers => "the path needs one MTU at both pods: recreate the pods that started before the MTU was changed",
            Self::Hairpin => "a pod that connects to itself through a Service has only one device",
            Self::HostNetwork => "processes of the node and pods with hostNetwork have no separate device to redirect to",
            Self::Ipsec => "IPsec must process every packet: ip xfrm policy shows the node's policies",
            Self::NoRoute => {
                "the other node is reached by a tunnel or device without Ethernet headers, which the short path does not build"
            }
            Self::PacketRule => "the rule has to see every packet: accelerate --dry-run lists such rules with their table and chain",
            Self::PacketTooLarge => "it exceeds the next link's MTU, and only the stack answers with the right size: lower the pods' MTU",
            Self::TtlExceeded => {
                "only the stack answers for a packet whose TTL is used up: a routing loop, or a program that sets a low TTL"
            }
        })
    }

    /// The reason in a few words, for tables.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::NoPeer => "peer not inserted yet",
            Self::Learning => "profiling its reads",
            Self::Order => "TCP bytes still unread",
            Self::WaitingForReaders => "waiting for readers",
            Self::Budget => "reader is slower",
            Self::Memory => "memory shortage",
            Self::Paused => "paused",
            Self::Lease => "lease expired",
            Self::PeerGone => "peer gone",
            Self::PeerNotChosen => "peer not chosen",
            Self::PeerNotPod => "peer is not a pod",
            Self::OtherNode => "other node",
            Self::Ulp => "kTLS",
            Self::Mptcp => "MPTCP",
            Self::Zerocopy => "zero-copy socket",
            Self::RcvLowat => "SO_RCVLOWAT",
            Self::Splice => "splice reader",
            Self::UnaccountedReads => "not read by receive calls",
            Self::Fionread => "FIONREAD reader",
            Self::TwoTasks => "one task reads, another writes",
            Self::BlockingReader => "blocking reader",
            Self::WaitAll => "MSG_WAITALL reader",
            Self::Urgent => "urgent data",
            Self::ForeignOwner => "owned by another sockmap",
            Self::SlowerThanTcp => "slower than TCP",
            Self::NetworkPolicy => "NetworkPolicy changed",
            Self::Ambiguous => "identity not unique",
            Self::Refused => "refused by the kernel",
            Self::Unproven => "program not proven for sockets",
            Self::AwaitingStack => "waiting for packets through the stack",
            Self::Ending => "connection is ending",
            Self::NotTracked => "not assured by conntrack",
            Self::SequenceAdjusted => "sequence numbers adjusted",
            Self::ConntrackHelper => "conntrack helper",
            Self::ConntrackZone => "conntrack zone",
            Self::Offloaded => "offloaded by a flow table",
            Self::QueueDiscipline => "queue discipline at the device",
            Self::ForeignProgram => "other program at the device",
            Self::TcFilter => "tc filter at the device",
            Self::PodBridge => "pod bridges its interface",
            Self::NoVeth => "no veth device",
            Self::MtuDiffers => "MTUs differ",
            Self::Hairpin => "pod connects to itself",
            Self::HostNetwork => "node or hostNetwork end",
            Self::Ipsec => "IPsec on the node",
            Self::NoRoute => "no Ethernet route",
            Self::PacketRule => "netfilter rule for each packet",
            Self::PacketTooLarge => "larger than the MTU",
            Self::TtlExceeded => "TTL expired",
        }
    }
}

/// Answer to `status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AccelStatus {
    /// Whether an acceleration, or a part of one, exists on this node.
    pub active: bool,
    /// Who started it.
    pub owner: Option<String>,
    /// Time left on the lease, in milliseconds; 0 when it has run out.
    pub lease_left_ms: u64,
    /// Whether it goes on without the plugin that started it (`--detach`).
    #[serde(default)]
    pub detached: bool,
    /// Whether the helper no longer renews the lease: it was killed, or stands still.
    #[serde(default)]
    pub helper_gone: bool,
    /// The pairs.
    pub pairs: PairsSnapshot,
}

/// What an acceleration achieved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AccelSummary {
    /// The sums.
    pub totals: Totals,
    /// How long it ran, in milliseconds.
    pub ran_ms: u64,
    /// Sockets still in the sockmap after the drain deadline (their messages go by TCP); 0 is the normal case.
    pub left_enrolled: u64,
    /// Whether it goes on without us (`--detach`).
    pub detached: bool,
    /// Who ended it, where that was another session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_by: Option<String>,
}

/// A run-time check of the kernel on private sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// What was tried: `order`, `fin`, `fionread`, `splice`, `budget`, ...
    pub name: String,
    /// Whether the kernel behaved.
    pub passed: bool,
    /// Whether a failure risks data (then `--force` is refused).
    pub corruption_risk: bool,
    /// What was seen.
    pub detail: String,
}
