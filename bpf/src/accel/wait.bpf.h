/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who sleeps on a socket. */

#define MAX_SLEEPERS 8

/* Tasks that sleep in a blocking call on a socket. */
struct sleepers {
	int all;
	/* Those of them that may be in plain tcp_recvmsg or tcp_splice_read: only TCP bytes wake them from there. */
	int in_tcp;
	/* Those that wait for something to read in poll(2), select(2) or epoll. */
	int polling;
	/* There are more waiters than were looked at. */
	bool more;
};

static __always_inline bool sleeps_in_tcp(const struct accel_control *ctl, const struct wait_queue_entry *w)
{
	__u64 back = 0;

	/*
	 * The entry is a local variable of sk_wait_data(); at a fixed distance above it lies the address sk_wait_data()
	 * returns to. The same task sleeping in tcp_bpf_recvmsg() or in a send call has something else there.
	 */
	if (!ctl->frame_offset || bpf_probe_read_kernel(&back, sizeof(back), (void *)w + ctl->frame_offset))
		return true;
	for (int i = 0; i < ACCEL_NATIVE; i++)
		if (back >= ctl->native_from[i] && back < ctl->native_to[i])
			return true;
	return false;
}

#define POLLIN 1

/* Does a waiter, whose entry in the queue this is and that has this wake function, wait for something to read in poll(2) or epoll? */
static __always_inline bool polls_for_input(const struct accel_control *ctl, const void *entry, __u64 func)
{
	if (func == ctl->poll_function && bpf_core_field_exists(struct poll_table_entry, key)) {
		const struct poll_table_entry *polling;

		polling = bpf_core_cast(entry - bpf_core_field_offset(struct poll_table_entry, wait), struct poll_table_entry);
		return polling->key & POLLIN;
	}
	if (func == ctl->epoll_function && bpf_core_field_exists(struct epitem, event)) {
		const struct eppoll_entry *in_epoll;

		in_epoll = bpf_core_cast(entry - bpf_core_field_offset(struct eppoll_entry, wait), struct eppoll_entry);
		return in_epoll->base->event.events & POLLIN;
	}
	return false;
}

/* Walks over the socket's waiters; `where` says whether to find out where they sleep. */
static __always_inline struct sleepers find_sleepers(const struct accel_control *ctl, const struct sock *sk, bool where)
{
	const struct socket_wq *wq = sk->sk_wq;
	const struct list_head *head, *pos;
	struct sleepers found = {};

	head = __builtin_preserve_access_index(&wq->wait.head);
	pos = head->next;
	for (int i = 0; i < MAX_SLEEPERS && pos != head; i++) {
		void *entry = (void *)pos - bpf_core_field_offset(struct wait_queue_entry, entry);
		const struct wait_queue_entry *w = bpf_core_cast(entry, struct wait_queue_entry);

		if ((__u64)w->func == ctl->wake_function) {
			found.all++;
			if (where && sleeps_in_tcp(ctl, w))
				found.in_tcp++;
		} else if (polls_for_input(ctl, entry, (__u64)w->func)) {
			found.polling++;
		}
		pos = w->entry.next;
	}
	found.more = pos != head;
	return found;
}

/* How many tasks sleep in a blocking call on this socket? */
static __always_inline int count_sleepers(const struct accel_control *ctl, const struct sock *sk)
{
	return find_sleepers(ctl, sk, false).all;
}
