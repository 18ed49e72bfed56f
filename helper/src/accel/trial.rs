//! The canaries without an acceleration, for `doctor`.

use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::accel::Canary;

use super::calls::Observed;
use super::canary;
use super::instance::{Instance, Start};
use super::private::in_private_bpffs;

/// Tries the kernel out on private sockets; says where calls are observed, too.
pub fn try_out() -> Result<(Vec<Canary>, Observed)> {
    in_private_bpffs(|pins| {
        let start = Start { owner: "doctor", lease: Duration::from_secs(30), leave_blocking_readers: true, detached: false };
        let instance = Instance::create(pins, &start)?;
        let canaries = canary::run(&instance).context("the kernel could not be tried out on private sockets")?;
        Ok((canaries, instance.observe_calls()?.observed.clone()))
    })
}
