//! What this node offers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use sockpath_protocol::message::EndReason;

use crate::session::Session;

/// What this kernel offers, by name; cheap checks only, this is part of `hello`.
#[must_use]
pub fn features() -> BTreeMap<String, bool> {
    let mut features = BTreeMap::new();
    features.insert("btf".to_owned(), Path::new("/sys/kernel/btf/vmlinux").exists());
    features
}

/// Answers `doctor`.
pub fn run(_session: &mut Session) -> Result<EndReason> {
    Ok(EndReason::Done)
}
