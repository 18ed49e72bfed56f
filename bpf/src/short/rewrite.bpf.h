/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Address translation and TTL, with checksums. Packets of a veth device carry partial checksums and may be GSO packets, so the
 * kernel's helpers do it; a direct write would copy the head of TCP's clones.
 */
#ifndef SOCKPATH_SHORT_REWRITE_H
#define SOCKPATH_SHORT_REWRITE_H

#include "short/packet.bpf.h"
#include <bpf/bpf_helpers.h>

#define OFFSET_TTL4 (ETH_HLEN + 8)
#define OFFSET_CHECK4 (ETH_HLEN + 10)
#define OFFSET_ADDRESSES4 (ETH_HLEN + 12)
#define OFFSET_HOP_LIMIT (ETH_HLEN + 7)
#define OFFSET_ADDRESSES6 (ETH_HLEN + 8)

/* Where the transport checksum is, and the flag for datagrams that have none. */
struct checksum {
	__u32 offset;
	__u64 flags;
};

static __always_inline struct checksum checksum_of(const struct packet *p)
{
	if (p->key.protocol == PROTO_UDP)
		return (struct checksum){ .offset = p->transport + 6, .flags = BPF_F_MARK_MANGLED_0 };
	return (struct checksum){ .offset = p->transport + 16 };
}

static __always_inline bool rewrite_address4(struct __sk_buff *skb, struct checksum check, __u32 from, __u32 to)
{
	return from == to || (!bpf_l4_csum_replace(skb, check.offset, from, to, check.flags | BPF_F_PSEUDO_HDR | 4) &&
			      !bpf_l3_csum_replace(skb, OFFSET_CHECK4, from, to, 4));
}

static __always_inline bool rewrite_addresses4(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	struct checksum check = checksum_of(p);
	__u32 addresses[2] = { plan->saddr[0], plan->daddr[0] };

	return rewrite_address4(skb, check, p->key.saddr[0], addresses[0]) && rewrite_address4(skb, check, p->key.daddr[0], addresses[1]) &&
	       !bpf_skb_store_bytes(skb, OFFSET_ADDRESSES4, addresses, sizeof(addresses), 0);
}

/*
 * IPv6 has no checksum of its own that would cancel the addresses' change out of a complete checksum: bpf_l4_csum_replace() takes the
 * difference out of it as for IPv4, so the difference is added again.
 */
static __always_inline bool rewrite_addresses6(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	struct checksum check = checksum_of(p);
	__u32 from[8], to[8];
	__s64 difference;

	copy_address(from, p->key.saddr);
	copy_address(from + 4, p->key.daddr);
	copy_address(to, plan->saddr);
	copy_address(to + 4, plan->daddr);
	difference = bpf_csum_diff((void *)from, sizeof(from), (void *)to, sizeof(to), 0);
	if (difference < 0 || bpf_l4_csum_replace(skb, check.offset, 0, difference, check.flags | BPF_F_PSEUDO_HDR))
		return false;
	bpf_csum_update(skb, difference);
	return !bpf_skb_store_bytes(skb, OFFSET_ADDRESSES6, to, sizeof(to), 0);
}

static __always_inline bool rewrite_ports(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	__u32 from = (__u32)p->key.dport << 16 | p->key.sport, to = (__u32)plan->dport << 16 | plan->sport;
	struct checksum check = checksum_of(p);

	return from == to || (!bpf_l4_csum_replace(skb, check.offset, from, to, check.flags | 4) &&
			      !bpf_skb_store_bytes(skb, p->transport, &to, sizeof(to), 0));
}

static __always_inline bool lower_ttl(struct __sk_buff *skb, const struct packet *p)
{
	__u8 ttl = p->ttl - 1;

	if (p->key.family == AF_INET6)
		return !bpf_skb_store_bytes(skb, OFFSET_HOP_LIMIT, &ttl, 1, BPF_F_RECOMPUTE_CSUM);
	return !bpf_l3_csum_replace(skb, OFFSET_CHECK4, bpf_htons(p->ttl << 8 | p->key.protocol), bpf_htons(ttl << 8 | p->key.protocol), 2) &&
	       !bpf_skb_store_bytes(skb, OFFSET_TTL4, &ttl, 1, 0);
}

/* Makes the packet what the stack would have made of it. On failure it may be half rewritten: drop it. */
static __always_inline bool rewrite(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	if (plan->flags & SHORT_REWRITE) {
		bool done = p->key.family == AF_INET ? rewrite_addresses4(skb, p, plan) : rewrite_addresses6(skb, p, plan);

		if (!done || !rewrite_ports(skb, p, plan))
			return false;
	}
	return !(plan->flags & SHORT_ROUTED) || lower_ttl(skb, p);
}

#endif
