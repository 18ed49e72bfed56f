/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does a packet or socket belong to the pair? */
#ifndef SOCKPATH_TRACE_FILTER_H
#define SOCKPATH_TRACE_FILTER_H

/* Tuples of recorded packets that do not follow from the pair's addresses: NAT made them. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, __u32);
} flows SEC(".maps");

/* Tuples in the table; while there is none, nothing has to be looked up. */
__u32 flow_count;

static __always_inline bool is_source(const __u64 *addr)
{
	__u32 i;

	for (i = 0; i < TRACE_MAX_SOURCES && i < source_count; i++)
		if (sources[i].addr[1] == addr[1] && sources[i].addr[0] == addr[0])
			return true;
	return false;
}

/* The address of a target, whatever the port. */
static __always_inline bool is_target_address(const __u64 *addr)
{
	__u32 i;

	for (i = 0; i < TRACE_MAX_TARGETS && i < target_count; i++)
		if (targets[i].addr[1] == addr[1] && targets[i].addr[0] == addr[0])
			return true;
	return false;
}

static __always_inline bool is_target(const __u64 *addr, __u16 port)
{
	__u32 i;

	for (i = 0; i < TRACE_MAX_TARGETS && i < target_count; i++)
		if (targets[i].addr[1] == addr[1] && targets[i].addr[0] == addr[0] &&
		    (!targets[i].port || targets[i].port == port))
			return true;
	return false;
}

static __always_inline bool known_flow(const struct tuple *t)
{
	/* Before 6.4 a key must not be the argument of a global function. */
	struct tuple there = *t;
	struct tuple back = {
		.src = { t->dst[0], t->dst[1] },
		.dst = { t->src[0], t->src[1] },
		.sport = t->dport,
		.dport = t->sport,
		.protocol = t->protocol,
	};

	return bpf_map_lookup_elem(&flows, &there) || bpf_map_lookup_elem(&flows, &back);
}

static __always_inline bool addressed_as_the_pair(const struct tuple *t)
{
	return (is_source(t->src) && is_target(t->dst, t->dport)) || (is_source(t->dst) && is_target(t->src, t->sport));
}

/* A packet that begins here: one of the pair's, or an answer in a conversation that NAT rewrote. Global as above. */
__noinline int of_the_pair(const struct tuple *t)
{
	if (!t)
		return 0;
	if (addressed_as_the_pair(t))
		return 1;
	return flow_count && known_flow(t);
}

/* An ICMP error to one end of a conversation, from any sender. */
static __always_inline bool error_for_the_pair(const struct view *v)
{
	return v->flags & TRACE_F_ICMP_ERROR && (is_source(v->t.dst) || is_target_address(v->t.dst));
}

/* The tuple of a socket as its outgoing packets carry it. */
static __always_inline bool socket_tuple(struct tuple *t, const struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	if (family == AF_INET) {
		map_v4(t->src, sk->__sk_common.skc_rcv_saddr);
		map_v4(t->dst, sk->__sk_common.skc_daddr);
	} else if (family == AF_INET6) {
		bpf_probe_read_kernel(t->src, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(t->dst, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		return false;
	}
	t->sport = sk->__sk_common.skc_num;
	t->dport = __builtin_bswap16(sk->__sk_common.skc_dport);
	t->protocol = sk->sk_protocol;
	t->pad = 0;
	return true;
}

#endif
