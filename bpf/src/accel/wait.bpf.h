/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who sleeps on a socket. */

#define MAX_SLEEPERS 8

/* How many tasks sleep in a blocking call on this socket? */
static __always_inline int count_sleepers(const struct accel_control *ctl, const struct sock *sk)
{
	const struct socket_wq *wq = sk->sk_wq;
	const struct list_head *head, *pos;
	int n = 0;

	head = __builtin_preserve_access_index(&wq->wait.head);
	pos = head->next;
	for (int i = 0; i < MAX_SLEEPERS && pos != head; i++) {
		const struct wait_queue_entry *w;

		w = bpf_core_cast((void *)pos - bpf_core_field_offset(struct wait_queue_entry, entry), struct wait_queue_entry);
		if ((__u64)w->func == ctl->wake_function)
			n++;
		pos = w->entry.next;
	}
	return n;
}

