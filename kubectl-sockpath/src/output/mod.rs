//! The only exit to stdout and stderr. What people read is a [`Text`], what programs read is a [`Machine`] text: both are harmless by
//! construction, so no caller has to remember to make what came from outside harmless (tests/sinks.rs checks that there is no
//! other).

mod machine;
mod screen;
mod stdout;
mod stream;
mod style;
mod text;

use std::io::Write;

use anyhow::{Context, Result};
use indicatif::ProgressDrawTarget;
use serde::Serialize;

pub use machine::{Machine, write_document};
pub use screen::Screen;
pub use stdout::is_terminal;
pub use stream::Stream;
pub use text::Text;

/// Writes text to stdout in one go and flushes it.
///
/// # Errors
/// When stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn print(text: &Text) -> Result<()> {
    stdout::write(text.as_bytes())
}

/// Writes what a program reads to stdout in one go and flushes it.
///
/// # Errors
/// When stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn emit(text: &Machine) -> Result<()> {
    stdout::write(text.as_bytes())
}

/// Writes one JSON document to stdout while it is encoded: for what would take hundreds of megabytes as a whole.
///
/// # Errors
/// When it cannot be encoded or stdout cannot be written; a broken pipe ends the plugin quietly.
pub fn emit_document(value: &impl Serialize) -> Result<()> {
    machine::write_document(value, &mut std::io::stdout().lock()).context(stdout::CANNOT_WRITE)
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
