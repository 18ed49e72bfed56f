//! Sockets that belong to another control group (cgroup v2) than this process.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Of include/uapi/linux/sched.h; the constant of crate libc is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What a child process reports: the number of the socket, or a negated errno.
const REPORT: usize = size_of::<i32>();

/// Opens a socket as a process of this control group would: the kernel runs the programs at the group and at those above it for as long as
/// the socket lives. The outer result is whether a process could be started in the group, the inner one what socket(2) answered there.
///
/// A socket belongs to the group of the process that opens it. So a child process that shares this process's descriptors is started in the
/// group, opens the socket and exits.
///
/// # Errors
/// When the kernel has no cgroup v2 or refuses (CAP_SYS_ADMIN; ENOENT where the group lies outside of this thread's cgroup namespace).
pub fn socket(group: BorrowedFd<'_>, domain: i32, kind: i32, protocol: i32) -> io::Result<io::Result<OwnedFd>> {
    let (answers, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let pid = start_in(group)?;
    if pid == 0 {
        open_and_exit(domain, kind, protocol, report.as_fd());
    }
    // The child has exited: until then this thread was suspended.
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the status may be null; the child is this process's own, and no other code waits for it.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    let mut number = [0; REPORT];
    File::from(answers).read_exact(&mut number)?;
    let number = i32::from_ne_bytes(number);
    if number < 0 {
        return Ok(Err(io::Error::from_raw_os_error(-number)));
    }
    // SAFETY: the child opened this descriptor in the table that it shared, and nothing else knows it.
    Ok(Ok(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// Starts a copy of this process in a group, which shares its descriptors; returns twice, 0 in the child. This thread is suspended until
/// the child has exited.
fn start_in(group: BorrowedFd<'_>) -> io::Result<libc::c_long> {
    // SAFETY: all of its fields are integers, and 0 is a value of each: no stack, no signal at the end, no ids to be stored.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let shared = u64::try_from(libc::CLONE_FILES | libc::CLONE_VFORK).unwrap_or(0);
    args.flags = shared | CLONE_INTO_CGROUP;
    args.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or(u64::MAX);
    // SAFETY: `args` lives until the call returns and has the size that is given. The child has a copy of this process's memory, stack
    // included, as after fork(2), and runs `open_and_exit` only.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// What the child does. Other threads of the process do not exist in it, and may have held locks: only system calls are allowed.
fn open_and_exit(domain: i32, kind: i32, protocol: i32, report: BorrowedFd<'_>) -> ! {
    // SAFETY: socket(2) takes integers; errno is the child's own; write(2) reads `REPORT` bytes of a number that lives; _exit(2) runs
    // nothing of this program.
    unsafe {
        let fd = libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol);
        let number: i32 = if fd < 0 { -*libc::__errno_location() } else { fd };
        libc::write(report.as_raw_fd(), (&raw const number).cast(), REPORT);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_a_control_group_is_refused() {
        let other = File::open("/").expect("a directory");
        assert!(socket(other.as_fd(), libc::AF_INET, libc::SOCK_DGRAM, 0).is_err());
    }
}
