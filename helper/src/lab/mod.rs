//! The lab: two nodes, their pods and Services, out of network namespaces on this machine.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

/// `lab` and what follows it.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Remove the lab and every leftover of it
    Down,
}

/// Runs a lab command.
pub async fn run(_args: LabArgs) -> Result<ExitCode> {
    bail!("the lab is not built yet")
}
