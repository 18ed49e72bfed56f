/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One packet that comes in: redirected, or left to the stack. */
#ifndef SOCKPATH_SHORT_REDIRECT_H
#define SOCKPATH_SHORT_REDIRECT_H

#include "short/approve.bpf.h"
#include "short/conntrack.bpf.h"
#include "short/maps.bpf.h"
#include "short/packet.bpf.h"
#include "short/rewrite.bpf.h"
#include "short/turnaround.bpf.h"

static __always_inline bool fits(const struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	__u32 length = skb->gso_size ? p->headers + skb->gso_size : skb->len - ETH_HLEN;

	return length <= plan->mtu;
}

/*
 * Why it takes the stack; SHORT_PASSES: it does not. The coarse clock and conntrack are read once in each tick in which packets of the
 * direction are redirected. `stop`, from any session, applies to the next packet.
 */
static __always_inline enum short_pass reason_to_pass(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan,
						      struct short_slot *mine, __u64 tick)
{
	__u32 now = control.epoch;

	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		end_flow(p, mine, plan->slot, SHORT_ENDING);
	if (mine->ended)
		return mine->ended;
	if (mine->armed != now) {
		note_seen(mine, plan->slot, now);
		return SHORT_NOT_APPROVED;
	}
	if (!control.deadline_ns || (mine->last_tick != tick && bpf_ktime_get_coarse_ns() >= control.deadline_ns))
		return SHORT_LEASE;
	if (!fits(skb, p, plan))
		return SHORT_MTU;
	if ((plan->flags & SHORT_ROUTED) && p->ttl <= 1)
		return SHORT_TTL;
	if (mine->last_tick != tick && !is_assured(skb, p)) {
		end_flow(p, mine, plan->slot, SHORT_NOT_TRACKED);
		return SHORT_NOT_TRACKED;
	}
	return SHORT_PASSES;
}

static __always_inline int send_on(struct __sk_buff *skb, const struct short_plan *plan)
{
	struct bpf_redir_neigh hop = { .nh_family = plan->next_hop_family };
	__u32 zero = 0;
	__u64 *last;

	if (plan->action == SHORT_TO_PEER) {
		/* On a bridge the frame is for another MAC address than the port's, and the receiver would drop it for that. */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(plan->ifindex, 0);
	}
	last = bpf_map_lookup_elem(&redirected, &zero);
	if (last)
		*last = (__u64)skb;
	copy_address(hop.ipv6_nh, plan->next_hop);
	return bpf_redirect_neigh(plan->ifindex, &hop, sizeof(hop), 0);
}

static __always_inline int redirect(struct __sk_buff *skb, bool from_pod)
{
	const struct short_plan *plan;
	__u64 tick = bpf_jiffies64();
	struct short_slot *mine;
	enum short_pass pass;
	struct packet p;

	if (!read_packet(skb, &p))
		return TC_NEXT;
	plan = plan_of(&p.key);
	if (!plan) {
		if (from_pod)
			count_unknown(&p);
		return TC_NEXT;
	}
	mine = slot_at(plan->slot);
	if (!mine)
		return TC_NEXT;
	pass = reason_to_pass(skb, &p, plan, mine, tick);
	time_packet(skb, &p, mine, plan->slot, pass == SHORT_PASSES);
	if (pass < SHORT_PASSES) {
		__sync_fetch_and_add(&mine->passes[pass], 1);
		return TC_NEXT;
	}
	__sync_fetch_and_add(&mine->packets, 1);
	__sync_fetch_and_add(&mine->bytes, skb->len - ETH_HLEN);
	mine->last_tick = tick;
	if (!rewrite(skb, &p, plan))
		return TC_SHOT;
	return send_on(skb, plan);
}

#endif
