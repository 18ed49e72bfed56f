/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Devices: handed over, queued, transmitted, received. */
#ifndef SOCKPATH_TRACE_DEVICE_H
#define SOCKPATH_TRACE_DEVICE_H

/* The last packet that reached its socket on this CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} last_arrived SEC(".maps");

/* Five arguments are all that a BPF function takes. */
struct event_context {
	enum trace_hook hook;
	/* as find_net gives it */
	__u32 net;
	__u32 arg;
	/* It may be the first event of the packet. */
	bool may_begin;
	/* It is, unless the packet is that of a tunnel: an acknowledgement may look like the one before. */
	bool begins;
	/* What rules see is noted, too. */
	bool rules;
};

/* A packet that may have been seen before. Returns its number when it was recorded. */
static __noinline __u32 hop(const struct sk_buff *skb, __u64 ip, const struct net_device *dev, const struct event_context *at,
			    void *ctx)
{
	struct trace_event *e;
	struct view v = {};
	__u64 head;
	__u32 id = 0;
	bool origin = false, softirq;

	if (!skb || !at || !read_headers(&v, ip, skb->len))
		return 0;
	head = head_of(skb);
	if (!idle() && (!at->begins || v.flags & TRACE_F_TUNNEL))
		id = recognise(head, &v);
	if (!id && at->may_begin) {
		id = begin(head, &v);
		origin = id;
	}
	if (!id)
		return 0;
	e = reserve(at->hook, ctx);
	if (!e)
		return id;
	e->id = id;
	e->netns = net_at(at->net)->inum;
	if (dev)
		e->ifindex = dev->ifindex;
	e->arg = at->arg;
	put_skb(e, skb, head);
	put_view(e, &v);
	if (at->rules)
		put_facts(e, skb);
	if (origin) {
		e->flags |= TRACE_F_ORIGIN;
		e->arg = resting;
	}
	softirq = e->flags & TRACE_F_SOFTIRQ;
	submit(e);
	if (origin && !softirq)
		call_of_datagram(ctx, &v, id);
	if (origin && functions)
		report_departure(ctx, head, id, net_at(at->net)->inum, &v);
	return id;
}

/* When sending, the network header is set, and data begins with the link header. */
static __always_inline int sending(void *ctx, const struct sk_buff *skb, const struct net_device *dev, enum trace_hook hook, __u32 arg)
{
	struct event_context s = { .hook = hook, .arg = arg };

	if (idle())
		return 0;
	s.net = find_net(dev->nd_net.net);
	if (s.net)
		hop(skb, head_of(skb) + skb->network_header, dev, &s, ctx);
	return 0;
}

/* Delivered here: from now on it waits for its reader. */
static __always_inline void reached_its_socket(__u64 head)
{
	struct trace_packet *p = bpf_map_lookup_elem(&packets, &head);
	__u32 zero = 0;
	__u64 *last;

	if (!p)
		return;
	/* The hook that sees its reader is detached. */
	if (resting == TRACE_SILENT) {
		forget(head, p);
		return;
	}
	arrived(p);
	last = bpf_map_lookup_elem(&last_arrived, &zero);
	if (last)
		*last = head;
}

/* When receiving, the link header has been pulled, and the network header may not be set yet. */
static __always_inline int receiving(void *ctx, const struct sk_buff *skb, enum trace_hook hook)
{
	struct event_context s = { .hook = hook };
	const struct net_device *dev;

	if (idle() && !uplink_count)
		return 0;
	dev = skb->dev;
	s.net = find_net(dev->nd_net.net);
	if (!s.net)
		return 0;
	if (uplink_count)
		s.may_begin = is_uplink((__u64)net_at(s.net)->inum << 32 | dev->ifindex);
	if (idle() && !s.may_begin)
		return 0;
	/* Without netfilter links this is the last that is seen below the socket. */
	if (hop(skb, data_of(skb), dev, &s, ctx) && (origin_at_queue || origin_at_output) && hook == TRACE_RECEIVE_SKB &&
	    net_at(s.net)->role & (TRACE_ROLE_SOURCE | TRACE_ROLE_TARGET))
		reached_its_socket(head_of(skb));
	return 0;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *arg)
{
	const struct sk_buff *skb = AS(sk_buff, arg);
	struct event_context s = { .hook = TRACE_DEV_QUEUE };
	const struct net_device *dev;

	if (!origin_at_queue && idle())
		return 0;
	dev = skb->dev;
	if (!origin_at_queue)
		return sending(ctx, skb, dev, TRACE_DEV_QUEUE, 0);
	s.net = find_net(dev->nd_net.net);
	if (!s.net)
		return 0;
	s.may_begin = net_at(s.net)->role & (TRACE_ROLE_SOURCE | TRACE_ROLE_TARGET);
	s.begins = s.may_begin && !(net_at(s.net)->role & TRACE_ROLE_NODE);
	hop(skb, head_of(skb) + skb->network_header, dev, &s, ctx);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(net_dev_start_xmit, struct sk_buff *skb, struct net_device *dev)
{
	return sending(ctx, AS(sk_buff, skb), AS(net_device, dev), TRACE_DEV_XMIT, 0);
}

SEC("tp_btf/qdisc_enqueue")
int BPF_PROG(qdisc_enqueue, struct Qdisc *qdisc, struct netdev_queue *txq, struct sk_buff *arg)
{
	const struct sk_buff *skb = AS(sk_buff, arg);

	if (idle())
		return 0;
	return sending(ctx, skb, skb->dev, TRACE_QDISC_ENQUEUE, AS(Qdisc, qdisc)->q.qlen);
}

SEC("tp_btf/netif_rx")
int BPF_PROG(netif_rx, struct sk_buff *skb)
{
	return receiving(ctx, AS(sk_buff, skb), TRACE_NETIF_RX);
}

SEC("tp_btf/napi_gro_receive_entry")
int BPF_PROG(napi_gro_receive_entry, struct sk_buff *skb)
{
	return receiving(ctx, AS(sk_buff, skb), TRACE_GRO_RECEIVE);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(netif_receive_skb, struct sk_buff *arg)
{
	const struct sk_buff *skb = AS(sk_buff, arg);
	__u32 zero = 0;
	__u64 *last;

	/* A CPU takes one packet after another, so the one before will not be read if it has no payload. */
	if (!idle_at_sockets()) {
		last = bpf_map_lookup_elem(&last_arrived, &zero);
		if (last && *last && *last != head_of(skb)) {
			struct trace_packet *p = bpf_map_lookup_elem(&packets, last);

			if (p && p->at_the_socket && !p->has_payload)
				forget(*last, p);
			*last = 0;
		}
	}
	return receiving(ctx, skb, TRACE_RECEIVE_SKB);
}

#endif
