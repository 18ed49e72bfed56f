/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls that write, and bytes that go socket to socket: a sockmap's verdict puts them into the peer's queue within the writer's system call, and no
 * packet exists. Seen are the call's begin, the reader's being woken from within it, and the end of the reader's call. The
 * verdict itself is a BPF program, which no tracepoint shows. Attached only while the pair may be accelerated or has sent datagrams.
 */
#ifndef SOCKPATH_TRACE_BYPASS_H
#define SOCKPATH_TRACE_BYPASS_H

#if defined(__TARGET_ARCH_x86)
#define NR_WRITE 1
#define NR_WRITEV 20
#define NR_SENDTO 44
#define NR_SENDMSG 46
#define NR_SENDMMSG 307
#elif defined(__TARGET_ARCH_arm64)
#define NR_WRITE 64
#define NR_WRITEV 66
#define NR_SENDTO 206
#define NR_SENDMSG 211
#define NR_SENDMMSG 269
#else
#error "system call numbers of this architecture are not known"
#endif

/* Low bits of sk_user_data (include/net/sock.h). */
#define SK_USER_DATA_PSOCK 4
#define SK_USER_DATA_FLAGS 7

/* Calls that write, by the task that makes them. */
struct sending_call {
	__u64 at;
	/* as find_net gives it */
	__u32 net;
	/* TCP took its bytes, or they have been reported. */
	__u32 done;
	/* The verifier knows a pointer as a number once it has been through memory. */
	void *context;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct sending_call);
} sending_calls SEC(".maps");

/* Recorded messages that their reader has not taken yet, by its socket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} bypassed SEC(".maps");

SEC("tp_btf/sys_enter")
int BPF_PROG(system_call, struct pt_regs *regs, long id)
{
	struct task_struct *task;
	struct sending_call call = {};
	struct nsproxy *proxy;
	struct net *net;
	__u32 inum;
	__u64 key;

	if (id != NR_WRITE && id != NR_WRITEV && id != NR_SENDTO && id != NR_SENDMSG && id != NR_SENDMMSG)
		return 0;
	task = bpf_get_current_task_btf();
	if (bpf_probe_read_kernel(&proxy, sizeof(proxy), &task->nsproxy) || !proxy ||
	    bpf_probe_read_kernel(&net, sizeof(net), &proxy->net_ns) || !net ||
	    bpf_probe_read_kernel(&inum, sizeof(inum), &net->ns.inum))
		return 0;
	call.net = find_inum(inum);
	if (!call.net)
		return 0;
	call.at = bpf_ktime_get_ns();
	key = bpf_get_current_pid_tgid();
	bpf_map_update_elem(&sending_calls, &key, &call, BPF_ANY);
	return 0;
}

/* The call that this task is in has handed bytes to TCP. */
static __always_inline void goes_by_tcp(void)
{
	__u64 key = bpf_get_current_pid_tgid();
	struct sending_call *call = bpf_map_lookup_elem(&sending_calls, &key);

	if (call)
		call->done = 1;
}

/* Bytes of the message in the socket's sockmap queue; 0 when there is not exactly one, and nothing of TCP's. */
static __always_inline __u32 only_message(const struct sock *sk)
{
	__u64 data = 0, first = 0, last = 0, head;
	const struct sk_psock *psock;
	__u32 size = 0;

	bpf_probe_read_kernel(&data, sizeof(data), &sk->sk_user_data);
	if (!(data & SK_USER_DATA_PSOCK) || sk->sk_receive_queue.qlen)
		return 0;
	psock = (void *)(data & ~(__u64)SK_USER_DATA_FLAGS);
	head = (__u64)&psock->ingress_msg;
	bpf_probe_read_kernel(&first, sizeof(first), &psock->ingress_msg.next);
	bpf_probe_read_kernel(&last, sizeof(last), &psock->ingress_msg.prev);
	if (!first || first != last || first == head)
		return 0;
	first -= bpf_core_field_offset(struct sk_msg, list);
	bpf_probe_read_kernel(&size, sizeof(size), &((const struct sk_msg *)first)->sg.size);
	return size;
}

static __always_inline void bypass_event(void *ctx, const struct tuple *t, enum trace_hook hook, __u32 id, __u32 net, __u32 len, __u64 at)
{
	struct trace_event *e = reserve(hook, ctx);

	if (!e)
		return;
	if (at)
		e->at = at;
	e->id = id;
	e->netns = net_at(net)->inum;
	e->len = len;
	e->payload = len;
	put_tuple(e, t);
	submit(e);
}

/*
 * A datagram is sent from within the call that writes it. (TCP has a hook of its own, which knows the sequence number; its
 * segments may leave in any context.)
 */
static __always_inline void call_of_datagram(void *ctx, const struct view *v, __u32 id)
{
	__u64 key = bpf_get_current_pid_tgid();
	struct sending_call *call;

	if (!calls_watched || v->t.protocol == PROTO_TCP)
		return;
	call = bpf_map_lookup_elem(&sending_calls, &key);
	if (!call || call->done)
		return;
	call->done = 1;
	bypass_event(ctx, &v->t, TRACE_WRITE_CALL, id, call->net, v->payload, call->at);
}

/* From the writer to the reader, whose socket this is. */
static __always_inline bool to_the_reader(struct tuple *t, const struct sock *sk)
{
	struct tuple back;

	if (!socket_tuple(&back, sk))
		return false;
	t->src[0] = back.dst[0];
	t->src[1] = back.dst[1];
	t->dst[0] = back.src[0];
	t->dst[1] = back.src[1];
	t->sport = back.dport;
	t->dport = back.sport;
	t->protocol = back.protocol;
	t->pad = 0;
	return back.protocol == PROTO_TCP;
}

/* A reader is woken in the context of a task that writes: what it wrote is in the reader's queue already. */
static __noinline int woken_by_its_writer(const struct sock *sk, void *ctx)
{
	__u64 task = bpf_get_current_pid_tgid(), key;
	struct sending_call *call;
	struct view v = {};
	__u32 net, size, id;

	call = bpf_map_lookup_elem(&sending_calls, &task);
	if (!call || call->done || !armed)
		return 0;
	*(void *volatile *)&call->context = ctx;
	if (in_softirq(*(volatile __u64 *)&call->context))
		return 0;
	net = find_net(sk->__sk_common.skc_net.net);
	if (!net)
		return 0;
	size = only_message(sk);
	if (!to_the_reader(&v.t, sk) || !of_the_pair(&v.t))
		return 0;
	call->done = 1;
	COUNT(matched);
	pair_packets++;
	v.payload = size;
	v.seq = pair_packets;
	if (!size || resting == TRACE_PAUSED || !within_rate(&v)) {
		COUNT(sampled_out);
		return 0;
	}
	id = __sync_fetch_and_add(&last_id, 1) + 1;
	__sync_fetch_and_add(&window_recorded, 1);
	COUNT(recorded);
	key = (__u64)sk;
	bpf_map_update_elem(&bypassed, &key, &id, BPF_ANY);
	bypass_event(ctx, &v.t, TRACE_WRITE_CALL, id, call->net, size, call->at);
	bypass_event(ctx, &v.t, TRACE_BYPASS_READY, id, net, size, 0);
	return 1;
}

static __always_inline void bypass_read(void *ctx, const struct sock *sk, __u32 len)
{
	__u64 key = (__u64)sk;
	struct tuple t;
	__u32 net, *id;

	id = bpf_map_lookup_elem(&bypassed, &key);
	if (!id)
		return;
	net = find_net(sk->__sk_common.skc_net.net);
	if (net && to_the_reader(&t, sk))
		bypass_event(ctx, &t, TRACE_BYPASS_READ, *id, net, len, 0);
	bpf_map_delete_elem(&bypassed, &key);
}

#endif
