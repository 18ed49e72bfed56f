/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Into the map and out of it, by programs that user space runs without a packet (BPF_PROG_TEST_RUN). A look reads sockets where they
 * lie: socket memory is reused as socket memory only, and the cookie identifies the socket. Nothing is iterated over, as hardened
 * kernels refuse iterators over map elements. Only the insertion needs a reference, which a lookup in the network namespace gives.
 */

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
 * Taking a socket out of the map discards what is unread in its queue, and a redirect in progress to it fails with EPIPE.
 * So: its writer is forced to TCP (user space did that before) and has no call in progress, and the queue is empty.
 */
static __always_inline void remove_end(struct accel_control *ctl, struct accel_end *e, struct sock *sk, __u32 slot)
{
	struct accel_end *peer = get_end(e->peer);
	bool has_writer = peer && e->peer_cookie && peer->cookie == e->peer_cookie;

	if (e->queued || e->reinjection == ACCEL_REINJECT_TAKING || e->reinjection == ACCEL_REINJECT_SENDING)
		return;
	if (has_writer && (!(ctl->paused || peer->hold) || peer->quiet < QUIET_LOOKS))
		return;
	e->result = bpf_map_delete_elem(&socks, &slot);
	/* Its connection may have ended meanwhile. */
	__sync_val_compare_and_swap((__u32 *)&e->state, ACCEL_INSERTED, ACCEL_WATCHED);
	e->order = ACCEL_NOTHING;
	e->reinjection = ACCEL_REINJECT_NONE;
	e->fast = 0;
	/*
	 * While it was in the map FIONREAD may have denied TCP bytes, and an edge-triggered reader that believed it waits for an edge.
	 */
	if (bpf_core_cast(sk, struct tcp_sock)->rcv_nxt != bpf_core_cast(sk, struct tcp_sock)->copied_seq)
		e->spilled = 1;
}

/* The addresses of a socket as a lookup wants them; returns the size of the tuple. */
static __always_inline __u32 tuple_of(const struct accel_end *e, struct bpf_sock_tuple *tuple)
{
	bool mapped = !e->raddr[0] && !e->raddr[1] && e->raddr[2] == __builtin_bswap32(0xffff);

	if (e->family == 2 /* AF_INET */ || mapped) {
		tuple->ipv4.saddr = mapped ? e->raddr[3] : e->raddr[0];
		tuple->ipv4.daddr = mapped ? e->laddr[3] : e->laddr[0];
		tuple->ipv4.sport = __builtin_bswap16(e->rport);
		tuple->ipv4.dport = __builtin_bswap16(e->lport);
		return sizeof(tuple->ipv4);
	}
	for (int i = 0; i < 4; i++) {
		tuple->ipv6.saddr[i] = e->raddr[i];
		tuple->ipv6.daddr[i] = e->laddr[i];
	}
	tuple->ipv6.sport = __builtin_bswap16(e->rport);
	tuple->ipv6.dport = __builtin_bswap16(e->lport);
	return sizeof(tuple->ipv6);
}

/*
 * Inserts the socket in slot cb[0] into the map. It is looked up in the network namespace of the task that runs this, at the device of
 * the context, which user space sets to the one the socket is bound to.
 */
SEC("tc")
int insert(struct __sk_buff *skb)
{
	struct accel_control *ctl = get_control();
	struct bpf_sock_tuple tuple = {};
	__u32 slot = skb->cb[0];
	struct bpf_sock *found;
	struct accel_end *e;
	struct tcp_sock *tp;

	if (!ctl || !(e = get_end(slot)) || e->order != ACCEL_INSERT || e->state != ACCEL_WATCHED || e->ordered != e->cookie)
		return 0;
	if (tuple_of(e, &tuple) == sizeof(tuple.ipv4))
		found = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), (__u64)-1 /* of this namespace */, 0);
	else
		found = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), (__u64)-1 /* of this namespace */, 0);
	if (!found)
		return 0;
	tp = bpf_skc_to_tcp_sock(found);
	if (tp && (__u64)((struct sock *)tp)->__sk_common.skc_cookie.counter == e->cookie) {
		e->left = unfit(ctl, (struct sock *)tp);
		if (!e->left)
			e->result = bpf_map_update_elem(&socks, &slot, found, BPF_NOEXIST);
		if (!e->left && !e->result)
			e->state = ACCEL_INSERTED;
		e->order = ACCEL_NOTHING;
	}
	bpf_sk_release(found);
	return 0;
}

/* Frees the slot of a connection that is over when the map no longer names its socket. */
static __always_inline void recycle(struct accel_control *ctl, struct accel_end *e, __u32 slot)
{
	struct bpf_sock *still = bpf_map_lookup_elem(&socks, &slot);

	if (still)
		bpf_sk_release(still);
	else
		free_slot(ctl, e, slot, ACCEL_OVER);
}

static long look_at(__u64 i, __u32 *from)
{
	struct accel_control *ctl = get_control();
	const struct sk_psock *psock;
	__u32 slot = *from + i;
	struct accel_end *e, *peer;
	struct sock *sk;
	__u64 cookie;

	if (!ctl || !(e = get_end(slot)))
		return 1;
	cookie = e->cookie;
	if (!cookie) {
		if (e->state == ACCEL_OVER)
			recycle(ctl, e, slot);
		return 0;
	}
	sk = bpf_core_cast((void *)e->sk, struct sock);
	/* Gone without a change of state that was seen: before 6.12 an iterator could not ask for it. */
	if ((__u64)sk->__sk_common.skc_cookie.counter != cookie || sk->__sk_common.skc_refcnt.refs.counter <= 0) {
		forget(ctl, e, slot, cookie);
		return 0;
	}
	if (e->ordered != cookie)
		e->order = ACCEL_NOTHING;
	if (e->state == ACCEL_INSERTED && !e->inode && ((peer = get_end(e->peer)) && (e->flags | peer->flags) & ACCEL_SAW_SPLICE))
		e->inode = BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
	psock = psock_of(sk);
	e->queued = queued(psock);
	/* What another owner holds is never quiet by its references, and never writes to us. */
	if (e->left == ACCEL_FOREIGN && e->state == ACCEL_WATCHED)
		e->quiet++;
	else if (e->hold || ctl->paused)
		e->quiet = no_call_inside(ctl, sk, e->state == ACCEL_INSERTED) ? e->quiet + 1 : 0;
	else
		e->quiet = 0;
	if (e->order == ACCEL_REMOVE && e->state == ACCEL_INSERTED)
		remove_end(ctl, e, sk, slot);
	return 0;
}

/* Looks at the slots from cb[0] to cb[1]: orders to leave the map are carried out, queues looked at, what is over is freed. */
SEC("tc")
int look(struct __sk_buff *skb)
{
	__u32 from = skb->cb[0], to = skb->cb[1];

	if (from < to && to <= ACCEL_ENDS)
		bpf_loop(to - from, look_at, &from, 0);
	return 0;
}

#define SOL_SOCKET 1
#define SO_RCVLOWAT 18

/*
 * Rearms edge-triggered readers of one network namespace. One that took less than it asked for waits for the next edge. Where TCP
 * bytes lie behind redirected ones, its short read was the boundary and no edge comes; nor does one where FIONREAD denied TCP bytes.
 * Setting SO_RCVLOWAT, even to what it is, makes the kernel look for something to read and wake the waiters (tcp_set_rcvlowat).
 */
SEC("iter/tcp")
int rearm(struct bpf_iter__tcp *ctx)
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
