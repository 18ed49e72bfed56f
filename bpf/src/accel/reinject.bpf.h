/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A reader that begins to use splice(2) cannot see redirected bytes: tcp_splice_read() looks only at TCP's queue. User space
 * reinjects what is unread at that time into TCP, in order: it takes the bytes with a descriptor of the reader and sends them
 * with one of the writer.
 *
 * Order holds because all decisions fall under the writer's lock. What the writer sends in the meantime is redirected too, so
 * it lies behind what user space takes. Only when every redirected byte has been taken does a send of user space pass; that
 * send and nothing else is between the last redirected byte and what follows by TCP.
 *
 * What remains open: the reader's process itself, which was seen to splice, calls recv within these milliseconds and takes
 * bytes that follow those in user space's hand.
 */

/* How long a writer's bytes follow redirected ones while user space reinjects, and how many. Then the budget rules again. */
#define REINJECT_PATIENCE_NS 2000000000ULL
#define REINJECT_LIMIT (16 << 20)

/* The verdict for such a send when not all was taken: SK_DROP, which only user space sees, as EACCES. */
#define ACCEL_TAKE_MORE ACCEL_PASSES

/* Has every byte, by TCP and redirected, been taken by receive calls that were seen? */
static __always_inline bool all_taken(const struct accel_end *e, const struct accel_end *peer, const struct tcp_sock *to)
{
	return (__u32)peer->taken == to->copied_seq - peer->base + (__u32)e->bytes;
}

/* Where a message goes whose reader splices. */
static __always_inline enum accel_pass reinject(struct accel_control *ctl, struct accel_end *e, struct accel_end *peer,
						const struct tcp_sock *me, const struct tcp_sock *to, __u32 size)
{
	const struct sock *psk = (const struct sock *)to;
	/* Before the state, with a full barrier between: user space takes bytes only after it has changed that. */
	__u32 behind = queued(psock_of(psk));
	enum accel_reinjection state = __sync_fetch_and_add((__u32 *)&peer->reinjection, 0);
	__u64 now;

	if (state == ACCEL_REINJECT_DONE || state == ACCEL_REINJECT_FAILED)
		return ACCEL_SPLICE;
	if (state && ctl->reinjection_tgid == bpf_get_current_pid_tgid() >> 32) {
		if (state == ACCEL_REINJECT_TAKING && (behind || to->copied_seq != me->write_seq || !all_taken(e, peer, to)))
			return ACCEL_TAKE_MORE;
		peer->reinjection = size < peer->hand ? ACCEL_REINJECT_SENDING : ACCEL_REINJECT_DONE;
		peer->hand = size < peer->hand ? peer->hand - size : 0;
		return ACCEL_SPLICE;
	}
	if (!state && !behind)
		return ACCEL_SPLICE;
	/* TCP bytes are unread behind redirected ones, and there the reader finds them first: too late. */
	if (state != ACCEL_REINJECT_SENDING && to->copied_seq != me->write_seq)
		return ACCEL_ORDER;
	wake_helper(ctl);
	now = bpf_ktime_get_coarse_ns();
	if (!peer->reinjection_since)
		peer->reinjection_since = now;
	/* Scarce memory does not count here: ENOMEM for the writer is better than bytes that come too early. */
	if (now - peer->reinjection_since > REINJECT_PATIENCE_NS || psk->sk_backlog.rmem_alloc.counter > REINJECT_LIMIT)
		return ACCEL_BUDGET;
	return ACCEL_REDIRECT;
}

/* Never read: it makes the type known to user space. */
const volatile struct accel_holder holder_layout = {};

/* Who holds the tracked sockets. */
SEC("iter/task_file")
int holders(struct bpf_iter__task_file *ctx)
{
	struct accel_control *ctl = get_control();
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct accel_holder holder;
	struct socket *socket;
	struct sock *sk;

	if (!file || !task || !ctl)
		return 0;
	/* The process that asks is the one that will reinject. */
	ctl->reinjection_tgid = bpf_get_current_pid_tgid() >> 32;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !sk->sk_bpf_storage)
		return 0;
	holder.cookie = sk->__sk_common.skc_cookie.counter;
	holder.tgid = task->tgid;
	holder.fd = ctx->fd;
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}
