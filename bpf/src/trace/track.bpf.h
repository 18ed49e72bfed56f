/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which packets are recorded, and how they are known again. A packet is known by skb->head; where that changes (copies,
 * segmentation, reassembly) by its tuple and sequence.
 */
#ifndef SOCKPATH_TRACE_TRACK_H
#define SOCKPATH_TRACE_TRACK_H

#define TCP_FIN_SYN_RST 0x07
#define TCP_PSH 0x08
#define WINDOW_NS 1000000000ull

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct trace_packet);
} packets SEC(".maps");

struct identity {
	struct tuple t;
	__u32 seq;
	__u32 has_payload;
	/* Of TCP without payload, whose sequence number stays: what is acknowledged, and flags. */
	__u32 ack;
	__u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct identity);
	__type(value, __u32);
} identities SEC(".maps");

__u32 last_id;
__u64 window_start;
__u32 window_matched;
__u32 window_recorded;
/* Only packets whose hash has none of these bits are recorded: the same packets on every node. */
__u32 sampling_mask;

static __always_inline void forget(__u64 head, const struct trace_packet *p)
{
	__u32 *counter = p->at_the_socket ? &gate.at_the_socket : &gate.in_transit;

	if (!bpf_map_delete_elem(&packets, &head))
		__sync_fetch_and_sub(counter, 1);
}

/* The packet is in the receive queue of its socket and not in transit. */
static __always_inline void arrived(struct trace_packet *p)
{
	if (p->at_the_socket)
		return;
	p->at_the_socket = 1;
	__sync_fetch_and_add(&gate.at_the_socket, 1);
	__sync_fetch_and_sub(&gate.in_transit, 1);
}

static __always_inline struct identity identity_of(const struct view *v)
{
	struct identity key = { .t = v->t, .seq = v->seq, .has_payload = v->payload > 0 };

	if (v->t.protocol == PROTO_TCP && !v->payload) {
		key.ack = v->ack;
		key.kind = v->kind & ~TCP_PSH;
	}
	return key;
}

static __always_inline void remember_identity(const struct view *v, __u32 id)
{
	struct identity key = identity_of(v);

	bpf_map_update_elem(&identities, &key, &id, BPF_ANY);
	if (!addressed_as_the_pair(&v->t) && !bpf_map_update_elem(&flows, &key.t, &id, BPF_NOEXIST))
		flow_count = 1;
}

static __always_inline __u32 tuple_hash(const struct tuple *t)
{
	__u64 h = t->src[1] ^ (t->dst[1] << 8 | t->dst[1] >> 56) ^ ((__u32)t->sport << 16 | t->dport);

	return h ^ h >> 32;
}

/*
 * Whether a packet is the one that was seen under this head before. Memory is used again at once, and an acknowledgement
 * carries the sequence number of the data after it. GRO may add PSH.
 */
static __always_inline bool is_same(const struct trace_packet *p, const struct view *v)
{
	return p->protocol == v->t.protocol && p->seq == v->seq && p->ack == v->ack && !((p->kind ^ v->kind) & ~TCP_PSH) &&
	       p->has_payload == (v->payload > 0);
}

static __always_inline bool remember(__u64 head, const struct view *v, __u32 id)
{
	struct trace_packet p = {
		.id = id,
		.seq = v->seq,
		.ack = v->ack,
		.tuple_hash = tuple_hash(&v->t),
		.protocol = v->t.protocol,
		.kind = v->kind,
		.has_payload = v->payload > 0,
	};

	if (bpf_map_update_elem(&packets, &head, &p, BPF_NOEXIST))
		return false;
	__sync_fetch_and_add(&gate.in_transit, 1);
	return true;
}

static __always_inline __u32 sampling_hash(__u32 seq)
{
	seq *= 0x9e3779b1u;
	return seq ^ seq >> 15;
}

/* TCP data by where they begin, pure acknowledgements by what they acknowledge: each moves on in every packet. */
static __always_inline bool sampled(__u8 protocol, __u32 seq, __u32 ack, bool has_payload)
{
	__u32 mask = sampling_mask;

	return !mask || !(sampling_hash(protocol == PROTO_TCP && !has_payload ? ack : seq) & mask);
}

/* Shares the packets of a second out; races between CPUs cost a packet more or less, nothing else. */
static __always_inline bool within_rate(const struct view *v)
{
	__u64 now;
	bool special = v->t.protocol == PROTO_TCP && v->kind & TCP_FIN_SYN_RST;

	if (!packets_per_second)
		return true;
	now = bpf_ktime_get_ns();
	if (now - window_start >= WINDOW_NS) {
		__u32 matched = window_matched, mask = 0, i;

		/* After a quiet second the count says nothing about now. */
		if (now - window_start < 2 * WINDOW_NS)
			for (i = 0; i < 24 && (matched >> i) > packets_per_second; i++)
				mask = mask << 1 | 1;
		window_start = now;
		window_matched = 0;
		window_recorded = 0;
		sampling_mask = mask;
	}
	__sync_fetch_and_add(&window_matched, 1);
	/* The first and last packets of conversations have as much room again. */
	if (special)
		return window_recorded < 2 * packets_per_second;
	return sampled(v->t.protocol, v->seq, v->ack, v->payload) && window_recorded < packets_per_second;
}

/* The first event of a packet. Returns its number, or 0 when it is not recorded. */
__noinline __u32 begin(__u64 head, const struct view *v)
{
	struct trace_packet *old;
	__u32 id;

	if (!v || !armed)
		return 0;
	if (!of_the_pair(&v->t) && !error_for_the_pair(v))
		return 0;
	COUNT(matched);
	pair_packets++;
	if (resting == TRACE_PAUSED) {
		COUNT(sampled_out);
		return 0;
	}
	if (!idle()) {
		old = bpf_map_lookup_elem(&packets, &head);
		if (old)
			forget(head, old);
	}
	if (!within_rate(v)) {
		COUNT(sampled_out);
		return 0;
	}
	id = __sync_fetch_and_add(&last_id, 1) + 1;
	if (!remember(head, v, id)) {
		COUNT(untracked);
		return 0;
	}
	__sync_fetch_and_add(&window_recorded, 1);
	COUNT(recorded);
	remember_identity(v, id);
	return id;
}

/* The recorded packet that this skb is, at its socket; its memory may serve another packet by now. */
static __always_inline struct trace_packet *at_its_socket(const struct sk_buff *skb)
{
	__u64 head = head_of(skb);
	struct trace_packet *p = bpf_map_lookup_elem(&packets, &head);
	struct view v = {};

	if (!p || !p->at_the_socket)
		return NULL;
	if (read_headers(&v, head_of(skb) + skb->network_header, skb->len) && is_same(p, &v))
		return p;
	forget(head, p);
	return NULL;
}

/* A packet seen before, by its head or by what it says; 0 when it is not one that is recorded. */
__noinline __u32 recognise(__u64 head, const struct view *v)
{
	struct trace_packet *p;
	struct identity key;
	__u32 *known, id;

	if (!v)
		return 0;
	p = bpf_map_lookup_elem(&packets, &head);
	if (p && is_same(p, v)) {
		__u32 hash = tuple_hash(&v->t);

		id = p->id;
		/* Rewritten: it has to be known by its new addresses if it is copied later. */
		if (p->tuple_hash != hash) {
			p->tuple_hash = hash;
			remember_identity(v, id);
		}
	} else {
		if (p) {
			/* The memory serves another packet now. */
			forget(head, p);
		}
		key = identity_of(v);
		known = bpf_map_lookup_elem(&identities, &key);
		if (!known)
			return 0;
		id = *known;
		remember(head, v, id);
	}
	return id;
}

#endif
