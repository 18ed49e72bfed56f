/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Approval by the stack: packets of both directions have to be seen coming in and, behind bridge, netfilter and routing, going out, in
 * the current epoch. Then user space decides.
 */
#ifndef SOCKPATH_SHORT_APPROVE_H
#define SOCKPATH_SHORT_APPROVE_H

#include "short/maps.bpf.h"
#include "short/packet.bpf.h"
#include "short/tally.bpf.h"

static __always_inline void ask_when_ready(struct short_slot *mine, __u32 slot, __u32 now)
{
	struct short_slot *other = slot_at(slot ^ 1);
	struct short_slot *even = slot & 1 ? other : mine;

	if (!other || mine->seen != now || mine->delivered != now || other->seen != now || other->delivered != now)
		return;
	if (even->asked == now || mine->ended || other->ended)
		return;
	even->asked = now;
	report(SHORT_READY, slot & ~1u, NULL);
}

/* A packet that came in takes the stack because its flow is not approved. */
static __always_inline void note_seen(struct short_slot *mine, __u32 slot, __u32 now)
{
	if (mine->seen == now)
		return;
	mine->seen = now;
	ask_when_ready(mine, slot, now);
}

static __always_inline bool was_redirected(const struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&redirected, &zero);

	if (!last || *last != (__u64)skb)
		return false;
	*last = 0;
	return true;
}

/* A packet goes out: it is of the other direction of the flow that comes in here with its addresses swapped. */
static __always_inline void note_delivered(struct __sk_buff *skb)
{
	__u32 now = control.epoch, address[4], slot;
	const struct short_plan *plan;
	struct short_slot *mine;
	struct packet p;
	__u16 port;

	if (was_redirected(skb) || !read_packet(skb, &p))
		return;
	copy_address(address, p.key.saddr);
	copy_address(p.key.saddr, p.key.daddr);
	copy_address(p.key.daddr, address);
	port = p.key.sport;
	p.key.sport = p.key.dport;
	p.key.dport = port;
	plan = plan_of(&p.key);
	if (!plan)
		return;
	slot = plan->slot;
	mine = slot_at(slot);
	if (!mine || mine->delivered == now)
		return;
	mine->delivered = now;
	ask_when_ready(mine, slot, now);
}

/* The flow has ended, or connection tracking does not know it any more: both directions take the stack from now on. */
static __always_inline void end_flow(const struct packet *p, struct short_slot *mine, __u32 slot, enum short_pass why)
{
	struct short_slot *other = slot_at(slot ^ 1);

	if (mine->ended)
		return;
	mine->ended = why;
	if (other)
		other->ended = why;
	tally(&p->key, bpf_ktime_get_coarse_ns(), true);
	report(SHORT_OVER, slot & ~1u, NULL);
}

/* An unknown flow becomes a candidate after some packets, and again after twice as many. */
static __always_inline void count_unknown(const struct packet *p)
{
	__u32 packets;

	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		return;
	packets = tally(&p->key, bpf_ktime_get_coarse_ns(), p->tcp_flags & TCP_SYN);
	if (packets >= candidate_packets && !(packets & (packets - 1)))
		report(SHORT_CANDIDATE, 0, &p->key);
}

#endif
