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

/*
 * Recorded packets that a socket has not read yet. TCP reads by sequence number: the last one is enough (turn 0). Other
 * sockets read one packet with each call: a packet's turn is the number of the call.
 */
struct reader {
	__u64 sock;
	__u64 turn;
};

struct waiting {
	__u64 head;
	__u32 id;
	__u32 end_seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct reader);
	__type(value, struct waiting);
} readers SEC(".maps");

/* Calls that have read from a socket while packets waited there. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 256);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

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

static __always_inline int writes(void *ctx, const struct sock *sk, const struct msghdr *msg, enum trace_hook hook)
{
	struct tuple t;
	__u32 net, seq;

	if (bypass)
		goes_by_tcp();
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !armed)
		return 0;
	seq = TCP_FIELD(sk, write_seq);
	if (packets_per_second && (window_recorded >= packets_per_second || !sampled(PROTO_TCP, seq, 0, true)))
		return 0;
	if (!socket_tuple(&t, sk) || !of_the_pair(&t))
		return 0;
	socket_event(ctx, sk, net, &t, hook, 0, seq, msg->msg_iter.count, 0);
	return 0;
}

SEC("tp_btf/tcp_sendmsg_locked")
int BPF_PROG(tcp_sendmsg_locked, const struct sock *sk, const struct msghdr *msg)
{
	return writes(ctx, AS(sock, sk), AS(msghdr, msg), TRACE_TCP_SENDMSG);
}

SEC("tp_btf/tcp_probe")
int BPF_PROG(tcp_probe, struct sock *sk_arg, struct sk_buff *skb_arg)
{
	const struct sk_buff *skb = AS(sk_buff, skb_arg);
	const struct sock *sk = AS(sock, sk_arg);
	struct event_context s = { .hook = TRACE_TCP_PROBE };
	struct trace_packet *p;
	struct reader key = {};
	struct waiting w;
	__u64 head;

	if (idle())
		return 0;
	s.net = find_net(sk->__sk_common.skc_net.net);
	if (!s.net)
		return 0;
	if (!hop(skb, head_of(skb) + skb->network_header, NULL, &s, ctx))
		return 0;
	head = head_of(skb);
	p = bpf_map_lookup_elem(&packets, &head);
	if (!p)
		return 0;
	if (!p->has_payload) {
		forget(head, p);
		return 0;
	}
	arrived(p);
	key.sock = (__u64)sk;
	w.head = head;
	w.id = p->id;
	/* The whole skb: GRO may have merged others into it. The transport header has been pulled. */
	w.end_seq = p->seq + skb->len;
	bpf_map_update_elem(&readers, &key, &w, BPF_ANY);
	return 0;
}

/* A packet has been queued behind others: its turn comes after theirs. Returns its number. */
static __always_inline __u32 take_turn(const struct sock *sk, __u8 protocol)
{
	struct reader key = { .sock = (__u64)sk };
	__u64 *last, *done, none = 0;
	struct trace_packet *p;
	struct waiting w = {};
	__u32 zero = 0, queued;

	last = bpf_map_lookup_elem(&last_arrived, &zero);
	if (!last)
		return 0;
	p = bpf_map_lookup_elem(&packets, last);
	if (!p || !p->at_the_socket || p->protocol != protocol)
		return 0;
	w.head = *last;
	w.id = p->id;
	done = bpf_map_lookup_elem(&calls, &key.sock);
	if (!done)
		bpf_map_update_elem(&calls, &key.sock, &none, BPF_ANY);
	queued = sk->sk_receive_queue.qlen;
	if (protocol == PROTO_UDP) {
		__u32 taken = 0;

		bpf_probe_read_kernel(&taken, 4, &((const struct udp_sock *)sk)->reader_queue.qlen);
		queued += taken;
	}
	key.turn = (done ? *done : 0) + queued;
	bpf_map_update_elem(&readers, &key, &w, BPF_ANY);
	return w.id;
}

static __always_inline int wakes(void *ctx, const struct sock *sk, enum trace_hook hook)
{
	__u32 net, seq = 0, id = 0;
	struct tuple t;

	if (bypass && woken_by_its_writer(sk, ctx))
		return 0;
	if (idle_at_sockets())
		return 0;
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !socket_tuple(&t, sk))
		return 0;
	if (t.protocol != PROTO_TCP) {
		id = take_turn(sk, t.protocol == PROTO_ICMPV6 ? PROTO_ICMP : t.protocol);
		if (!id)
			return 0;
	} else {
		seq = TCP_FIELD(sk, rcv_nxt);
		/* A listener has no peer; the packet that woke it is the last one on this CPU. */
		if (sk->__sk_common.skc_state != TCP_LISTEN && !of_the_pair(&t))
			return 0;
	}
	socket_event(ctx, sk, net, &t, hook, id, seq, 0, sk->__sk_common.skc_state);
	return 0;
}

SEC("tp_btf/sk_data_ready")
int BPF_PROG(sk_data_ready, const struct sock *sk)
{
	return wakes(ctx, AS(sock, sk), TRACE_DATA_READY);
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(skb_copy_datagram_iovec, const struct sk_buff *arg, int len)
{
	const struct sk_buff *skb = AS(sk_buff, arg);
	struct trace_packet *p;
	struct trace_event *e;

	if (idle_at_sockets())
		return 0;
	p = at_its_socket(skb);
	if (!p)
		return 0;
	e = reserve(TRACE_COPY_DATAGRAM, ctx);
	if (!e)
		return 0;
	e->id = p->id;
	e->object = head_of(skb);
	e->len = len;
	submit(e);
	return 0;
}

static __always_inline int received(void *ctx, const struct sock *sk, enum trace_hook hook, int len)
{
	struct reader key = { .sock = (__u64)sk };
	struct trace_packet *p;
	__u32 net, seq = 0, id;
	struct waiting *w;
	struct tuple t;
	__u64 head, *done;

	net = find_net(sk->__sk_common.skc_net.net);
	if (!net || !socket_tuple(&t, sk))
		return 0;
	if (t.protocol == PROTO_TCP) {
		seq = TCP_FIELD(sk, copied_seq);
	} else {
		done = bpf_map_lookup_elem(&calls, &key.sock);
		if (!done)
			return 0;
		key.turn = ++*done;
	}
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
	if (ret <= 0 || flags & MSG_PEEK)
		return 0;
	if (bypass)
		bypass_read(ctx, AS(sock, sk), ret);
	if (idle_at_sockets())
		return 0;
	return received(ctx, AS(sock, sk), TRACE_RECV_LENGTH, ret);
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tcp_rcv_space_adjust, struct sock *sk)
{
	if (idle_at_sockets())
		return 0;
	return received(ctx, AS(sock, sk), TRACE_RCV_SPACE_ADJUST, 0);
}

#endif
