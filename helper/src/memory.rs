//! Returns freed memory to the kernel: the tables of thousands of connections that a helper builds now and then need much more than all else.

/// The default, which is also fixed once it is set (`mallopt(3)`).
const LARGE: i32 = 128 << 10;

/// Has glibc unmap large blocks when they are freed. By default, glibc keeps more after each that was freed: a helper would keep what reading
/// type information and tables of thousands of connections took for as long as it runs (6 MiB).
pub fn keep_little() {
    // SAFETY: it sets a parameter of the allocator. One that refuses keeps its defaults.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Returns to the kernel what is free now, also between blocks that are in use: after something that took many small blocks.
pub fn trim() {
    // SAFETY: it takes no block that is in use.
    unsafe { libc::malloc_trim(0) };
}
