//! What drops packets, beyond the kernel's reason: one table, which the reports, `trace --explain` and docs/findings.md follow.

use serde::{Deserialize, Serialize};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MechanismRow {
    /// The word in the JSON document.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What has to be seen before it is named.
    pub evidence: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// The tests that plant it on a real kernel.
    pub tested: &'static [&'static str],
}

macro_rules! mechanisms {
    ($($name:ident $id:literal $title:literal: $evidence:literal, $advice:literal, [$($test:literal),*];)*) => {
        /// What drops or changes packets.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Mechanism {
            $(#[doc = $title] #[serde(rename = $id)] $name,)*
        }

        /// The table.
        pub const MECHANISMS: &[MechanismRow] = &[
            $(MechanismRow { id: $id, title: $title, evidence: $evidence, advice: $advice, tested: &[$($test),*] },)*
        ];
    };
}

mechanisms! {
    Rule "rule" "A rule of nftables or iptables":
        "The ruleset evaluated with what the hook saw of the packet names one rule, and its packet counter rose.",
        "a netfilter rule dropped it: look at NetworkPolicies that select the pod, then at `nft -a list ruleset` (`iptables-legacy-save` for iptables-legacy) on that node",
        ["truth_netfilter: a_rule_of_iptables_legacy_is_named_and_none_of_nftables", "truth_netfilter: the_element_of_a_verdict_map_is_named", "causes: blocklist in a set", "causes: Calico: policy of the pod", "causes: firewalld: forward rejects", "causes: ufw: forward not allowed", "causes: kube-proxy nftables: no endpoints", "causes: rule of the bridge family", "causes: rule at a device's ingress"];
    Policy "policy" "The policy of a chain":
        "No rule of the chain accepted the packet, and the counter of its policy rose.",
        "no rule accepted it, and the chain's policy drops: add a rule that accepts the pods' traffic, or set the policy to accept; Docker and firewalls set that of FORWARD to drop",
        ["truth_netfilter: the_policy_of_forward_is_named", "causes: Docker: policy of FORWARD"];
    Rules "rules" "Rules, but which of them is not known":
        "Several rules may have dropped the packet, and their counters do not tell them apart.",
        "a netfilter rule dropped it: look at NetworkPolicies that select the pod, then at `nft -a list ruleset` (`iptables-legacy-save` for iptables-legacy) on that node",
        ["truth_netfilter: indistinguishable_rules_are_candidates"];
    Confirmation "confirmation" "Conntrack did not enter the connection":
        "The packet had passed all rules of its last hook; conntrack's counter insert_failed rose.",
        "see `conntrack -S` there (insert_failed), and the ports that SNAT and MASQUERADE rules may use: a wider --to-ports, more addresses, or --random-fully",
        ["truth_netfilter: a_source_translation_without_a_free_port_is_named"];
    Clash "clash" "Two first packets of one UDP socket reached conntrack at once":
        "A datagram had passed all rules of its last hook without a translation of its source; conntrack's counter insert_failed rose. Since Linux 5.8 conntrack enters both (its counter clash_resolve).",
        "resolvers that send A and AAAA from one socket do this: `options single-request-reopen` in resolv.conf, a DNS cache on the node, or Linux 5.8 and later",
        ["unit-question: two_first_datagrams_of_one_socket_are_not_a_missing_port", "conntrack: two_first_datagrams_of_one_socket_are_entered"];
    ChainTooLong "chain-too-long" "A chain of conntrack's table is too long":
        "The packet had passed all rules of its last hook; conntrack's counter chaintoolong rose.",
        "the table has too few buckets for its entries: raise net.netfilter.nf_conntrack_buckets on that node; a flood of similar connections can do it, too",
        ["unit-question: a_chain_that_is_too_long_is_named_before_a_missing_port"];
    TableFull "table-full" "Conntrack's table is full":
        "The packet was dropped where conntrack sees it first; conntrack's counter drop rose.",
        "raise net.netfilter.nf_conntrack_max there, or find the connections that fill the table: `conntrack -C`, `conntrack -L`",
        ["conntrack: a_full_table_is_named"];
    EarlyDrop "early-drop" "Conntrack's table was full and gave up an entry":
        "Packets of one direction were tracked, and then a reply was taken for a new connection, or the answer to a SYN for invalid; conntrack's counter early_drop rose meanwhile. Only entries of connections that have not had packets in both directions for long are given up.",
        "raise net.netfilter.nf_conntrack_max there, or find the connections that fill the table: `conntrack -C`, `conntrack -L`",
        ["conntrack: an_entry_that_was_given_up_is_named"];
    Unknown "unknown" "Netfilter, but neither rules nor conntrack as far as they can be read":
        "No rule that can be read drops such a packet.",
        "something at a netfilter hook dropped it: see `nft list hooks` on that node",
        [];
    NoRoute "no-route" "There is no route":
        "A lookup of the route in the namespace that dropped fails with ENETUNREACH.",
        "compare `ip route get ADDRESS` there with the pod subnets of the nodes: the CNI's agent writes these routes",
        ["causes: no route on the node", "causes: no route in the pod"];
    RefusingRoute "refusing-route" "A route refuses packets (blackhole, unreachable, prohibit)":
        "A lookup of the route fails with the errno of such a route, and the table that holds it.",
        "delete it if it is not meant: `ip route show table all type blackhole` (unreachable, prohibit) and `ip rule` there",
        ["causes: blackhole route on the node", "causes: unreachable route on the node", "causes: prohibit route on the other node", "causes: policy rule on the node", "causes: blackhole route in the pod"];
    ForwardingOff "forwarding-off" "IP forwarding is off":
        "The sysctl of the device that the packet came in by.",
        "set net.ipv4.ip_forward=1 (net.ipv6.conf.all.forwarding=1) there, and find out who sets it back: sysctl files, NetworkManager, cloud images",
        ["causes: forwarding off"];
    ReversePath "reverse-path" "The reverse path filter":
        "The kernel's reason, the sysctls rp_filter, and the route back to the source.",
        "let the route back lead through that device, or set rp_filter to 2 (loose) on it",
        ["causes: reverse path filter"];
    Martian "martian" "A source that cannot come from outside":
        "The kernel's reason, and the addresses of the namespace.",
        "two owners of one address, or a translation that is missing: `ip address` there; net.ipv4.conf.all.log_martians=1 logs them",
        ["causes: source is an address of the other node"];
    HairpinOff "hairpin-off" "Hairpin mode of a bridge port is off":
        "The packet would leave by the port that it came in by, and the port's mode.",
        "`bridge link set dev DEV hairpin on` there; the CNI's bridge plugin has hairpinMode, kubelet had --hairpin-mode",
        ["truth_netfilter: a_bridge_port_without_hairpin_mode_is_named", "causes: hairpin mode off"];
    PortState "port-state" "A bridge port does not forward":
        "The state of the port where the packet came in or would leave.",
        "spanning tree, or the tool that set the state: `bridge link` there; state 3 is forwarding",
        ["causes: port of the target disabled", "causes: port of the source disabled"];
    PortIsolated "port-isolated" "Bridge ports are isolated from each other":
        "Both ports have the flag isolated.",
        "`bridge link set dev DEV isolated off` on one of them there",
        ["causes: isolated ports"];
    PortVlan "port-vlan" "A bridge port is not a member of the VLAN":
        "The bridge filters by VLAN, and the VLANs of both ports.",
        "`bridge vlan` there: both ports need one VLAN in common",
        [];
    NeighbourSilent "neighbour-silent" "A neighbour does not answer":
        "The kernel's reason, and the entry of the neighbour table.",
        "is the pod or node at that address up, on that link, and may it answer ARP? `ip neigh` there, `tcpdump arp` at the other end",
        ["causes: neighbour without ARP", "causes: neighbour that ignores ARP"];
    NeighbourTableFull "neighbour-table-full" "The neighbour table is full":
        "The entries of the table reach gc_thresh3, or the kernel could make no new one.",
        "raise net.ipv4.neigh.default.gc_thresh1, 2 and 3 on that node",
        ["unit-helper: a_full_table_is_not_a_silent_neighbour"];
    Mtu "mtu" "The packet is larger than the MTU":
        "The length of the packet, and the MTU of the device or route it should leave by.",
        "make the MTU of pods, bridge and tunnel agree (an overlay takes 50 bytes or more), and let ICMP `fragmentation needed` pass",
        ["causes: small MTU of a port"];
    NoFreePort "no-free-port" "The source has no free port":
        "connect() or bind() in the source fails with EADDRNOTAVAIL.",
        "reuse connections, or widen net.ipv4.ip_local_port_range in the pod: `ss -tan state time-wait` there shows who holds them",
        ["causes: no free port in the pod"];
    Broadcast "broadcast" "The destination is a broadcast address":
        "connect() or send() in the source fails with EACCES, and the route to the address is one for broadcasts.",
        "use the address of a pod or Service; an application that means to broadcast sets SO_BROADCAST",
        ["causes: broadcast address"];
    CgroupProgram "cgroup-program" "A BPF program at the pod's control group":
        "connect(), sendto() or send() in the source fails with EPERM, or the kernel dropped a packet with BPF_CGROUP_EGRESS; the programs of that kind that are in effect for the pod's control group. It is named where it is the only one.",
        "find out who attached it (a CNI, a service mesh, a security agent): `bpftool cgroup tree`, `bpftool prog show id ID` on that node",
        ["causes: program refuses connect()", "causes: program refuses sendto()", "causes: program at the control group", "causes: program refuses to send", "unit-group: a_program_is_named_only_where_it_is_the_only_one"];
    SendRefused "send-refused" "Something in the source refuses to send":
        "connect() or send() in the source fails with EPERM, and the kernel runs no program at the pod's control group for that call. A rule of the pod's OUTPUT that does it is a cause of its own, as the packet is seen.",
        "the kernel or a security module: its audit log (`dmesg`, `ausearch`), `cat /sys/kernel/security/lsm`, `nft list ruleset` in the pod",
        ["unit-group: without_a_program_nothing_is_certain"];
}

impl Mechanism {
    /// Its row of the table.
    #[must_use]
    pub fn row(self) -> &'static MechanismRow {
        &MECHANISMS[self as usize]
    }
}
