//! Cells of tables.

use crate::render::page::Page;

/// A table's cell.
pub(super) fn cell(page: &mut Page, text: &str) {
    page.markup("<td>").text(text).markup("</td>");
}

/// A table's cell with a number.
pub(super) fn number(page: &mut Page, text: &str) {
    page.markup("<td class=\"n\">").text(text).markup("</td>");
}
