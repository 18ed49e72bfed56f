//! One line of advice for each drop reason. Reasons are those of `enum skb_drop_reason` (include/net/dropreason-core.h, up to Linux
//! 6.18) without the prefix, and those of subsystems as the kernel names them (up to Linux 7.2).

use crate::packet::{Direction, PacketKind};

/// What a drop reason means and what to do, in one line; `None` for a reason that has no row (newer kernels, subsystems).
#[must_use]
pub fn for_drop(reason: &str) -> Option<&'static str> {
    Some(match reason {
        // No receiver.
        "NO_SOCKET" => {
            "nothing listens on that port: check the container's port and that it listens on the pod's address, not on 127.0.0.1"
        }
        "SOCKET_CLOSE" | "TCP_CLOSE" => "the socket was already closed: the application exited, check its restarts",
        "TCP_RESET" => "the other side had reset the connection: look for the reset and what caused it",
        "TCP_ABORT_ON_DATA" => "data arrived after the application closed: it closes before the other side has finished",
        "IP_NOPROTO" | "UNHANDLED_PROTO" | "INVALID_PROTO" => "no handler for that protocol here: was it sent to the wrong address?",
        "UNIX_DISCONNECT" | "UNIX_SKIP_OOB" => "a Unix socket was disconnected or its urgent byte skipped: not a network problem",

        // Rules and policies.
        "NETFILTER_DROP" => {
            "a netfilter rule dropped it: look at NetworkPolicies that select the pod, then at `nft list ruleset` on that node"
        }
        "BPF_CGROUP_EGRESS" => "a BPF program on the pod's cgroup refused it: a CNI's policy, see `bpftool cgroup tree`",
        "TC_INGRESS" | "TC_EGRESS" => {
            "a program or filter at tc dropped it: a CNI's policy or a pod's bandwidth limit, see `tc filter show` and `bpftool net`"
        }
        "TC_COOKIE_ERROR" | "TC_CHAIN_NOTFOUND" | "TC_RECLASSIFY_LOOP" => "a tc filter chain is broken: see `tc -s filter show dev DEV`",
        "XDP" => "an XDP program dropped it: see `bpftool net` and whose program it is",
        "SECURITY_HOOK" => "a security module (SELinux, Smack) refused it: look at its audit log",
        "SOCKET_FILTER" => "the socket's own filter (SO_ATTACH_FILTER) dropped it",
        "XFRM_POLICY" => "an IPsec policy refused it: see `ip xfrm policy`",
        "IPV6DISABLED" => "IPv6 is disabled there: see net.ipv6.conf.*.disable_ipv6",

        // Routes and neighbours.
        "IP_OUTNOROUTES" | "IP_INNOROUTES" => "no route to the destination: compare `ip route get` there with the node's pod subnets",
        "IP_RPFILTER" => "the reverse path filter dropped it: the route back leaves by another device; see net.ipv4.conf.*.rp_filter",
        "IP_INADDRERRORS" | "IP_INVALID_DEST" => {
            "the destination cannot be forwarded to: is forwarding on (net.ipv4.ip_forward) and the address correct?"
        }
        "IP_LOCAL_SOURCE" | "IP_INVALID_SOURCE" => {
            "its source is one of the node's own addresses or invalid: a duplicate address, or spoofing"
        }
        "IP_LOCALNET" => "127.0.0.0/8 must not leave a host: something was sent or translated to a loopback address; see route_localnet",
        "NEIGH_FAILED" | "NEIGH_QUEUEFULL" | "NEIGH_CREATEFAIL" | "NEIGH_DEAD" | "NEIGH_HH_FILLFAIL" => {
            "the next hop's MAC address could not be resolved: is the pod or node at that address up, and on that link?"
        }
        "OTHERHOST" => "the frame was for another MAC address: a stale neighbour entry or bridge table, see `ip neigh` and `bridge fdb`",
        "UNICAST_IN_L2_MULTICAST" => "a unicast packet came in a multicast frame: see drop_unicast_in_l2_multicast",
        "IP_INHDR" => {
            "the IP header was refused; mostly the TTL ran out (a routing loop, or a sender with a small TTL), else it is damaged"
        }
        "IPV6_NDISC_HOP_LIMIT" => "a neighbour discovery message came from beyond the link (hop limit below 255)",
        "IPV6_NDISC_FRAG" | "IPV6_NDISC_BAD_CODE" | "IPV6_NDISC_BAD_OPTIONS" | "IPV6_NDISC_NS_OTHERHOST" => {
            "a neighbour discovery message was malformed or meant for another host"
        }
        "IPV6_BAD_EXTHDR" => "an IPv6 extension header is malformed",

        // Checksums and shapes.
        "TCP_CSUM" | "UDP_CSUM" | "IP_CSUM" | "SKB_CSUM" | "ICMP_CSUM" => {
            "wrong checksum: look at checksum offloads (`ethtool -K DEV tx off` as a test) and at what rewrites packets there"
        }
        "PKT_TOO_SMALL" | "HDR_TRUNC" | "DEV_HDR" => {
            "the packet is shorter than its headers say: damaged in transit, or a faulty driver or program"
        }
        "PKT_TOO_BIG" => "larger than the next link's MTU: compare the MTU of pod, bridge and tunnel devices",
        "SKB_GSO_SEG" => "a large packet could not be cut into segments: compare offloads of the devices (`ethtool -k`)",
        "FRAG_REASM_TIMEOUT" | "FRAG_TOO_FAR" | "DUP_FRAG" => {
            "fragments did not come together: one was lost or came twice; avoid fragments, compare MTUs"
        }
        "SKB_UCOPY_FAULT" => "the bytes could not be copied to the application: its buffer is not mapped",

        // Queues and memory.
        "QDISC_DROP"
        | "QDISC_OVERLIMIT"
        | "QDISC_CONGESTED"
        | "FULL_RING"
        | "CAKE_FLOOD"
        | "FQ_BAND_LIMIT"
        | "FQ_FLOW_LIMIT"
        | "FQ_HORIZON_LIMIT"
        | "DUALPI2_STEP_DROP"
        | "QDISC_BURST_DROP"
        | "QDISC_DROP_GENERIC"
        | "QDISC_DROP_OVERLIMIT"
        | "QDISC_DROP_CONGESTED"
        | "QDISC_DROP_MAXFLOWS"
        | "QDISC_DROP_FLOOD_PROTECTION"
        | "QDISC_DROP_BAND_LIMIT"
        | "QDISC_DROP_HORIZON_LIMIT"
        | "QDISC_DROP_FLOW_LIMIT"
        | "QDISC_DROP_L4S_STEP_NON_ECN" => "the queue was full: look at `tc -s qdisc show dev DEV` and at the pod's bandwidth limit",
        "CPU_BACKLOG" => {
            "a CPU's backlog was full: it takes packets too slowly; see net.core.netdev_max_backlog and the node's softirq load"
        }
        "QUEUE_PURGE" => "its queue was purged: the device or socket was closed",
        "SOCKET_RCVBUFF" | "SOCKET_RCVBUF" => {
            "the socket's receive buffer was full: the reader is too slow, or net.core.rmem_max too small"
        }
        "SOCKET_BACKLOG" => "the socket's backlog was full while its owner held it: the reader is too slow for the rate",
        "PROTO_MEM" | "TCP_OFO_QUEUE_PRUNE" => "TCP is out of memory: see net.ipv4.tcp_mem and `ss -m`",
        "NOMEM" | "PFMEMALLOC" => "the node was out of memory: see its memory pressure",
        "TCP_LISTEN_OVERFLOW" => "the listener's backlog was full: raise the listen() backlog and net.core.somaxconn, or accept faster",
        "DEV_READY" | "NO_TX_TARGET" => "the device was down or had nowhere to send: see `ip link`",
        "TAP_FILTER" | "TAP_TXFILTER" => "the tap device's own filter dropped it",
        "RECURSION_LIMIT" => "devices send to each other in a circle: look for a loop of tunnels, bridges or redirects",

        // TCP's own reasons.
        "TCP_MD5NOTFOUND" | "TCP_MD5UNEXPECTED" | "TCP_MD5FAILURE" | "TCP_AONOTFOUND" | "TCP_AOUNEXPECTED" | "TCP_AOKEYNOTFOUND"
        | "TCP_AOFAILURE" | "TCP_AUTH_HDR" => "TCP authentication (MD5 or AO) failed: keys of both sides differ",
        "TCP_OLD_DATA" | "TCP_OFOMERGE" | "TCP_OLD_ACK" | "TCP_TOO_OLD_ACK" | "TCP_OLD_SEQUENCE" => {
            "it had already arrived: an unnecessary retransmission, usually harmless"
        }
        "TCP_ZEROWINDOW" | "TCP_OVERWINDOW" => "it did not fit the receive window: the reader is too slow",
        "TCP_RFC7323_PAWS" | "TCP_RFC7323_PAWS_ACK" | "TCP_RFC7323_TW_PAWS" | "TCP_RFC7323_TSECR" => {
            "its TCP timestamp is older than one seen before: port reuse through NAT, or a late duplicate"
        }
        "TCP_INVALID_SEQUENCE" | "TCP_INVALID_END_SEQUENCE" | "TCP_INVALID_ACK_SEQUENCE" | "TCP_ACK_UNSENT_DATA" => {
            "its sequence numbers do not belong to the connection: something between rewrites or replays packets"
        }
        "TCP_FLAGS" | "TCP_INVALID_SYN" => "its TCP flags make no sense in that state: a late packet of an earlier connection, or a scan",
        "TCP_FASTOPEN" => "TCP Fast Open data was refused: the cookie is old; the client falls back by itself",
        "TCP_OFO_DROP" => "it came out of order and there was no room to keep it: see net.ipv4.tcp_rmem",
        "TCP_MINTTL" => "its TTL is below what the socket demands (IP_MINTTL)",

        // Tunnels and bridges.
        "VXLAN_INVALID_HDR" | "VXLAN_VNI_NOT_FOUND" | "VXLAN_ENTRY_EXISTS" => {
            "the VXLAN device does not know it: VNI and port of both nodes must agree, see `ip -d link` and `bridge fdb`"
        }
        "IP_TUNNEL_ECN" | "TUNNEL_TXINFO" => "the tunnel refused it: congestion marks or tunnel metadata do not fit",
        "MAC_INVALID_SOURCE" | "LOCAL_MAC" => "its source MAC address is invalid or the bridge's own: two owners of one MAC address",
        "BRIDGE_INGRESS_STP_STATE" => "the bridge port is not forwarding yet: spanning tree is on, see `bridge link`",
        "ARP_PVLAN_DISABLE" | "MAC_IEEE_MAC_CONTROL" => "the bridge does not forward that kind of frame",

        // Subsystems.
        "OVS_DROP_EXPLICIT" | "OVS_DROP_LAST_ACTION" => {
            "a flow of Open vSwitch drops it: see `ovs-appctl dpctl/dump-flows` and `ovs-appctl ofproto/trace` on that node"
        }
        "OVS_DROP_EXPLICIT_WITH_ERROR" | "OVS_DROP_ACTION_ERROR" => {
            "Open vSwitch could not translate or execute the actions of a flow: see the log of ovs-vswitchd on that node"
        }
        "OVS_DROP_METER" => "a meter of Open vSwitch limits it: see `ovs-ofctl -O OpenFlow13 meter-stats BRIDGE`",
        "OVS_DROP_RECURSION_LIMIT" | "OVS_DROP_DEFERRED_LIMIT" => {
            "actions of Open vSwitch repeat too often: look for a loop of patch ports or recirculations"
        }
        "OVS_DROP_FRAG_L2_TOO_LONG" | "OVS_DROP_FRAG_INVALID_PROTO" => {
            "Open vSwitch could not cut it into fragments: compare the MTUs of its ports"
        }
        "OVS_DROP_CONNTRACK" => "the action ct of Open vSwitch refused it: see `ovs-appctl dpctl/dump-conntrack` and `conntrack -S`",
        "OVS_DROP_IP_TTL" => "the TTL ran out in Open vSwitch: a routing loop, or a sender with a small TTL",
        other if other.starts_with("RX_DROP_") => "the Wi-Fi stack refused the received frame: look at the wireless link (`iw dev`)",
        "NOT_SPECIFIED" => "the kernel gives no reason here: stage and function show the location, a newer kernel may give the reason",
        _ => return None,
    })
}

/// Whether every connection has such drops: what was dropped had arrived before, or no process waits for it any more.
#[must_use]
pub fn is_harmless(reason: &str, kind: PacketKind, direction: Direction) -> bool {
    let ends = matches!(kind, PacketKind::Fin | PacketKind::Rst | PacketKind::EchoReply | PacketKind::SynAck)
        || (kind, direction) == (PacketKind::Ack, Direction::Reply);
    let closed = matches!(reason, "NO_SOCKET" | "QUEUE_PURGE" | "SOCKET_CLOSE" | "TCP_RESET");
    closed && ends || matches!(reason, "TCP_OLD_DATA" | "TCP_OFOMERGE" | "TCP_OLD_ACK" | "TCP_TOO_OLD_ACK" | "TCP_OLD_SEQUENCE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_ip_and_below_has_a_row() {
        let reasons = "NOT_SPECIFIED NO_SOCKET SOCKET_CLOSE SOCKET_FILTER SOCKET_RCVBUFF UNIX_DISCONNECT UNIX_SKIP_OOB PKT_TOO_SMALL TCP_CSUM UDP_CSUM \
            NETFILTER_DROP OTHERHOST IP_CSUM IP_INHDR IP_RPFILTER UNICAST_IN_L2_MULTICAST XFRM_POLICY IP_NOPROTO PROTO_MEM TCP_AUTH_HDR TCP_MD5NOTFOUND \
            TCP_MD5UNEXPECTED TCP_MD5FAILURE TCP_AONOTFOUND TCP_AOUNEXPECTED TCP_AOKEYNOTFOUND TCP_AOFAILURE SOCKET_BACKLOG TCP_FLAGS TCP_ABORT_ON_DATA \
            TCP_ZEROWINDOW TCP_OLD_DATA TCP_OVERWINDOW TCP_OFOMERGE TCP_RFC7323_PAWS TCP_RFC7323_PAWS_ACK TCP_RFC7323_TW_PAWS TCP_RFC7323_TSECR \
            TCP_LISTEN_OVERFLOW TCP_OLD_SEQUENCE TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE TCP_INVALID_ACK_SEQUENCE TCP_RESET TCP_INVALID_SYN TCP_CLOSE \
            TCP_FASTOPEN TCP_OLD_ACK TCP_TOO_OLD_ACK TCP_ACK_UNSENT_DATA TCP_OFO_QUEUE_PRUNE TCP_OFO_DROP IP_OUTNOROUTES BPF_CGROUP_EGRESS IPV6DISABLED \
            NEIGH_CREATEFAIL NEIGH_FAILED NEIGH_QUEUEFULL NEIGH_DEAD NEIGH_HH_FILLFAIL TC_EGRESS SECURITY_HOOK QDISC_DROP QDISC_OVERLIMIT QDISC_CONGESTED \
            CAKE_FLOOD FQ_BAND_LIMIT FQ_HORIZON_LIMIT FQ_FLOW_LIMIT CPU_BACKLOG XDP TC_INGRESS UNHANDLED_PROTO SKB_CSUM SKB_GSO_SEG SKB_UCOPY_FAULT DEV_HDR \
            DEV_READY FULL_RING NOMEM HDR_TRUNC TAP_FILTER TAP_TXFILTER ICMP_CSUM INVALID_PROTO IP_INADDRERRORS IP_INNOROUTES IP_LOCAL_SOURCE \
            IP_INVALID_SOURCE IP_LOCALNET IP_INVALID_DEST PKT_TOO_BIG DUP_FRAG FRAG_REASM_TIMEOUT FRAG_TOO_FAR TCP_MINTTL IPV6_BAD_EXTHDR IPV6_NDISC_FRAG \
            IPV6_NDISC_HOP_LIMIT IPV6_NDISC_BAD_CODE IPV6_NDISC_BAD_OPTIONS IPV6_NDISC_NS_OTHERHOST QUEUE_PURGE TC_COOKIE_ERROR TC_CHAIN_NOTFOUND \
            TC_RECLASSIFY_LOOP VXLAN_INVALID_HDR VXLAN_VNI_NOT_FOUND MAC_INVALID_SOURCE VXLAN_ENTRY_EXISTS NO_TX_TARGET IP_TUNNEL_ECN TUNNEL_TXINFO LOCAL_MAC \
            ARP_PVLAN_DISABLE MAC_IEEE_MAC_CONTROL BRIDGE_INGRESS_STP_STATE PFMEMALLOC DUALPI2_STEP_DROP RECURSION_LIMIT \
            QDISC_DROP_GENERIC QDISC_DROP_OVERLIMIT QDISC_DROP_CONGESTED QDISC_DROP_MAXFLOWS QDISC_DROP_FLOOD_PROTECTION QDISC_DROP_BAND_LIMIT \
            QDISC_DROP_HORIZON_LIMIT QDISC_DROP_FLOW_LIMIT QDISC_DROP_L4S_STEP_NON_ECN OVS_DROP_LAST_ACTION OVS_DROP_ACTION_ERROR OVS_DROP_EXPLICIT \
            OVS_DROP_EXPLICIT_WITH_ERROR OVS_DROP_METER OVS_DROP_RECURSION_LIMIT OVS_DROP_DEFERRED_LIMIT OVS_DROP_FRAG_L2_TOO_LONG \
            OVS_DROP_FRAG_INVALID_PROTO OVS_DROP_CONNTRACK OVS_DROP_IP_TTL RX_DROP_U_MIC_FAIL";
        for reason in reasons.split_whitespace() {
            let advice = for_drop(reason).unwrap_or_else(|| panic!("{reason} has no advice"));
            assert!(!advice.ends_with('.') && advice.len() < 160, "{reason}: {advice}");
        }
        assert_eq!(for_drop("MAC80211_UNUSABLE"), None);
    }
}
