//! The shares of network namespaces in the slots.

use std::path::Path;

use anyhow::Result;
use sockpath_kernel::shared::Mapped;

use super::layout::Share;
use super::map;

/// All shares.
#[derive(Debug)]
pub struct Shares(Mapped<Share>);

impl Shares {
    /// Maps the pinned shares.
    ///
    /// # Errors
    /// When they are missing, of another version's layout, or the kernel refuses.
    pub fn open(path: &Path) -> Result<Self> {
        map::open(path).map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&Share> {
        self.0.get(index)
    }

    /// Makes one, unused so far, that of the namespace with this cookie.
    pub fn claim(&self, index: usize, cookie: u64) {
        if let Some(share) = self.get(index) {
            [&share.open, &share.used, &share.refused, &share.opened, &share.wake_at, &share.burst].iter().for_each(|field| field.set(0));
            share.cookie.set(cookie);
        }
    }

    /// Whether sockets that are established from now on are tracked.
    pub fn set_open(&self, index: usize, open: bool) {
        if let Some(share) = self.get(index) {
            share.open.set(u32::from(open));
        }
    }

    /// The count of sockets at which the programs wake the helper, and whether there is a burst.
    pub fn set_burst(&self, index: usize, burst: bool, wake_at: u32) {
        if let Some(share) = self.get(index) {
            share.burst.set(u32::from(burst));
            share.wake_at.set(wake_at);
        }
    }
}
