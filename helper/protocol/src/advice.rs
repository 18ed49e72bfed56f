//! One line of advice for each drop reason. Reasons are those of `enum skb_drop_reason` without the prefix.

/// What a drop reason means and what to do, in one line; `None` for a reason that has no row yet.
#[must_use]
pub fn for_drop(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "NO_SOCKET" => {
            "nothing listens on that port: check the container's port and that it listens on the pod's address, not on 127.0.0.1"
        }
        "NETFILTER_DROP" => {
            "a netfilter rule dropped it: look at NetworkPolicies that select the pod, then at `nft list ruleset` on that node"
        }
        "NEIGH_FAILED" | "NEIGH_QUEUEFULL" | "NEIGH_CREATEFAIL" | "NEIGH_DEAD" => {
            "the next hop's MAC address could not be resolved: is the pod or node at that address up, and on that link?"
        }
        "IP_OUTNOROUTES" | "IP_INNOROUTES" => "no route to the destination: compare `ip route get` there with the node's pod subnets",
        "IP_RPFILTER" => "the reverse path filter dropped it: the route back leaves by another device; see net.ipv4.conf.*.rp_filter",
        "TCP_CSUM" | "UDP_CSUM" | "IP_CSUM" | "SKB_CSUM" | "ICMP_CSUM" => {
            "wrong checksum: look at checksum offloads (`ethtool -K DEV tx off` as a test) and at what rewrites packets there"
        }
        "QDISC_DROP" | "QDISC_OVERLIMIT" | "FULL_RING" => {
            "the queue was full: look at `tc -s qdisc show dev DEV` and at the pod's bandwidth limit"
        }
        "SOCKET_RCVBUFF" | "SOCKET_RCVBUF" => {
            "the socket's receive buffer was full: the reader is too slow, or net.core.rmem_max too small"
        }
        "TCP_LISTEN_OVERFLOW" | "TCP_MINTTL" => {
            "the listener's backlog was full: raise the listen() backlog and net.core.somaxconn, or accept faster"
        }
        "TTL_EXPIRED" | "IP_TTL_EXPIRED" | "IPV6_HOPLIMIT" => "the TTL ran out: a routing loop between nodes, or a sender with a small TTL",
        "PKT_TOO_BIG" => "larger than the next link's MTU: compare the MTU of pod, bridge and tunnel devices",
        _ => return None,
    })
}
