/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Puts one observation into the ring buffer. */
#ifndef SOCKPATH_TRACE_EMIT_H
#define SOCKPATH_TRACE_EMIT_H

#define UNSET 0xffff
/* x86-64 and arm64, without KASAN. */
#define THREAD_SIZE 16384

/*
 * Softirqs run on a stack of their own, and the context of a program lies on the stack it was called on. (The preempt
 * counter would say it directly, but kernels without KALLSYMS_ALL do not let a program find it.) ksoftirqd serves them on
 * its task's stack: user space knows it by its name.
 */
static __always_inline bool in_softirq(__u64 ctx_address)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return ctx_address - (__u64)task->stack >= THREAD_SIZE;
}

static __always_inline struct trace_event *reserve(enum trace_hook hook, void *ctx)
{
	struct trace_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		COUNT(lost_events);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->at = bpf_ktime_get_ns();
	e->hook = hook;
	e->cpu = bpf_get_smp_processor_id();
	/* The verifier knows a pointer as a number once it has been through memory. */
	*(void *volatile *)&e->location = ctx;
	if (in_softirq(*(volatile __u64 *)&e->location)) {
		e->flags = TRACE_F_SOFTIRQ;
	} else {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		/* Netfilter programs have no bpf_get_current_comm() before 6.16. */
		bpf_probe_read_kernel(e->comm, sizeof(e->comm), bpf_get_current_task_btf()->comm);
	}
	e->location = 0;
	return e;
}

static __always_inline void submit(struct trace_event *e)
{
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

static __always_inline void put_tuple(struct trace_event *e, const struct tuple *t)
{
	__builtin_memcpy(e->saddr, t->src, 16);
	__builtin_memcpy(e->daddr, t->dst, 16);
	e->sport = t->sport;
	e->dport = t->dport;
	e->protocol = t->protocol;
}

/* What is noted of an sk_buff's layout. */
struct layout {
	__u32 len;
	__u32 end;
	__u16 mac;
	__u16 network;
	__u16 transport;
};

static __always_inline void put_layout(struct trace_event *e, const struct layout *l, __u64 head)
{
	struct skb_shared_info *shared = (void *)(head + l->end);

	e->object = head;
	e->len = l->len;
	e->mac = l->mac;
	e->network = l->network;
	e->transport = l->transport;
	if (e->mac != UNSET)
		e->flags |= TRACE_F_MAC_SET;
	if (e->transport != UNSET)
		e->flags |= TRACE_F_TRANSPORT_SET;
	bpf_probe_read_kernel(&e->segments, sizeof(e->segments), &shared->gso_segs);
}

static __always_inline void put_skb(struct trace_event *e, const struct sk_buff *skb, __u64 head)
{
	struct layout l = {
		.len = skb->len,
		.end = skb->end,
		.mac = skb->mac_header,
		.network = skb->network_header,
		.transport = skb->transport_header,
	};

	put_layout(e, &l, head);
}

#define NFCT_INFO 7ul

/* What rules see of a packet besides its headers. */
static __always_inline void put_facts(struct trace_event *e, const struct sk_buff *skb)
{
	const struct nf_conn *conn;
	unsigned long nfct, status = 0;

	e->mark = skb->mark;
	if (!bpf_core_field_exists(skb->_nfct))
		return;
	nfct = skb->_nfct;
	e->ct = TRACE_CT_READ | (nfct & NFCT_INFO);
	conn = (const void *)(nfct & ~NFCT_INFO);
	if (!conn)
		return;
	e->ct |= TRACE_CT_HAS;
	if (!bpf_core_type_exists(struct nf_conn))
		return;
	bpf_probe_read_kernel(&status, sizeof(status), &conn->status);
	e->ct_status = status;
	if (bpf_core_field_exists(conn->mark))
		bpf_probe_read_kernel(&e->ct_mark, sizeof(e->ct_mark), &conn->mark);
}

static __always_inline void put_view(struct trace_event *e, const struct view *v)
{
	put_tuple(e, &v->t);
	e->seq = v->seq;
	e->ack = v->ack;
	e->payload = v->payload;
	e->kind = v->kind;
	e->flags |= v->flags;
}

#endif
