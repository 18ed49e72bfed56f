/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Kernel objects as plain read-only memory. A hook's arguments are trusted pointers, and for each load of a pointer
 * through one the verifier searches all of the kernel's BTF for lists of safe fields: 40 % of the time to load these
 * programs. We only ever read, so nothing is lost. The call itself costs nothing: the verifier turns it into a move.
 */
#ifndef SOCKPATH_TRACE_CAST_H
#define SOCKPATH_TRACE_CAST_H

/*
 * Whether the kernel has the function (6.2+), set before load; without it the pointers stay as they are. Not found out by its
 * address: kernels before 6.4 refuse programs that take the address of a kernel function.
 */
const volatile bool can_cast;

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

#define AS(type, pointer)										\
	((const struct type *)(can_cast ? bpf_rdonly_cast((pointer), bpf_core_type_id_kernel(struct type))	\
					: (const void *)(pointer)))

/* These two as numbers: newer verifiers know them as pointers to memory, which cannot be keys or arguments. */
static __always_inline __u64 head_of(const struct sk_buff *skb)
{
	__u64 head = 0;

	bpf_probe_read_kernel(&head, sizeof(head), &skb->head);
	return head;
}

static __always_inline __u64 data_of(const struct sk_buff *skb)
{
	__u64 data = 0;

	bpf_probe_read_kernel(&data, sizeof(data), &skb->data);
	return data;
}

#endif
