/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, and how programs get at what they know about a socket. */

#ifdef SOCKPATH_TEST_SWITCHES
/* Drops the order gate: only for showing that the torture suite notices. */
const volatile bool no_order_gate = false;
#else
#define no_order_gate false
#endif

/* Never read: it makes the type known to user space. */
const volatile enum accel_flag flag_layout = ACCEL_LIVE;

/* The slot of a socket plus 1, 0 for none; lives and dies with it. */
struct conn {
	__u32 slot;
	/* Its sequence numbers were set by its process (TCP_REPAIR): they say nothing about who is at the other end. */
	__u32 repaired;
};

/* In the map are sockets that are paired; the key is the slot. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, ACCEL_ENDS);
	__type(key, __u32);
	__type(value, __u64);
} socks SEC(".maps");

/* What is recorded of each tracked socket. User space maps it: reading it costs the kernel nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ACCEL_ENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct accel_end);
} ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct accel_control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct conn);
} conns SEC(".maps");

/*
 * The network namespaces whose sockets are tracked, by cookie: the index of each in `shares`. A process of a chosen pod can open further
 * namespaces, whose sockets are excluded.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ACCEL_NAMESPACES);
	__type(key, __u64);
	__type(value, __u32);
} namespaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ACCEL_NAMESPACES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct accel_share);
} shares SEC(".maps");

/* Programs that used FIONREAD on a tracked socket, by program_of(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} programs SEC(".maps");

/* Slots that were used and are free again. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, ACCEL_ENDS);
	__uint(value_size, sizeof(__u32));
} slots SEC(".maps");

/* Something for user space to do; the content says nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} wakeups SEC(".maps");

/* Unsupported calls on sockets (ACCEL_SAW_SPLICE, ...), by cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u32);
} unsupported SEC(".maps");

/* Receive calls on the machine while they were counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

/* What show_sleeper saw. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct accel_sleeper);
} sleeper SEC(".maps");

static __always_inline struct accel_control *get_control(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&control, &zero);
}

static __always_inline struct accel_end *get_end(__u32 slot)
{
	return bpf_map_lookup_elem(&ends, &slot);
}

static __always_inline struct accel_share *get_share(__u32 index)
{
	return bpf_map_lookup_elem(&shares, &index);
}

/* The share of a network namespace; NULL where its sockets are not tracked. */
static __always_inline struct accel_share *share_of(__u64 netns_cookie, __u32 *index)
{
	__u32 *found = bpf_map_lookup_elem(&namespaces, &netns_cookie);
	struct accel_share *share;

	if (!found || !(share = get_share(*found)))
		return NULL;
	*index = *found;
	return share->cookie == netns_cookie && share->open ? share : NULL;
}

/* What is recorded of a tracked socket; NULL for others. */
static __always_inline struct accel_end *end_of(struct sock *sk)
{
	struct conn *conn;

	if (!sk->sk_bpf_storage)
		return NULL;
	conn = bpf_sk_storage_get(&conns, sk, 0, 0);
	return conn && conn->slot ? get_end(conn->slot - 1) : NULL;
}

/* Wakes user space, once until it has answered. */
static __always_inline void wake_helper(struct accel_control *ctl)
{
	__u32 nothing = 0;

	if (!ctl->wakeup_pending) {
		ctl->wakeup_pending = 1;
		bpf_ringbuf_output(&wakeups, &nothing, sizeof(nothing), BPF_RB_FORCE_WAKEUP);
	}
}
