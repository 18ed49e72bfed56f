// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The short path: packets of approved connections go from device to device, past the node's bridge, netfilter, routing and connection
 * tracking. Attached at the node's end of the chosen pods' veth devices and at the devices to other nodes.
 */
#include "core.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "wire.h"

#include "short/redirect.bpf.h"

/* What a chosen pod sends. */
SEC("tc") int short_from_pod(struct __sk_buff *skb)
{
	return redirect(skb, true);
}

/* What comes in from other nodes. */
SEC("tc") int short_from_node(struct __sk_buff *skb)
{
	/* A device in promiscuous mode gets frames that are not for this node. */
	if (skb->pkt_type != PACKET_HOST)
		return TC_NEXT;
	return redirect(skb, false);
}

/* What the stack sends out of these devices: packets that it has let through. */
SEC("tc") int short_delivered(struct __sk_buff *skb)
{
	note_delivered(skb);
	return TC_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
