/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Functions that see an sk_buff before it has headers: what they saw waits here, on the CPU that sends it, until the packet begins,
 * and is reported with it. So packets that are not recorded cost no event.
 */
#ifndef SOCKPATH_TRACE_DEPARTURE_H
#define SOCKPATH_TRACE_DEPARTURE_H

/* A power of two; more functions than that are not passed. */
#define MAX_STEPS 8

struct step {
	__u64 at;
	__u32 hook;
	__u32 attach;
};

struct departure {
	/* of the sk_buff that is being sent */
	__u64 head;
	/* The socket that tcp_write_xmit() sends for, and since when. */
	__u64 sock;
	struct step write;
	__u32 count;
	__u32 pad;
	struct step steps[MAX_STEPS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct departure);
} departures SEC(".maps");

static __always_inline struct departure *this_departure(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&departures, &zero);
}

static __always_inline void add_step(struct departure *d, __u64 head, const struct step *step)
{
	if (d->head != head) {
		d->head = head;
		d->count = 0;
	}
	if (d->count >= MAX_STEPS)
		return;
	d->steps[d->count & (MAX_STEPS - 1)] = *step;
	d->count++;
}

/* The packet under this head has begun: says what it passed before. */
static __noinline int report_departure(void *ctx, __u64 head, __u32 id, __u32 inum, const struct view *v)
{
	struct departure *d = this_departure();
	__u32 i;

	if (!d || !v || d->head != head)
		return 0;
	for (i = 0; i < MAX_STEPS && i < d->count; i++) {
		const struct step *step = &d->steps[i];
		struct trace_event *e = reserve(step->hook, ctx);

		if (!e)
			break;
		e->at = step->at;
		e->attach = step->attach;
		e->id = id;
		e->object = head;
		e->netns = inum;
		e->len = v->payload;
		put_view(e, v);
		submit(e);
	}
	d->head = 0;
	return 0;
}

#endif
