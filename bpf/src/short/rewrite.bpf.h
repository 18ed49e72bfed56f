/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Address translation and TTL, with checksums. Packets of a veth device carry partial checksums and may be GSO packets, so the
 * kernel's helpers do it; a direct write would copy the head of TCP's clones. What is the same for all packets of a direction was computed
 * when the flow was entered (helper/src/short/checksum.rs).
 */
#ifndef SOCKPATH_SHORT_REWRITE_H
#define SOCKPATH_SHORT_REWRITE_H

#include "short/packet.bpf.h"
#include <bpf/bpf_helpers.h>

#define OFFSET_TTL4 (ETH_HLEN + 8)
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

/* From the TTL to the destination, as it is in the header: the one part of it that is ever rewritten. */
struct ip4_rest {
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__u32 saddr;
	__u32 daddr;
};

/* TTL, addresses and the header's checksum: RFC 1624, equation 3. */
static __always_inline bool rewrite_header4(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	struct ip4_rest rest = {
		.ttl = plan->flags & SHORT_ROUTED ? p->ttl - 1 : p->ttl,
		.protocol = p->key.protocol,
		.saddr = plan->saddr[0],
		.daddr = plan->daddr[0],
	};
	__u32 sum = (__u16)~p->check + plan->header_sum;

	sum = (sum & 0xffff) + (sum >> 16);
	rest.check = ~sum;
	return !bpf_skb_store_bytes(skb, OFFSET_TTL4, &rest, sizeof(rest), 0);
}

/* Addresses that the transport's checksum covers. */
static __always_inline bool add_addresses(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	struct checksum check = checksum_of(p);

	return !plan->addresses_sum || !bpf_l4_csum_replace(skb, check.offset, 0, plan->addresses_sum, check.flags | BPF_F_PSEUDO_HDR);
}

/*
 * IPv6 has no checksum of its own that would cancel the addresses' change out of a complete checksum. Without BPF_F_IPV6, which older
 * kernels refuse, bpf_l4_csum_replace() takes the difference out of it as for IPv4, so the difference is added again.
 */
static __always_inline bool rewrite_addresses6(struct __sk_buff *skb, const struct short_plan *plan)
{
	__u32 to[8];

	copy_address(to, plan->saddr);
	copy_address(to + 4, plan->daddr);
	bpf_csum_update(skb, plan->addresses_sum);
	return !bpf_skb_store_bytes(skb, OFFSET_ADDRESSES6, to, sizeof(to), 0);
}

static __always_inline bool rewrite_ports(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	__u32 from = (__u32)p->key.dport << 16 | p->key.sport, to = (__u32)plan->dport << 16 | plan->sport;
	struct checksum check = checksum_of(p);

	return from == to || (!bpf_l4_csum_replace(skb, check.offset, from, to, check.flags | 4) &&
			      !bpf_skb_store_bytes(skb, p->transport, &to, sizeof(to), 0));
}

static __always_inline bool lower_hop_limit(struct __sk_buff *skb, const struct packet *p)
{
	__u8 hop_limit = p->ttl - 1;

	return !bpf_skb_store_bytes(skb, OFFSET_HOP_LIMIT, &hop_limit, 1, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool rewrite_header6(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	if ((plan->flags & SHORT_REWRITE) && !rewrite_addresses6(skb, plan))
		return false;
	return !(plan->flags & SHORT_ROUTED) || lower_hop_limit(skb, p);
}

/* Makes the packet what the stack would have made of it. On failure it may be half rewritten: drop it. */
static __always_inline bool rewrite(struct __sk_buff *skb, const struct packet *p, const struct short_plan *plan)
{
	if (!(plan->flags & (SHORT_REWRITE | SHORT_ROUTED)))
		return true;
	if ((plan->flags & SHORT_REWRITE) && (!add_addresses(skb, p, plan) || !rewrite_ports(skb, p, plan)))
		return false;
	return p->key.family == AF_INET ? rewrite_header4(skb, p, plan) : rewrite_header6(skb, p, plan);
}

#endif
