//! The stage table: one row for each stage of a packet's path, with the article's number, a plain name and the hooks
//! that can observe it in order of preference. Everything else (docs, JSON, picture) follows from it.
//!
//! Steps are those of Addo Zhang, "Tracing packets datapath in Kubernetes network" (2023): S1-S16 when an application
//! sends, R1-R20 when one receives. Transit stages between the two have no number.

use serde::{Deserialize, Serialize};

/// The part of the path that a stage belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// In the sender's network namespace, outgoing.
    Send,
    /// In a node's namespace, between the pods.
    Transit,
    /// In the receiver's network namespace, incoming.
    Receive,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// Its identifier.
    pub id: StageId,
    /// The article's number; `None` for transit.
    pub step: Option<&'static str>,
    /// Part of the path.
    pub side: Side,
    /// A plain name of at most 26 characters.
    pub name: &'static str,
    /// What happens, in one line.
    pub what: &'static str,
    /// Hooks that can observe it, best first, as `kind/name`. Where fentry stands, kprobe may take its place.
    pub hooks: &'static [&'static str],
    /// Whether time spent here is waiting (for a reader, a queue, an answer) rather than working.
    pub waits: bool,
}

macro_rules! stages {
    ($($id:ident $key:literal $step:expr, $side:ident, $name:literal, $what:literal, [$($hook:literal),*], $waits:literal;)*) => {
        /// Identifier of a stage. Serialised as the kebab-case key of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum StageId {
            $(#[doc = $what] #[serde(rename = $key)] $id,)*
        }

        /// The table, in the order of the path.
        pub const STAGES: &[Stage] = &[
            $(Stage { id: StageId::$id, step: $step, side: Side::$side, name: $name, what: $what, hooks: &[$($hook),*], waits: $waits },)*
        ];

        impl StageId {
            /// The kebab-case key.
            #[must_use]
            pub fn key(self) -> &'static str {
                match self { $(Self::$id => $key,)* }
            }
        }
    };
}

stages! {
    SocketWrite "socket-write" Some("S1"), Send, "socket write", "the socket call: bytes are copied into an sk_buff", ["tp_btf/tcp_sendmsg_locked", "tp_btf/sys_enter", "fentry/tcp_sendmsg_locked"], false;
    SendStack "send-stack" Some("S2"), Send, "protocol stack begins", "the transport protocol takes over", ["fentry/tcp_write_xmit"], false;
    SendTransport "send-transport" Some("S3"), Send, "transport header", "ports, sequence and checksum are written", ["fentry/__tcp_transmit_skb", "fentry/udp_send_skb", "fentry/udp_v6_send_skb"], false;
    RouteOut "route-out" Some("S4"), Send, "route lookup", "the route for the destination is looked up, or taken from the socket's cache", ["tp_btf/fib_table_lookup", "tp_btf/fib6_table_lookup"], false;
    SendNetwork "send-network" Some("S5"), Send, "network header", "the IP header is written", ["fentry/__ip_queue_xmit", "fentry/ip6_xmit", "fentry/__ip_local_out", "fentry/__ip6_local_out"], false;
    NfLocalOut "nf-local-out" Some("S6"), Send, "netfilter LOCAL_OUT", "rules for locally generated packets", ["netfilter/LOCAL_OUT", "fentry/nf_hook_slow"], false;
    OutputDevice "output-device" Some("S7"), Send, "output device set", "output device and protocol are set", ["fentry/ip_output", "fentry/ip6_output"], false;
    NfPostRouting "nf-post-routing" Some("S8"), Send, "netfilter POST_ROUTING", "rules for packets about to leave (SNAT)", ["netfilter/POST_ROUTING", "fentry/nf_hook_slow"], false;
    Segment "segment" Some("S9"), Send, "fragment or GSO", "packets that are too long are cut", ["fentry/ip_do_fragment", "fentry/ip6_fragment"], false;
    NeighbourOut "neighbour-out" Some("S10"), Send, "neighbour lookup", "an ARP or ND request for the next hop is sent, and the packet waits", ["tp_btf/neigh_event_send_done"], true;
    LinkHeader "link-header" Some("S11"), Send, "link header", "the next hop's cached MAC address is taken and the Ethernet header written", ["fentry/ip_finish_output2", "fentry/ip6_finish_output2", "netfilter/POST_ROUTING"], false;
    SendStackDone "send-stack-done" Some("S12"), Send, "handed to the device layer", "the protocol stack is done", ["tp_btf/net_dev_queue"], false;
    TcEgress "tc-egress" Some("S13"), Send, "tc egress", "egress classifiers and actions", ["fentry/tcf_classify"], false;
    Qdisc "qdisc" Some("S14"), Send, "queue discipline", "waits in the device's queue discipline", ["tp_btf/qdisc_enqueue"], true;
    DeviceXmit "device-xmit" Some("S15"), Send, "written to the device", "the driver's transmit function", ["tp_btf/net_dev_start_xmit"], false;
    OnItsWay "on-its-way" Some("S16"), Send, "on its way", "the device took it", ["tp_btf/net_dev_xmit"], false;

    VethCross "veth-cross" None, Transit, "veth crossing", "the skb enters the peer's namespace and waits for its softirq", ["tp_btf/netif_rx"], true;
    NodeReceive "node-receive" None, Transit, "node receives", "the node's stack takes it from the device", ["tp_btf/netif_receive_skb"], false;
    BridgeIn "bridge-in" None, Transit, "bridge input", "the bridge looks up where it goes", ["netfilter/PRE_ROUTING", "fentry/br_handle_frame_finish"], false;
    BridgeForward "bridge-forward" None, Transit, "bridge forwards", "from one bridge port to another", ["netfilter/POST_ROUTING", "fentry/br_forward"], false;
    NodePreRouting "node-pre-routing" None, Transit, "node PRE_ROUTING", "the node's rules before routing (DNAT for Services)", ["netfilter/PRE_ROUTING", "fentry/nf_hook_slow"], false;
    NodeRoute "node-route" None, Transit, "node routes", "the node looks up the route and decides to forward", ["netfilter/PRE_ROUTING", "tp_btf/netif_receive_skb", "fentry/ip_rcv_finish", "fentry/ip6_rcv_finish", "fentry/ip_forward", "fentry/ip6_forward"], false;
    NodeForward "node-forward" None, Transit, "node FORWARD", "the node's rules for forwarded packets", ["netfilter/FORWARD", "fentry/nf_hook_slow"], false;
    NodePostRouting "node-post-routing" None, Transit, "node POST_ROUTING", "the node's rules before leaving (masquerade)", ["netfilter/POST_ROUTING", "fentry/nf_hook_slow"], false;
    NodeLocalOut "node-local-out" None, Transit, "node LOCAL_OUT", "the node's rules for what it sends itself (tunnels)", ["netfilter/LOCAL_OUT", "fentry/nf_hook_slow"], false;
    NodeLocalIn "node-local-in" None, Transit, "node LOCAL_IN", "the node's rules for what is for itself (tunnels)", ["netfilter/LOCAL_IN", "fentry/nf_hook_slow"], false;
    NodeNeighbour "node-neighbour" None, Transit, "node neighbour lookup", "an ARP or ND request for the next hop is sent, and the packet waits", ["tp_btf/neigh_event_send_done"], true;
    NodeLinkHeader "node-link-header" None, Transit, "node link header", "the next hop's cached MAC address is taken and the Ethernet header written", ["fentry/ip_finish_output2", "fentry/ip6_finish_output2", "netfilter/POST_ROUTING"], false;
    NodeQueue "node-queue" None, Transit, "handed to the device", "the node hands it to the next device", ["tp_btf/net_dev_queue"], false;
    NodeQdisc "node-qdisc" None, Transit, "node queue discipline", "waits in the device's queue discipline", ["tp_btf/qdisc_enqueue"], true;
    NodeXmit "node-xmit" None, Transit, "node transmits", "the driver's transmit function", ["tp_btf/net_dev_start_xmit"], false;
    TunnelEncap "tunnel-encap" None, Transit, "tunnel encapsulation", "an outer header is put around it", ["tp_btf/net_dev_start_xmit"], false;
    TunnelDecap "tunnel-decap" None, Transit, "tunnel decapsulation", "the outer header is taken off", ["netfilter/LOCAL_IN", "tp_btf/napi_gro_receive_entry", "tp_btf/netif_rx"], false;
    Wire "wire" None, Transit, "on the wire", "between two nodes", ["tp_btf/netif_rx", "tp_btf/napi_gro_receive_entry"], true;

    DeviceHandover "device-handover" Some("R1"), Receive, "device hands over", "the device hands it to the kernel and raises a softirq", ["tp_btf/netif_rx", "tp_btf/napi_gro_receive_entry"], true;
    Metadata "metadata" Some("R2"), Receive, "sk_buff with metadata", "the sk_buff carries device, protocol and hash", ["tp_btf/netif_rx_entry", "tp_btf/netif_receive_skb_entry"], false;
    LinkPulled "link-pulled" Some("R3"), Receive, "link header pulled", "the Ethernet header is noted and pulled", [], false;
    ReceiveStack "receive-stack" Some("R4"), Receive, "stack begins", "the softirq hands it to the protocol stack", ["tp_btf/netif_receive_skb"], false;
    NetworkNoted "network-noted" Some("R5"), Receive, "network header noted", "the place of the IP header is noted", [], false;
    TcIngress "tc-ingress" Some("R6"), Receive, "tc ingress", "ingress classifiers and actions", ["fentry/tcf_classify"], false;
    NetworkPulled "network-pulled" Some("R7"), Receive, "network header pulled", "the IP header is checked and pulled", ["fentry/ip_rcv_core", "fentry/ip6_rcv_core"], false;
    TransportNoted "transport-noted" Some("R8"), Receive, "transport header noted", "the place of the transport header is noted", ["fexit/ip_rcv_core", "fexit/ip6_rcv_core"], false;
    NfPreRouting "nf-pre-routing" Some("R9"), Receive, "netfilter PRE_ROUTING", "rules before routing (DNAT)", ["netfilter/PRE_ROUTING", "fentry/nf_hook_slow"], false;
    RouteIn "route-in" Some("R10"), Receive, "route: for us", "the route lookup says: local delivery", ["netfilter/PRE_ROUTING", "tp_btf/fib_table_lookup", "fentry/ip_rcv_finish", "fentry/ip6_rcv_finish"], false;
    Merge "merge" Some("R11"), Receive, "fragments merged", "fragments and segments are put together", ["tp_btf/napi_gro_receive_exit"], false;
    NfLocalIn "nf-local-in" Some("R12"), Receive, "netfilter LOCAL_IN", "rules for local delivery", ["netfilter/LOCAL_IN", "fentry/nf_hook_slow"], false;
    ReceiveTransport "receive-transport" Some("R13"), Receive, "transport protocol", "TCP, UDP or ICMP takes it", ["netfilter/LOCAL_IN", "fentry/tcp_v4_rcv", "fentry/tcp_v6_rcv", "fentry/udp_rcv", "fentry/udpv6_rcv", "fentry/icmp_rcv", "fentry/icmpv6_rcv"], false;
    SocketLookup "socket-lookup" Some("R14"), Receive, "socket found", "the socket is looked up, or a reset is sent", ["tp_btf/tcp_probe", "fentry/tcp_v4_do_rcv", "fentry/tcp_v6_do_rcv"], false;
    ReceiveQueue "receive-queue" Some("R15"), Receive, "into the receive queue", "queued for the reader", ["fentry/tcp_queue_rcv", "fentry/__udp_enqueue_schedule_skb"], false;
    ReaderWoken "reader-woken" Some("R16"), Receive, "reader woken", "the reader is woken and has to get the CPU", ["tp_btf/sk_data_ready", "fentry/sock_def_readable"], true;
    ReceiveStackDone "receive-stack-done" Some("R17"), Receive, "stack done", "the protocol stack is done", ["tp_btf/sk_data_ready"], false;
    Dequeued "dequeued" Some("R18"), Receive, "dequeued by the reader", "the reader's system call takes it from the queue", ["tp_btf/skb_copy_datagram_iovec", "tp_btf/tcp_rcv_space_adjust"], false;
    Copied "copied" Some("R19"), Receive, "copied to the application", "the bytes are in the application's buffer", ["tp_btf/sock_recv_length", "tp_btf/tcp_rcv_space_adjust"], false;
    Released "released" Some("R20"), Receive, "sk_buff released", "the sk_buff is freed", ["tp_btf/consume_skb"], false;

    Verdict "verdict" None, Send, "sk_msg verdict", "accelerated: the bytes are put into the peer's queue", [], false;
    IngressQueue "ingress-queue" None, Receive, "peer's ingress queue", "accelerated: the message waits in the sockmap queue of the reader's socket", [], false;
}

impl StageId {
    /// Its row of the table.
    #[must_use]
    pub fn stage(self) -> &'static Stage {
        &STAGES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_finds_its_own_row() {
        for s in STAGES {
            assert_eq!(s.id.stage().id, s.id);
            assert!(s.name.len() <= 26, "{} is too long for the picture", s.name);
        }
    }

    #[test]
    fn the_article_is_complete() {
        let steps: Vec<_> = STAGES.iter().filter_map(|s| s.step).collect();
        let expected: Vec<String> = (1..=16).map(|n| format!("S{n}")).chain((1..=20).map(|n| format!("R{n}"))).collect();
        assert_eq!(steps, expected);
    }
}
