//! How to draw on stdout and stderr: as terminals, or as files and pipes.

use std::io::IsTerminal;

use super::stdout;
use crate::cli::ColorChoice;
use crate::terminal::{MAX_WIDTH, Style};

impl Style {
    /// What suits stdout.
    #[must_use]
    pub fn of_stdout(choice: ColorChoice) -> Self {
        Self::of(choice, stdout::is_terminal())
    }

    /// What suits stderr, except for its width.
    #[must_use]
    pub fn of_stderr(choice: ColorChoice) -> Self {
        Self::of(choice, std::io::stderr().is_terminal())
    }

    /// The same for a table that is printed once: names are complete without a terminal, or on request.
    #[must_use]
    pub fn for_table(self, whole: bool) -> Self {
        let is_free = whole || (!stdout::is_terminal() && std::env::var_os("COLUMNS").is_none());
        if is_free { Self { width: MAX_WIDTH, ..self } } else { self }
    }
}
