//! Array maps of BPF, mapped into this process.

use std::path::Path;

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapHandle};
use sockpath_kernel::shared::{Mapped, Shared};

/// Maps a pinned array map.
///
/// # Errors
/// When it is missing, of another version's layout, or the kernel refuses.
pub fn open<T: Shared>(path: &Path) -> Result<Mapped<T>> {
    let map = MapHandle::from_pinned_path(path).with_context(|| format!("cannot open {}", path.display()))?;
    if map.value_size() as usize != size_of::<T>() {
        bail!("{} was left by another version of sockpath; run `stop` with that version, or `cleanup`", path.display());
    }
    of(&map).with_context(|| format!("cannot map {}", path.display()))
}

/// Maps an array map of this process.
///
/// # Errors
/// When the kernel refuses.
pub fn of<T: Shared>(map: &impl MapCore) -> Result<Mapped<T>> {
    Mapped::new(map.as_fd(), map.value_size(), map.max_entries()).context("cannot map a BPF array")
}
