//! The table of findings: one row for each kind. The report's advice, `trace --explain` and docs/findings.md follow from it.

use super::document::Severity;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The id in the JSON document.
    pub id: &'static str,
    /// How bad it is, unless what is known softens it.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What has to be seen before it is reported.
    pub evidence: &'static str,
    /// What to do or run next, with `{names}` that a report fills in; empty where the text of the finding says it.
    pub next: &'static str,
    /// The tests that plant it on a real kernel, or show it from a recording.
    pub tested: &'static [&'static str],
}

macro_rules! kinds {
    ($($name:ident $id:literal $severity:ident $title:literal: $meaning:literal, $evidence:literal, $next:literal, [$($test:literal),*];)*) => {
        /// Names a row of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Id {
            $(#[doc = $title] $name,)*
        }

        /// The table, by subject.
        pub const KINDS: &[Kind] = &[
            $(Kind {
                id: $id, severity: Severity::$severity, title: $title, meaning: $meaning, evidence: $evidence, next: $next, tested: &[$($test),*],
            },)*
        ];
    };
}

kinds! {
    Dropped "dropped" Critical "The kernel dropped packets":
        "The kernel freed packets of the pair as lost. The reason is the kernel's own: of `enum skb_drop_reason`, or of the enum of a subsystem (Open vSwitch, qdisc, mac80211), by its name in the BTF of the kernel or module. `mechanism` says what did it, where that is more than the reason.",
        "The tracepoint `kfree_skb` with its reason and function; for netfilter, the ruleset evaluated with what the hook saw, and packet counters before and after; for routes, bridges, neighbours and MTUs, the settings of the namespace at that moment.",
        "",
        ["truth: an_nft_drop_in_forward_of_node_1", "truth: no_route_is_named", "truth: a_full_queue_is_named", "causes: program at tc", "causes: program at XDP", "causes: program at the control group", "causes: wrong neighbour entry", "causes: closed port", "causes: closed UDP port", "causes: ttl runs out", "subsystems: a_flow_of_open_vswitch_that_drops_is_named", "subsystems: a_queue_that_is_too_long_is_named_as_the_kernel_does"];
    Untranslated "untranslated-reply" Critical "Replies were not translated back":
        "Requests to a Service were translated to an endpoint, and the replies arrived with the endpoint's address. The client does not know such a connection and resets it.",
        "The reply's source at its last hop is the endpoint that the request was translated to; the state of the connection at the node's hooks says why.",
        "",
        ["truth_netfilter: a_bridge_without_netfilter_is_named", "truth_netfilter: a_reply_out_of_the_window_is_named_as_not_translated_back", "causes: bridge without netfilter", "causes: replies without connection tracking"];
    NoEndpoints "no-endpoints" Critical "The Service has no ready pods":
        "The Service that was named has no endpoint. kube-proxy rejects or drops connections to it.",
        "The EndpointSlices of the Service hold no ready address when the trace begins.",
        "kubectl get endpointslices -l kubernetes.io/service-name={service}: compare the Service's selector with the pods' labels and readiness",
        ["truth: a_service_without_endpoints_is_named", "causes: Service without endpoints"];
    UnexpectedDnat "unexpected-dnat" Critical "Packets were translated to an address that was not named":
        "A rule changed the destination to an address that is neither a target nor a backend of a Service of the trace.",
        "The destination before and after a netfilter hook.",
        "look for a rule with that address: `nft list ruleset` (or `iptables-save -t nat`) on that node",
        ["truth: a_rule_that_translates_elsewhere_is_shown", "causes: translated elsewhere"];
    StaleEntry "stale-translation" Critical "Connection tracking translates to an endpoint that no rule names":
        "Datagrams of one socket keep the translation of the first one as long as they come. The endpoint went away and its rules with it, the entry stayed.",
        "UDP whose destination changes at a hook, rules that could be read, and none of them that translates so.",
        "conntrack -D -p udp --orig-dst {address} --orig-port-dst {port} on that node; kube-proxy and CNIs delete such entries, unless they restarted meanwhile",
        ["causes: entry of connection tracking that no rule names"];
    Forgotten "forgotten-connection" Critical "Conntrack does not know a connection any more":
        "Conntrack on a node had tracked packets of one direction, and then took the answer for a new connection, or found it invalid. Such an answer is not translated back, and rules that let only answers pass drop it.",
        "The state of the connection at the node's hooks, in both directions; for `early-drop`, conntrack's counter early_drop before and after the trace. Reported only where an answer was dropped by rules or not translated back.",
        "entries expire without packets (net.netfilter.nf_conntrack_udp_timeout) or a tool deletes them: `conntrack -E -e DESTROY` there; a restart of a CNI or firewall does that",
        ["conntrack: an_entry_that_was_given_up_is_named", "conntrack: an_entry_that_was_deleted_is_not_blamed_on_the_table"];
    Sidecar "sidecar-redirect" Info "Connections go through a sidecar":
        "A rule in the pod redirects connections to the proxy of a service mesh in the same pod, which makes its own connection to the target. Both belong to the trace.",
        "The destination changes to the pod itself at a port that meshes use (Istio 15001, 15006, 15008; Linkerd 4140, 4143).",
        "times and drops between the pods are those of the proxy's connection; the proxy's own log says what it did with requests",
        ["causes: redirect to a sidecar that does not listen"];
    Vanished "vanished" Critical "Packets were seen no more":
        "Packets were seen at one stage and not at the next, and the kernel reported no drop.",
        "No event of the packet within the time that its last stage may take, and no lost events.",
        "a program at tc, XDP or in the driver may have taken them: `bpftool net` and `tc -s qdisc` there",
        ["truth: a_vanished_packet_has_a_last_place", "causes: source translated to a foreign address"];
    NoReply "no-reply" Critical "No reply was received":
        "Requests were seen, and neither a reply nor a drop.",
        "Packets in one direction only until the trace ended.",
        "trace the opposite direction: swap SOURCE and TARGET",
        ["recording: no-endpoints", "causes: echo requests are ignored"];
    HalfMissing "half-missing" Warning "Packets left a node and did not appear on the other":
        "Both nodes were watched. Packets left the first through its device and the helper of the second did not see them.",
        "The packet's addresses, sequence numbers and identification, compared between the helpers.",
        "they were lost between the nodes, or that node's helper saw too little: see the warnings and `kubectl sockpath doctor`",
        ["halves: halves_of_two_nodes_are_joined", "halves: packets_from_before_the_other_node_was_watched_are_not_lost"];
    Backlog "backlog-overflow" Critical "A listener's accept queue was full":
        "The application does not accept connections as fast as they come. The kernel drops the SYN or the last ACK of the handshake, and the client sends it again.",
        "The counter ListenOverflows of the pod's network namespace rose.",
        "accept faster, or raise the listen() backlog and net.core.somaxconn",
        ["truth: a_full_backlog_is_named", "causes: full accept queue"];
    SynCookies "syn-cookies" Warning "SYNs were answered with cookies":
        "The queue of half-open connections was full, as in a burst or a SYN flood. Connections work, without some TCP options.",
        "The counter TCPReqQFullDoCookies of the pod's network namespace rose.",
        "raise the listen() backlog and net.ipv4.tcp_max_syn_backlog in the pod, or find out who sends the SYNs",
        ["causes: SYN cookies"];
    SynQueueFull "syn-queue-full" Critical "The queue of half-open connections was full":
        "SYN cookies are off and no more half-open connections fit, so SYNs are dropped and sent again.",
        "The counter TCPReqQFullDrop of the pod's network namespace rose.",
        "raise the listen() backlog and net.ipv4.tcp_max_syn_backlog in the pod, or set net.ipv4.tcp_syncookies=1",
        ["causes: queue of half-open connections full"];
    ZeroWindow "zero-window" Warning "A reader is too slow: zero window":
        "The receive buffer of a socket was full, so TCP stopped the writer. The pod where the window closed has the slow reader.",
        "The counter TCPToZeroWindowAdv or TCPFromZeroWindowAdv of that pod's network namespace rose; other connections of the pod count, too.",
        "look at what the application does instead of reading, and at its CPU limit: `ss -tm` in the pod shows Recv-Q",
        ["causes: reader that does not read"];
    CpuThrottled "cpu-throttled" Warning "A pod reached its CPU limit":
        "The processes of the pod were not allowed to run for a part of the time, so data waits for them.",
        "nr_throttled and the time in cpu.stat of the pod's control groups rose during the trace.",
        "raise or remove the CPU limit of the container: `kubectl describe pod`, container_cpu_cfs_throttled_periods_total",
        ["causes: CPU limit"];
    StillOpen "connection-still-open" Warning "A SYN reached a connection that is still open":
        "The client lost a connection without closing it (a crash, a firewall that forgot it) and uses its port again. The server answers the SYN of the new connection with a challenge ACK for the old one, the client resets that, and its next SYN succeeds.",
        "A SYN that reached its socket and was dropped there with TCP_INVALID_SYN, or answered with an ACK instead of a SYN-ACK.",
        "let the client close connections, or the server find dead ones (SO_KEEPALIVE, TCP_USER_TIMEOUT); a NAT or firewall between them may have dropped its entry",
        ["causes: connection still open at the target"];
    TimeWait "time-wait" Warning "A SYN reached a socket in TIME_WAIT":
        "The side that closes a connection first keeps its addresses and ports for a minute. A SYN with the same ones opens a connection only if its sequence number or its timestamp is newer than the last of the closed connection; otherwise an ACK of the closed connection answers it, the client resets that, and its next SYN succeeds. Clients behind one address (SNAT, masquerade) share the ports, but not the clocks that sequence numbers and timestamps come from.",
        "A SYN that the kernel dropped at a socket in TIME_WAIT (the kernel names the socket since Linux 6.11), or with TCP_RFC7323_TW_PAWS.",
        "let clients close first, or keep connections open; behind SNAT more addresses or ports (`--random-fully`) make reuse within a minute rare",
        ["causes: TIME_WAIT at the target", "causes: TIME_WAIT at the target, by timestamp"];
    ReceiveQueueFull "receive-queue-full" Warning "A receive queue was full":
        "A socket had no room for a packet.",
        "The tracepoint `sock_rcvqueue_full`.",
        "the reader is too slow, or its socket buffer (SO_RCVBUF) too small",
        [];
    Reset "reset" Warning "Connections were reset":
        "A TCP reset was sent or received.",
        "The tracepoints `tcp_send_reset` and `tcp_receive_reset`.",
        "no listener on that port, or the application closed with unread data",
        ["truth: a_closed_port_is_named"];
    Retransmission "retransmission" Warning "Segments were sent again":
        "TCP sent segments again, because no acknowledgement came in time.",
        "The tracepoints `tcp_retransmit_skb` and `tcp_retransmit_synack`.",
        "look for drops above, or a receiver that acknowledges late",
        ["truth: an_nft_drop_in_forward_of_node_1"];
    ProbeFailed "probe-failed" Warning "The probe got no answer":
        "The probe that the trace sent from inside the source failed.",
        "The error of connect(), send() or recv() in the source's network namespace.",
        "",
        ["truth: no_route_is_named", "causes: blackhole route in the pod", "causes: no free port in the pod"];
    ReaderWait "reader-wait" Info "Data waits for the receiving process to be scheduled":
        "A large part of the time passes between the wake-up of the reading process and its read.",
        "The typical time from `sk_data_ready` to the copy, at least 40 % of the whole.",
        "not the network: look at the target's CPU limit and load",
        ["recording: lab-same-node-service"];
    Queueing "queueing" Warning "Packets wait in a queue discipline":
        "The queue discipline of a device holds packets back, as a bandwidth limit does.",
        "The typical time between `qdisc_enqueue` and transmission, at least 100 us.",
        "`tc -s qdisc show dev {device}` there; a bandwidth limit of the pod looks like this",
        ["truth: a_tbf_qdisc_carries_the_delay_it_makes"];
    Neighbour "neighbour" Info "ARP/ND resolution was needed":
        "There was no valid neighbour entry for the next hop, so ARP or neighbour discovery had to resolve it.",
        "The tracepoints `neigh_event_send_done` and `neigh_update`.",
        "there was no entry, or it had expired: `ip neigh show` there",
        ["truth: a_neighbour_that_answers_late_holds_the_packet"];
    Segmented "segmented" Info "Packets were segmented":
        "A large packet (GSO) was cut into segments before the device.",
        "The length of the same packet at two hops.",
        "normal where segmentation is left to the device (GSO); between tunnels compare MTUs",
        ["recording: lab-large-answer"];
    Fragmented "fragmented" Warning "Packets were fragmented":
        "Packets were larger than the MTU and were cut into IP fragments.",
        "The fragment flag of the same packet at two hops.",
        "compare the MTU of pod, bridge and tunnel devices with what the application sends",
        ["truth: a_small_mtu_fragments_a_datagram"];
    SeveralRoutes "several-routes" Info "Packets took several paths":
        "Packets of one kind went through different namespaces, as with several backends of a Service.",
        "The namespaces that the packets passed.",
        "the picture shows the path of most packets; -o json lists all",
        [];
    UnnamedRules "rules-unread" Info "Rules may not be read":
        "A rule rewrote or dropped packets, and the helper may not read the ruleset.",
        "The helper has no CAP_NET_ADMIN, or `--no-rules` was given.",
        "trace without --no-rules asks for that right (docs/cluster.md)",
        ["truth_netfilter: without_rules_none_is_named_and_the_report_says_why"];
    CouldAccelerate "could-accelerate" Info "The pods could be accelerated":
        "Both pods are on one node and their packets run through several network stacks.",
        "The stages of TCP data that arrived.",
        "kubectl sockpath accelerate {pods}",
        ["recording: lab-same-node-service"];
    LostEvents "lost-events" Warning "Events were lost":
        "The ring buffer was full, so some hops of some packets are missing. What rests on hops that are missing is not certain.",
        "The programs' counter of events that found no room.",
        "without --every-packet the helper samples and keeps up",
        ["unit: nothing_vanishes_for_certain_while_events_are_lost"];
    Untracked "untracked" Warning "Packets could not be tracked":
        "More packets were in flight at once than the helper tracks.",
        "The programs' counter of packets without a slot.",
        "",
        [];
    Sampled "sampled" Info "Packets were sampled":
        "The packet rate was high, so whole packets were left out.",
        "The programs' counters of packets matched and recorded.",
        "--every-packet records all",
        [];
    NotKept "not-kept" Info "The report holds a sample":
        "More packets came than the report keeps in memory.",
        "The number of packets that came and that are kept.",
        "",
        [];
    PodChanged "pod-changed" Critical "A pod changed during the trace":
        "A pod of the trace was deleted, restarted or moved.",
        "The API server's watch on the pods.",
        "",
        ["cluster_unwell: changed_pods_are_reported_and_end_the_trace_when_gone"];
    NodeMissing "node-missing" Critical "A node was not watched":
        "No helper could be started on a node of the trace.",
        "The start of the helper pod.",
        "what happened on that node is not in this report: --wait-nodes waits longer, kubectl sockpath doctor examines it",
        [];
    HelperFailed "helper-failed" Critical "A helper failed":
        "The helper on a node ended with an error.",
        "The helper's error message and code.",
        "kubectl sockpath doctor",
        [];
    HelperLost "helper-lost" Critical "A helper's session ended early":
        "The session with a helper was cut off before the trace was done.",
        "The stream ended without its last line.",
        "kubectl sockpath cleanup",
        [];
    Warned "warning" Warning "A helper warned":
        "A helper could not do a part of its work.",
        "The helper's message.",
        "",
        [];
}

impl Id {
    /// Its row.
    pub(super) fn kind(self) -> &'static Kind {
        &KINDS[self as usize]
    }
}

impl Kind {
    /// What to do next, with names filled in; `None` where the row has nothing.
    pub(super) fn next_with(&self, names: &[(&str, &str)]) -> Option<String> {
        let filled = names.iter().fold(self.next.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value));
        (!filled.is_empty()).then_some(filled)
    }
}
