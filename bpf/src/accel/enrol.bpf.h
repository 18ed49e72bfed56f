/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Into the map and out of it, by iteration over the sockets that are known: no namespace has to be entered for it. */

/*
 * Are all calls that hold the psock asleep in a receive or send call? One that is not may be a sender between its verdict and
 * the peer's queue. A link in the map holds one reference, each tcp_bpf_sendmsg() and tcp_bpf_recvmsg() another.
 */
static __always_inline bool no_call_inside(const struct accel_control *ctl, const struct sock *sk, bool linked)
{
	const struct sk_psock *psock = psock_of(sk);
	struct sleepers asleep;
	int held;

	if (!psock)
		return true;
	held = psock->refcnt.refs.counter - linked;
	if (held <= 0)
		return true;
	asleep = find_sleepers(ctl, sk, ctl->frame_offset);
	/* Those that sleep in TCP hold no psock. Without knowing who does, all sleepers count. */
	return held <= asleep.all - asleep.in_tcp;
}

/* What makes a socket unfit for the map now; 0 when nothing does. */
static __always_inline enum accel_pass unfit(const struct accel_control *ctl, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return ACCEL_REFUSED;
	if (tp->inet_conn.icsk_ulp_ops)
		return ACCEL_ULP;
	if (sk->__sk_common.skc_flags & SOCK_ZEROCOPY_BIT)
		return ACCEL_ZEROCOPY;
	if (sk->sk_rcvlowat > 1)
		return ACCEL_RCVLOWAT;
	if (tp->urg_data)
		return ACCEL_URGENT;
	if (count_sleepers(ctl, sk) > 1)
		return ACCEL_TWO_TASKS;
	/* A psock that is there already is another owner's, or ours that a sleeping reader still holds. */
	if (psock_of(sk))
		return ACCEL_FOREIGN;
	return 0;
}

/* Looks that have to find no call inside before a reader's psock may go. */
#define QUIET_LOOKS 2

/*
 * Taking a socket out of the map throws away what is unread in its queue, and a redirect on its way to it fails with EPIPE.
 * So: its writer is held (user space did that before), has none under way, and the queue is empty.
 */
static __always_inline void remove_end(struct accel_control *ctl, struct accel_end *e, struct sock *sk, __u32 slot)
{
	struct accel_end *peer = get_end(e->peer);
	bool has_writer = peer && e->peer_cookie && peer->cookie == e->peer_cookie;

	if (e->queued || e->relay == ACCEL_RELAY_TAKING || e->relay == ACCEL_RELAY_GIVING)
		return;
	if (has_writer && (!(ctl->paused || peer->hold) || peer->quiet < QUIET_LOOKS))
		return;
	e->result = bpf_map_delete_elem(&socks, &slot);
	e->state = ACCEL_WATCHED;
	e->order = ACCEL_NOTHING;
	e->relay = ACCEL_RELAY_NONE;
	e->fast = 0;
}

SEC("iter/bpf_sk_storage_map")
int serve(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct accel_control *ctl = get_control();
	struct conn *conn = ctx->value;
	struct sock *sk = ctx->sk;
	const struct sk_psock *psock;
	struct accel_end *e;
	__u32 slot;

	if (!ctl || !conn || !sk || !conn->slot)
		return 0;
	slot = conn->slot - 1;
	e = get_end(slot);
	if (!e || (__u64)sk->__sk_common.skc_cookie.counter != e->cookie)
		return 0;
	e->seen = ctl->pass;
	if (e->ordered != e->cookie)
		e->order = ACCEL_NOTHING;
	if (e->order == ACCEL_ENROL && e->state == ACCEL_WATCHED) {
		e->left = unfit(ctl, sk);
		if (!e->left)
			e->result = bpf_map_update_elem(&socks, &slot, sk, BPF_NOEXIST);
		if (!e->left && !e->result)
			e->state = ACCEL_ENROLLED;
		e->order = ACCEL_NOTHING;
		return 0;
	}
	psock = psock_of(sk);
	e->queued = queued(psock);
	/* What another owner holds is never quiet by its references, and never writes to us. */
	if (e->left == ACCEL_FOREIGN && e->state == ACCEL_WATCHED)
		e->quiet++;
	else if (e->hold || ctl->paused)
		e->quiet = no_call_inside(ctl, sk, e->state == ACCEL_ENROLLED) ? e->quiet + 1 : 0;
	else
		e->quiet = 0;
	if (e->order == ACCEL_REMOVE && e->state == ACCEL_ENROLLED)
		remove_end(ctl, e, sk, slot);
	return 0;
}

#define SOL_SOCKET 1
#define SO_RCVLOWAT 18

/*
 * An edge-triggered reader that took less than it asked for waits for the next edge. Where TCP bytes lie behind redirected
 * ones, its short read was the boundary and no edge comes. Setting SO_RCVLOWAT, even to what it is, makes the kernel look
 * whether there is something to read and wake whoever waits (tcp_set_rcvlowat).
 */
SEC("iter/tcp")
int kick(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct accel_end *e;
	struct tcp_sock *tp;
	struct sock *sk;
	int lowat;

	if (!skc || !(tp = bpf_skc_to_tcp_sock(skc)))
		return 0;
	sk = (struct sock *)tp;
	if (!(e = end_of(sk)) || !e->spilled || queued(psock_of(sk)))
		return 0;
	e->spilled = 0;
	lowat = sk->sk_rcvlowat;
	if (tp->rcv_nxt != tp->copied_seq)
		bpf_setsockopt(tp, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat));
	return 0;
}
