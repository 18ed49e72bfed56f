//! The memory that is shared with the programs: what they know about each socket, and what they are told.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapHandle};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use sockpath_bpf::accel::types::{accel_control, accel_end};

/// An array map of `T`, mapped into this process. Programs write to it at any time, so values are copied in and out as a whole
/// and never borrowed; a copy may be torn between fields, which its readers allow for.
#[derive(Debug)]
pub struct SharedArray<T> {
    start: NonNull<T>,
    len: usize,
    bytes: NonZeroUsize,
}

// SAFETY: it is plain memory, accessed by volatile copies only.
unsafe impl<T> Send for SharedArray<T> {}
// SAFETY: as above; threads of this process are no different from the programs that write to it.
unsafe impl<T> Sync for SharedArray<T> {}

impl<T: Copy> SharedArray<T> {
    /// Maps a pinned array map.
    pub fn open(path: &Path) -> Result<Self> {
        let map = MapHandle::from_pinned_path(path).with_context(|| format!("cannot open {}", path.display()))?;
        if map.value_size() as usize != size_of::<T>() {
            bail!("{} was left by another version of sockpath; run `stop` with that version, or `cleanup`", path.display());
        }
        Self::map(map.as_fd(), map.max_entries() as usize).with_context(|| format!("cannot map {}", path.display()))
    }

    /// Maps a map of this process.
    pub fn map_fd(map: &impl MapCore) -> Result<Self> {
        Self::map(map.as_fd(), map.max_entries() as usize).context("cannot map a BPF array")
    }

    fn map(fd: BorrowedFd<'_>, len: usize) -> Result<Self> {
        let bytes = (len * size_of::<T>()).next_multiple_of(4096);
        let bytes = NonZeroUsize::new(bytes).context("an empty map")?;
        // SAFETY: a fresh mapping at an address the kernel chooses, of an array map that is at least `len` values long.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { start: start.cast(), len, bytes })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A copy of one value.
    pub fn get(&self, index: usize) -> Option<T> {
        // SAFETY: within the mapping, aligned because mappings and value sizes are, and any bit pattern is a `T` (integers only).
        (index < self.len).then(|| unsafe { self.start.add(index).read_volatile() })
    }

    /// Writes one field of a value; `field` selects it.
    pub fn set<F: Copy>(&self, index: usize, field: impl FnOnce(*mut T) -> *mut F, value: F) {
        if index < self.len {
            // SAFETY: `field` yields the address of a field of the value at `index`, which lies within the mapping.
            unsafe { field(self.start.as_ptr().add(index)).write_volatile(value) };
        }
    }

    /// Sets bits of one field of a value, whatever the programs do to it at the same time.
    pub fn or(&self, index: usize, field: impl FnOnce(*mut T) -> *mut u32, bits: u32) {
        if index < self.len {
            // SAFETY: as in `set`; the field is aligned, and the programs change it by atomic operations only.
            unsafe { AtomicU32::from_ptr(field(self.start.as_ptr().add(index))) }.fetch_or(bits, Ordering::Relaxed);
        }
    }

    /// Reads one field of a value without copying the rest.
    pub fn read<F: Copy>(&self, index: usize, field: impl FnOnce(*mut T) -> *mut F) -> Option<F> {
        // SAFETY: as in `set`.
        (index < self.len).then(|| unsafe { field(self.start.as_ptr().add(index)).read_volatile() })
    }
}

impl<T> Drop for SharedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nobody else knows it.
        let _ = unsafe { munmap(self.start.cast(), self.bytes.get()) };
    }
}

/// Address of a field of a shared value, for [`SharedArray::set`] and [`SharedArray::read`].
macro_rules! field {
    ($name:ident) => {
        // SAFETY: a field of a value that lies within the mapping.
        |value| unsafe { &raw mut (*value).$name }
    };
}
pub(crate) use field;

/// What is known about each socket; the index is its slot.
pub type Ends = SharedArray<accel_end>;

/// What the programs are told; one value.
pub type Control = SharedArray<accel_control>;
