//! Linux and macOS.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use tokio::signal::unix::{SignalKind, signal};

/// Calls `raise` for each SIGINT, SIGTERM and SIGHUP from now on.
///
/// # Errors
/// When a signal cannot be watched.
pub fn watch_interrupts(raise: impl Fn() + Clone + Send + 'static) -> io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind)?;
        let raise = raise.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                raise();
            }
        });
    }
    Ok(())
}

/// Keeps Ctrl-C on the terminal away from a child process.
pub fn isolate(command: &mut tokio::process::Command) {
    command.process_group(0);
}

/// The signal that ended a process.
#[must_use]
pub fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Replaces this process by a program, so that terminal, signals and exit code are the program's.
///
/// # Errors
/// When it cannot be run; otherwise this does not return.
pub fn become_program(program: &Path, args: Vec<OsString>) -> io::Result<Infallible> {
    Err(Command::new(program).args(args).exec())
}

/// Whether this process runs as root; `true` if that is unknown (no procfs).
#[must_use]
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").map_or(true, |own| own.uid() == 0)
}
