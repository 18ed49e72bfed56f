//! Who holds a socket, as /proc shows it: for kernels that refuse an iterator over open files.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sockpath_bpf::accel::types::accel_holder;

/// One descriptor for each of these sockets (inode to cookie). Those of processes that end meanwhile, or are out of reach, are left out.
pub fn by_proc(proc: &Path, sockets: &HashMap<u64, u64>) -> Vec<accel_holder> {
    let mut found = HashMap::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(tgid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Some(fd) = descriptor.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            if let Some(cookie) = target.to_str().and_then(socket_inode).and_then(|inode| sockets.get(&inode)) {
                found.entry(*cookie).or_insert(accel_holder { cookie: *cookie, tgid, fd });
            }
        }
        if found.len() == sockets.len() {
            break;
        }
    }
    found.into_values().collect()
}

/// The inode in `socket:[INODE]`.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let inode = fstat(&listener).expect("its inode").st_ino;
        let found = by_proc(Path::new("/proc"), &HashMap::from([(inode, 42)]));
        let [holder] = found.as_slice() else { panic!("{} holders", found.len()) };
        assert_eq!((holder.cookie, holder.tgid), (42, std::process::id()));
        assert_eq!(i64::from(holder.fd), i64::from(listener.as_raw_fd()));
    }

    #[test]
    fn other_files_are_no_sockets() {
        assert_eq!(socket_inode("socket:[123]"), Some(123));
        for other in ["pipe:[123]", "socket:[]", "socket:[x]", "/dev/null", "anon_inode:[eventpoll]"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }
}
