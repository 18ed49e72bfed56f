/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Each message: to the peer's queue, or by TCP. */

#define SEND_SHUTDOWN 2
#define RCV_SHUTDOWN 1
#define SOCK_ZEROCOPY_BIT (1UL << 18)
static __always_inline void flag_unsupported(struct accel_control *ctl, struct accel_end *e)
{
	__u32 *seen;

	if (e->unsupported == ctl->unsupported)
		return;
	e->unsupported = ctl->unsupported;
	seen = bpf_map_lookup_elem(&unsupported, &e->cookie);
	if (seen)
		__sync_fetch_and_or(&e->flags, *seen);
}

/*
 * Has the lease run out? The coarse clock advances with the jiffies, which cost nothing to read: it is read once for each. An end
 * that is set earlier meanwhile is seen at the next one.
 */
static __always_inline bool lease_is_over(struct accel_control *ctl)
{
	__u64 jiffies = bpf_jiffies64();

	if (ctl->lease_seen == jiffies)
		return false;
	if (bpf_ktime_get_coarse_ns() > ctl->deadline_ns)
		return true;
	ctl->lease_seen = jiffies;
	return false;
}

/* Why a pair that could be redirected should not be. */
static __always_inline enum accel_pass objection(struct accel_control *ctl, struct accel_end *e, struct accel_end *peer,
						 const struct sock *sk, const struct sock *psk)
{
	if (ctl->paused || e->hold)
		return ACCEL_PAUSED;
	if (sk->__sk_common.skc_flags & SOCK_ZEROCOPY_BIT)
		return ACCEL_ZEROCOPY;
	if (psk->sk_rcvlowat > 1)
		return ACCEL_RCVLOWAT;
	if (peer->flags & ACCEL_SAW_WAITALL)
		return ACCEL_WAITALL;
	return ACCEL_REDIRECT;
}

/*
 * May this message overtake TCP? The verdict runs under the writer's lock, so what it sees of the writer stays true; what it
 * sees of the reader can only become more true (TCP bytes get consumed), or is looked at again for the next message.
 */
static __always_inline enum accel_pass gate(struct accel_control *ctl, struct accel_end *e, struct tcp_sock *me, __u32 size)
{
	struct sock *sk = (struct sock *)me;
	struct accel_end *peer;
	enum accel_pass why;
	struct tcp_sock *to;
	struct sock *psk;
	struct sleepers readers;
	__u32 behind, room;

	peer = get_end(e->peer);
	if (!peer)
		return ACCEL_NO_PEER;
	to = bpf_core_cast((void *)peer->sk, struct tcp_sock);
	psk = (struct sock *)to;
	/* Socket memory is reused as socket memory only, so this read is sound, and the cookie says whose it is. */
	if (peer->cookie != e->peer_cookie || peer->peer_cookie != e->cookie || (__u64)psk->__sk_common.skc_cookie.counter != e->peer_cookie)
		return ACCEL_PEER_GONE;
	if (peer->state != ACCEL_INSERTED)
		return ACCEL_NO_PEER;
	/* TCP refuses such a write, or answers it with a reset: let it. */
	if ((sk->sk_shutdown & SEND_SHUTDOWN) || (psk->sk_shutdown & RCV_SHUTDOWN))
		return ACCEL_PEER_GONE;
	if (me->inet_conn.icsk_ulp_ops || to->inet_conn.icsk_ulp_ops)
		return ACCEL_ULP;
	flag_unsupported(ctl, e);
	flag_unsupported(ctl, peer);
	if (peer->flags & ACCEL_SAW_SPLICE)
		return reinject(ctl, e, peer, me, to, size);
	if (e->flags & ACCEL_SAW_OOB)
		return ACCEL_URGENT;
	/* Another task sleeps on this socket. A redirect needs no room in the send buffer, so it goes on until the pair has left. */
	if (count_sleepers(ctl, sk))
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_TWO_TASKS);
	/* The reader sleeps where a signal wakes it with EAGAIN. This message wakes it properly; the pair has to leave. */
	if (ctl->leave_blocking && !(peer->flags & ACCEL_SAW_ASLEEP) && count_sleepers(ctl, psk)) {
		__sync_fetch_and_or(&peer->flags, ACCEL_SAW_ASLEEP);
		wake_helper(ctl);
	}
	if (!no_order_gate && to->copied_seq != me->write_seq)
		return ACCEL_ORDER;
	behind = queued(psock_of(psk));
	why = objection(ctl, e, peer, sk, psk);
	/*
	 * Without a lease there may be no helper to rearm an edge-triggered reader at the boundary between redirected bytes and TCP
	 * bytes: go over to TCP while nothing is unread, if that ever comes before the budget is used up.
	 */
	if (!why && lease_is_over(ctl) && !(e->fast && behind))
		why = ACCEL_LEASE;
	/*
	 * Redirected bytes count as the reader's receive memory. Beyond half of its buffer TCP's own bytes would find no room behind
	 * them, be dropped and wait for a retransmission timer.
	 */
	room = (__u32)psk->sk_rcvbuf / 2;
	if (room > ctl->budget)
		room = ctl->budget;
	if (!why && (__u32)psk->sk_backlog.rmem_alloc.counter + size > room)
		why = ACCEL_BUDGET;
	if (!why && memory_is_tight(ctl, psk, size))
		why = ACCEL_MEMORY;
	if (why && behind) {
		peer->spilled = 1;
		wake_helper(ctl);
	}
	if (why || e->fast)
		return why;
	/* From TCP to redirection: only now can a reader be where redirected bytes do not reach it. */
	if (!is_profiled(ctl, peer))
		return ACCEL_LEARNING;
	if (peer->flags & (ACCEL_SAW_FIONREAD | ACCEL_PROGRAM_ASKS))
		return ACCEL_FIONREAD;
	if (to->urg_data)
		return ACCEL_URGENT;
	/* Every byte, by TCP and redirected, has been taken by receive calls that were seen. That implies order: tests drop both. */
	if (!no_order_gate && !all_taken(e, peer, to))
		return ACCEL_UNACCOUNTED;
	readers = find_sleepers(ctl, psk, true);
	if (readers.all > 1) {
		__sync_fetch_and_or(&peer->flags, ACCEL_SAW_TWO_TASKS);
		return ACCEL_TWO_TASKS;
	}
	return readers.in_tcp || readers.more || !ctl->wake_function ? ACCEL_READERS : ACCEL_REDIRECT;
}

SEC("sk_msg")
int verdict(struct sk_msg_md *msg)
{
	struct accel_control *ctl;
	struct bpf_sock *sk = msg->sk;
	struct accel_end *e;
	struct tcp_sock *me;
	struct conn *conn;
	enum accel_pass why;

	if (!sk || !(ctl = get_control()))
		return SK_PASS;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !conn->slot || !(e = get_end(conn->slot - 1)))
		return SK_PASS;
	/* Only TCP sockets are ever put into the map: no call is needed to know that it is one. */
	me = bpf_core_cast((void *)sk, struct tcp_sock);
	why = gate(ctl, e, me, msg->size);
	if (why == ACCEL_REDIRECT) {
		if (bpf_msg_redirect_map(msg, &socks, e->peer, BPF_F_INGRESS) == SK_PASS) {
			e->fast = 1;
			e->messages++;
			e->bytes += msg->size;
			return SK_PASS;
		}
		why = ACCEL_PEER_GONE;
	}
	if (why == ACCEL_TAKE_MORE)
		return SK_DROP;
	/* SK_DROP would give the writer EACCES; TCP knows what to answer. */
	e->fast = 0;
	e->pass_bytes += msg->size;
	e->last_pass = why;
	if (why < ACCEL_PASSES)
		e->passes[why]++;
	return SK_PASS;
}
