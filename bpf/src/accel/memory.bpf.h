/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Is there memory for redirected bytes? */

/* Pages of 4 KiB that others may take between the look and the charge. */
#define MEMORY_SLACK 256
#define MEMORY_LEVELS 8

/*
 * Pages from which on TCP is economical (net.ipv4.tcp_mem). No type leads there, so it takes a probe read, which costs as much as all
 * the rest of a verdict: done once for each jiffy.
 */
static __always_inline long memory_limit(struct accel_control *ctl, const struct proto *prot)
{
	__u64 jiffies = bpf_jiffies64();
	long limit = 0;

	if (ctl->memory_limit_seen == jiffies)
		return ctl->memory_limit;
	bpf_probe_read_kernel(&limit, sizeof(limit), prot->sysctl_mem);
	ctl->memory_limit = limit;
	barrier();
	ctl->memory_limit_seen = jiffies;
	return limit;
}

/*
 * Redirected bytes are charged to the reader (bpf_tcp_ingress, __sk_mem_raise_allocated). Where TCP would close its window, drop and
 * try again, a charge that fails gives the writer ENOMEM. So: not when TCP as a whole comes near pressure, nor when a control group
 * (v1) has a limit of its own for TCP and comes near it; the charge to a v2 group reclaims, and waits.
 */
static __always_inline bool memory_is_tight(struct accel_control *ctl, const struct sock *psk, __u32 size)
{
	long pages = MEMORY_SLACK + (size >> 12);
	const struct page_counter *group;
	const struct mem_cgroup *memcg;
	const struct proto *prot;

	if (psk->sk_forward_alloc >= (int)size)
		return false;
	prot = psk->__sk_common.skc_prot;
	if (prot->memory_allocated->counter + pages > memory_limit(ctl, prot))
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
