//! One line of text with colours, never wider than the terminal.

use crate::terminal::{Paint, Style, fit, printable};

/// A line that is being put together.
pub struct Line<'s> {
    style: &'s Style,
    text: String,
    used: usize,
}

impl<'s> Line<'s> {
    /// An empty one.
    pub fn new(style: &'s Style) -> Self {
        Self { style, text: String::new(), used: 0 }
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
        let text = fit(&printable(text), self.room(), self.style.unicode);
        self.used += text.chars().count();
        match paint {
            Some(paint) => self.text.push_str(&self.style.paint(paint, &text)),
            None => self.text.push_str(&text),
        }
        self
    }

    /// Ends the line.
    pub fn end(self, out: &mut String) {
        if self.style.color {
            out.push_str(&self.text);
        } else {
            out.push_str(self.text.trim_end());
        }
        out.push('\n');
    }
}
