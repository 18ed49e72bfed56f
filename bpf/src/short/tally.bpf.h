/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts packets of unknown flows, in a table without keys: a flow's hash names its entry, and the rest of the hash is kept there. Short
 * connections by the thousand would spend more on a map with keys than their packets cost the stack. An entry belongs to the flow that
 * comes first in a period; another one with that entry waits for the next period, when the hashes are others.
 */
#ifndef SOCKPATH_SHORT_TALLY_H
#define SOCKPATH_SHORT_TALLY_H

#include "short/maps.bpf.h"
#include "short/packet.bpf.h"

/* A period is 2 to this power nanoseconds, 69 seconds. */
#define PERIOD_SHIFT 36
/* Bits of an entry: packets, up to a maximum that is not a power of two, period, and above them a part of the hash. */
#define TALLY_PACKETS 0xfffffull
#define TALLY_PERIOD 0xfff00000ull
#define TALLY_HASH (~0ull << 32)

static __always_inline __u64 mix(__u64 hash, __u64 more)
{
	hash = (hash ^ more) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32;
}

static __always_inline __u64 hash_of(const struct short_key *key, __u64 period)
{
	__u64 hash = mix(tally_seed, period);

	hash = mix(hash, (__u64)key->saddr[0] << 32 | key->daddr[0]);
	if (key->family == AF_INET6) {
		hash = mix(hash, (__u64)key->saddr[1] << 32 | key->daddr[1]);
		hash = mix(hash, (__u64)key->saddr[2] << 32 | key->daddr[2]);
		hash = mix(hash, (__u64)key->saddr[3] << 32 | key->daddr[3]);
	}
	hash = mix(hash, (__u64)key->sport << 48 | (__u64)key->dport << 32 | key->ifindex);
	return mix(hash, key->protocol);
}

/* Packets of the flow in this period, with this one; 0 when its entry is another's. `restart`: it begins anew. */
static __always_inline __u32 tally(const struct short_key *key, __u64 now_ns, bool restart)
{
	__u64 period = now_ns >> PERIOD_SHIFT, hash = hash_of(key, period), of_flow, *entry;
	__u32 index = (__u32)hash & (SHORT_COUNTED - 1), packets = 0;

	of_flow = (hash & TALLY_HASH) | (period << 20 & TALLY_PERIOD);
	entry = bpf_map_lookup_elem(&counted, &index);
	if (!entry)
		return 0;
	if ((*entry & ~TALLY_PACKETS) == of_flow)
		packets = *entry & TALLY_PACKETS;
	else if (!((*entry ^ of_flow) & TALLY_PERIOD) && (*entry & TALLY_PACKETS))
		return 0;
	if (restart)
		packets = 0;
	else if (packets < TALLY_PACKETS)
		packets++;
	*entry = of_flow | packets;
	return packets;
}

#endif
