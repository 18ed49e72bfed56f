//! Arrays that user space and BPF programs write at the same time.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI8, AtomicI32, AtomicU16, AtomicU32, AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// What may lie in memory that others write meanwhile.
///
/// # Safety
/// The type consists of atomics only, so that every bit pattern is valid and every access atomic, and has no padding that matters.
pub unsafe trait Shared {}

/// Declares atomics to be such.
macro_rules! atomics {
    ($($atomic:ty),*) => {
        $(
            // SAFETY: one atomic.
            unsafe impl Shared for $atomic {}
        )*
    };
}

atomics!(AtomicI8, AtomicI32, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: nothing but elements that are such.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// The values of a BPF array map with BPF_F_MMAPABLE.
#[derive(Debug)]
pub struct Mapped<T: Shared> {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
    count: usize,
    values: PhantomData<T>,
}

// SAFETY: the mapping belongs to no thread, and `T` consists of atomics.
unsafe impl<T: Shared> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapped<T> {}

impl<T: Shared> Mapped<T> {
    /// Maps the array with that many values.
    ///
    /// # Errors
    /// When the kernel refuses, or the values are not of the size of `T`.
    pub fn new(map: BorrowedFd<'_>, value_size: u32, count: u32) -> io::Result<Self> {
        let (size, count) = (size_of::<T>(), count as usize);
        // The kernel puts values at multiples of 8 bytes.
        if size != value_size as usize || (count > 1 && !size.is_multiple_of(8)) || align_of::<T>() > 8 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("values of {value_size} bytes where {size} are expected")));
        }
        let bytes = size.checked_mul(count).and_then(NonZeroUsize::new).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start, bytes, count, values: PhantomData })
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first value, which each mapping has.
    #[must_use]
    pub fn first(&self) -> &T {
        // SAFETY: as in `get`; a mapping of no values is not made (its length is not zero).
        unsafe { self.start.cast::<T>().as_ref() }
    }

    /// The value of that number.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: the mapping holds `count` values of `T` (checked when it was made), lives as long as `self`, and is aligned to a
        // page; `T` consists of atomics, which others may write meanwhile.
        (index < self.count).then(|| unsafe { self.start.cast::<T>().add(index).as_ref() })
    }
}

impl<T: Shared> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start, self.bytes.get()) };
    }
}
