/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tracks sockets from when they are established (live ones: from when the iterator finds them) until they close. */

/*
 * Half of the slots are given out in the order of requests; of the rest each namespace may use as many as its fair share allows.
 */
static __always_inline bool may_have_slot(const struct accel_control *ctl, const struct accel_share *share)
{
	return ctl->used < ACCEL_ENDS / 2 || share->used < ctl->fair_share;
}

static __always_inline int take_slot(struct accel_control *ctl, struct accel_share *share, __u32 *slot)
{
	if (!may_have_slot(ctl, share))
		goto refused;
	if (bpf_map_pop_elem(&slots, slot)) {
		if (ctl->fresh >= ACCEL_ENDS)
			goto refused;
		*slot = __sync_fetch_and_add(&ctl->fresh, 1);
		if (*slot >= ACCEL_ENDS)
			goto refused;
	}
	__sync_fetch_and_add(&ctl->used, 1);
	__sync_fetch_and_add(&share->used, 1);
	return 0;
refused:
	__sync_fetch_and_add(&share->refused, 1);
	return -1;
}

/* Gives the slot of a connection that is over to the next; its socket is not in the map. */
static __always_inline void free_slot(struct accel_control *ctl, struct accel_end *e, __u32 slot, enum accel_state from)
{
	struct accel_share *share = get_share(e->share);

	/* Several may look at once. */
	if (__sync_val_compare_and_swap((__u32 *)&e->state, from, ACCEL_FREE) != from)
		return;
	__sync_fetch_and_sub(&ctl->used, 1);
	if (share)
		__sync_fetch_and_sub(&share->used, 1);
	bpf_map_push_elem(&slots, &slot, 0);
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
	e->bound_to = sk->__sk_common.skc_bound_dev_if;
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

/* Begins to track a socket; needs its storage and, for the byte counters to agree, its lock. */
static __always_inline struct accel_end *track(struct accel_control *ctl, struct accel_share *share, __u32 index, struct conn *conn,
					       struct tcp_sock *tp, __u64 cookie)
{
	struct accel_end *e;
	__u32 slot = 0;

	if (take_slot(ctl, share, &slot) || !(e = get_end(slot)))
		return NULL;
	__builtin_memset(e, 0, sizeof(*e));
	e->share = index;
	identify(e, tp);
	e->sk = (__u64)tp;
	e->tracked_ns = bpf_ktime_get_ns();
	e->counted = ctl->counting;
	e->peer = ACCEL_ENDS;
	e->state = ACCEL_WATCHED;
	conn->slot = slot + 1;
	barrier();
	e->cookie = cookie;
	return e;
}

/* A socket that was reset stays in the map until it is closed: its reader may not have read everything. */
static __always_inline void forget(struct accel_control *ctl, struct accel_end *e, __u32 slot, __u64 cookie)
{
	struct accel_end *peer;

	/* A change of state and a look may both find that it is gone: only one of them counts it. */
	if (!cookie || __sync_val_compare_and_swap(&e->cookie, cookie, 0) != cookie)
		return;
	if (e->peer_cookie) {
		peer = get_end(e->peer);
		if (!peer || peer->cookie != e->peer_cookie)
			__sync_fetch_and_add(&ctl->closed_pairs, 1);
		/* With its first end a pair is no longer reported. */
		else if (e->messages || peer->messages)
			__sync_fetch_and_add(&ctl->closed_carried, 1);
		__sync_fetch_and_add(&ctl->closed_messages, e->messages);
		__sync_fetch_and_add(&ctl->closed_bytes, e->bytes);
		for (int i = 0; i < ACCEL_PASSES; i++)
			if (e->passes[i])
				__sync_fetch_and_add(&ctl->closed_passes[i], e->passes[i]);
	}
	if (__sync_val_compare_and_swap((__u32 *)&e->state, ACCEL_INSERTED, ACCEL_OVER) == ACCEL_WATCHED)
		free_slot(ctl, e, slot, ACCEL_WATCHED);
}

static __always_inline void track_established(struct bpf_sock_ops *ctx, enum accel_role role)
{
	struct accel_control *ctl;
	struct accel_share *share;
	struct accel_end *e;
	struct tcp_sock *tp;
	struct bpf_sock *sk;
	struct conn *conn;
	__u32 opened, index;

	sk = ctx->sk;
	if (!sk || !(ctl = get_control()) || ctl->paused || !(share = share_of(bpf_get_netns_cookie(ctx), &index)))
		return;
	opened = __sync_fetch_and_add(&share->opened, 1) + 1;
	if (opened == share->wake_at)
		wake_helper(ctl);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || tp->is_mptcp)
		return;
	if (BPF_CORE_READ_BITFIELD(tp, repair)) {
		conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (conn)
			conn->repaired = 1;
		return;
	}
	if (share->burst)
		return;
	conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn || conn->slot)
		return;
	e = track(ctl, share, index, conn, tp, bpf_get_socket_cookie(ctx));
	if (!e)
		return;
	e->role = role;
	/* Its receive calls have to be counted from now on; the other is so in the variant that tests need. */
	if (!ctl->counting || !ctl->profile_reads)
		wake_helper(ctl);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void state_changed(struct bpf_sock_ops *ctx)
{
	struct accel_control *ctl;
	struct accel_end *e;
	struct bpf_sock *sk;
	struct conn *conn;
	__u32 slot;

	sk = ctx->sk;
	if (ctx->args[1] != BPF_TCP_CLOSE || !sk || !(ctl = get_control()))
		return;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !conn->slot)
		return;
	slot = conn->slot - 1;
	conn->slot = 0;
	if ((e = get_end(slot)))
		forget(ctl, e, slot, bpf_get_socket_cookie(ctx));
}

/*
 * On the cgroup of a pod, or on the root of cgroup v2 for pods that have no directory there. The network namespace decides whose socket
 * it is.
 */
SEC("sockops")
int established(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		track_established(ctx, ACCEL_CLIENT);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		track_established(ctx, ACCEL_SERVER);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state_changed(ctx);
		break;
	}
	return 1;
}

#define IPPROTO_TCP 6
#define SOL_TCP 6
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008

/* The connections that are already open in one network namespace: that of the task which reads this. */
SEC("iter/tcp")
int track_live(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct accel_control *ctl = get_control();
	int flags = BPF_SOCK_OPS_STATE_CB_FLAG;
	struct accel_share *share;
	struct accel_end *e;
	struct tcp_sock *tp;
	struct conn *conn;
	__u32 index;

	if (!skc || !ctl || skc->skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp || tp->is_mptcp || BPF_CORE_READ_BITFIELD(tp, repair) || !(share = share_of(skc->skc_net.net->net_cookie, &index)))
		return 0;
	conn = bpf_sk_storage_get(&conns, (struct sock *)tp, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn || conn->slot || conn->repaired)
		return 0;
	e = track(ctl, share, index, conn, tp, bpf_get_socket_cookie((struct sock *)tp));
	if (!e)
		return 0;
	e->flags = ACCEL_LIVE;
	/* Without this (kernels before 6.12) user space finds out that it closed. */
	bpf_setsockopt(tp, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	return 0;
}
