//! A sockmap of another owner, over raw bpf(2).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::c_long;

use super::net::{check, own};

const BPF_MAP_CREATE: c_long = 0;
const BPF_MAP_UPDATE_ELEM: c_long = 2;
/// `BPF_MAP_TYPE_SOCKMAP` of linux/bpf.h.
const SOCKMAP: u32 = 15;

/// First fields of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    rest: [u64; 8],
}

/// Fields of `union bpf_attr` for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
#[derive(Default)]
struct Update {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Makes a sockmap and puts a connected socket into it; the socket leaves when the map is closed.
///
/// # Errors
/// What bpf(2) says.
pub fn hold(socket: RawFd) -> io::Result<OwnedFd> {
    let create = Create { map_type: SOCKMAP, key_size: 4, value_size: 4, max_entries: 1, ..Create::default() };
    // SAFETY: create is live, its size is given, and unused fields are zero as the kernel demands.
    let map = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const create, size_of::<Create>()) };
    let map = own(i32::try_from(map).unwrap_or(-1))?;
    let (key, value) = (0u32, socket as u32);
    let update = Update { map_fd: map.as_raw_fd() as u32, key: &raw const key as u64, value: &raw const value as u64, ..Update::default() };
    // SAFETY: update and the key and value that it points to are live for the call.
    let r = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const update, size_of::<Update>()) };
    check(i32::try_from(r).unwrap_or(-1))?;
    Ok(map)
}
