/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Events of a conversation other than the hops of its packets. Rare, so never sampled. */
#ifndef SOCKPATH_TRACE_INCIDENT_H
#define SOCKPATH_TRACE_INCIDENT_H

static __always_inline int incident(void *ctx, const struct sock *sk, enum trace_hook hook, __u32 arg)
{
	struct tuple t;
	__u32 net;

	if (!armed)
		return 0;
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !socket_tuple(&t, sk) || !of_the_pair(&t))
		return 0;
	socket_event(ctx, sk, net, &t, hook, 0, 0, 0, arg);
	return 0;
}

/* The packet that is answered by a reset names the conversation; there may be no socket. */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(tcp_send_reset, const struct sock *sk_arg, const struct sk_buff *skb_arg)
{
	const struct sk_buff *skb = AS(sk_buff, skb_arg);
	const struct sock *sk = AS(sock, sk_arg);
	const struct net_device *dev;
	struct trace_event *e;
	struct view v = {};
	__u32 net = 0;

	if (!armed)
		return 0;
	if (!skb)
		return sk ? incident(ctx, sk, TRACE_SEND_RESET, 0) : 0;
	if (sk)
		net = find_net(sk->__sk_common.skc_net.net);
	dev = skb->dev;
	if (!net && dev)
		net = find_net(dev->nd_net.net);
	if (!net || !read_headers(&v, head_of(skb) + skb->network_header, skb->len) || !of_the_pair(&v.t))
		return 0;
	e = reserve(TRACE_SEND_RESET, ctx);
	if (!e)
		return 0;
	e->netns = net_at(net)->inum;
	put_skb(e, skb, head_of(skb));
	put_view(e, &v);
	submit(e);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(tcp_receive_reset, struct sock *sk)
{
	return incident(ctx, AS(sock, sk), TRACE_RECEIVE_RESET, 0);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_skb, const struct sock *sk)
{
	return incident(ctx, AS(sock, sk), TRACE_RETRANSMIT, 0);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, const struct sock *sk_arg, const struct request_sock *req_arg)
{
	const struct request_sock *req = AS(request_sock, req_arg);
	const struct sock *sk = AS(sock, sk_arg);
	/* The request carries the tuple; it begins with the same struct sock_common, but is not a full socket. */
	struct tuple t;
	struct trace_event *e;
	__u32 net;

	if (!armed)
		return 0;
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net)
		return 0;
	if (req->__req_common.skc_family == AF_INET) {
		map_v4(t.src, req->__req_common.skc_rcv_saddr);
		map_v4(t.dst, req->__req_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(t.src, 16, &req->__req_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(t.dst, 16, &req->__req_common.skc_v6_daddr);
	}
	t.sport = req->__req_common.skc_num;
	t.dport = __builtin_bswap16(req->__req_common.skc_dport);
	t.protocol = PROTO_TCP;
	t.pad = 0;
	if (!of_the_pair(&t))
		return 0;
	e = reserve(TRACE_RETRANSMIT_SYNACK, ctx);
	if (!e)
		return 0;
	e->netns = net_at(net)->inum;
	put_tuple(e, &t);
	submit(e);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(inet_sock_set_state, const struct sock *arg, int old, int new)
{
	const struct sock *sk = AS(sock, arg);

	return sk->sk_protocol == PROTO_TCP ? incident(ctx, sk, TRACE_SET_STATE, old << 8 | new) : 0;
}

SEC("tp_btf/sock_rcvqueue_full")
int BPF_PROG(sock_rcvqueue_full, struct sock *sk, struct sk_buff *skb)
{
	return incident(ctx, AS(sock, sk), TRACE_RCVQUEUE_FULL, 0);
}

#endif
