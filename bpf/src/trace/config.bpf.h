/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What user space sets, and what both sides count. */
#ifndef SOCKPATH_TRACE_CONFIG_H
#define SOCKPATH_TRACE_CONFIG_H

/* Set before load. */
const volatile struct trace_endpoint sources[TRACE_MAX_SOURCES];
const volatile struct trace_endpoint targets[TRACE_MAX_TARGETS];
const volatile __u32 source_count;
const volatile __u32 target_count;
/* Recorded packets a second; 0 records every packet. */
const volatile __u32 packets_per_second;
/* There is no netfilter link here (before 6.4): packets begin at net_dev_queue, or where functions are seen at ip_output. */
const volatile bool origin_at_queue;
const volatile bool origin_at_output;
/* Functions of the kernel are seen. */
const volatile bool functions;

/* Filled before the hooks are attached. A hash table: a namespace lies at its inode number or in the places after it. */
struct trace_net nets[TRACE_NET_SLOTS];
/* Devices at which packets of the pair come in from elsewhere: namespace << 32 | index. */
__u64 uplinks[TRACE_MAX_UPLINKS];
__u32 uplink_count;
/* Nothing is recorded before this is set. */
bool armed;
/* The pair may be accelerated: look for bytes that go socket to socket. */
bool bypass;
/* The begin of calls that write is noted. */
bool calls_watched;
/* As enum trace_rest says. */
__u32 resting;
/* Packets of the pair, about: CPUs do not wait for each other. */
__u64 pair_packets;

struct trace_gate gate;

/* Make the Rust forms part of the skeleton. */
struct trace_event event_layout;
enum trace_hook hook_layout;
enum trace_flag flag_layout;
enum trace_role role_layout;
enum trace_rest rest_layout;
enum trace_attach attach_layout;
enum trace_ct ct_layout;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace_stats);
} stats SEC(".maps");

#define COUNT(field)								\
	({									\
		__u32 zero_ = 0;						\
		struct trace_stats *s_ = bpf_map_lookup_elem(&stats, &zero_);	\
		if (s_)								\
			s_->field++;						\
	})

static __always_inline bool idle(void)
{
	return *(volatile __u64 *)&gate == 0;
}

static __always_inline bool idle_at_sockets(void)
{
	return *(volatile __u32 *)&gate.at_the_socket == 0;
}

/*
 * Functions that are not static are looked at once for each program, not on each path that leads to them: without that, the
 * verifier takes several times as long.
 */
__noinline __u32 find_slot(__u32 inum)
{
	__u32 i, slot;

	for (i = 0; i < TRACE_NET_PROBES; i++) {
		slot = (inum + i) & (TRACE_NET_SLOTS - 1);
		if (nets[slot].inum == inum)
			return slot + 1;
	}
	return 0;
}

/* Slot + 1 of a namespace of interest, or 0. */
static __always_inline __u32 find_inum(__u32 inum)
{
	/* Most have no neighbour in the table. */
	return nets[inum & (TRACE_NET_SLOTS - 1)].inum ? find_slot(inum) : 0;
}

static __always_inline __u32 find_net(const struct net *net)
{
	return find_inum(net->ns.inum);
}

__noinline int is_uplink(__u64 device)
{
	__u32 i;

	for (i = 0; i < TRACE_MAX_UPLINKS && i < uplink_count; i++)
		if (uplinks[i] == device)
			return 1;
	return 0;
}

static __always_inline const struct trace_net *net_at(__u32 found)
{
	return &nets[(found - 1) & (TRACE_NET_SLOTS - 1)];
}

#endif
