/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Flows and their state. */
#ifndef SOCKPATH_SHORT_MAPS_H
#define SOCKPATH_SHORT_MAPS_H

#include "short/context.bpf.h"
#include <bpf/bpf_helpers.h>
#include "wire.h"

volatile struct short_control control;

/* The skeleton has the types of variables only. */
const volatile struct short_event event_layout = {};
const volatile enum short_pass pass_layout = 0;
const volatile enum short_action action_layout = 0;
const volatile enum short_flag flag_layout = 0;
const volatile enum short_attachment attachment_layout = 0;
const volatile enum short_estimate estimate_layout = 0;

/* Packets of an unknown flow after which it becomes a candidate, a power of two. */
const volatile __u32 candidate_packets = 8;

/* The kernel has bpf_skb_ct_lookup(). Its address cannot tell: before 6.4 no program may take the address of a kernel function. */
const volatile __u8 can_ask_conntrack = 0;

/* A random number, so that a pod cannot choose flows that occupy the entries of other flows in `counted`. */
const volatile __u64 tally_seed = 0;

/* Flows over IPv4. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SHORT_SLOTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct short_key4);
	__type(value, struct short_plan);
} flows4 SEC(".maps");

/* Flows over IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SHORT_SLOTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct short_key);
	__type(value, struct short_plan);
} flows6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SHORT_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct short_slot);
} slots SEC(".maps");

/* enum short_attachment by device: written by user space, for the process that cleans up after a helper that was killed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SHORT_DEVICES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u32);
} attached SEC(".maps");

/* Packets of unknown flows of chosen pods: tally.bpf.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SHORT_COUNTED);
	__type(key, __u32);
	__type(value, __u64);
} counted SEC(".maps");

/*
 * The packet that this CPU has redirected to a next hop, until the egress hook of the next device has seen it: that is before the
 * redirecting softirq goes on, and the stack has not delivered it there. A packet that waits for its neighbour counts as delivered if this
 * entry holds another packet by then, as does one that is copied for more headroom before 5.15. A packet that is dropped before the hook
 * leaves its address: one later packet with that address does not count as delivered.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} redirected SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/*
 * Where packets of a flow go; NULL: it is not known. The kernel calls a map's own function where it knows the map: the barrier keeps the
 * compiler from making one call of both.
 */
static __always_inline const struct short_plan *plan_of(const struct short_key *key)
{
	const struct short_plan *plan;
	struct short_key4 key4;

	if (key->family == AF_INET6) {
		plan = bpf_map_lookup_elem(&flows6, key);
		barrier_var(plan);
		return plan;
	}
	key4 = (struct short_key4){ key->saddr[0], key->daddr[0], key->sport, key->dport, key->ifindex, key->protocol };
	return bpf_map_lookup_elem(&flows4, &key4);
}

static __always_inline struct short_slot *slot_at(__u32 index)
{
	return bpf_map_lookup_elem(&slots, &index);
}

/* An event that finds no room is not lost: user space looks at all slots once a second, and candidates are reported again. */
static __always_inline void report(enum short_event_kind kind, __u32 slot, const struct short_key *key)
{
	struct short_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return;
	event->kind = kind;
	event->slot = slot;
	if (key)
		event->key = *key;
	else
		__builtin_memset(&event->key, 0, sizeof(event->key));
	bpf_ringbuf_submit(event, 0);
}

#endif
