/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads the headers of a packet: what names its flow, and what decides whether it may be redirected. */
#ifndef SOCKPATH_SHORT_PACKET_H
#define SOCKPATH_SHORT_PACKET_H

#include "short/context.bpf.h"
#include <bpf/bpf_endian.h>
#include "wire.h"

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_HLEN 14
#define PROTO_TCP 6
#define PROTO_UDP 17
/* IPv4: the more-fragments bit and the offset. */
#define FRAGMENT 0x3fff
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4

struct ip4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ip6_header {
	__u8 version_class;
	__u8 flow[3];
	__be16 length;
	__u8 next_header;
	__u8 hop_limit;
	__u32 saddr[4];
	__u32 daddr[4];
};

/* TCP's; UDP has the ports at the same place. */
struct port_header {
	__be16 sport;
	__be16 dport;
};

struct tcp_rest {
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
};

struct packet {
	struct short_key key;
	/* Where TCP's or UDP's header begins. */
	__u32 transport;
	/* All headers above the link layer's, in bytes. */
	__u32 headers;
	__u8 tcp_flags;
	__u8 ttl;
	/* IPv4: the header's checksum. */
	__u16 check;
};

static __always_inline void copy_address(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline bool read_ip4(struct packet *p, const struct ip4_header *ip)
{
	if (ip->version_ihl != 0x45 || (ip->fragment & bpf_htons(FRAGMENT)))
		return false;
	p->key.family = AF_INET;
	p->key.protocol = ip->protocol;
	p->key.saddr[0] = ip->saddr;
	p->key.daddr[0] = ip->daddr;
	p->ttl = ip->ttl;
	p->check = ip->check;
	p->transport = ETH_HLEN + sizeof(*ip);
	return true;
}

/* A packet with extension headers is not read: it takes the stack. */
static __always_inline void read_ip6(struct packet *p, const struct ip6_header *ip)
{
	p->key.family = AF_INET6;
	p->key.protocol = ip->next_header;
	copy_address(p->key.saddr, ip->saddr);
	copy_address(p->key.daddr, ip->daddr);
	p->ttl = ip->hop_limit;
	p->transport = ETH_HLEN + sizeof(*ip);
}

/* Whether it is TCP or UDP without anything unusual before its ports. */
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *p)
{
	const unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct port_header *ports;
	const struct tcp_rest *rest;

	__builtin_memset(p, 0, sizeof(*p));
	if (skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		const struct ip4_header *ip = (void *)(data + ETH_HLEN);

		ports = (void *)(ip + 1);
		if ((void *)(ports + 1) > (void *)end || !read_ip4(p, ip))
			return false;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		const struct ip6_header *ip = (void *)(data + ETH_HLEN);

		ports = (void *)(ip + 1);
		if ((void *)(ports + 1) > (void *)end)
			return false;
		read_ip6(p, ip);
	} else {
		return false;
	}
	p->key.sport = ports->sport;
	p->key.dport = ports->dport;
	p->key.ifindex = skb->ifindex;
	if (p->key.protocol == PROTO_UDP) {
		p->headers = p->transport - ETH_HLEN + 8;
		return true;
	}
	rest = (void *)(ports + 1);
	if (p->key.protocol != PROTO_TCP || (void *)(rest + 1) > (void *)end)
		return false;
	p->tcp_flags = rest->flags;
	p->headers = p->transport - ETH_HLEN + (rest->offset >> 4) * 4;
	return true;
}

#endif
