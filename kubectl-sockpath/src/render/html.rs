//! `--html`: the report as one page that needs nothing else.

use anyhow::Result;

use crate::report::Report;

/// Renders it.
///
/// # Errors
/// When the report cannot be encoded.
pub fn render(report: &Report) -> Result<String> {
    super::json::document(report)
}
