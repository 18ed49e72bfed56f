//! Tables: columns without borders, each cell harmless, on one line and of bounded length.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Row, presets};
use sockpath_protocol::text::field_within;

use crate::output::Text;
use crate::terminal::{Paint, Style, fit};

/// Characters of a cell at most: `namespace/name` of a pod has up to 317.
const LONGEST_CELL: usize = 512;

/// A table that is being put together.
pub struct Table<'s> {
    style: &'s Style,
    table: comfy_table::Table,
    /// Paint of each row.
    paints: Vec<Option<Paint>>,
    /// Whether it has to fit the terminal.
    fits: bool,
}

impl<'s> Table<'s> {
    /// As wide as its content, as kubectl's wide output, so that it can be cut and grepped.
    pub fn wide(style: &'s Style, heads: &[&str]) -> Self {
        Self::new(style, heads, false)
    }

    /// As wide as the terminal at most.
    pub fn fitting(style: &'s Style, heads: &[&str]) -> Self {
        let mut table = Self::new(style, heads, true);
        table.table.set_content_arrangement(ContentArrangement::Dynamic);
        table.table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
        table.table.set_truncation_indicator(if style.unicode { "…" } else { "~" });
        table
    }

    fn new(style: &'s Style, heads: &[&str], fits: bool) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
        table.set_header(heads);
        Self { style, table, paints: Vec::new(), fits }
    }

    /// Adds a row; `height` is how many lines it may be broken into where it does not fit.
    pub fn row<T: AsRef<str>>(&mut self, paint: Option<Paint>, height: Option<usize>, cells: impl IntoIterator<Item = T>) {
        let cell = |text: T| {
            let text = field_within(text.as_ref(), LONGEST_CELL);
            Cell::new(self.style.shown(&text))
        };
        let mut row = Row::from(cells.into_iter().map(cell).collect::<Vec<_>>());
        if let Some(height) = height {
            row.max_height(height);
        }
        self.table.add_row(row);
        self.paints.push(paint);
    }

    /// Aligns these columns to the right, their heads too.
    pub fn align_right(&mut self, columns: &[usize]) {
        for column in columns {
            if let Some(column) = self.table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }

    /// The lines; the head is dimmed when `dim_head` is set. Rows have their paint where each is one line.
    pub fn end(self, dim_head: bool, out: &mut Text) {
        for (i, line) in self.table.lines().enumerate() {
            let line = line.trim_end();
            let line = if self.fits { fit(line, self.style.width, self.style.unicode) } else { line.to_owned() };
            let paint = match i.checked_sub(1) {
                None => dim_head.then_some(Paint::Dim),
                Some(row) => self.paints.get(row).copied().flatten(),
            };
            match paint {
                Some(paint) => out.paint_columns(self.style, paint, &line),
                None => out.push_columns(&line),
            }
            out.end_line();
        }
    }
}
