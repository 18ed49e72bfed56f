//! The only exit to stdout and stderr. What people read is a [`Text`], what programs read is a [`Machine`] text: both are harmless by
//! construction, so no caller has to remember to make what came from outside harmless (tests/sinks.rs checks that there is no
//! other).

mod machine;
mod screen;
mod stream;
mod text;

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use indicatif::ProgressDrawTarget;
use serde::Serialize;

pub use machine::{Machine, write_document};
pub use screen::Screen;
pub use stream::Stream;
pub use text::Text;

/// Why an error has this context: tests and users know it by this name.
const CANNOT_WRITE: &str = "cannot write to stdout";

/// Whether stdout is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
#[must_use]
pub fn complains_to_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes text to stdout in one go and flushes it.
///
/// # Errors
/// When stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn print(text: &Text) -> Result<()> {
    write_out(text.as_bytes())
}

/// Writes what a program reads to stdout in one go and flushes it.
///
/// # Errors
/// When stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn emit(text: &Machine) -> Result<()> {
    write_out(text.as_bytes())
}

/// Writes one JSON document to stdout while it is encoded: for what would take hundreds of megabytes as a whole.
///
/// # Errors
/// When it cannot be encoded or stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn emit_document(value: &impl Serialize) -> Result<()> {
    machine::write_document(value, &mut std::io::stdout().lock()).context(CANNOT_WRITE)
}

/// Writes a message to stderr. Its lines after the first are indented, so that none can pass for another message.
pub fn say(message: &str) {
    let mut text = Text::default();
    text.message(message);
    complain(&text);
}

/// Writes text to stderr.
pub fn complain(text: &Text) {
    let mut err = std::io::stderr().lock();
    // stderr may be closed, or a pipe without reader; there is no place left for an error.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Where spinners are drawn; what they show comes from [`Text`] as well.
#[must_use]
pub fn spinners() -> ProgressDrawTarget {
    ProgressDrawTarget::stderr()
}

fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context(CANNOT_WRITE)
}
