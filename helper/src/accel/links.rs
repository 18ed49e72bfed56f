//! Pinned links and programs, and running iterators: what libbpf-rs has no call for.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::pins::Pins;

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
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
    // SAFETY: a fresh descriptor that nobody else owns.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut written = Vec::new();
    file.read_to_end(&mut written).context("the iterator failed")?;
    Ok(written)
}
