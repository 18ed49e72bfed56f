/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the sockmap keeps for a socket. */

/* Low bits of sk_user_data are flags (SK_USER_DATA_PTRMASK). */
#define USER_DATA_FLAGS 7UL

static __always_inline struct sk_psock *psock_of(const struct sock *sk)
{
	unsigned long p = (unsigned long)sk->sk_user_data & ~USER_DATA_FLAGS;

	return p ? bpf_core_cast((void *)p, struct sk_psock) : NULL;
}

/* Redirected bytes that are unread. */
static __always_inline __u32 queued(const struct sk_psock *psock)
{
	if (!psock || psock->ingress_msg.next == __builtin_preserve_access_index(&psock->ingress_msg))
		return 0;
	/* The sum is kept since the fix of FIONREAD; without it: some. */
	return bpf_core_field_exists(psock->msg_tot_len) && psock->msg_tot_len ? psock->msg_tot_len : 1;
}
