//! JSON forms.

use anyhow::{Context, Result};
use serde::Serialize;

/// One document, indented, with a newline at its end.
///
/// # Errors
/// When it cannot be encoded.
pub fn document(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot encode the report")?;
    text.push('\n');
    Ok(text)
}

/// One line.
///
/// # Errors
/// When it cannot be encoded.
pub fn line(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string(value).context("cannot encode a line")?;
    text.push('\n');
    Ok(text)
}
