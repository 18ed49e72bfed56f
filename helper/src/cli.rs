//! Arguments of the helper, and how our programs run and end.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::site::Site;
use crate::{serve, stderr, switches};

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

/// Has freed memory go back to the kernel. By default, glibc keeps more of it after each large block that was freed: a helper would keep what
/// reading type information and tables of thousands of connections took for as long as it runs (6 MiB).
fn give_memory_back() {
    /// The default, which is also fixed once it is set (`mallopt(3)`).
    const LARGE: i32 = 128 << 10;
    // SAFETY: it sets a parameter of the allocator. One that refuses keeps its defaults.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Runs a program to its end; `error: ` and the cause go to stderr.
#[must_use]
pub fn run(program: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    give_memory_back();
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
