/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The time from a request to its answer, as the node sees it: what the client does between an answer and its next request is left out. */
#ifndef SOCKPATH_SHORT_TURNAROUND_H
#define SOCKPATH_SHORT_TURNAROUND_H

#include "short/maps.bpf.h"
#include "short/packet.bpf.h"

/* Of redirected requests, one in so many is timed, a power of two. */
#define TIMED 32
/* Longer ones are the server's pauses. */
#define LONGEST_NS 1000000000ull

/* Moves an estimate of the median towards a sample by a sixteenth: as many samples lie above it as below in the end. */
static __always_inline void add_sample(__u32 *median, __u32 sample)
{
	__u32 now = *median, step = (now >> 4) + 1;

	if (!now)
		*median = sample;
	else if (sample > now)
		*median = now + step;
	else if (sample < now)
		*median = now - step;
}

/* A packet of a known flow has come in; it is redirected or takes the stack. The client's direction has the even slot. */
static __always_inline void time_packet(const struct __sk_buff *skb, const struct packet *p, struct short_slot *mine, __u32 slot,
					bool redirected)
{
	struct short_slot *other;
	__u64 took;

	if (skb->len - ETH_HLEN <= p->headers)
		return;
	if (!(slot & 1)) {
		if (redirected && (mine->packets & (TIMED - 1)))
			return;
		other = slot_at(slot ^ 1);
		if (other)
			other->request_ns = redirected ? bpf_ktime_get_ns() | 1 : bpf_ktime_get_ns() & ~1ull;
		return;
	}
	if (!mine->request_ns)
		return;
	took = bpf_ktime_get_ns() - mine->request_ns;
	/* One that went over from one path to the other says nothing of either. */
	if ((mine->request_ns & 1) == redirected && took < LONGEST_NS)
		add_sample(redirected ? &mine->after_ns : &mine->before_ns, took);
	mine->request_ns = 0;
}

#endif
