/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The end of an sk_buff. Drops are always reported, also of packets that were not recorded before. */
#ifndef SOCKPATH_TRACE_DROP_H
#define SOCKPATH_TRACE_DROP_H

/*
 * Where queueing disciplines have reasons of their own (7.2 has them, 6.18 has not), they report them just before the packet is freed.
 * The reason of kfree_skb is then the same for all of them, SKB_DROP_REASON_QDISC_DROP.
 */
struct qdisc_reason {
	__u64 head;
	__u32 reason;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct qdisc_reason);
} qdisc_reasons SEC(".maps");

static __always_inline __u32 reason_of(__u64 head, __u32 reason)
{
	__u32 zero = 0;
	struct qdisc_reason *named;

	if (!bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_QDISC_DROP) ||
	    reason != bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_QDISC_DROP))
		return reason;
	named = bpf_map_lookup_elem(&qdisc_reasons, &zero);
	return named && named->head == head ? named->reason : reason;
}

SEC("tp_btf/qdisc_drop")
int BPF_PROG(qdisc_drop, struct Qdisc *qdisc, void *queue, struct net_device *dev, struct sk_buff *skb, int reason)
{
	__u32 zero = 0;
	struct qdisc_reason *named;

	named = bpf_map_lookup_elem(&qdisc_reasons, &zero);
	if (named) {
		named->head = head_of(AS(sk_buff, skb));
		named->reason = reason;
	}
	return 0;
}

/* The namespace it was in: of its device, its socket, or the socket that the kernel names (6.11+). */
static __always_inline __u32 net_of(const struct sk_buff *skb, const struct sock *rx_sk, bool *by_device)
{
	const struct net_device *dev = skb->dev;
	const struct sock *sk;
	__u32 net;

	*by_device = false;
	if (dev) {
		net = find_net(dev->nd_net.net);
		if (net) {
			*by_device = true;
			return net;
		}
	}
	if (rx_sk) {
		net = find_net(rx_sk->__sk_common.skc_net.net);
		if (net)
			return net;
	}
	sk = skb->sk;
	return sk ? find_net(sk->__sk_common.skc_net.net) : 0;
}

static __always_inline int dropped(void *ctx, const struct sk_buff *skb, __u64 location, __u32 reason, const struct sock *rx_sk)
{
	__u64 head = head_of(skb);
	struct skb_shared_info *shared = (void *)(head + skb->end);
	__u64 ip;
	struct trace_packet *p;
	struct trace_event *e;
	bool by_device;
	struct view v = {};
	__u32 net, id = 0, dataref = 0;
	__u16 network;

	if (!armed)
		return 0;
	net = net_of(skb, rx_sk, &by_device);
	if (!net)
		return 0;
	network = skb->network_header;
	/* Not set yet on a packet that has just come from its device. */
	ip = network && network != UNSET ? head + network : data_of(skb);
	if (!read_headers(&v, ip, skb->len))
		return 0;
	if (!idle())
		id = recognise(head, &v);
	if (!id && !of_the_pair(&v.t) && !error_for_the_pair(&v))
		return 0;
	/* The low half counts the skbs that share the data. */
	bpf_probe_read_kernel(&dataref, 4, &shared->dataref);
	dataref &= 0xffff;
	e = reserve(TRACE_KFREE_SKB, ctx);
	if (e) {
		e->id = id;
		e->shared = dataref > 1;
		e->netns = net_at(net)->inum;
		if (by_device)
			e->ifindex = skb->dev->ifindex;
		e->arg = reason_of(head, reason);
		e->location = location;
		if (rx_sk)
			e->socket_state = rx_sk->__sk_common.skc_state;
		put_skb(e, skb, head);
		put_view(e, &v);
		put_facts(e, skb);
		submit(e);
	}
	/* A clone may go on under the same head; then the packet stays known until user space is sure. */
	p = bpf_map_lookup_elem(&packets, &head);
	if (p && p->at_the_socket && dataref <= 1)
		forget(head, p);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb, struct sk_buff *skb, void *location, int reason)
{
	return dropped(ctx, AS(sk_buff, skb), (__u64)location, reason, NULL);
}

/* The fourth argument since 6.11. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_rx_sk, struct sk_buff *skb, void *location, int reason, struct sock *rx_sk)
{
	return dropped(ctx, AS(sk_buff, skb), (__u64)location, reason, AS(sock, rx_sk));
}

SEC("tp_btf/consume_skb")
int BPF_PROG(consume_skb, struct sk_buff *arg)
{
	const struct sk_buff *skb = AS(sk_buff, arg);
	struct trace_packet *p;
	struct trace_event *e;
	__u64 head;

	if (idle_at_sockets())
		return 0;
	head = head_of(skb);
	p = at_its_socket(skb);
	if (!p)
		return 0;
	e = reserve(TRACE_CONSUME_SKB, ctx);
	if (e) {
		e->id = p->id;
		e->object = head;
		e->len = skb->len;
		submit(e);
	}
	/* The reader's call has not returned yet: it ends the wait. */
	if (!p->has_payload)
		forget(head, p);
	return 0;
}

#endif
