/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Is there memory for redirected bytes? */

/* Pages of 4 KiB that others may take between the look and the charge. */
#define MEMORY_SLACK 256
#define MEMORY_LEVELS 8

static __always_inline long read_long(const void *at)
{
	long value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), at);
	return value;
}

/*
 * Redirected bytes are charged to the reader (bpf_tcp_ingress, __sk_mem_raise_allocated). Where TCP would close its window, drop and
 * try again, a charge that fails gives the writer ENOMEM. So: not when TCP as a whole comes near pressure, nor when a control group
 * (v1) has a limit of its own for TCP and comes near it; the charge to a v2 group reclaims, and waits.
 */
static __always_inline bool memory_is_tight(const struct sock *psk, __u32 size)
{
	long pages = MEMORY_SLACK + (size >> 12);
	const struct page_counter *group;
	const struct mem_cgroup *memcg;
	const struct proto *prot;

	if (psk->sk_forward_alloc >= (int)size)
		return false;
	prot = psk->__sk_common.skc_prot;
	if (read_long(prot->memory_allocated) + pages > read_long(prot->sysctl_mem))
		return true;
	memcg = psk->sk_memcg;
	if (!memcg || !bpf_core_field_exists(memcg->tcpmem) || !memcg->tcpmem_active)
		return false;
	group = &memcg->tcpmem;
	for (int i = 0; i < MEMORY_LEVELS && group; i++) {
		if (group->usage.counter + pages > (long)group->max)
			return true;
		group = group->parent;
	}
	return false;
}
