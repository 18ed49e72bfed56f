/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Netfilter links at the first and at the last priority of a hook: what lies between is the time and the work of its rules. */
#ifndef SOCKPATH_TRACE_NETFILTER_H
#define SOCKPATH_TRACE_NETFILTER_H

#define NF_ACCEPT 1
#define NF_INET_LOCAL_IN 1
#define NF_INET_FORWARD 2
#define NF_INET_LOCAL_OUT 3
#define NF_INET_POST_ROUTING 4

static __always_inline int netfilter(struct bpf_nf_ctx *ctx, enum trace_hook first_hook, bool first)
{
	const struct nf_hook_state *state = AS(nf_hook_state, ctx->state);
	const struct sk_buff *skb = AS(sk_buff, ctx->skb);
	const struct net_device *dev;
	__u8 hook = state->hook;
	bool begins = first && hook == NF_INET_LOCAL_OUT;
	struct event_context s = { .hook = first_hook + hook, .may_begin = begins, .begins = begins, .rules = true };

	if (idle() && !s.may_begin)
		return NF_ACCEPT;
	s.net = find_net(state->net);
	if (!s.net)
		return NF_ACCEPT;
	/* What leaves is named by the device it leaves by. */
	if (hook == NF_INET_LOCAL_OUT || hook == NF_INET_POST_ROUTING)
		dev = state->out;
	else
		dev = state->in;
	if (hook == NF_INET_FORWARD && state->out)
		s.arg = state->out->ifindex;
	else if (hook == NF_INET_POST_ROUTING && state->in)
		s.arg = state->in->ifindex;
	if (!hop(skb, head_of(skb) + skb->network_header, dev, &s, ctx))
		return NF_ACCEPT;
	if (first || hook != NF_INET_LOCAL_IN)
		return NF_ACCEPT;
	/* Delivered here; a tunnel's packet goes on when it has been unpacked. */
	if (net_at(s.net)->role != TRACE_ROLE_NODE)
		reached_its_socket(head_of(skb));
	return NF_ACCEPT;
}

SEC("netfilter")
int nf_first(struct bpf_nf_ctx *ctx)
{
	return netfilter(ctx, TRACE_NF_FIRST_PRE_ROUTING, true);
}

SEC("netfilter")
int nf_last(struct bpf_nf_ctx *ctx)
{
	return netfilter(ctx, TRACE_NF_LAST_PRE_ROUTING, false);
}

#endif
