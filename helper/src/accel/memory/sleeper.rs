//! What the kernel shows of a task that waits for a socket: one value, written by the iterator `show_sleeper`.

use anyhow::Result;
use libbpf_rs::MapCore;
use sockpath_bpf::accel::types::accel_sleeper;
use sockpath_kernel::shared::Mapped;

use super::layout::Sleeper as Layout;
use super::map;

/// The value.
#[derive(Debug)]
pub struct Sleeper(Mapped<Layout>);

impl Sleeper {
    /// Maps that of programs which this process has loaded.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(map: &impl MapCore) -> Result<Self> {
        map::of(map).map(Self)
    }

    /// Forgets what was seen.
    pub fn clear(&self) {
        self.0.first().wake_function.set(0);
    }

    /// What was seen since.
    pub fn seen(&self) -> Option<accel_sleeper> {
        Some(self.0.first().copy()).filter(|seen| seen.wake_function != 0)
    }
}
