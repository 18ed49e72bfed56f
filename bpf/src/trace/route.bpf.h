/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Route lookups and neighbours. These hooks know no packet: user space joins them by CPU, time and addresses. */
#ifndef SOCKPATH_TRACE_ROUTE_H
#define SOCKPATH_TRACE_ROUTE_H

/* An address that the lookup is still to choose; IPv4 as ::ffff:0.0.0.0. */
static __always_inline bool is_unset(const __u64 *addr)
{
	return !addr[0] && !(addr[1] >> 32);
}

static __always_inline bool addresses_of_the_pair(const struct tuple *t)
{
	return ((is_unset(t->src) || is_source(t->src)) && is_target_address(t->dst)) ||
	       (is_source(t->dst) && (is_unset(t->src) || is_target_address(t->src)));
}

static __always_inline void lookup_event(void *ctx, const struct tuple *t, __u32 table, __u8 flags)
{
	struct trace_event *e;

	if (!armed || !addresses_of_the_pair(t))
		return;
	if (packets_per_second && window_recorded >= packets_per_second)
		return;
	e = reserve(TRACE_FIB_LOOKUP, ctx);
	if (!e)
		return;
	put_tuple(e, t);
	e->flags |= flags;
	e->arg = table;
	submit(e);
}

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(fib_table_lookup, __u32 table, const struct flowi4 *arg)
{
	const struct flowi4 *flow = AS(flowi4, arg);
	struct tuple t = {};

	map_v4(t.src, flow->saddr);
	map_v4(t.dst, flow->daddr);
	lookup_event(ctx, &t, table, 0);
	return 0;
}

SEC("tp_btf/fib6_table_lookup")
int BPF_PROG(fib6_table_lookup, const struct net *net, const struct fib6_result *res, struct fib6_table *table,
	     const struct flowi6 *flow)
{
	struct tuple t = {};

	if (!find_net(AS(net, net)))
		return 0;
	bpf_probe_read_kernel(t.src, 16, &flow->saddr);
	bpf_probe_read_kernel(t.dst, 16, &flow->daddr);
	lookup_event(ctx, &t, 0, TRACE_F_IPV6);
	return 0;
}

static __always_inline int neighbour_event(void *ctx, const struct neighbour *n, enum trace_hook hook, __u32 state)
{
	const struct net_device *dev = n->dev;
	struct trace_event *e;
	struct tuple t = {};
	__u32 net, v4;

	net = find_net(dev->nd_net.net);
	if (!net || !armed)
		return 0;
	e = reserve(hook, ctx);
	if (!e)
		return 0;
	if (n->tbl->key_len == 4) {
		bpf_probe_read_kernel(&v4, 4, &n->primary_key);
		map_v4(t.dst, v4);
	} else {
		bpf_probe_read_kernel(t.dst, 16, &n->primary_key);
		e->flags |= TRACE_F_IPV6;
	}
	put_tuple(e, &t);
	e->netns = net_at(net)->inum;
	e->ifindex = dev->ifindex;
	e->arg = state;
	submit(e);
	return 0;
}

/* A packet waits for the answer (rc 1) or the entry turned out usable (rc 0). */
SEC("tp_btf/neigh_event_send_done")
int BPF_PROG(neigh_event_send_done, struct neighbour *n, int rc)
{
	return rc ? neighbour_event(ctx, AS(neighbour, n), TRACE_NEIGH_SEND, 0) : 0;
}

SEC("tp_btf/neigh_event_send_dead")
int BPF_PROG(neigh_event_send_dead, struct neighbour *n, int rc)
{
	return neighbour_event(ctx, AS(neighbour, n), TRACE_NEIGH_DEAD, 0);
}

SEC("tp_btf/neigh_update")
int BPF_PROG(neigh_update, struct neighbour *n, const __u8 *lladdr, __u8 new)
{
	return neighbour_event(ctx, AS(neighbour, n), TRACE_NEIGH_UPDATE, new);
}

#endif
