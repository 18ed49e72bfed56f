/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads what names a packet: addresses, ports, sequence. Looks through VXLAN, Geneve and IPIP. */
#ifndef SOCKPATH_TRACE_HEADERS_H
#define SOCKPATH_TRACE_HEADERS_H

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_HLEN 14
#define PROTO_ICMP 1
#define PROTO_IPIP 4
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_IPV6 41
#define PROTO_FRAGMENT 44
#define PROTO_ICMPV6 58
#define ICMPV6_ECHO_REPLY 129
#define PORT_VXLAN 4789
#define PORT_VXLAN_LINUX 8472
#define PORT_GENEVE 6081
#define AF_INET 2
#define AF_INET6 10

/* Addresses and ports, in the form that maps use as key. */
struct tuple {
	__u64 src[2];
	__u64 dst[2];
	__u16 sport;
	__u16 dport;
	__u16 protocol;
	__u16 pad;
};

/* What one look at a packet's headers gives. */
struct view {
	struct tuple t;
	__u32 seq;
	__u32 ack;
	__u32 payload;
	__u8 flags;
	__u8 kind;
};

static __always_inline void map_v4(__u64 *addr, __u32 v4)
{
	addr[0] = 0;
	addr[1] = (__u64)v4 << 32 | 0xffff0000u;
}

/* FNV-1a over four words: enough to tell datagrams of one flow apart. */
static __always_inline __u32 mix(__u32 a, __u32 b, __u32 c)
{
	__u32 h = 2166136261u;

	h = (h ^ a) * 16777619u;
	h = (h ^ b) * 16777619u;
	return (h ^ c) * 16777619u;
}

/* An ICMP error carries the header of the packet it is about: its ports name the conversation. */
static __always_inline void read_icmp_subject(struct view *v, const unsigned char *inner, bool v6)
{
	__be16 ports[2];
	__u8 proto, ihl = 40;

	if (bpf_probe_read_kernel(&proto, 1, inner + (v6 ? 6 : 9)))
		return;
	if (!v6) {
		if (bpf_probe_read_kernel(&ihl, 1, inner))
			return;
		ihl = (ihl & 15) * 4;
	}
	if (proto != PROTO_TCP && proto != PROTO_UDP)
		return;
	if (bpf_probe_read_kernel(ports, sizeof(ports), inner + ihl))
		return;
	v->t.sport = __builtin_bswap16(ports[1]);
	v->t.dport = __builtin_bswap16(ports[0]);
	v->flags |= TRACE_F_ICMP_ERROR;
}

static __always_inline bool is_icmp_error(__u8 type, bool v6)
{
	return v6 ? type < 128 : type == 3 || type == 5 || type == 11 || type == 12;
}

/* Reads from the IP header at this address on. Returns the address of an inner IP header when it is a tunnel's packet. */
__noinline __u64 read_ip(struct view *v, __u64 address, __u32 len)
{
	const unsigned char *ip = (const unsigned char *)address;
	union {
		__u8 b[40];
		__be16 h[20];
		__be32 w[10];
		__u64 q[5];
	} n, t;
	const unsigned char *transport;
	__u32 proto, rest, id, hlen;
	bool v6, later_fragment = false;

	if (!v)
		return 0;
	if (bpf_probe_read_kernel(&n, 20, ip))
		return 0;
	v->flags = 0;
	v->kind = 0;
	v->seq = 0;
	v->ack = 0;
	v->payload = 0;
	v->t.protocol = 0;
	v->t.sport = 0;
	v->t.dport = 0;
	v->t.pad = 0;
	v6 = n.b[0] >> 4 == 6;
	if (!v6 && n.b[0] >> 4 != 4)
		return 0;
	if (v6) {
		if (bpf_probe_read_kernel(&n, 40, ip))
			return 0;
		v->flags |= TRACE_F_IPV6;
		v->t.src[0] = n.q[1];
		v->t.src[1] = n.q[2];
		v->t.dst[0] = n.q[3];
		v->t.dst[1] = n.q[4];
		proto = n.b[6];
		rest = __builtin_bswap16(n.h[2]);
		hlen = 40;
		id = 0;
		if (proto == PROTO_FRAGMENT) {
			if (bpf_probe_read_kernel(&t, 8, ip + 40))
				return 0;
			proto = t.b[0];
			later_fragment = t.h[1] & __builtin_bswap16(0xfff8);
			if (t.h[1] & __builtin_bswap16(1))
				v->flags |= TRACE_F_MORE_FRAGMENTS;
			hlen = 48;
			rest = rest > 8 ? rest - 8 : 0;
		}
	} else {
		hlen = (n.b[0] & 15) * 4;
		map_v4(v->t.src, n.w[3]);
		map_v4(v->t.dst, n.w[4]);
		proto = n.b[9];
		rest = __builtin_bswap16(n.h[1]);
		rest = rest > hlen ? rest - hlen : 0;
		id = n.h[2];
		later_fragment = n.h[3] & __builtin_bswap16(0x1fff);
		if (n.h[3] & __builtin_bswap16(0x2000))
			v->flags |= TRACE_F_MORE_FRAGMENTS;
	}
	/* BIG TCP leaves the length field 0. */
	if (!rest && len > hlen)
		rest = len - hlen;
	transport = ip + hlen;
	if (proto == PROTO_IPIP || proto == PROTO_IPV6)
		return (__u64)transport;
	v->t.protocol = proto == PROTO_ICMPV6 ? PROTO_ICMP : proto;
	if (later_fragment) {
		v->seq = id;
		v->payload = rest;
		v->t.protocol = 0;
		return 0;
	}
	if (bpf_probe_read_kernel(&t, 20, transport))
		return 0;
	if (proto == PROTO_TCP) {
		__u32 doff = (t.b[12] >> 4) * 4;

		v->t.sport = __builtin_bswap16(t.h[0]);
		v->t.dport = __builtin_bswap16(t.h[1]);
		v->seq = __builtin_bswap32(t.w[1]);
		v->ack = __builtin_bswap32(t.w[2]);
		v->kind = t.b[13];
		v->payload = rest > doff ? rest - doff : 0;
	} else if (proto == PROTO_UDP) {
		v->t.sport = __builtin_bswap16(t.h[0]);
		v->t.dport = __builtin_bswap16(t.h[1]);
		v->payload = rest > 8 ? rest - 8 : 0;
		if (v->t.dport == PORT_VXLAN || v->t.dport == PORT_VXLAN_LINUX)
			return (__u64)transport + 8 + 8 + ETH_HLEN;
		if (v->t.dport == PORT_GENEVE)
			return (__u64)transport + 8 + 8 + ETH_HLEN + (t.b[8] & 0x3f) * 4;
		/* What lies behind the end of a short datagram is not the same everywhere. */
		if (v->payload < 4)
			t.w[2] = 0;
		if (v->payload < 8)
			t.w[3] = 0;
		v->seq = mix(id, t.w[2], t.w[3]);
	} else if (proto == PROTO_ICMP || proto == PROTO_ICMPV6) {
		v->kind = t.b[0];
		/* Router and neighbour discovery, multicast listeners: the link's own talk. */
		if (v6 && v->kind > ICMPV6_ECHO_REPLY)
			v->t.protocol = 0;
		v->seq = (__u32)__builtin_bswap16(t.h[2]) << 16 | __builtin_bswap16(t.h[3]);
		v->payload = rest > 8 ? rest - 8 : 0;
		if (is_icmp_error(v->kind, v6))
			read_icmp_subject(v, transport + 8, v6);
	}
	return 0;
}

/* Reads the packet that begins at ip; false when its protocol is not traced. */
static __always_inline bool read_headers(struct view *v, __u64 ip, __u32 len)
{
	__u64 inner = read_ip(v, ip, len);

	if (inner) {
		read_ip(v, inner, 0);
		v->flags |= TRACE_F_TUNNEL;
	}
	return v->t.protocol == PROTO_TCP || v->t.protocol == PROTO_UDP || v->t.protocol == PROTO_ICMP;
}

#endif
