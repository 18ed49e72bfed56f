//! Text for people: harmless by construction. Fields come in through [`sockpath_protocol::text`], line breaks and colours through
//! methods of their own, so that a name or a note brings neither.

use std::fmt::{self, Display};
use std::ops::Deref;

use sockpath_protocol::text;

use crate::terminal::{Paint, Style};

/// Text that may be written to a terminal as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// Text that is part of this program, line breaks included.
    #[must_use]
    pub fn constant(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    /// One line with this field.
    #[must_use]
    pub fn of_line(field: &str) -> Self {
        let mut text = Self::default();
        text.line(field);
        text
    }

    /// Adds a field, on the line that is being written.
    pub fn push(&mut self, field: &str) {
        self.0.push_str(&text::field(field));
    }

    /// Adds the columns of a table, each bounded by itself.
    pub(crate) fn push_columns(&mut self, columns: &str) {
        self.0.push_str(&text::field_within(columns, usize::MAX));
    }

    /// Adds a field in that colour, when colours are on.
    pub fn paint(&mut self, style: &Style, paint: Paint, field: &str) {
        self.painted(style, paint, &text::field(field));
    }

    /// As [`Self::push_columns`], in that colour.
    pub(crate) fn paint_columns(&mut self, style: &Style, paint: Paint, columns: &str) {
        self.painted(style, paint, &text::field_within(columns, usize::MAX));
    }

    fn painted(&mut self, style: &Style, paint: Paint, harmless: &str) {
        if !style.color || harmless.is_empty() {
            self.0.push_str(harmless);
            return;
        }
        self.0.push_str("\x1b[");
        self.0.push_str(code(paint));
        self.0.push('m');
        self.0.push_str(harmless);
        self.0.push_str("\x1b[0m");
    }

    /// Ends the line.
    pub fn end_line(&mut self) {
        self.0.push('\n');
    }

    /// Takes spaces away from the end.
    pub(crate) fn trim_end(&mut self) {
        self.0.truncate(self.0.trim_end_matches(' ').len());
    }

    /// Adds a field and ends the line.
    pub fn line(&mut self, field: &str) {
        self.push(field);
        self.end_line();
    }

    /// Adds a tabulator, which separates columns for programs.
    pub fn tab(&mut self) {
        self.0.push('\t');
    }

    /// Adds a message that may have several lines; all but the first are indented.
    pub fn message(&mut self, message: &str) {
        self.0.push_str(&text::message(message));
        self.end_line();
    }

    /// Adds other text.
    pub fn append(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// What the argument parser composed: help or a usage error, with its colours when `color` is set. Nothing else of what it holds
    /// beyond line breaks does more than print.
    #[must_use]
    pub fn of_usage(error: &clap::Error, color: bool) -> Self {
        let rendered = error.render();
        let rendered = if color { rendered.ansi().to_string() } else { rendered.to_string() };
        let mut text = Self::default();
        let mut rest = rendered.as_str();
        while let Some((before, after)) = rest.split_once("\x1b[") {
            text.keep_lines(before);
            let end = after.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(after.len());
            match after.strip_prefix(&after[..end]).and_then(|tail| tail.strip_prefix('m')) {
                Some(tail) if color => {
                    text.0.push_str(&rendered_sgr(&after[..end]));
                    rest = tail;
                }
                _ => {
                    text.push("\x1b[");
                    rest = after;
                }
            }
        }
        text.keep_lines(rest);
        text
    }

    /// Adds text with its line breaks.
    fn keep_lines(&mut self, lines: &str) {
        for (number, line) in lines.split('\n').enumerate() {
            if number > 0 {
                self.end_line();
            }
            self.push(line);
        }
    }
}

/// The sequence that selects this graphic rendition: it changes colours and nothing else.
fn rendered_sgr(parameters: &str) -> String {
    format!("\x1b[{parameters}m")
}

fn code(paint: Paint) -> &'static str {
    match paint {
        Paint::Heading => "1",
        Paint::Dim => "2",
        Paint::Work => "36",
        Paint::Wait | Paint::Warn => "33",
        Paint::Rewrite => "35",
        Paint::Bad => "1;31",
        Paint::Good => "32",
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_colours_and_line_breaks_get_through() {
        let style = Style { color: true, ..Style::plain(80) };
        let mut text = Text::default();
        text.paint(&style, Paint::Bad, "a\x1b[2J\nb");
        text.end_line();
        text.push("\u{202e}c\rd");
        assert_eq!(text, "\x1b[1;31ma?[2J b\x1b[0m\n?c d");
        let mut plain = Text::default();
        plain.paint(&Style::plain(80), Paint::Bad, "x");
        assert_eq!(plain, "x");
        let mut again = Text::default();
        again.push(&text);
        assert!(!again.contains('\x1b') && !again.contains('\n'), "text that becomes a field is one: {again}");
    }

    #[test]
    fn usage_errors_keep_their_form_and_lose_what_was_typed_into_them() {
        let command = || clap::Command::new("x").arg(clap::Arg::new("n").long("number").value_parser(clap::value_parser!(u8)));
        let error = command().try_get_matches_from(["x", "--number", "\x1b]0;title\x07\u{202e}y"]).unwrap_err();
        for color in [false, true] {
            let text = Text::of_usage(&error, color);
            assert!(text.starts_with(if color { "\x1b[" } else { "error: " }) && text.lines().count() > 1, "{text}");
            let shown = text.replace("\x1b[", "").replace('\n', "");
            assert!(shown.chars().all(text::is_harmless), "{shown:?}");
            // Without colours the parser's own plain form has no escape sequences at all, not even in pieces.
            assert!(text.contains(if color { "?]0;title??y" } else { "'?y'" }), "{text:?}");
        }
    }
}
