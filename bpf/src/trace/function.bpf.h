/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Stages that no tracepoint shows, at the functions of the kernel that do the work: by fentry and fexit, or by kprobe where
 * trampolines are missing. User space loads one program of each pair at most. A kprobe's arguments are numbers, so all reads here
 * are by bpf_probe_read_kernel().
 */
#ifndef SOCKPATH_TRACE_FUNCTION_H
#define SOCKPATH_TRACE_FUNCTION_H

#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

#if defined(__TARGET_ARCH_x86)
#define REGISTER_1(r) ((r)->di)
#define REGISTER_2(r) ((r)->si)
#define REGISTER_3(r) ((r)->dx)
#elif defined(__TARGET_ARCH_arm64)
#define REGISTER_1(r) ((r)->user_regs.regs[0])
#define REGISTER_2(r) ((r)->user_regs.regs[1])
#define REGISTER_3(r) ((r)->user_regs.regs[2])
#endif

/* Where a function was seen, and how. */
struct seen {
	enum trace_hook hook;
	enum trace_attach attach;
	/* It may be where packets begin. */
	bool output;
	/* as trace_event.arg */
	__u32 arg;
};

#define SEEN(hook_, attach_) (&(struct seen){ .hook = (hook_), .attach = (attach_) })

static __always_inline bool watches(void)
{
	return armed && resting == TRACE_WATCHING;
}

static __always_inline __u32 net_by_address(const struct net *net)
{
	__u32 inum = 0;

	READ(inum, net->ns.inum);
	return inum ? find_inum(inum) : 0;
}

static __always_inline const struct net *net_of_socket(const struct sock *sk)
{
	const struct net *net = NULL;

	READ(net, sk->__sk_common.skc_net.net);
	return net;
}

static __always_inline const struct net_device *device_of(const struct sk_buff *skb)
{
	const struct net_device *dev = NULL;

	READ(dev, skb->dev);
	return dev;
}

/* A packet in a function; its network header is set. */
static __noinline int function_hop(void *ctx, __u64 address, __u32 net, __u64 device, const struct seen *seen)
{
	const struct net_device *dev = (const struct net_device *)device;
	const struct sk_buff *skb = (const struct sk_buff *)address;
	struct layout l = {};
	struct trace_event *e;
	struct view v = {};
	bool begins, softirq;
	__u64 head;
	__u32 id = 0;

	if (!seen || !net)
		return 0;
	begins = origin_at_output && seen->output && net_at(net)->role & (TRACE_ROLE_SOURCE | TRACE_ROLE_TARGET);
	if (idle() && !begins)
		return 0;
	head = head_of(skb);
	READ(l.len, skb->len);
	READ(l.end, skb->end);
	READ(l.mac, skb->mac_header);
	READ(l.network, skb->network_header);
	READ(l.transport, skb->transport_header);
	if (!read_headers(&v, head + l.network, l.len))
		return 0;
	/* A packet in transit through a node that is also a pod's namespace has begun before. */
	if (!begins || v.flags & TRACE_F_TUNNEL || net_at(net)->role & TRACE_ROLE_NODE)
		id = recognise(head, &v);
	if (id)
		begins = false;
	else if (begins)
		id = begin(head, &v);
	if (!id)
		return 0;
	e = reserve(seen->hook, ctx);
	if (!e)
		return id;
	e->id = id;
	e->attach = seen->attach;
	e->netns = net_at(net)->inum;
	e->arg = seen->arg;
	if (dev)
		READ(e->ifindex, dev->ifindex);
	put_layout(e, &l, head);
	put_view(e, &v);
	if (begins)
		e->flags |= TRACE_F_ORIGIN;
	softirq = e->flags & TRACE_F_SOFTIRQ;
	submit(e);
	if (begins && !softirq)
		call_of_datagram(ctx, &v, id);
	if (begins)
		report_departure(ctx, head, id, net_at(net)->inum, &v);
	return id;
}

/* In the namespace of its device. */
static __always_inline int by_device(void *ctx, const struct sk_buff *skb, const struct seen *seen)
{
	const struct net_device *dev;
	const struct net *net = NULL;

	if (!watches() || idle() || !skb)
		return 0;
	dev = device_of(skb);
	READ(net, dev->nd_net.net);
	return function_hop(ctx, (__u64)skb, net_by_address(net), (__u64)dev, seen);
}

/* In the namespace of its socket, where devices do not matter any more. */
static __always_inline int by_socket(void *ctx, const struct sock *sk, const struct sk_buff *skb, const struct seen *seen)
{
	if (!watches() || idle())
		return 0;
	return function_hop(ctx, (__u64)skb, net_by_address(net_of_socket(sk)), 0, seen);
}

/* In the namespace that is an argument of the function. */
static __always_inline int by_net(void *ctx, const struct net *net, const struct sk_buff *skb, const struct seen *seen)
{
	if (!watches() || idle())
		return 0;
	return function_hop(ctx, (__u64)skb, net_by_address(net), (__u64)device_of(skb), seen);
}

/* The device is that of the route: the function is about to set it. */
static __always_inline int at_output(void *ctx, const struct net *net, const struct sk_buff *skb, const struct seen *seen)
{
	struct seen here = { .hook = seen->hook, .attach = seen->attach, .output = true };
	const struct net_device *dev = NULL;
	unsigned long dst = 0;
	__u32 found;

	if (!watches() || (idle() && !origin_at_output))
		return 0;
	found = net_by_address(net);
	if (!found)
		return 0;
	READ(dst, skb->_skb_refdst);
	/* The lowest bit says that the reference is not counted. */
	dst &= ~1ul;
	if (dst)
		READ(dev, ((const struct dst_entry *)dst)->dev);
	return function_hop(ctx, (__u64)skb, found, (__u64)dev, &here);
}

/* An sk_buff that is being sent, before the packet begins. */
static __noinline int departs(__u32 net, __u64 address, __u64 sock, const struct seen *seen)
{
	struct departure *d;
	struct step step;
	__u64 head;

	if (!net || !seen)
		return 0;
	d = this_departure();
	if (!d)
		return 0;
	head = head_of((const struct sk_buff *)address);
	step = (struct step){ .at = bpf_ktime_get_ns(), .hook = seen->hook, .attach = seen->attach };
	if (seen->hook == TRACE_FN_TCP_TRANSMIT_SKB) {
		d->head = 0;
		if (sock && d->sock == sock)
			add_step(d, head, &d->write);
	}
	add_step(d, head, &step);
	return 0;
}

static __always_inline int departs_from_socket(const struct sock *sk, const struct sk_buff *skb, const struct seen *seen)
{
	return watches() ? departs(net_by_address(net_of_socket(sk)), (__u64)skb, (__u64)sk, seen) : 0;
}

static __always_inline int departs_of_itself(const struct sk_buff *skb, const struct seen *seen)
{
	const struct sock *sk = NULL;

	if (!watches())
		return 0;
	READ(sk, skb->sk);
	return departs(net_by_address(net_of_socket(sk)), (__u64)skb, 0, seen);
}

static __always_inline int departs_from_net(const struct net *net, const struct sk_buff *skb, const struct seen *seen)
{
	return watches() ? departs(net_by_address(net), (__u64)skb, 0, seen) : 0;
}

/* Both programs of a function; arguments by their position, from 1. */
#define FENTRY(function, work) SEC("fentry/" #function) int fentry_##function(__u64 *ctx) { work; return 0; }
#define KPROBE(function, work) SEC("kprobe/" #function) int kprobe_##function(struct pt_regs *ctx) { work; return 0; }
#define ARGUMENT(n) ((void *)ctx[(n) - 1])
#define REGISTER(n) ((void *)REGISTER_##n(ctx))

#define ONE(function, hook, work, skb)									\
	FENTRY(function, work(ctx, ARGUMENT(skb), SEEN(hook, TRACE_ATTACH_FENTRY)))			\
	KPROBE(function, work(ctx, REGISTER(skb), SEEN(hook, TRACE_ATTACH_KPROBE)))
#define TWO(function, hook, work, owner, skb)								\
	FENTRY(function, work(ctx, ARGUMENT(owner), ARGUMENT(skb), SEEN(hook, TRACE_ATTACH_FENTRY)))	\
	KPROBE(function, work(ctx, REGISTER(owner), REGISTER(skb), SEEN(hook, TRACE_ATTACH_KPROBE)))
#define DEPARTS_ONE(function, hook, skb)								\
	FENTRY(function, departs_of_itself(ARGUMENT(skb), SEEN(hook, TRACE_ATTACH_FENTRY)))		\
	KPROBE(function, departs_of_itself(REGISTER(skb), SEEN(hook, TRACE_ATTACH_KPROBE)))
#define DEPARTS_TWO(function, hook, work, owner, skb)							\
	FENTRY(function, work(ARGUMENT(owner), ARGUMENT(skb), SEEN(hook, TRACE_ATTACH_FENTRY)))		\
	KPROBE(function, work(REGISTER(owner), REGISTER(skb), SEEN(hook, TRACE_ATTACH_KPROBE)))

DEPARTS_TWO(__tcp_transmit_skb, TRACE_FN_TCP_TRANSMIT_SKB, departs_from_socket, 1, 2)
DEPARTS_ONE(udp_send_skb, TRACE_FN_UDP_SEND_SKB, 1)
DEPARTS_ONE(udp_v6_send_skb, TRACE_FN_UDP6_SEND_SKB, 1)
DEPARTS_TWO(__ip_queue_xmit, TRACE_FN_IP_QUEUE_XMIT, departs_from_socket, 1, 2)
DEPARTS_TWO(ip6_xmit, TRACE_FN_IP6_XMIT, departs_from_socket, 1, 2)
DEPARTS_TWO(__ip_local_out, TRACE_FN_IP_LOCAL_OUT, departs_from_net, 1, 3)
DEPARTS_TWO(__ip6_local_out, TRACE_FN_IP6_LOCAL_OUT, departs_from_net, 1, 3)

TWO(ip_output, TRACE_FN_IP_OUTPUT, at_output, 1, 3)
TWO(ip6_output, TRACE_FN_IP6_OUTPUT, at_output, 1, 3)
TWO(ip_do_fragment, TRACE_FN_IP_DO_FRAGMENT, by_net, 1, 3)
TWO(ip6_fragment, TRACE_FN_IP6_FRAGMENT, by_net, 1, 3)
TWO(ip_finish_output2, TRACE_FN_IP_FINISH_OUTPUT2, by_net, 1, 3)
TWO(ip6_finish_output2, TRACE_FN_IP6_FINISH_OUTPUT2, by_net, 1, 3)
ONE(tcf_classify, TRACE_FN_TCF_CLASSIFY, by_device, 1)

TWO(br_handle_frame_finish, TRACE_FN_BR_HANDLE_FRAME_FINISH, by_net, 1, 3)
TWO(ip_rcv_finish, TRACE_FN_IP_RCV_FINISH, by_net, 1, 3)
TWO(ip6_rcv_finish, TRACE_FN_IP6_RCV_FINISH, by_net, 1, 3)
ONE(ip_rcv_core, TRACE_FN_IP_RCV_CORE, by_device, 1)
ONE(ip6_rcv_core, TRACE_FN_IP6_RCV_CORE, by_device, 1)
ONE(ip_forward, TRACE_FN_IP_FORWARD, by_device, 1)
ONE(ip6_forward, TRACE_FN_IP6_FORWARD, by_device, 1)
ONE(br_forward, TRACE_FN_BR_FORWARD, by_device, 2)

ONE(tcp_v4_rcv, TRACE_FN_TCP_V4_RCV, by_device, 1)
ONE(tcp_v6_rcv, TRACE_FN_TCP_V6_RCV, by_device, 1)
ONE(udp_rcv, TRACE_FN_UDP_RCV, by_device, 1)
ONE(udpv6_rcv, TRACE_FN_UDPV6_RCV, by_device, 1)
ONE(icmp_rcv, TRACE_FN_ICMP_RCV, by_device, 1)
ONE(icmpv6_rcv, TRACE_FN_ICMPV6_RCV, by_device, 1)
TWO(tcp_v4_do_rcv, TRACE_FN_TCP_V4_DO_RCV, by_socket, 1, 2)
TWO(tcp_v6_do_rcv, TRACE_FN_TCP_V6_DO_RCV, by_socket, 1, 2)
TWO(tcp_queue_rcv, TRACE_FN_TCP_QUEUE_RCV, by_socket, 1, 2)
TWO(__udp_enqueue_schedule_skb, TRACE_FN_UDP_ENQUEUE, by_socket, 1, 2)

/* There is a tracepoint in it since 6.16. What a socket says is read through typed pointers, which a kprobe does not have. */
SEC("fentry/tcp_sendmsg_locked")
int BPF_PROG(fentry_tcp_sendmsg_locked, const struct sock *sk, const struct msghdr *msg)
{
	return writes(ctx, AS(sock, sk), AS(msghdr, msg), TRACE_FN_TCP_SENDMSG);
}

/* As sk_data_ready, which is a tracepoint since 6.3. */
SEC("fentry/sock_def_readable")
int BPF_PROG(fentry_sock_def_readable, const struct sock *sk)
{
	if (watches())
		wakes(ctx, AS(sock, sk), TRACE_FN_SOCK_DEF_READABLE);
	return 0;
}

/* Segments of the socket follow until the function returns. Only fexit tells that without a kretprobe. */
SEC("fentry/tcp_write_xmit")
int fentry_tcp_write_xmit(__u64 *ctx)
{
	const struct sock *sk = ARGUMENT(1);
	struct departure *d;

	if (!watches() || !net_by_address(net_of_socket(sk)))
		return 0;
	d = this_departure();
	if (!d)
		return 0;
	d->sock = (__u64)sk;
	d->write = (struct step){ .at = bpf_ktime_get_ns(), .hook = TRACE_FN_TCP_WRITE_XMIT, .attach = TRACE_ATTACH_FENTRY };
	return 0;
}

SEC("fexit/tcp_write_xmit")
int fexit_tcp_write_xmit(__u64 *ctx)
{
	struct departure *d = watches() ? this_departure() : NULL;

	if (d)
		d->sock = 0;
	return 0;
}

/* The header has been checked, and the place of the transport header noted; the sk_buff may be a copy. */
SEC("fexit/ip_rcv_core")
int fexit_ip_rcv_core(__u64 *ctx)
{
	by_device(ctx, ARGUMENT(3), SEEN(TRACE_FN_IP_RCV_CORE_DONE, TRACE_ATTACH_FENTRY));
	return 0;
}

SEC("fexit/ip6_rcv_core")
int fexit_ip6_rcv_core(__u64 *ctx)
{
	by_device(ctx, ARGUMENT(4), SEEN(TRACE_FN_IP6_RCV_CORE_DONE, TRACE_ATTACH_FENTRY));
	return 0;
}

/*
 * Before 6.4 there are no netfilter links: what runs the rules is seen instead, where a namespace has any for the hook.
 */
#define NFPROTO_IPV4 2
#define NFPROTO_IPV6 10
#define NF_INET_HOOKS 5

static __always_inline int rules(void *ctx, const struct sk_buff *skb, const struct nf_hook_state *state, enum trace_hook first_hook)
{
	struct seen seen = { .attach = TRACE_ATTACH_FENTRY };
	const struct net_device *dev = NULL, *out = NULL;
	const struct net *of = NULL;
	__u8 hook = 0, pf = 0;
	__u32 net;

	if (!watches())
		return 0;
	READ(hook, state->hook);
	READ(pf, state->pf);
	if (hook >= NF_INET_HOOKS || (pf != NFPROTO_IPV4 && pf != NFPROTO_IPV6))
		return 0;
	READ(of, state->net);
	net = net_by_address(of);
	if (!net)
		return 0;
	seen.hook = first_hook + hook;
	if (hook == NF_INET_LOCAL_OUT && net_at(net)->role & (TRACE_ROLE_SOURCE | TRACE_ROLE_TARGET))
		return departs(net, (__u64)skb, 0, &seen);
	READ(out, state->out);
	if (hook == NF_INET_LOCAL_OUT || hook == NF_INET_POST_ROUTING)
		dev = out;
	else
		READ(dev, state->in);
	if (hook == NF_INET_FORWARD && out)
		READ(seen.arg, out->ifindex);
	return function_hop(ctx, (__u64)skb, net, (__u64)dev, &seen);
}

SEC("fentry/nf_hook_slow")
int fentry_nf_hook_slow(__u64 *ctx)
{
	rules(ctx, ARGUMENT(1), ARGUMENT(2), TRACE_NF_FIRST_PRE_ROUTING);
	return 0;
}

/* Any other result than 1: the sk_buff is not the caller's any more. */
SEC("fexit/nf_hook_slow")
int fexit_nf_hook_slow(__u64 *ctx)
{
	if ((int)ctx[4] == 1)
		rules(ctx, ARGUMENT(1), ARGUMENT(2), TRACE_NF_LAST_PRE_ROUTING);
	return 0;
}

#endif
