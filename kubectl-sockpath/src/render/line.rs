//! One line of text with colours, never wider than the terminal.

use sockpath_protocol::text::columns;

use crate::output::Text;
use crate::terminal::{Paint, Style, fit};

/// A line that is being put together.
pub struct Line<'s> {
    style: &'s Style,
    text: Text,
    used: usize,
}

impl<'s> Line<'s> {
    /// An empty one.
    pub fn new(style: &'s Style) -> Self {
        Self { style, text: Text::default(), used: 0 }
    }

    /// Adds text as it is, as far as there is room.
    pub fn text(self, text: &str) -> Self {
        self.add(None, text)
    }

    /// Adds coloured text, as far as there is room.
    pub fn paint(self, paint: Paint, text: &str) -> Self {
        self.add(Some(paint), text)
    }

    /// Adds spaces up to this column.
    pub fn to(self, column: usize) -> Self {
        let missing = column.saturating_sub(self.used);
        self.add(None, &" ".repeat(missing))
    }

    /// Columns used so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Columns left.
    pub fn room(&self) -> usize {
        self.style.width.saturating_sub(self.used)
    }

    fn add(mut self, paint: Option<Paint>, text: &str) -> Self {
        let text = fit(&self.style.shown(text), self.room(), self.style.unicode);
        self.used += columns(&text);
        match paint {
            Some(paint) => self.text.paint(self.style, paint, &text),
            None => self.text.push(&text),
        }
        self
    }

    /// Ends the line.
    pub fn end(mut self, out: &mut Text) {
        if !self.style.color {
            self.text.trim_end();
        }
        out.append(&self.text);
        out.end_line();
    }
}
