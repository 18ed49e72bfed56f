//! Arguments of the helper.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{accel, lab, session, stderr};

/// The privileged half of kubectl sockpath; the plugin starts it, people rarely do.
#[derive(Debug, Parser)]
#[command(name = "sockpath-helper", version)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one session: JSON lines on stdin and stdout (the default)
    Session,
    /// Attend to a detached acceleration: started by the helper itself
    #[command(hide = true)]
    Attend,
    /// Build, show, use or remove the lab on this machine
    Lab(lab::LabArgs),
}

/// Runs the helper; `error: ` and the cause go to stderr.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            stderr::error(&format!("cannot start the event loop: {e}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match args.command.unwrap_or(Command::Session) {
            Command::Session => session::serve().await,
            Command::Attend => accel::detached::run().await,
            Command::Lab(lab) => lab::run(lab).await,
        }
    });
    // A blocked read of stdin must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(e) => {
            stderr::error(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}
