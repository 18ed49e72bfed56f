//! Pinned links and programs, and running iterators: what libbpf-rs has no call for.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::pins::Pins;

/// Pins a link.
pub fn pin(link: &OwnedFd, path: &Path) -> Result<()> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).context("a NUL in a path")?;
    // SAFETY: an open descriptor and a NUL-terminated path that outlives the call.
    let r = unsafe { libbpf_rs::libbpf_sys::bpf_obj_pin(link.as_raw_fd(), c_path.as_ptr()) };
    if r < 0 {
        bail!("cannot pin {}: {}", path.display(), std::io::Error::from_raw_os_error(-r));
    }
    Ok(())
}

/// Opens a pinned link or program.
pub fn pinned(pins: &Pins, name: &str) -> Result<OwnedFd> {
    let path = pins.path(name);
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).context("a NUL in a path")?;
    // SAFETY: a NUL-terminated path that outlives the call.
    let fd = unsafe { libbpf_rs::libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if fd < 0 {
        bail!("cannot open {}: {}", path.to_string_lossy(), std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program of type tc without a packet, in the network namespace of the calling thread. It finds `arguments` in `cb` of its
/// context, and as its device the one with this index, or the loopback device for 0.
pub fn run_program(program: RawFd, arguments: [u32; 2], ifindex: u32) -> Result<()> {
    // Too short a packet is refused (bpf_test_init).
    let packet = [0u8; 64];
    // The beginning of `struct __sk_buff`: field 10 is `ifindex`, 12 the first word of `cb`.
    let mut context = [0u32; 17];
    context[10] = ifindex;
    context[12..14].copy_from_slice(&arguments);
    let mut options = libbpf_rs::libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as _,
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: size_of_val(&context) as _,
        ..Default::default()
    };
    // SAFETY: an open descriptor; what the options point to outlives the call.
    let r = unsafe { libbpf_rs::libbpf_sys::bpf_prog_test_run_opts(program, &raw mut options) };
    if r < 0 {
        bail!("cannot run a program without a packet (BPF_PROG_TEST_RUN): {}", std::io::Error::from_raw_os_error(-r));
    }
    Ok(())
}

/// Runs an iterator to its end; it shows the sockets of the calling thread's network namespace.
pub fn run_iterator(link: RawFd) -> Result<()> {
    read_iterator(link).map(drop)
}

/// The same; yields what it writes.
pub fn read_iterator(link: RawFd) -> Result<Vec<u8>> {
    // SAFETY: a plain system call on a descriptor that the caller holds.
    let fd = unsafe { libbpf_rs::libbpf_sys::bpf_iter_create(link) };
    if fd < 0 {
        bail!("cannot start the iterator: {}", std::io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor without another owner.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut written = Vec::new();
    file.read_to_end(&mut written).context("the iterator failed")?;
    Ok(written)
}
