/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Looks a connection up in conntrack in every tick in which it has packets, where the kernel has the function (5.18). */
#ifndef SOCKPATH_SHORT_CONNTRACK_H
#define SOCKPATH_SHORT_CONNTRACK_H

#include "short/maps.bpf.h"
#include "short/packet.bpf.h"
#include <bpf/bpf_helpers.h>

#define IPS_ASSURED 4

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym __weak;
extern void bpf_ct_release(struct nf_conn *entry) __ksym __weak;

/* Whether it has the flow as assured, as far as it can be asked. */
static __always_inline bool is_assured(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_ct_opts opts = { .netns_id = -1, .l4proto = p->key.protocol };
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *entry;
	unsigned long status;

	if (!can_ask_conntrack)
		return true;
	if (p->key.family == AF_INET) {
		tuple.ipv4.saddr = p->key.saddr[0];
		tuple.ipv4.daddr = p->key.daddr[0];
		tuple.ipv4.sport = p->key.sport;
		tuple.ipv4.dport = p->key.dport;
		entry = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		copy_address(tuple.ipv6.saddr, p->key.saddr);
		copy_address(tuple.ipv6.daddr, p->key.daddr);
		tuple.ipv6.sport = p->key.sport;
		tuple.ipv6.dport = p->key.dport;
		entry = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!entry)
		return false;
	status = entry->status;
	bpf_ct_release(entry);
	return status & IPS_ASSURED;
}

#endif
