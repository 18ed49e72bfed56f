//! The commands, one file each, and what they share.

mod accelerate;
mod cleanup;
mod complete;
mod doctor;
mod man;
mod status;
mod trace;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::FromArgMatches;

use crate::cli::{self, Cli, ColorChoice, Command, Global};
use crate::exit::{self, Exit};
use crate::lab;
use crate::output::{self, Text};
use crate::platform;
use crate::progress::Progress;
use crate::terminal::Style;

/// Runs the plugin: thin on purpose, so that every decision has a place with a name.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(words) = complete::words(&args) {
        return match event_loop() {
            Ok(runtime) => {
                let exit = runtime.block_on(complete::run(&words));
                runtime.shutdown_background();
                exit.into()
            }
            Err(exit) => exit,
        };
    }
    let parsed = cli::command().try_get_matches_from(&args).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            return usage(&e);
        }
    };
    let runtime = match event_loop() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    let progress = Progress::new(cli.global.verbose);
    let lab = cli.global.lab;
    let result = runtime.block_on(run(cli, &progress));
    progress.clear();
    // A blocked write to stdout or read of a file must not keep the process alive.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(e) => {
            let exit = exit::of_error(&e);
            if matches!(exit, Exit::Failed | Exit::Usage) {
                output::say(&format!("error: {e:#}"));
                if exit == Exit::Failed && lab && !platform::is_root() {
                    output::say("the lab's helper needs root: try it with sudo");
                }
            }
            exit.into()
        }
    }
}

/// Help goes to stdout (0), usage errors to stderr (2); a closed pipe is not a failure.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        output::complain(&Text::of_usage(error, Style::of_stderr(ColorChoice::Auto).color));
        Exit::Usage.into()
    } else {
        let _ = output::print(&Text::of_usage(error, Style::of_stdout(ColorChoice::Auto).color));
        Exit::Done.into()
    }
}

fn event_loop() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
        output::say(&format!("error: cannot start the event loop: {e}"));
        ExitCode::from(Exit::Failed)
    })
}

async fn run(cli: Cli, progress: &Progress) -> Result<Exit> {
    let global: &Global = &cli.global;
    match cli.command {
        Command::Lab(lab) => match lab::forward(lab.command)? {},
        Command::Accelerate(args) => accelerate::run(&args, global, progress).await,
        Command::Status(args) => status::status(&args, global, progress).await,
        Command::Stop(args) => status::stop(&args, global, progress).await,
        Command::Completion(args) => complete::script(&args),
        Command::Man(args) => man::write(&args.dir),
        Command::Version(args) => version::run(&args),
        Command::Trace(args) => trace::run(&args, global, progress).await,
        Command::Doctor(args) => doctor::run(&args, global, progress).await,
        Command::Cleanup(args) => cleanup::run(&args, global, progress).await,
    }
}
