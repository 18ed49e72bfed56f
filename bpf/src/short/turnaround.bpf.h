/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The time from a request to its answer, as the node sees it: what the client does between an answer and its next request is left out. */
#ifndef SOCKPATH_SHORT_TURNAROUND_H
#define SOCKPATH_SHORT_TURNAROUND_H

#include "short/maps.bpf.h"
#include "short/packet.bpf.h"

/* Of redirected requests, one in so many is timed, a power of two. */
#define TIMED 8
/* Longer ones are the server's pauses. It fits into SHORT_MEDIAN. */
#define LONGEST_NS 1000000000ull

/*
 * Moves an estimate of the median towards a sample by a sixteenth: in the end as many samples lie above it as below. One that is far too
 * high, as the first may be, goes down faster.
 */
static __always_inline void add_sample(__u32 *estimate, __u32 sample)
{
	__u32 count = *estimate / (SHORT_MEDIAN + 1), median = *estimate & SHORT_MEDIAN, step = (median >> 4) + 1;

	if (!count)
		median = sample;
	else if (sample < median / 2)
		median -= median / 4;
	else if (sample > median)
		median += step;
	else if (sample < median)
		median -= step;
	if (count < SHORT_SAMPLES)
		count++;
	*estimate = count * (SHORT_MEDIAN + 1) | (median & SHORT_MEDIAN);
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
	/* One that went over from one path to the other is a sample of neither. */
	if ((mine->request_ns & 1) == redirected && took < LONGEST_NS)
		add_sample(redirected ? &mine->after_ns : &mine->before_ns, took);
	mine->request_ns = 0;
}

#endif
