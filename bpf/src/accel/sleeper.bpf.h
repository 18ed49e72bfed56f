/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the stack of a task that sleeps in a receive call looks like on this kernel: read once, from a socket of the helper. */

SEC("iter/tcp")
int show_sleeper(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct accel_sleeper *found;
	const struct socket_wq *wq;
	const struct list_head *head, *pos;
	const struct wait_queue_entry *w;
	struct tcp_sock *tp;
	__u32 zero = 0;

	if (!skc || skc->skc_state != BPF_TCP_ESTABLISHED || !(tp = bpf_skc_to_tcp_sock(skc)))
		return 0;
	wq = ((struct sock *)tp)->sk_wq;
	head = __builtin_preserve_access_index(&wq->wait.head);
	pos = head->next;
	found = bpf_map_lookup_elem(&sleeper, &zero);
	if (!found || pos == head)
		return 0;
	w = bpf_core_cast((void *)pos - bpf_core_field_offset(struct wait_queue_entry, entry), struct wait_queue_entry);
	if (bpf_probe_read_kernel(found->stack, sizeof(found->stack), w))
		return 0;
	found->wake_function = (__u64)w->func;
	return 0;
}
