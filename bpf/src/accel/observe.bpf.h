/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls that redirected bytes would break, seen before the kernel carries them out: splice(2), which sees TCP's queue only,
 * MSG_WAITALL, which returns short, MSG_OOB, which would lose its urgency, and FIONREAD, which on many kernels (6.18.14 to July
 * 2026) counts only what was redirected once a socket is in a sockmap. Attached while a pair is in the map or may go
 * there: to the functions that carry them out, or where the kernel does not allow that, to the entry of all system calls,
 * which makes each call on the machine some 60 ns slower.
 */

#if defined(__TARGET_ARCH_x86)
#define NR_IOCTL 16
#define NR_SENDTO 44
#define NR_RECVFROM 45
#define NR_SENDMSG 46
#define NR_RECVMSG 47
#define NR_SPLICE 275
#define NR_RECVMMSG 299
#define ARG1(regs) ((regs)->di)
#define ARG2(regs) ((regs)->si)
#define ARG3(regs) ((regs)->dx)
#define ARG4(regs) ((regs)->r10)
#elif defined(__TARGET_ARCH_arm64)
#define NR_IOCTL 29
#define NR_SENDTO 206
#define NR_RECVFROM 207
#define NR_SENDMSG 211
#define NR_RECVMSG 212
#define NR_SPLICE 76
#define NR_RECVMMSG 243
#define ARG1(regs) ((regs)->user_regs.regs[0])
#define ARG2(regs) ((regs)->user_regs.regs[1])
#define ARG3(regs) ((regs)->user_regs.regs[2])
#define ARG4(regs) ((regs)->user_regs.regs[3])
#else
#error "system call numbers of this architecture are not known"
#endif

#define FIONREAD 0x541B
#define MSG_OOB 0x1
#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* A program that asks on one connection may ask on each, when it likes. */
static __always_inline void note_asking_program(struct accel_control *ctl)
{
	struct file *exe = current_exe();
	__u32 yes = 1;
	__u64 program;

	if (!exe)
		return;
	program = program_of(exe);
	if (!bpf_map_update_elem(&programs, &program, &yes, BPF_NOEXIST)) {
		ctl->programs++;
		wake_helper(ctl);
	}
}

/* Records such a call on a tracked socket. Calls on other sockets end here: other pods', and those of another helper's self-test. */
static __always_inline int note_unsupported(const struct sock *sk, __u32 seen)
{
	struct accel_control *ctl;
	__u64 cookie, netns;
	__u32 *before;

	if (!sk || !BPF_CORE_READ(sk, sk_bpf_storage))
		return 0;
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	if (!bpf_map_lookup_elem(&namespaces, &netns))
		return 0;
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	ctl = get_control();
	if (!cookie || !ctl)
		return 0;
	if (seen & ACCEL_SAW_FIONREAD && ctl->fionread_lies)
		note_asking_program(ctl);
	before = bpf_map_lookup_elem(&unsupported, &cookie);
	if (before && (*before & seen) == seen)
		return 0;
	if (before)
		seen |= *before;
	bpf_map_update_elem(&unsupported, &cookie, &seen, BPF_ANY);
	ctl->unsupported++;
	/* Redirected bytes may be unread, which this call will not see. */
	if (seen & ACCEL_SAW_SPLICE)
		wake_helper(ctl);
	return 0;
}

/*
 * The functions. TCP's own are called as long as a socket is not in the map, and for some of its calls when it is; splice
 * always. Unlike at the entry of system calls, what io_uring does is seen, too. A program that is
 * preempted in its few instructions by another task's call of the same function misses that call, as all such programs do.
 */
SEC("fentry/tcp_splice_read")
int BPF_PROG(fentry_tcp_splice_read, struct socket *sock)
{
	return note_unsupported(sock->sk, ACCEL_SAW_SPLICE);
}

static __always_inline int control_call(const struct sock *sk, int cmd)
{
	return cmd == FIONREAD ? note_unsupported(sk, ACCEL_SAW_FIONREAD) : 0;
}

SEC("fentry/tcp_ioctl")
int BPF_PROG(fentry_tcp_ioctl, struct sock *sk, int cmd)
{
	return control_call(sk, cmd);
}

SEC("fentry/tcp_bpf_ioctl")
int BPF_PROG(fentry_tcp_bpf_ioctl, struct sock *sk, int cmd)
{
	return control_call(sk, cmd);
}

static __always_inline int receive_call(const struct sock *sk, int flags)
{
	return flags & MSG_WAITALL ? note_unsupported(sk, ACCEL_SAW_WAITALL) : 0;
}

SEC("fentry/tcp_recvmsg")
int BPF_PROG(fentry_tcp_recvmsg, struct sock *sk, struct msghdr *msg, unsigned long len, int flags)
{
	return receive_call(sk, flags);
}

SEC("fentry/tcp_bpf_recvmsg")
int BPF_PROG(fentry_tcp_bpf_recvmsg, struct sock *sk, struct msghdr *msg, unsigned long len, int flags)
{
	return receive_call(sk, flags);
}

static __always_inline int send_call(const struct sock *sk, const struct msghdr *msg)
{
	return msg->msg_flags & MSG_OOB ? note_unsupported(sk, ACCEL_SAW_OOB) : 0;
}

SEC("fentry/tcp_sendmsg")
int BPF_PROG(fentry_tcp_sendmsg, struct sock *sk, struct msghdr *msg)
{
	return send_call(sk, msg);
}

SEC("fentry/tcp_bpf_sendmsg")
int BPF_PROG(fentry_tcp_bpf_sendmsg, struct sock *sk, struct msghdr *msg)
{
	return send_call(sk, msg);
}

static __always_inline __u32 unsupported_use(struct pt_regs *regs, long id)
{
	switch (id) {
	case NR_IOCTL:
		return (__u32)ARG2(regs) == FIONREAD ? ACCEL_SAW_FIONREAD : 0;
	case NR_SPLICE:
		return ACCEL_SAW_SPLICE;
	case NR_RECVFROM:
	case NR_RECVMMSG:
		return ARG4(regs) & MSG_WAITALL ? ACCEL_SAW_WAITALL : 0;
	case NR_RECVMSG:
		return ARG3(regs) & MSG_WAITALL ? ACCEL_SAW_WAITALL : 0;
	case NR_SENDTO:
		return ARG4(regs) & MSG_OOB ? ACCEL_SAW_OOB : 0;
	case NR_SENDMSG:
		return ARG3(regs) & MSG_OOB ? ACCEL_SAW_OOB : 0;
	}
	return 0;
}

/* A separate function: the many other system calls pay for no stack frame. */
static __noinline int unsupported_call(struct pt_regs *regs, __u32 seen)
{
	struct task_struct *task;
	struct file **files, *file;
	struct socket *socket;
	unsigned int fd;

	fd = ARG1(regs);
	task = bpf_get_current_task_btf();
	if (fd >= BPF_CORE_READ(task, files, fdt, max_fds))
		return 0;
	files = BPF_CORE_READ(task, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file ||
	    (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	return note_unsupported(BPF_CORE_READ(socket, sk), seen);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(system_call, struct pt_regs *regs, long id)
{
	__u32 seen = unsupported_use(regs, id);

	return seen ? unsupported_call(regs, seen) : 0;
}
