//! The two ends of a trace, as the command line names them.

use anyhow::Result;
use sockpath_protocol::request::Protocol;

use crate::backend::Backend;
use crate::cli;
use crate::exit::UsageError;
use crate::target::{self, Plan};

/// Source and target of a trace, not yet looked up.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    args: &'a cli::Trace,
    source: &'a str,
    /// The target's name.
    pub target: &'a str,
}

impl<'a> Ends<'a> {
    /// Those of a command.
    ///
    /// # Errors
    /// When one is missing.
    pub fn of(args: &'a cli::Trace) -> Result<Self> {
        match (&args.source, &args.target) {
            (Some(source), Some(target)) => Ok(Self { args, source, target }),
            _ => Err(UsageError::new("SOURCE and TARGET are required")),
        }
    }

    /// What is to be traced, and where.
    ///
    /// # Errors
    /// As [`target::plan`].
    pub async fn look_up(&self, backend: &Backend) -> Result<Plan> {
        target::plan(backend, self.source, self.target, self.args.container.as_deref(), self.args.protocol.map(Protocol::from)).await
    }
}
