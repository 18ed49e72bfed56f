/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets come to be known here, when they are established or, live, by iteration; and are forgotten when they close. */

static __always_inline int take_slot(struct accel_control *ctl, __u32 *slot)
{
	if (!bpf_map_pop_elem(&slots, slot))
		return 0;
	if (ctl->fresh >= ACCEL_ENDS)
		return -1;
	*slot = __sync_fetch_and_add(&ctl->fresh, 1);
	return *slot < ACCEL_ENDS ? 0 : -1;
}

/*
 * The initial sequence numbers identify a connection at both of its ends, whatever translates its addresses in between.
 * They follow from the byte counters at any time. The side that sent the SYN has counted it as acknowledged, the other
 * side starts behind it: user space allows for the difference.
 */
static __always_inline void identify(struct accel_end *e, struct tcp_sock *tp)
{
	struct sock *sk = (struct sock *)tp;

	e->iss = tp->snd_una - (__u32)tp->bytes_acked;
	e->irs = tp->rcv_nxt - (__u32)tp->bytes_received;
	e->base = tp->copied_seq;
	e->family = sk->__sk_common.skc_family;
	e->lport = sk->__sk_common.skc_num;
	e->rport = __builtin_bswap16(sk->__sk_common.skc_dport);
	e->netns = sk->__sk_common.skc_net.net->ns.inum;
	if (e->family == 2 /* AF_INET */) {
		e->laddr[0] = sk->__sk_common.skc_rcv_saddr;
		e->raddr[0] = sk->__sk_common.skc_daddr;
	} else {
		for (int i = 0; i < 4; i++) {
			e->laddr[i] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			e->raddr[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
		}
	}
}

/* Begins to watch a socket; needs its storage and, for the byte counters to agree, its lock. */
static __always_inline struct accel_end *meet(struct accel_control *ctl, struct conn *conn, struct tcp_sock *tp, __u64 cookie)
{
	struct accel_end *e;
	__u32 slot = 0;

	if (take_slot(ctl, &slot) || !(e = get_end(slot)))
		return NULL;
	__builtin_memset(e, 0, sizeof(*e));
	identify(e, tp);
	e->sk = (__u64)tp;
	e->met_ns = bpf_ktime_get_ns();
	e->counted = ctl->counting;
	e->peer = ACCEL_ENDS;
	e->state = ACCEL_WATCHED;
	conn->slot = slot + 1;
	barrier();
	e->cookie = cookie;
	return e;
}

static __always_inline void forget(struct accel_control *ctl, struct conn *conn)
{
	__u32 slot = conn->slot - 1;
	struct accel_end *e, *peer;

	if (!conn->slot || !(e = get_end(slot)))
		return;
	conn->slot = 0;
	if (e->peer_cookie) {
		peer = get_end(e->peer);
		if (!peer || peer->cookie != e->peer_cookie)
			__sync_fetch_and_add(&ctl->closed_pairs, 1);
		__sync_fetch_and_add(&ctl->closed_messages, e->messages);
		__sync_fetch_and_add(&ctl->closed_bytes, e->bytes);
		for (int i = 0; i < ACCEL_PASSES; i++)
			if (e->passes[i])
				__sync_fetch_and_add(&ctl->closed_passes[i], e->passes[i]);
	}
	/* A socket that was reset stays in the map until it is closed: its reader may not have read everything. */
	if (e->state == ACCEL_ENROLLED) {
		e->state = ACCEL_OVER;
		e->cookie = 0;
		return;
	}
	e->state = ACCEL_FREE;
	e->cookie = 0;
	barrier();
	bpf_map_push_elem(&slots, &slot, 0);
}

static __always_inline void meet_established(struct bpf_sock_ops *ctx, enum accel_role role)
{
	struct accel_control *ctl;
	struct accel_end *e;
	struct tcp_sock *tp;
	struct bpf_sock *sk;
	struct conn *conn;
	__u32 opened;

	sk = ctx->sk;
	if (!sk || !(ctl = get_control()) || ctl->paused)
		return;
	opened = __sync_fetch_and_add(&ctl->opened, 1) + 1;
	if (ctl->storm)
		return;
	if (opened == ctl->ring_at)
		ring(ctl);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || tp->is_mptcp)
		return;
	conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn || conn->slot)
		return;
	e = meet(ctl, conn, tp, bpf_get_socket_cookie(ctx));
	if (!e)
		return;
	e->role = role;
	/* Its receive calls have to be counted from now on; the other is so in the variant that tests need. */
	if (!ctl->counting || !ctl->learn_reads)
		ring(ctl);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void state_changed(struct bpf_sock_ops *ctx)
{
	struct accel_control *ctl;
	struct bpf_sock *sk;
	struct conn *conn;

	sk = ctx->sk;
	if (ctx->args[1] != BPF_TCP_CLOSE || !sk || !(ctl = get_control()))
		return;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (conn)
		forget(ctl, conn);
}

static __always_inline int dispatch(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		meet_established(ctx, ACCEL_CLIENT);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		meet_established(ctx, ACCEL_SERVER);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state_changed(ctx);
		break;
	}
	return 1;
}

/* On the cgroup of a pod. */
SEC("sockops")
int established(struct bpf_sock_ops *ctx)
{
	return dispatch(ctx);
}

/* The same on the root of cgroup v2, for pods that have no directory there: their sockets are told by their network namespace. */
SEC("sockops")
int established_at_root(struct bpf_sock_ops *ctx)
{
	__u64 netns;

	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		netns = bpf_get_netns_cookie(ctx);
		if (!bpf_map_lookup_elem(&namespaces, &netns))
			return 1;
	}
	return dispatch(ctx);
}

#define IPPROTO_TCP 6
#define SOL_TCP 6
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008

/* The connections that are already open in one network namespace: that of the task which reads this. */
SEC("iter/tcp")
int meet_live(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct accel_control *ctl = get_control();
	int flags = BPF_SOCK_OPS_STATE_CB_FLAG;
	struct accel_end *e;
	struct tcp_sock *tp;
	struct conn *conn;

	if (!skc || !ctl || skc->skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp || tp->is_mptcp)
		return 0;
	conn = bpf_sk_storage_get(&conns, (struct sock *)tp, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn || conn->slot)
		return 0;
	e = meet(ctl, conn, tp, bpf_get_socket_cookie((struct sock *)tp));
	if (!e)
		return 0;
	e->flags = ACCEL_LIVE;
	/* Without this (kernels before 6.12) user space finds out that it closed. */
	bpf_setsockopt(tp, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	return 0;
}
