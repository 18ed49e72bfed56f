/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Readers. A socket gets redirected bytes only if every byte that it was given so far was taken by an ordinary receive
 * call: then its reader uses neither splice(2) nor TCP_ZEROCOPY_RECEIVE, which cannot see such bytes. The kernel says how
 * much each receive call took (tracepoint sock_recv_length), the socket how far TCP was consumed (copied_seq).
 */

#define MSG_PEEK 0x2
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ERRQUEUE 0x2000

/* Time of one request and its answer, seen at the client: from one answer to the next, with the server reading in between. */
static __always_inline void measure_cycle(struct accel_end *e, struct accel_end *peer)
{
	__u64 now, took, messages;
	__u32 i;

	if (e->peer_reads == (__u32)peer->reads)
		return;
	e->peer_reads = peer->reads;
	if ((++e->cycles & 7) == 0) {
		e->cycle_start = bpf_ktime_get_ns();
		e->cycle_messages = e->messages + peer->messages;
	} else if ((e->cycles & 7) == 1 && e->cycle_start) {
		now = bpf_ktime_get_ns();
		took = now - e->cycle_start;
		messages = e->messages + peer->messages - e->cycle_messages;
		if (took >> 32)
			return;
		i = e->samples++ & (ACCEL_SAMPLES - 1);
		if (!messages)
			e->before_ns[i] = took;
		else if (messages >= 2)
			e->after_ns[i] = took;
	}
}

/*
 * tcp_bpf_recvmsg() returns EAGAIN, also from a blocking call, whenever it was woken without data: by room in the send buffer,
 * by data that another task gets, by a reset, by a signal. The first two are ruled out by leaving sockets alone on which one
 * task sleeps while another works, the last two only by leaving sleeping readers alone.
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sk, int ret, int flags)
{
	struct accel_control *ctl;
	struct accel_end *e, *peer;
	struct conn *conn;
	struct sock *psk;

	if (!sk->sk_bpf_storage)
		return 0;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !conn->slot || !(e = get_end(conn->slot - 1)) || !(ctl = get_control()))
		return 0;
	/* The verdict has looked. */
	if (e->state == ACCEL_ENROLLED)
		return 0;
	if (count_sleepers(ctl, sk))
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_TWO_TASKS);
	if (!ctl->leave_blocking || !e->peer_cookie || !(peer = get_end(e->peer)))
		return 0;
	psk = bpf_core_cast((void *)peer->sk, struct sock);
	if (peer->cookie == e->peer_cookie && (__u64)psk->__sk_common.skc_cookie.counter == e->peer_cookie && count_sleepers(ctl, psk))
		__sync_fetch_and_or(&peer->flags, ACCEL_SAW_ASLEEP);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sk, int ret, int flags)
{
	struct accel_end *e, *peer;
	struct accel_control *ctl;
	struct conn *conn;
	__u32 *seen;
	__u64 reads;

	/* Sockets of others end here. */
	if (ret <= 0 || !sk->sk_bpf_storage)
		return 0;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	if (!conn || !conn->slot || !(e = get_end(conn->slot - 1)) || (flags & (MSG_PEEK | MSG_ERRQUEUE)))
		return 0;
	if (!(ctl = get_control()))
		return 0;
	if (flags & MSG_WAITALL)
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_WAITALL);
	/* It might have slept, and may next time. O_NONBLOCK has become MSG_DONTWAIT here. */
	if (!(flags & MSG_DONTWAIT) && ctl->leave_blocking && !(e->flags & ACCEL_SAW_ASLEEP)) {
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_ASLEEP);
		if (e->state == ACCEL_ENROLLED)
			ring(ctl);
	}
	/* Several tasks may read one socket. */
	__sync_fetch_and_add(&e->taken, ret);
	reads = __sync_fetch_and_add(&e->reads, 1) + 1;
	/* Not a short connection, it seems: its calls are worth observing. */
	if (reads == ctl->learn_reads && !ctl->observing)
		ring(ctl);
	if (e->learned < ctl->learn_reads && ctl->observing) {
		seen = bpf_map_lookup_elem(&peculiar, &e->cookie);
		if (seen)
			__sync_fetch_and_or(&e->flags, *seen);
		if (count_sleepers(ctl, sk))
			__sync_fetch_and_or(&e->flags, ACCEL_SAW_TWO_TASKS);
		if (++e->learned == ctl->learn_reads)
			ring(ctl);
	}
	if (e->role != ACCEL_SERVER && e->peer_cookie) {
		peer = get_end(e->peer);
		if (peer && peer->cookie == e->peer_cookie)
			measure_cycle(e, peer);
	}
	return 0;
}
