/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets: bytes handed in by the writer, reader woken, bytes taken out by the reader. */
#ifndef SOCKPATH_TRACE_SOCKET_H
#define SOCKPATH_TRACE_SOCKET_H

#define MSG_PEEK 2
#define TCP_LISTEN 10

/* The hooks give a struct sock; that it is the beginning of a tcp_sock is ours to know. */
#define TCP_FIELD(sk, field)								\
	({										\
		__u32 value_ = 0;							\
		bpf_probe_read_kernel(&value_, 4, &((const struct tcp_sock *)(sk))->field);	\
		value_;									\
	})

/* The last recorded packet that a socket has not read yet; keyed by socket, for UDP by the thread that copies it. */
struct waiting {
	__u64 head;
	__u32 id;
	__u32 end_seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct waiting);
} readers SEC(".maps");

static __always_inline void socket_event(void *ctx, const struct sock *sk, __u32 net, const struct tuple *t, enum trace_hook hook, __u32 id,
					 __u32 seq, __u32 len, __u32 arg)
{
	struct trace_event *e = reserve(hook, ctx);

	if (!e)
		return;
	e->id = id;
	e->object = (__u64)sk;
	e->netns = net_at(net)->inum;
	e->seq = seq;
	e->len = len;
	e->arg = arg;
	if (sk->__sk_common.skc_family == AF_INET6)
		e->flags |= TRACE_F_IPV6;
	put_tuple(e, t);
	submit(e);
}

SEC("tp_btf/tcp_sendmsg_locked")
int BPF_PROG(tcp_sendmsg_locked, const struct sock *sk, const struct msghdr *msg)
{
	struct tuple t;
	__u32 net, seq;

	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !armed)
		return 0;
	seq = TCP_FIELD(sk, write_seq);
	if (packets_per_second && (window_recorded >= packets_per_second || !sampled(PROTO_TCP, seq, 0, true)))
		return 0;
	if (!socket_tuple(&t, sk) || !of_the_pair(&t))
		return 0;
	socket_event(ctx, sk, net, &t, TRACE_TCP_SENDMSG, 0, seq, msg->msg_iter.count, 0);
	return 0;
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk, struct sk_buff *skb)
{
	struct sight s = { .hook = TRACE_TCP_PROBE };
	struct trace_packet *p;
	struct waiting w;
	__u64 head, key;

	if (idle())
		return 0;
	s.net = find_net(sk->__sk_common.skc_net.net);
	if (!s.net)
		return 0;
	if (!hop(skb, skb->head + skb->network_header, NULL, &s, ctx))
		return 0;
	head = (__u64)skb->head;
	p = bpf_map_lookup_elem(&packets, &head);
	if (!p)
		return 0;
	if (!p->has_payload) {
		forget(head, p);
		return 0;
	}
	arrived(p);
	key = (__u64)sk;
	w.head = head;
	w.id = p->id;
	/* The whole skb: GRO may have merged others into it. The transport header has been pulled. */
	w.end_seq = p->seq + skb->len;
	bpf_map_update_elem(&readers, &key, &w, BPF_ANY);
	return 0;
}

SEC("tp_btf/sk_data_ready")
int BPF_PROG(sk_data_ready, const struct sock *sk)
{
	struct tuple t;
	__u32 net, seq = 0;

	if (idle_at_sockets())
		return 0;
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !socket_tuple(&t, sk))
		return 0;
	if (t.protocol == PROTO_TCP) {
		seq = TCP_FIELD(sk, rcv_nxt);
		/* A listener has no peer; the packet that woke it is the last one on this CPU. */
		if (sk->__sk_common.skc_state != TCP_LISTEN && !of_the_pair(&t))
			return 0;
	}
	socket_event(ctx, sk, net, &t, TRACE_DATA_READY, 0, seq, 0, sk->__sk_common.skc_state);
	return 0;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(skb_copy_datagram_iovec, const struct sk_buff *skb, int len)
{
	__u64 head, thread;
	struct trace_packet *p;
	struct trace_event *e;
	struct waiting w;

	if (idle_at_sockets())
		return 0;
	head = (__u64)skb->head;
	p = bpf_map_lookup_elem(&packets, &head);
	if (!p || !p->at_the_socket)
		return 0;
	e = reserve(TRACE_COPY_DATAGRAM, ctx);
	if (e) {
		e->id = p->id;
		e->object = head;
		e->len = len;
		submit(e);
	}
	if (p->protocol == PROTO_TCP)
		return 0;
	thread = bpf_get_current_pid_tgid();
	w.head = head;
	w.id = p->id;
	w.end_seq = 0;
	bpf_map_update_elem(&readers, &thread, &w, BPF_ANY);
	return 0;
}

static __always_inline int received(void *ctx, struct sock *sk, enum trace_hook hook, int len)
{
	__u64 key = (__u64)sk;
	struct trace_packet *p;
	struct waiting *w;
	__u32 net, seq = 0, id;
	struct tuple t;
	__u64 head;

	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !socket_tuple(&t, sk))
		return 0;
	if (t.protocol == PROTO_TCP)
		seq = TCP_FIELD(sk, copied_seq);
	else
		key = bpf_get_current_pid_tgid();
	w = bpf_map_lookup_elem(&readers, &key);
	if (!w)
		return 0;
	id = w->id;
	socket_event(ctx, sk, net, &t, hook, id, seq, len, 0);
	if (t.protocol == PROTO_TCP && (__s32)(seq - w->end_seq) < 0)
		return 0;
	head = w->head;
	bpf_map_delete_elem(&readers, &key);
	p = bpf_map_lookup_elem(&packets, &head);
	if (p && p->id == id)
		forget(head, p);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_length, struct sock *sk, int ret, int flags)
{
	if (idle_at_sockets() || ret <= 0 || flags & MSG_PEEK)
		return 0;
	return received(ctx, sk, TRACE_RECV_LENGTH, ret);
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_rcv_space_adjust, struct sock *sk)
{
	if (idle_at_sockets())
		return 0;
	return received(ctx, sk, TRACE_RCV_SPACE_ADJUST, 0);
}

#endif
