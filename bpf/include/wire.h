/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What crosses between the BPF programs and user space. The only definition: the Rust types are generated from it. */
#ifndef SOCKPATH_WIRE_H
#define SOCKPATH_WIRE_H

/* --- accel --- */

/* Sockets that can be known at one time: two for each pair. */
#define ACCEL_ENDS 32768
/* Turnaround samples kept for each way of carrying. */
#define ACCEL_SAMPLES 16

/* Why a message goes by TCP; index of accel_end.passes. 0 is: it does not. */
enum accel_pass {
	ACCEL_REDIRECT,
	ACCEL_NO_PEER,
	ACCEL_ORDER,
	ACCEL_READERS,
	ACCEL_BUDGET,
	ACCEL_PAUSED,
	ACCEL_LEASE,
	ACCEL_PEER_GONE,
	ACCEL_ULP,
	ACCEL_ZEROCOPY,
	ACCEL_RCVLOWAT,
	ACCEL_UNACCOUNTED,
	ACCEL_WAITALL,
	ACCEL_URGENT,
	ACCEL_LEARNING,
	ACCEL_REFUSED,
	ACCEL_PASSES,
};

/* Where a socket stands with the map. */
enum accel_state {
	ACCEL_FREE,
	/* Known, not in the map. */
	ACCEL_WATCHED,
	/* In the map. */
	ACCEL_ENROLLED,
};

/* What user space wants done with a socket at the next pass of the iterator. */
enum accel_order {
	ACCEL_NOTHING,
	ACCEL_ENROL,
	/* Take it out once nothing can be lost by it. */
	ACCEL_REMOVE,
};

/* How a socket came to be. */
enum accel_role {
	ACCEL_UNKNOWN,
	ACCEL_CLIENT,
	ACCEL_SERVER,
};

/* accel_end.flags */
enum {
	/* Met after it was established. */
	ACCEL_LIVE = 1,
	/* A reader used MSG_WAITALL. */
	ACCEL_SAW_WAITALL = 2,
	/* Paused by user space: what it writes goes by TCP. */
	ACCEL_HOLD = 4,
};

/* One socket. The index is its number in the sockmap too. */
struct accel_end {
	/* Identity: written once, when the socket is met. */
	__u64 cookie;
	__u64 sk;
	__u64 met_ns;
	__u32 laddr[4];
	__u32 raddr[4];
	__u16 lport;
	__u16 rport;
	__u16 family;
	__u16 unused;
	enum accel_role role;
	/* Initial sequence numbers: what this side sends starts here, what it receives starts there. */
	__u32 iss;
	__u32 irs;
	__u32 netns;
	/* copied_seq when met. */
	__u32 base;

	/* Pairing: written by user space while the socket is not in the map. */
	__u64 peer_cookie;
	__u32 peer;
	enum accel_order order;
	/* Written by the iterator: where it stands, errno of the last order, redirected bytes unread, looks without a send call. */
	enum accel_state state;
	__s32 result;
	__u32 queued;
	__u32 quiet;
	/* Number of the last pass that saw it. */
	__u32 seen;
	__u32 unused2;

	/* As a reader: written when a task returns from its receive call. */
	__u64 taken;
	__u64 reads;
	__u32 flags;
	__u32 peer_reads;
	__u64 cycle_start;
	__u64 cycle_messages;
	__u32 cycles;
	__u32 samples;
	__u32 before_ns[ACCEL_SAMPLES];
	__u32 after_ns[ACCEL_SAMPLES];

	/* As a writer: written under the socket's lock. */
	__u64 messages;
	__u64 bytes;
	__u64 pass_bytes;
	__u32 fast;
	enum accel_pass last_pass;
	__u32 passes[ACCEL_PASSES];
};

/* A sleeping task: the wake function of its wait queue entry, and the words from that entry on up its stack. */
struct accel_sleeper {
	__u64 wake_function;
	__u64 stack[64];
};

/* Functions that sleep until TCP brings something. */
#define ACCEL_NATIVE 3

/* One for each instance. */
struct accel_control {
	/* Verdicts after this moment (CLOCK_MONOTONIC, nanoseconds) pass. */
	__u64 deadline_ns;
	__u64 started_ns;
	__u32 paused;
	/* Bytes that may lie unread at a reader before its writer goes by TCP. */
	__u32 budget;
	/* Receive calls that have to be seen on a socket before bytes go to it directly. */
	__u32 learn_reads;
	/* A doorbell was rung and not answered. */
	__u32 rung;
	/* Slots above this one were never used. */
	__u32 fresh;
	__u32 detached;
	/* Number of the iterator's pass that runs. */
	__u32 pass;
	__u32 unused2;
	/* How a task that sleeps in plain tcp_recvmsg is told from others; 0 when not known. */
	__u64 wake_function;
	__u32 frame_offset;
	__u32 unused;
	__u64 native_from[ACCEL_NATIVE];
	__u64 native_to[ACCEL_NATIVE];
	/* Sums over sockets that are gone. */
	__u64 closed_pairs;
	__u64 closed_messages;
	__u64 closed_bytes;
	__u64 closed_passes[ACCEL_PASSES];
	char owner[128];
};

#endif
