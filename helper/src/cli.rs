//! Arguments of the helper, and how our programs run and end.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::site::Site;
use crate::{memory, serve, stderr, switches};

/// The privileged half of kubectl sockpath; the plugin starts it, people rarely do.
#[derive(Debug, Parser)]
#[command(name = "sockpath-helper", version = switches::VERSION)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one session: JSON lines on stdin and stdout (the default)
    Session,
}

/// Runs the helper; `error: ` and the cause go to stderr.
#[must_use]
pub fn main() -> ExitCode {
    match Args::parse().command.unwrap_or(Command::Session) {
        Command::Session => run(serve::serve(Site::Node)),
    }
}

/// Runs a program to its end; `error: ` and the cause go to stderr.
#[must_use]
pub fn run(program: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    memory::keep_little();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            stderr::error(&format!("cannot start the event loop: {e}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(program);
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
