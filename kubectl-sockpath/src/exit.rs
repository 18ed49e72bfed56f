//! How the plugin ends: the exit codes scripts rely on, and errors that choose one.

use std::process::ExitCode;

/// Exit codes, a contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Ran, but saw nothing.
    Nothing,
    /// Interrupted, after cleaning up.
    Interrupted,
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Nothing => 3,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An argument that parses but makes no sense; exit code 2.
#[derive(Debug)]
pub struct UsageError(String);

impl UsageError {
    /// An error that ends in exit code 2.
    #[expect(clippy::new_ret_no_self, reason = "it is only ever used as an error value")]
    #[must_use]
    pub fn new(text: impl Into<String>) -> anyhow::Error {
        Self(text.into()).into()
    }
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The user pressed Ctrl-C (or the process received SIGTERM or SIGHUP) before there was anything to show; exit code 130.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Whether an error means that the reader of our output went away, which is a quiet end.
#[must_use]
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
            || cause.downcast_ref::<serde_json::Error>().is_some_and(|e| e.io_error_kind() == Some(std::io::ErrorKind::BrokenPipe))
    })
}

/// The exit code an error ends in.
#[must_use]
pub fn of_error(error: &anyhow::Error) -> Exit {
    if is_broken_pipe(error) {
        Exit::Done
    } else if error.is::<Interrupted>() {
        Exit::Interrupted
    } else if error.chain().any(|cause| cause.is::<UsageError>()) {
        Exit::Usage
    } else {
        Exit::Failed
    }
}
