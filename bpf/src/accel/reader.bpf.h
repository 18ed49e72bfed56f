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

#define ACCEL_FOR_GOOD \
	(ACCEL_SAW_WAITALL | ACCEL_SAW_SPLICE | ACCEL_SAW_FIONREAD | ACCEL_SAW_ASLEEP | ACCEL_SAW_TWO_TASKS | ACCEL_SAW_OOB | \
	 ACCEL_PROGRAM_UNPROVEN)

/* Observed reads of one whose calls may sleep, and that was never seen to wait, neither in them nor elsewhere. */
#define UNDECIDED 1024

/*
 * Was enough observed to know how this socket is read? That a call which may sleep found data at once says little: a reader that is
 * behind its writer finds some for a while. It has to have been seen waiting elsewhere.
 */
static __always_inline bool is_profiled(const struct accel_control *ctl, const struct accel_end *e)
{
	if (e->profiled < ctl->profile_reads)
		return false;
	return !ctl->leave_blocking || !(e->flags & ACCEL_MAY_SLEEP) || e->polled >= ctl->profile_polls;
}

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
 * task sleeps while another works, the last two only by leaving sleeping readers alone. A call that may sleep does no harm as
 * long as it never has to: its caller knew, from poll(2) for instance, that there is something to read.
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(sent, struct sock *sk, int ret, int flags)
{
	struct accel_control *ctl;
	struct accel_end *e;

	if (!(e = end_of(sk)) || !(ctl = get_control()))
		return 0;
	/* The verdict has looked. */
	if (e->state == ACCEL_INSERTED)
		return 0;
	if (count_sleepers(ctl, sk))
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_TWO_TASKS);
	return 0;
}

/*
 * Data has come and its reader is about to be woken: a task that waits for it inside a receive call, or in poll(2) or epoll, is
 * still in the socket's wait queue. Once a socket is in the map the verdict, too, looks there for sleepers before each message.
 */
SEC("tp_btf/sk_data_ready")
int BPF_PROG(arrived, const struct sock *arg)
{
	struct sock *sk = (struct sock *)arg;
	struct accel_control *ctl;
	struct sleepers waiters;
	struct accel_end *e;

	if (!(e = end_of(sk)) || !(ctl = get_control()))
		return 0;
	/* Those whose calls never sleep may have a sender that does. */
	if (!(e->flags & ACCEL_MAY_SLEEP) || (e->flags & ACCEL_SAW_ASLEEP) || e->polled >= ctl->profile_polls)
		return 0;
	waiters = find_sleepers(ctl, sk, false);
	if (waiters.all)
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_ASLEEP);
	else if (waiters.polling && ++e->polled == ctl->profile_polls)
		wake_helper(ctl);
	return 0;
}

/* Identifies the file of a program while the machine runs. */
static __always_inline __u64 program_of(const struct file *exe)
{
	return BPF_CORE_READ(exe, f_inode, i_ino) ^ (__u64)BPF_CORE_READ(exe, f_inode, i_sb, s_dev) << 32;
}

/* The file of the program that runs; NULL for tasks of the kernel. */
static __always_inline struct file *current_exe(void)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return task->mm ? BPF_CORE_READ(task, mm, exe_file) : NULL;
}

/* Notes whose program reads the socket: what a program may ask decides, not what it has asked on this connection so far. */
static __always_inline void note_reader(struct accel_control *ctl, struct accel_end *e)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 program;
	struct file *exe;

	/* execve(2) changes the memory, fork(2) the process, too. */
	if (e->reader_mm == (__u64)task->mm && e->reader_tgid == (__u32)task->tgid)
		return;
	if (!(exe = current_exe()))
		return;
	program = program_of(exe);
	bpf_probe_read_kernel_str(e->program_name, sizeof(e->program_name), BPF_CORE_READ(exe, f_path.dentry, d_name.name));
	e->program = program;
	e->reader_mm = (__u64)task->mm;
	e->reader_tgid = task->tgid;
	if (bpf_map_lookup_elem(&programs, &program))
		__sync_fetch_and_or(&e->flags, ACCEL_PROGRAM_ASKS);
	barrier();
	/* The verifier lets pointers be stored and compared, but no number be added to one that it knows as a pointer: it is read back. */
	e->reader = *(volatile __u64 *)&e->reader_mm + e->reader_tgid;
	if (e->state == ACCEL_INSERTED)
		wake_helper(ctl);
}

/* Reads between two counts, this one included, were not observed: they are left out of the sum. */
static __always_inline void go_on_counting(const struct accel_control *ctl, struct accel_end *e, const struct sock *sk)
{
	struct accel_end *peer = get_end(e->peer);

	e->counted = ctl->counting;
	e->base = bpf_core_cast(sk, struct tcp_sock)->copied_seq - (__u32)e->taken;
	if (peer && e->peer_cookie && peer->cookie == e->peer_cookie)
		e->base += (__u32)peer->bytes;
	e->cycles = 0;
	e->cycle_start = 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(received, struct sock *sk, int ret, int flags)
{
	struct accel_end *e, *peer;
	struct accel_control *ctl;
	__u32 *seen, observed, zero = 0;
	__u64 reads, *all;

	all = bpf_map_lookup_elem(&calls, &zero);
	if (all)
		++*all;
	if (ret <= 0 || !(e = end_of(sk)) || (flags & (MSG_PEEK | MSG_ERRQUEUE)))
		return 0;
	/* What was seen of this reader keeps it out of the map for good: nothing more has to be known. */
	if ((e->flags & ACCEL_FOR_GOOD) && e->state != ACCEL_INSERTED)
		return 0;
	/* Between two counts this may run for a moment: the kernel detaches it late. */
	if (!(ctl = get_control()) || !ctl->counting)
		return 0;
	/* Nothing is observed of a socket before its program is known to be one that may go into the map. */
	if (ctl->selective && !e->reader)
		note_reader(ctl, e);
	if (flags & MSG_WAITALL)
		__sync_fetch_and_or(&e->flags, ACCEL_SAW_WAITALL);
	/* As long as a pair is in the map the count does not end. */
	if (e->counted != ctl->counting && e->state != ACCEL_INSERTED) {
		go_on_counting(ctl, e, sk);
		return 0;
	}
	observed = ctl->observing;
	/* It might have slept, and may next time. O_NONBLOCK has become MSG_DONTWAIT here. */
	if (!(flags & MSG_DONTWAIT) && ctl->leave_blocking) {
		if (!(e->flags & ACCEL_MAY_SLEEP))
			__sync_fetch_and_or(&e->flags, ACCEL_MAY_SLEEP);
		if (e->state != ACCEL_INSERTED && !ctl->observing_arrivals)
			observed = 0;
	}
	/* A socket in the map has been profiled before. */
	if (observed && e->epoch != observed && e->state != ACCEL_INSERTED) {
		e->epoch = observed;
		e->profiled = 0;
		e->polled = 0;
	}
	if (!(e->flags & ACCEL_ANSWERED) && bpf_core_cast(sk, struct tcp_sock)->bytes_sent)
		__sync_fetch_and_or(&e->flags, ACCEL_ANSWERED);
	/* Several tasks may read one socket. */
	__sync_fetch_and_add(&e->taken, ret);
	reads = __sync_fetch_and_add(&e->reads, 1) + 1;
	/* Not a short connection, it seems: its calls are worth observing. */
	if (reads == ctl->profile_reads && !observed)
		wake_helper(ctl);
	if (e->state == ACCEL_INSERTED || (observed && !is_profiled(ctl, e)))
		note_reader(ctl, e);
	if (observed && !is_profiled(ctl, e)) {
		seen = bpf_map_lookup_elem(&unsupported, &e->cookie);
		if (seen)
			__sync_fetch_and_or(&e->flags, *seen);
		if (count_sleepers(ctl, sk))
			__sync_fetch_and_or(&e->flags, ACCEL_SAW_TWO_TASKS);
		if (++e->profiled == ctl->profile_reads)
			wake_helper(ctl);
		if (e->profiled >= UNDECIDED && !e->polled && e->state != ACCEL_INSERTED)
			__sync_fetch_and_or(&e->flags, ACCEL_SAW_ASLEEP);
	}
	if (e->role != ACCEL_SERVER && e->peer_cookie) {
		peer = get_end(e->peer);
		if (peer && peer->cookie == e->peer_cookie)
			measure_cycle(e, peer);
	}
	return 0;
}
