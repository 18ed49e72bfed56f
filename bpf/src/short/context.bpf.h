/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The UAPI's names for tc programs. */
#ifndef SOCKPATH_SHORT_CONTEXT_H
#define SOCKPATH_SHORT_CONTEXT_H

#include "core.h"

/* What a program answers: the next one decides, or the packet is dropped. */
#define TC_NEXT (-1)
#define TC_SHOT 2

#define AF_INET 2
#define AF_INET6 10

#define PACKET_HOST 0
#define PACKET_OTHERHOST 3

enum {
	BPF_F_RECOMPUTE_CSUM = 1,
	BPF_F_PSEUDO_HDR = 1 << 4,
	BPF_F_MARK_MANGLED_0 = 1 << 5,
};

struct bpf_redir_neigh {
	__u32 nh_family;
	union {
		__be32 ipv4_nh;
		__u32 ipv6_nh[4];
	};
};

#endif
