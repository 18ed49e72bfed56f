/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls on a watched socket that redirected bytes would break: splice(2), which sees TCP's queue only, and FIONREAD, which on
 * many kernels (6.18.14 to July 2026) counts only what was redirected once a socket is in a sockmap. A tracepoint on system
 * calls makes each call on the machine a little slower, so user space attaches this only while there are sockets to learn.
 */

#if defined(__TARGET_ARCH_x86)
#define NR_IOCTL 16
#define NR_SPLICE 275
#define SYSCALL_ARG1(regs) BPF_CORE_READ(regs, di)
#define SYSCALL_ARG2(regs) BPF_CORE_READ(regs, si)
#elif defined(__TARGET_ARCH_arm64)
#define NR_IOCTL 29
#define NR_SPLICE 76
#define SYSCALL_ARG1(regs) BPF_CORE_READ((struct user_pt_regs *)(regs), regs[0])
#define SYSCALL_ARG2(regs) BPF_CORE_READ((struct user_pt_regs *)(regs), regs[1])
#else
#error "system call numbers of this architecture are not known"
#endif

#define FIONREAD 0x541B
#define S_IFMT 0170000
#define S_IFSOCK 0140000

SEC("tp_btf/sys_enter")
int BPF_PROG(system_call, struct pt_regs *regs, long id)
{
	struct task_struct *task;
	struct file **files, *file;
	struct socket *socket;
	unsigned int fd;
	struct sock *sk;
	__u64 cookie;
	__u32 seen;

	if (id == NR_IOCTL) {
		if ((__u32)SYSCALL_ARG2(regs) != FIONREAD)
			return 0;
		seen = ACCEL_SAW_FIONREAD;
	} else if (id == NR_SPLICE) {
		seen = ACCEL_SAW_SPLICE;
	} else {
		return 0;
	}
	fd = SYSCALL_ARG1(regs);
	task = bpf_get_current_task_btf();
	if (fd >= BPF_CORE_READ(task, files, fdt, max_fds))
		return 0;
	files = BPF_CORE_READ(task, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file ||
	    (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || !BPF_CORE_READ(sk, sk_bpf_storage))
		return 0;
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (cookie)
		bpf_map_update_elem(&peculiar, &cookie, &seen, BPF_ANY);
	return 0;
}
