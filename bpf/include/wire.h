/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What crosses between the BPF programs and user space. The only definition: the Rust types are generated from it. */
#ifndef SOCKPATH_WIRE_H
#define SOCKPATH_WIRE_H

/* --- accel --- */

/* Sockets that can be known at one time: two for each pair. */
#define ACCEL_ENDS 32768
/* Network namespaces of chosen pods of a node, and of pods that were chosen before and still have tracked sockets. */
#define ACCEL_NAMESPACES 1024
/* Bytes of the name of a program's file that are kept, with the NUL. */
#define ACCEL_PROGRAM_NAME 32
/* Turnaround samples kept for each path. */
#define ACCEL_SAMPLES 16

/* Why a message goes by TCP; index of accel_end.passes. 0 is: it does not. */
enum accel_pass {
	ACCEL_REDIRECT,
	ACCEL_NO_PEER,
	ACCEL_ORDER,
	ACCEL_READERS,
	ACCEL_BUDGET,
	ACCEL_PAUSED,
	ACCEL_LEASE,
	ACCEL_PEER_GONE,
	ACCEL_ULP,
	ACCEL_ZEROCOPY,
	ACCEL_RCVLOWAT,
	ACCEL_UNACCOUNTED,
	ACCEL_WAITALL,
	ACCEL_SPLICE,
	ACCEL_FIONREAD,
	ACCEL_TWO_TASKS,
	ACCEL_BLOCKING,
	ACCEL_URGENT,
	ACCEL_LEARNING,
	ACCEL_REFUSED,
	ACCEL_SLOWER,
	ACCEL_FOREIGN,
	ACCEL_POLICY,
	ACCEL_MEMORY,
	ACCEL_UNCHOSEN,
	ACCEL_OTHER_NODE,
	ACCEL_UNPROVEN,
	ACCEL_LIMITED,
	ACCEL_PASSES,
};

/* Where a socket stands with the map. */
enum accel_state {
	ACCEL_FREE,
	/* Tracked, not in the map. */
	ACCEL_WATCHED,
	/* In the map. */
	ACCEL_INSERTED,
	/* Its connection is over, but the map may still name it: the next look frees the slot. */
	ACCEL_OVER,
};

/* What user space wants done with a socket at the next look. */
enum accel_order {
	ACCEL_NOTHING,
	ACCEL_INSERT,
	/* Take it out once nothing can be lost by it. */
	ACCEL_REMOVE,
};

/* How a socket came to be. */
enum accel_role {
	ACCEL_UNKNOWN,
	ACCEL_CLIENT,
	ACCEL_SERVER,
};

/*
 * Redirected bytes that a reader which splices cannot see are reinjected into TCP by user space, which takes them with a
 * descriptor of the reader and sends them with one of the writer. State of the reader's end.
 */
enum accel_reinjection {
	ACCEL_REINJECT_NONE,
	/* User space takes what was redirected; what is written meanwhile is redirected too, behind it. */
	ACCEL_REINJECT_TAKING,
	/* Everything is in the hand of user space, which sends it. */
	ACCEL_REINJECT_SENDING,
	/* TCP has it: the writer's next bytes may follow. */
	ACCEL_REINJECT_DONE,
	/* It cannot be done: no descriptor, or the writer has shut down. */
	ACCEL_REINJECT_FAILED,
};

/* A task that holds a socket; what the iterator over open files writes. */
struct accel_holder {
	__u64 cookie;
	__u32 tgid;
	__u32 fd;
};

/* accel_end.flags */
enum accel_flag {
	/* Tracked only after it was established. */
	ACCEL_LIVE = 1,
	/* A reader used MSG_WAITALL. */
	ACCEL_SAW_WAITALL = 2,
	/* A reader used FIONREAD, or splice(2). */
	ACCEL_SAW_FIONREAD = 4,
	ACCEL_SAW_SPLICE = 8,
	/* One task may sleep in a receive call while another sends. */
	ACCEL_SAW_TWO_TASKS = 16,
	/* A sender used MSG_OOB. */
	ACCEL_SAW_OOB = 32,
	/* A reader slept in its receive call. */
	ACCEL_SAW_ASLEEP = 64,
	/* A reader made a receive call that may sleep. */
	ACCEL_MAY_SLEEP = 128,
	/* It has sent something and read since. */
	ACCEL_ANSWERED = 256,
	/* The program that reads it is known to use FIONREAD, by its name or because it did on another socket. */
	ACCEL_PROGRAM_ASKS = 512,
	/* The program that reads it is none of those whose sockets may go into the map (accel_control.selective). */
	ACCEL_PROGRAM_UNPROVEN = 1024,
};

/* One socket. The index is its number in the sockmap too. */
struct accel_end {
	/* Identity: written once, when tracking begins. */
	__u64 cookie;
	__u64 sk;
	__u64 tracked_ns;
	__u32 laddr[4];
	__u32 raddr[4];
	__u16 lport;
	__u16 rport;
	__u16 family;
	/* Its namespace among accel_share. */
	__u16 share;
	/* ifindex of the device that it is bound to, 0 for none. */
	__u32 bound_to;
	enum accel_role role;
	/* Initial sequence numbers: what this side sends starts here, what it receives starts there. */
	__u32 iss;
	__u32 irs;
	__u32 netns;
	/* Where `taken` is counted from: copied_seq when tracking began, plus reads that were not counted since. */
	__u32 base;

	/* Pairing: written by user space while the socket is not in the map. */
	__u64 peer_cookie;
	__u32 peer;
	enum accel_order order;
	/* Cookie of the socket that the order is for: another may have got the slot since user space looked. */
	__u64 ordered;
	/* Written by user space: what it writes goes by TCP; why it was taken out of the map, when it was. */
	__u32 hold;
	enum accel_pass left;
	/* Written by a look: where it stands, errno of the last order, redirected bytes unread, looks without a send call. */
	enum accel_state state;
	__s32 result;
	__u32 queued;
	__u32 quiet;
	/* Receive calls observed in this epoch (accel_control.observing). */
	__u32 profiled;
	__u32 epoch;
	/* Arrivals of data in this epoch that found the reader in poll(2), epoll or the like. */
	__u32 polled;
	/*
	 * Edge-triggered readers have to be rearmed: TCP bytes lie behind redirected ones, or the socket has left the map while TCP bytes
	 * were unread, which FIONREAD may have denied.
	 */
	__u32 spilled;
	/* accel_control.unsupported when flags were last updated. */
	__u32 unsupported;
	/* Written by user space and, while it gives, under the writer's lock: bytes in its hand that TCP does not have yet. */
	enum accel_reinjection reinjection;
	__u32 hand;
	/* Inode of the socket's file, once a reader at one of the connection's ends uses splice(2). */
	__u64 inode;
	/* When the writer first had to wait for the reinjection. */
	__u64 reinjection_since;

	/* As a reader: written when a task returns from its receive call. */
	__u64 taken;
	__u64 reads;
	/* accel_control.counting then. */
	__u32 counted;
	__u32 flags;
	/* The last reader's memory (task_struct.mm) and process. */
	__u64 reader_mm;
	__u32 reader_tgid;

	/* As a writer: written under the socket's lock. */
	__u32 fast;
	__u64 messages;
	__u64 bytes;
	__u64 pass_bytes;
	enum accel_pass last_pass;
	__u32 passes[ACCEL_PASSES];

	/* Who reads: changes with the process and with execve(2). What its program is: identity and name of the file. */
	__u64 reader;
	__u64 program;
	char program_name[ACCEL_PROGRAM_NAME];
	/* Written by user space: the reader whose program it has judged. */
	__u64 judged;

	/* Turnarounds. They come last: user space looks at what is above often, and at these when it tells of them. */
	__u32 peer_reads;
	__u32 cycles;
	__u32 samples;
	__u64 cycle_start;
	__u64 cycle_messages;
	__u32 before_ns[ACCEL_SAMPLES];
	__u32 after_ns[ACCEL_SAMPLES];
};

/* A network namespace whose sockets are tracked, and its part of the slots: no pod can use up those of others. */
struct accel_share {
	/* Its cookie; 0: not in use. */
	__u64 cookie;
	/* Sockets that are established from now on are tracked. */
	__u32 open;
	/* Slots in use, and sockets that got none. */
	__u32 used;
	__u32 refused;
	/* Sockets that were established, and how many will be when user space is to look at once whether they come too fast. */
	__u32 opened;
	__u32 wake_at;
	/* They are so many that they are not tracked when that happens. */
	__u32 burst;
};

/* A sleeping task: the wake function of its wait queue entry, and the words from that entry on up its stack. */
struct accel_sleeper {
	__u64 wake_function;
	__u64 stack[64];
};

/* Functions that sleep until TCP brings something. */
#define ACCEL_NATIVE 3

/* One for each instance. */
struct accel_control {
	/* Verdicts after this moment (CLOCK_MONOTONIC, nanoseconds) pass: the lease, a few seconds that the helper renews. */
	__u64 deadline_ns;
	/* How far from then on the last renewal set it. */
	__u64 lease_ns;
	/* When a detached acceleration ends. */
	__u64 ends_ns;
	/* The last jiffy in which a verdict found the lease good. */
	__u64 lease_seen;
	/* Pages that TCP may use before memory is tight, and the jiffy in which a verdict asked. */
	__u64 memory_limit;
	__u64 memory_limit_seen;
	__u64 started_ns;
	__u32 paused;
	/* Bytes that may lie unread at a reader before its writer goes by TCP. */
	__u32 budget;
	/* Observed receive calls that have to be seen on a socket before bytes go to it directly. */
	__u32 profile_reads;
	/* Arrivals that have to have found the reader in poll(2) or the like, where its receive calls may sleep. */
	__u32 profile_polls;
	/*
	 * Calls are observed: the number of the observation epoch, 0 when they are not. Nothing is observed between two epochs, so
	 * each profile starts anew with the epoch.
	 */
	__u32 observing;
	/* Epochs begun so far. */
	__u32 epochs;
	/* Receive calls are counted: the number of the count, 0 when they are not. Reads between two counts are not observed. */
	__u32 counting;
	/* Counts begun so far. */
	__u32 counts;
	/* Arriving data is observed: where its reader waits until it comes is seen. */
	__u32 observing_arrivals;
	/* Readers that sleep in their receive call are excluded. */
	__u32 leave_blocking;
	/* User space has been woken and has not answered. */
	__u32 wakeup_pending;
	/* Slots in use, and how many of them each namespace may have while less than half are free. */
	__u32 used;
	__u32 fair_share;
	/* Slots above this one were never used. */
	__u32 fresh;
	__u32 detached;
	/* The kernel's FIONREAD does not count TCP bytes of a socket in a sockmap (self-test fionread-tcp). */
	__u32 fionread_lies;
	/* Only sockets of some programs may go into the map, so that programs have to be known. */
	__u32 selective;
	/* Counts additions to the map of programs that use FIONREAD. */
	__u32 programs;
	/* Counts additions to the map of unsupported calls. */
	__u32 unsupported;
	/* Distinguishes a task that sleeps in plain tcp_recvmsg from others; 0 when not known. */
	__u64 wake_function;
	/* What wakes a task out of poll(2) and select(2), and out of epoll_wait(2). */
	__u64 poll_function;
	__u64 epoll_function;
	__u32 frame_offset;
	/* The process that reinjects. */
	__u32 reinjection_tgid;
	__u64 native_from[ACCEL_NATIVE];
	__u64 native_to[ACCEL_NATIVE];
	/* Sums over sockets that are gone. */
	__u64 closed_pairs;
	/* Those of which the map has carried something; counted when the first end goes. */
	__u64 closed_carried;
	__u64 closed_messages;
	__u64 closed_bytes;
	__u64 closed_passes[ACCEL_PASSES];
	char owner[128];
};

/* --- trace --- */

/* The hook an event comes from. Netfilter hooks are in the order of enum nf_inet_hooks, so that hook + state->hook works. */
enum trace_hook {
	TRACE_NONE,
	TRACE_TCP_SENDMSG,
	TRACE_FIB_LOOKUP,
	TRACE_NF_FIRST_PRE_ROUTING,
	TRACE_NF_FIRST_LOCAL_IN,
	TRACE_NF_FIRST_FORWARD,
	TRACE_NF_FIRST_LOCAL_OUT,
	TRACE_NF_FIRST_POST_ROUTING,
	TRACE_NF_LAST_PRE_ROUTING,
	TRACE_NF_LAST_LOCAL_IN,
	TRACE_NF_LAST_FORWARD,
	TRACE_NF_LAST_LOCAL_OUT,
	TRACE_NF_LAST_POST_ROUTING,
	TRACE_NEIGH_SEND,
	TRACE_NEIGH_DEAD,
	TRACE_NEIGH_UPDATE,
	TRACE_DEV_QUEUE,
	TRACE_QDISC_ENQUEUE,
	TRACE_DEV_XMIT,
	TRACE_NETIF_RX,
	TRACE_GRO_RECEIVE,
	TRACE_RECEIVE_SKB,
	TRACE_TCP_PROBE,
	TRACE_DATA_READY,
	TRACE_COPY_DATAGRAM,
	TRACE_RCV_SPACE_ADJUST,
	TRACE_RECV_LENGTH,
	TRACE_CONSUME_SKB,
	TRACE_KFREE_SKB,
	TRACE_SEND_RESET,
	TRACE_RECEIVE_RESET,
	TRACE_RETRANSMIT,
	TRACE_RETRANSMIT_SYNACK,
	TRACE_SET_STATE,
	TRACE_RCVQUEUE_FULL,
	/* The begin of a call that writes a datagram, or bytes that go socket to socket. */
	TRACE_WRITE_CALL,
	/* Those are put into the reader's queue, and read. */
	TRACE_BYPASS_READY,
	TRACE_BYPASS_READ,
	/* Functions of the kernel, where it lets programs see them. */
	TRACE_FN_TCP_SENDMSG,
	TRACE_FN_TCP_WRITE_XMIT,
	TRACE_FN_TCP_TRANSMIT_SKB,
	TRACE_FN_UDP_SEND_SKB,
	TRACE_FN_UDP6_SEND_SKB,
	TRACE_FN_IP_QUEUE_XMIT,
	TRACE_FN_IP6_XMIT,
	TRACE_FN_IP_LOCAL_OUT,
	TRACE_FN_IP6_LOCAL_OUT,
	TRACE_FN_IP_OUTPUT,
	TRACE_FN_IP6_OUTPUT,
	TRACE_FN_IP_DO_FRAGMENT,
	TRACE_FN_IP6_FRAGMENT,
	TRACE_FN_IP_FINISH_OUTPUT2,
	TRACE_FN_IP6_FINISH_OUTPUT2,
	TRACE_FN_TCF_CLASSIFY,
	TRACE_FN_BR_HANDLE_FRAME_FINISH,
	TRACE_FN_BR_FORWARD,
	TRACE_FN_IP_RCV_CORE,
	TRACE_FN_IP6_RCV_CORE,
	TRACE_FN_IP_RCV_CORE_DONE,
	TRACE_FN_IP6_RCV_CORE_DONE,
	TRACE_FN_IP_RCV_FINISH,
	TRACE_FN_IP6_RCV_FINISH,
	TRACE_FN_IP_FORWARD,
	TRACE_FN_IP6_FORWARD,
	TRACE_FN_TCP_V4_RCV,
	TRACE_FN_TCP_V6_RCV,
	TRACE_FN_UDP_RCV,
	TRACE_FN_UDPV6_RCV,
	TRACE_FN_ICMP_RCV,
	TRACE_FN_ICMPV6_RCV,
	TRACE_FN_TCP_V4_DO_RCV,
	TRACE_FN_TCP_V6_DO_RCV,
	TRACE_FN_TCP_QUEUE_RCV,
	TRACE_FN_UDP_ENQUEUE,
	TRACE_FN_SOCK_DEF_READABLE,
	TRACE_HOOK_MAX,
};

/* How a hook is attached. */
enum trace_attach {
	/* By its own kind: a tracepoint, a netfilter link. */
	TRACE_ATTACH_OWN,
	/* By a function of the kernel. */
	TRACE_ATTACH_FENTRY,
	TRACE_ATTACH_KPROBE,
};

/* trace_event.flags */
enum trace_flag {
	/* It ran in softirq or interrupt context; otherwise pid and comm are those of the process whose system call it was. */
	TRACE_F_SOFTIRQ = 1,
	TRACE_F_IPV6 = 2,
	/* The addresses are those of the packet inside a tunnel. */
	TRACE_F_TUNNEL = 4,
	/* An ICMP error: the ports are those of the packet it is about, as that packet's receiver would answer. */
	TRACE_F_ICMP_ERROR = 8,
	/* A fragment, but not the last one (IPv4 MF, IPv6 M). */
	TRACE_F_MORE_FRAGMENTS = 16,
	/* The first event of a packet that is recorded. */
	TRACE_F_ORIGIN = 32,
	/* mac_header and transport_header were set. */
	TRACE_F_MAC_SET = 64,
	TRACE_F_TRANSPORT_SET = 128,
};

/* trace_event.ct: what skb->_nfct holds. 0 where it was not read. */
enum trace_ct {
	/* enum ip_conntrack_info */
	TRACE_CT_INFO = 7,
	/* It refers to a connection. */
	TRACE_CT_HAS = 8,
	/* It was read. */
	TRACE_CT_READ = 16,
};

/* One observation. 144 bytes; the fields that a hook does not know are 0. */
struct trace_event {
	/* CLOCK_MONOTONIC, ns */
	unsigned long long at;
	/* skb->head; for events of a socket the struct sock */
	unsigned long long object;
	/* number of the packet, from 1; 0 when it is not one that is recorded */
	unsigned int id;
	/* inode of the network namespace */
	unsigned int netns;
	unsigned int ifindex;
	/* skb->len; bytes of the call for socket events */
	unsigned int len;
	/* TCP: sequence number; UDP: hash of IP id and first bytes; ICMP: id << 16 | sequence.
	 * Socket events: write_seq, rcv_nxt or copied_seq.
	 */
	unsigned int seq;
	unsigned int ack;
	/* bytes after the transport header as the IP header counts them, or as skb->len leaves them */
	unsigned int payload;
	/* kfree_skb: reason; qdisc_enqueue: queue length; FORWARD: ifindex out; POST_ROUTING: ifindex in; first event: enum trace_rest;
	 * set_state: old << 8 | new; neighbour: its state; fib_lookup: table; data_ready: state of the socket
	 */
	unsigned int arg;
	/* kfree_skb: where it was called */
	unsigned long long location;
	/* Network byte order; IPv4 as ::ffff:a.b.c.d */
	unsigned char saddr[16];
	unsigned char daddr[16];
	/* Host byte order */
	unsigned short sport;
	unsigned short dport;
	/* Offsets from skb->head; mac and transport only as the flags say */
	unsigned short mac;
	unsigned short network;
	unsigned short transport;
	/* skb_shared_info.gso_segs */
	unsigned short segments;
	unsigned short cpu;
	unsigned char hook;
	unsigned char flags;
	unsigned char protocol;
	/* TCP: the flag byte; ICMP: type */
	unsigned char kind;
	/* kfree_skb: whether the data is shared with a clone, which may go on. */
	unsigned char shared;
	/* enum trace_attach */
	unsigned char attach;
	unsigned int pid;
	char comm[16];
	/* What rules see, at netfilter hooks and of a drop: the packet's mark; mark and status of its connection. */
	unsigned int mark;
	unsigned int ct_mark;
	unsigned int ct_status;
	/* enum trace_ct */
	unsigned char ct;
	/* kfree_skb: state of the socket that dropped it (enum of include/net/tcp_states.h), 0 where the kernel names none. */
	unsigned char socket_state;
	unsigned char unused[2];
};

/* What a network namespace is in this trace. */
enum trace_role {
	TRACE_ROLE_SOURCE = 1,
	TRACE_ROLE_TARGET = 2,
	TRACE_ROLE_NODE = 4,
};

/* What is recorded while the machine-wide hooks are detached. */
enum trace_rest {
	TRACE_WATCHING,
	/* Packets, where netfilter links see them. */
	TRACE_SILENT,
	/* Nothing. */
	TRACE_PAUSED,
};

/* Slots of the table of namespaces, a power of two, and how many are looked at. */
#define TRACE_NET_SLOTS 128
#define TRACE_NET_PROBES 4
#define TRACE_MAX_SOURCES 16
#define TRACE_MAX_TARGETS 64
#define TRACE_MAX_UPLINKS 8

/* A network namespace of interest. */
struct trace_net {
	unsigned int inum;
	unsigned int role;
};

/* An address of the pair; port 0 is any port. */
struct trace_endpoint {
	unsigned long long addr[2];
	unsigned short port;
	unsigned short pad[3];
};

/* Counters, one for each CPU. */
struct trace_stats {
	unsigned long long matched;
	unsigned long long recorded;
	unsigned long long sampled_out;
	unsigned long long lost_events;
	unsigned long long untracked;
};

/* Packets in transit and packets at their socket; one word, so that a hook without work reads once and leaves. */
struct trace_gate {
	unsigned int in_transit;
	unsigned int at_the_socket;
};

/* A recorded packet, found by skb->head. */
struct trace_packet {
	unsigned int id;
	unsigned int seq;
	unsigned int ack;
	/* of the addresses and ports it had when it was seen last */
	unsigned int tuple_hash;
	unsigned char protocol;
	/* as trace_event.kind */
	unsigned char kind;
	unsigned char at_the_socket;
	unsigned char has_payload;
};

/* --- short --- */

/* Directions that can be known at one time: two for each connection, neighbours in the array. */
#define SHORT_SLOTS 65536
/* Entries of the table in which packets of flows are counted before these become candidates, a power of two. */
#define SHORT_COUNTED 65536
/* Devices that programs are attached to. */
#define SHORT_DEVICES 4096
/* Bytes of the name of who started it, with the NUL. */
#define SHORT_OWNER 128

/* Why a packet of a known flow takes the stack; index of short_slot.passes. */
enum short_pass {
	/* Not approved, or not since the last change of rules, routes or devices. */
	SHORT_NOT_APPROVED,
	/* SYN, FIN or RST, and what follows them. */
	SHORT_ENDING,
	/* Larger than the next link's MTU. */
	SHORT_MTU,
	/* TTL or hop limit is used up. */
	SHORT_TTL,
	/* Connection tracking does not have it as assured. */
	SHORT_NOT_TRACKED,
	/* The lease has run out. */
	SHORT_LEASE,
	SHORT_PASSES,
};

/* What is done with a packet. */
enum short_action {
	/* Into the namespace behind a veth device. */
	SHORT_TO_PEER = 1,
	/* Out of a device, to a next hop. */
	SHORT_TO_NEIGHBOUR,
};

/* short_plan.flags */
enum short_flag {
	/* Addresses or ports change: network address translation. */
	SHORT_REWRITE = 1,
	/* The node routes it: TTL or hop limit goes down by one. */
	SHORT_ROUTED = 2,
};

/* Written by user space. */
struct short_control {
	/* Redirects after this moment (CLOCK_MONOTONIC_COARSE, nanoseconds) are over. */
	__u64 deadline_ns;
	/* Number of the current state of rules, routes and devices. */
	__u32 epoch;
	/* What follows is for other processes, which find it by its pin. Written by them: another session ends this short path. */
	__u32 stopped;
	/* The programs are detached. */
	__u32 released;
	/* It outlives the session that started it. */
	__u32 detached;
	/* Inode of the node's network namespace. */
	__u32 netns;
	__u32 unused;
	/* For how long the deadline was put off at the last renewal. */
	__u64 lease_ns;
	/* When it began and, detached, when it ends. */
	__u64 started_ns;
	__u64 ends_ns;
	/* Sums over connections that are over, and how many of them the short path carried packets of. */
	__u64 closed_connections;
	__u64 closed_carried;
	__u64 closed_packets;
	__u64 closed_bytes;
	/* Who started it and, behind that, who ends it. */
	char owner[SHORT_OWNER];
};

/*
 * A direction of a connection over IPv4: addresses and ports of its packets and the device they come in by, in network byte order but for
 * the device. It is hashed for each packet: less than half of what IPv6 needs.
 */
struct short_key4 {
	__u32 saddr;
	__u32 daddr;
	__u16 sport;
	__u16 dport;
	__u32 ifindex;
	/* IPPROTO_TCP or IPPROTO_UDP. */
	__u32 protocol;
};

/* The same over either family. IPv4 uses the first word of an address. */
struct short_key {
	__u32 saddr[4];
	__u32 daddr[4];
	/* Network byte order. */
	__u16 sport;
	__u16 dport;
	__u32 ifindex;
	/* AF_INET or AF_INET6; IPPROTO_TCP or IPPROTO_UDP. */
	__u16 family;
	__u16 protocol;
};

/* Where its packets go. Never changed while it is in the map. */
struct short_plan {
	__u32 slot;
	__u32 ifindex;
	/* Of the next link, in bytes without the link layer's header. */
	__u16 mtu;
	__u8 action;
	__u8 flags;
	/* What they are rewritten to. */
	__u16 sport;
	__u16 dport;
	__u32 saddr[4];
	__u32 daddr[4];
	/* The next hop, and its family. */
	__u32 next_hop[4];
	__u16 next_hop_family;
	/* What rewriting adds to the sum of IPv4's header, and to the sum that the transport's checksum covers by the addresses (RFC 1624). */
	__u16 header_sum;
	__u32 addresses_sum;
};

/*
 * State of a direction. The other direction of the connection has the slot whose number differs in the last bit. Epochs count the
 * changes of rules, routes and devices; 0 is none.
 */
struct short_slot {
	/* Written by user space: the epoch in which its packets may be redirected. */
	__u32 armed;
	/* Written by the programs: the last epoch in which one of its packets came in and took the stack. */
	__u32 seen;
	/* The last epoch in which the stack delivered a packet of the other direction to the device that this one comes in by. */
	__u32 delivered;
	/* The last epoch in which user space was asked for approval; in the even slot. */
	__u32 asked;
	/* A SYN, FIN or RST was seen, or connection tracking has no such entry: enum short_pass. */
	__u32 ended;
	/* Written by user space: it takes the stack for the time being, for a reason that is not the programs'. In the even slot. */
	__u32 paused;
	__u64 packets;
	__u64 bytes;
	/* When the last packet was redirected (jiffies). */
	__u64 last_tick;
	/*
	 * In the odd slot, the server's direction: when a packet of the client's was timed that no answer has come to yet, odd where it was
	 * redirected; the medians of the times to the answers, by the stack and redirected, in nanoseconds (SHORT_MEDIAN), with the number of
	 * samples, up to SHORT_SAMPLES, in the bits above.
	 */
	__u64 request_ns;
	__u32 before_ns;
	__u32 after_ns;
	__u32 passes[SHORT_PASSES];
};

/* short_slot.before_ns and after_ns */
enum short_estimate {
	SHORT_SAMPLES = 3,
	SHORT_MEDIAN = 0x3fffffff,
};

/* How a device's programs are attached, where they stay without their process. */
enum short_attachment {
	/* By filters of clsact. */
	SHORT_FILTERS = 1,
	/* The clsact queue discipline was made for them. */
	SHORT_OWN_QDISC = 2,
};

enum short_event_kind {
	/* A flow of a chosen pod that is not known and lasts. */
	SHORT_CANDIDATE,
	/* The stack has delivered packets of both directions in this epoch. */
	SHORT_READY,
	/* It has ended. */
	SHORT_OVER,
};

/* What user space has to look at. */
struct short_event {
	enum short_event_kind kind;
	__u32 slot;
	struct short_key key;
};

#endif
