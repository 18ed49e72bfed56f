//! The network namespaces whose sockets are tracked, and the share of the slots that each has.
//!
//! A chosen pod is its network namespace, identified by cookie. Its processes can open further namespaces and, in those, give sockets
//! any sequence numbers (TCP_REPAIR): such sockets are not tracked. The shares are in pinned memory: the programs count in them, and a
//! process that takes over an acceleration finds them as they are.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use sockpath_bpf::accel::types::accel_share;

use super::memory::layout::Control;
use super::memory::shares::Shares;
use crate::node::Netns;
use crate::pins::Pins;

/// Pin of the map from cookies to shares.
pub const NAMESPACES: &str = "namespaces";

/// Pin of the shares.
pub const SHARES: &str = "shares";

/// The tracked network namespaces.
#[derive(Debug)]
pub struct Namespaces {
    by_cookie: MapHandle,
    shares: Shares,
    /// Those that are open, by share: held for insertions, which take place inside.
    open: Mutex<HashMap<u16, File>>,
    /// How many slots there are to share.
    slots: u32,
}

impl Namespaces {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When they are not there or of another layout.
    pub fn open(pins: &Pins, slots: usize) -> Result<Self> {
        let by_cookie = MapHandle::from_pinned_path(pins.path(NAMESPACES)).context("cannot open the map of namespaces")?;
        let slots = u32::try_from(slots).context("more slots than a map can have")?;
        Ok(Self { by_cookie, shares: Shares::open(&pins.path(SHARES))?, open: Mutex::default(), slots })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u16, File>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tracks the sockets of this namespace from now on.
    ///
    /// # Errors
    /// When there are too many namespaces, or this one cannot be identified or held.
    pub fn track(&self, control: &Control, netns: &Netns) -> Result<()> {
        let cookie = netns.cookie()?;
        let index = match self.find(cookie) {
            Some(index) => index,
            None => self.claim(cookie)?,
        };
        self.shares.set_open(index.into(), true);
        let key = u32::from(index).to_ne_bytes();
        self.by_cookie.update(&cookie.to_ne_bytes(), &key, MapFlags::ANY).context("cannot note a network namespace")?;
        let file = netns.file.try_clone().context("cannot hold a network namespace")?;
        self.held().insert(index, file);
        self.divide(control);
        Ok(())
    }

    /// Tracks no further sockets of this namespace. Its share lasts until its last tracked socket is gone.
    ///
    /// # Errors
    /// When it cannot be identified.
    pub fn release(&self, control: &Control, netns: &Netns) -> Result<()> {
        let cookie = netns.cookie()?;
        // Only one that is not there cannot be deleted.
        let _ = self.by_cookie.delete(&cookie.to_ne_bytes());
        if let Some(index) = self.find(cookie) {
            self.shares.set_open(index.into(), false);
            self.held().remove(&index);
        }
        self.divide(control);
        Ok(())
    }

    /// The namespace of a share, where it is open.
    pub fn file(&self, share: u16) -> Option<File> {
        self.held().get(&share).and_then(|file| file.try_clone().ok())
    }

    /// The shares that are open, with their index.
    pub fn open_shares(&self) -> Vec<(usize, accel_share)> {
        let mut open: Vec<usize> = self.held().keys().map(|index| usize::from(*index)).collect();
        open.sort_unstable();
        open.into_iter().filter_map(|index| Some((index, self.shares.get(index)?.copy()))).collect()
    }

    /// Writes the count of sockets at which the programs wake the helper, and whether there is a burst.
    pub fn set_burst(&self, index: usize, burst: bool, wake_at: u32) {
        self.shares.set_burst(index, burst, wake_at);
    }

    fn find(&self, cookie: u64) -> Option<u16> {
        let found = (0..self.shares.len()).find(|&i| self.shares.get(i).is_some_and(|share| share.cookie.get() == cookie))?;
        u16::try_from(found).ok()
    }

    /// An unused share, for this namespace.
    fn claim(&self, cookie: u64) -> Result<u16> {
        let is_free = |i: &usize| {
            let share = self.shares.get(*i);
            share.is_some_and(|s| s.cookie.get() == 0 || s.open.get() == 0 && s.used.get() == 0)
        };
        let Some(index) = (0..self.shares.len()).find(is_free) else {
            bail!("more than {} pods of one node cannot be accelerated at a time", self.shares.len());
        };
        self.shares.claim(index, cookie);
        u16::try_from(index).context("more shares than a socket can name")
    }

    /// Gives each open namespace an equal share of the slots.
    fn divide(&self, control: &Control) {
        let open = u32::try_from(self.held().len()).unwrap_or(u32::MAX).max(1);
        control.set_fair_share(self.slots / open);
    }
}
