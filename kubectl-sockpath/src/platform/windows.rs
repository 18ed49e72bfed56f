//! Windows. The lab needs Linux, so nothing here starts a helper.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitStatus;

use tokio::signal::windows;

/// Calls `raise` for each Ctrl-C, Ctrl-Break, and when the console closes, from now on.
///
/// # Errors
/// When an event cannot be watched.
pub fn watch_interrupts(raise: impl Fn() + Clone + Send + 'static) -> io::Result<()> {
    let (mut c, mut brk, mut close) = (windows::ctrl_c()?, windows::ctrl_break()?, windows::ctrl_close()?);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = c.recv() => event,
                event = brk.recv() => event,
                event = close.recv() => event,
            };
            match event {
                Some(()) => raise(),
                None => return,
            }
        }
    });
    Ok(())
}

/// Does nothing: there is no helper process.
pub fn isolate(_command: &mut tokio::process::Command) {}

/// Processes end with an exit code only.
#[must_use]
pub fn signal_of(_status: ExitStatus) -> Option<i32> {
    None
}

/// Fails: only the lab's program is started like this.
///
/// # Errors
/// Always.
pub fn become_program(_program: &Path, _args: Vec<OsString>) -> io::Result<Infallible> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the lab needs Linux"))
}

/// Always `true`: nothing here depends on it.
#[must_use]
pub fn is_root() -> bool {
    true
}
