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

/* Why it takes the stack; SHORT_PASSES: it does not. */
static __always_inline enum short_pass reason_to_pass(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan,
						      struct short_slot *mine, __u64 now_ns)
{
	__u32 now = control.epoch;

	if (p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
		end_flow(p, mine, plan->slot, SHORT_ENDING, now_ns);
	if (mine->ended)
		return mine->ended;
	if (mine->armed != now) {
		note_seen(mine, plan->slot, now);
		return SHORT_NOT_APPROVED;
	}
	if (now_ns >= control.deadline_ns)
		return SHORT_LEASE;
	if (!fits(skb, p, plan))
		return SHORT_MTU;
	if ((plan->flags & SHORT_ROUTED) && p->ttl <= 1)
		return SHORT_TTL;
	/* A packet of this direction that was redirected in this tick of the coarse clock has been looked up. */
	if (mine->last_ns != now_ns && !is_assured(skb, p)) {
		end_flow(p, mine, plan->slot, SHORT_NOT_TRACKED, now_ns);
		return SHORT_NOT_TRACKED;
	}
	return SHORT_PASSES;
}

static __always_inline int send_on(struct __sk_buff *skb, const struct short_plan *plan, __u64 now_ns)
{
	struct bpf_redir_neigh hop = { .nh_family = plan->next_hop_family };
	struct redirected *last;
	__u32 zero = 0;

	if (plan->action == SHORT_TO_PEER) {
		/* On a bridge the frame is for another MAC address than the port's, and the receiver would drop it for that. */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(plan->ifindex, 0);
	}
	last = bpf_map_lookup_elem(&redirected, &zero);
	if (last) {
		last->skb = (__u64)skb;
		last->ns = now_ns;
	}
	copy_address(hop.ipv6_nh, plan->next_hop);
	return bpf_redirect_neigh(plan->ifindex, &hop, sizeof(hop), 0);
}

static __always_inline int redirect(struct __sk_buff *skb, bool from_pod)
{
	__u64 now_ns = bpf_ktime_get_coarse_ns();
	struct short_slot *mine;
	struct short_plan *plan;
	enum short_pass pass;
	struct packet p;

	if (!read_packet(skb, &p))
		return TC_NEXT;
	plan = bpf_map_lookup_elem(&flows, &p.key);
	if (!plan) {
		if (from_pod)
			count_unknown(&p, now_ns);
		return TC_NEXT;
	}
	mine = slot_at(plan->slot);
	if (!mine)
		return TC_NEXT;
	pass = reason_to_pass(skb, &p, plan, mine, now_ns);
	time_packet(skb, &p, mine, plan->slot, pass == SHORT_PASSES);
	if (pass < SHORT_PASSES) {
		__sync_fetch_and_add(&mine->passes[pass], 1);
		return TC_NEXT;
	}
	__sync_fetch_and_add(&mine->packets, 1);
	__sync_fetch_and_add(&mine->bytes, skb->len - ETH_HLEN);
	mine->last_ns = now_ns;
	if (!rewrite(skb, &p, plan))
		return TC_SHOT;
	return send_on(skb, plan, now_ns);
}

#endif
