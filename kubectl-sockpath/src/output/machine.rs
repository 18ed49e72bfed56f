//! What programs read: JSON and YAML, in which characters that do harm to a terminal are written as escapes. The value stays the same.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::ops::Deref;

use anyhow::{Context, Result};
use serde::Serialize;
use sockpath_protocol::text::is_harmless;

/// Bytes of a document that are written at a time: what a pipe holds.
const PIECE: usize = 64 << 10;

/// A text for programs that may be written to a terminal as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine(String);

impl Machine {
    /// One JSON document, indented, with a newline at its end.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn document(value: &impl Serialize) -> Result<Self> {
        let mut text = escaped(&serde_json::to_string_pretty(value).context("cannot encode the document")?);
        text.push('\n');
        Ok(Self(text))
    }

    /// One JSON line.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn line(value: &impl Serialize) -> Result<Self> {
        let mut text = escaped(&serde_json::to_string(value).context("cannot encode a line")?);
        text.push('\n');
        Ok(Self(text))
    }

    /// A text that is JSON or YAML already: outside of quoted strings it has no characters that need an escape.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(escaped(text))
    }
}

impl Deref for Machine {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(text, &mut out);
    out
}

fn escape(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| *c != '\n' && !is_harmless(*c)) {
        out.push_str(&rest[..at]);
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
        rest = &rest[at + c.len_utf8()..];
    }
    out.push_str(rest);
}

/// Writes one JSON document, indented, with a newline at its end, while it is encoded.
///
/// # Errors
/// When it cannot be encoded or `out` cannot be written.
pub fn write_document(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    let mut out = Escaping { out: BufWriter::with_capacity(PIECE, out), begun: Vec::new(), text: String::new() };
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Escapes what is written through it.
struct Escaping<W: Write> {
    out: W,
    /// First bytes of a character whose others are still to come.
    begun: Vec<u8>,
    text: String,
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.begun.is_empty() && buf.is_ascii() && !buf.contains(&0x7f) {
            // Nothing to escape: JSON has no control characters but line breaks.
            self.out.write_all(buf)?;
            return Ok(buf.len());
        }
        self.begun.extend_from_slice(buf);
        let whole = match std::str::from_utf8(&self.begun) {
            Ok(text) => text.len(),
            Err(e) if e.error_len().is_none() => e.valid_up_to(),
            Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
        };
        self.text.clear();
        escape(std::str::from_utf8(&self.begun[..whole]).unwrap_or_default(), &mut self.text);
        self.begun.drain(..whole);
        self.out.write_all(self.text.as_bytes())?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200b}\u{2028}\u{e0041}\u{301}ü日\"\\\n\r\0";

    #[test]
    fn json_stays_the_same_value_and_holds_nothing_that_does_harm() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, 1, null], "plain": "x" });
        let (document, line) = (Machine::document(&value).unwrap(), Machine::line(&value).unwrap());
        let mut streamed = Vec::new();
        write_document(&value, &mut streamed).unwrap();
        assert_eq!(std::str::from_utf8(&streamed).unwrap(), &*document);
        for text in [&document, &line] {
            assert!(text.chars().all(|c| c == '\n' || is_harmless(c)), "{text:?}");
            assert!(text.contains("\\u202e") && text.contains("\\udb40\\udc41") && text.contains('日'), "{text:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(text).unwrap(), value);
        }
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn characters_that_come_in_pieces_are_whole_again() {
        let mut out = Escaping { out: Vec::new(), begun: Vec::new(), text: String::new() };
        for byte in "日\u{202e}x".bytes() {
            out.write_all(&[byte]).unwrap();
        }
        assert_eq!(out.out, "日\\u202ex".as_bytes());
        assert!(out.write_all(b"\xff").is_err());
    }
}
