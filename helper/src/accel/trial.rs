//! The self-tests without an acceleration, for `doctor`.

use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::accel::SelfTest;

use super::calls::Observed;
use super::instance::Instance;
use super::mechanism::Mechanisms;
use super::private::in_private_bpffs;
use super::self_test;
use super::start::Start;

/// What `doctor` learns.
#[derive(Debug)]
pub struct Trial {
    /// The self-tests.
    pub self_tests: Vec<SelfTest>,
    /// Where calls are observed.
    pub observed: Observed,
    /// The mechanisms in use.
    pub mechanisms: Mechanisms,
}

/// Tries the kernel out on private sockets.
///
/// # Errors
/// When acceleration would be refused, with the reason.
pub fn try_out() -> Result<Trial> {
    in_private_bpffs(|pins| {
        let start = Start { owner: "doctor", lease: Duration::from_secs(30), leave_blocking_readers: true, detached: false, without: &[] };
        let instance = Instance::create(pins, &start)?;
        let self_tests = self_test::run(&instance).context("the kernel could not be tried out on private sockets")?;
        Ok(Trial { self_tests, observed: instance.observe_calls()?.observed.clone(), mechanisms: instance.mechanisms() })
    })
}
