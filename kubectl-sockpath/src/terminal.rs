//! Width, colour and characters of what is printed.

use std::borrow::Cow;

use sockpath_protocol::text::{columns, columns_of, field, field_within};

use crate::cli::ColorChoice;

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns there are.
    pub width: usize,
    /// Whether to colour.
    pub color: bool,
    /// Whether blocks and arrows may be used; otherwise plain ASCII.
    pub unicode: bool,
}

/// Width assumed where there is no terminal: what fits into tickets and mails.
pub const DEFAULT_WIDTH: usize = 80;

/// Widest that is drawn for, whatever the environment says: more than any screen has.
pub const MAX_WIDTH: usize = 1_000;

/// Narrowest width that is drawn for; narrower terminals wrap.
pub const MIN_WIDTH: usize = 40;

impl Style {
    /// What suits a terminal, or, where it is not a `tty`, a file or a pipe.
    pub(crate) fn of(choice: ColorChoice, tty: bool) -> Self {
        let env = |name| std::env::var(name).ok();
        let columns = env("COLUMNS").and_then(|c| c.parse::<usize>().ok()).filter(|c| *c > 0);
        let measured = if tty { terminal_size::terminal_size().map(|(w, _)| usize::from(w.0)) } else { None };
        Self {
            width: measured.or(columns).unwrap_or(DEFAULT_WIDTH).clamp(MIN_WIDTH, MAX_WIDTH),
            color: wants_color(choice, tty, env("NO_COLOR").as_deref(), env("TERM").as_deref()),
            unicode: wants_unicode(env("TERM").as_deref(), [env("LC_ALL"), env("LC_CTYPE"), env("LANG")], tty),
        }
    }

    /// Plain text of this width, as golden tests use it.
    #[must_use]
    pub fn plain(width: usize) -> Self {
        Self { width, color: false, unicode: true }
    }
}

fn wants_color(choice: ColorChoice, tty: bool, no_color: Option<&str>, term: Option<&str>) -> bool {
    if no_color.is_some_and(|v| !v.is_empty()) {
        return false;
    }
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => tty && term != Some("dumb"),
    }
}

/// A locale that names another character set than UTF-8 gets ASCII; no locale at all gets UTF-8 unless a terminal says `dumb`.
fn wants_unicode(term: Option<&str>, locale: [Option<String>; 3], tty: bool) -> bool {
    if tty && term == Some("dumb") {
        return false;
    }
    match locale.into_iter().flatten().find(|l| !l.is_empty()) {
        None => true,
        Some(l) if l == "C" || l == "POSIX" => !tty,
        Some(l) => {
            let l = l.to_ascii_lowercase();
            !l.contains('.') || l.contains("utf-8") || l.contains("utf8")
        }
    }
}

/// Colours used, by what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// A heading.
    Heading,
    /// Less important.
    Dim,
    /// Time spent working.
    Work,
    /// Time spent waiting.
    Wait,
    /// A rewritten address.
    Rewrite,
    /// Something is wrong.
    Bad,
    /// Worth a look.
    Warn,
    /// As it should be.
    Good,
}

impl Style {
    /// Text as this terminal can show it: harmless, and in ASCII where that is all there is.
    #[must_use]
    pub fn shown<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let shown = field(text);
        if self.unicode || shown.is_ascii() {
            return shown;
        }
        Cow::Owned(shown.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect())
    }
}

/// `text` cut to at most `width` columns, with an ellipsis where something is missing.
#[must_use]
pub fn fit(text: &str, width: usize, unicode: bool) -> String {
    // Where the text would have to be cut to leave room for the ellipsis, as far as it is known.
    let (mut used, mut cut) = (0, 0);
    for (at, c) in text.char_indices() {
        if used < width {
            cut = at;
        }
        used += columns_of(c);
        if used > width {
            let mark = if unicode { "…" } else { "~" };
            return if width == 0 { String::new() } else { format!("{}{mark}", &text[..cut]) };
        }
    }
    text.to_owned()
}

/// `text` made harmless and broken at spaces into lines of at most `width` columns; a word that is longer is broken where it has to be.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let text = field_within(text, usize::MAX);
    let mut lines = Vec::new();
    let (mut line, mut used) = (String::new(), 0);
    for word in text.split_whitespace() {
        let long = columns(word);
        if used > 0 && used + 1 + long > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        for c in word.chars() {
            let wide = columns_of(c);
            if used > 0 && used + wide > width {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += wide;
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_beats_everything() {
        assert!(!wants_color(ColorChoice::Always, true, Some("1"), None));
        assert!(wants_color(ColorChoice::Always, false, Some(""), None));
        assert!(wants_color(ColorChoice::Auto, true, None, Some("xterm")));
        assert!(!wants_color(ColorChoice::Auto, true, None, Some("dumb")));
        assert!(!wants_color(ColorChoice::Auto, false, None, Some("xterm")));
        assert!(!wants_color(ColorChoice::Never, true, None, None));
    }

    #[test]
    fn ascii_where_the_locale_says_so() {
        let locale = |l: &str| [None, None, Some(l.to_owned())];
        assert!(wants_unicode(Some("xterm"), locale("en_US.UTF-8"), true));
        assert!(!wants_unicode(Some("xterm"), locale("en_US.ISO-8859-1"), true));
        assert!(!wants_unicode(Some("xterm"), locale("C"), true));
        assert!(wants_unicode(None, locale("C.UTF-8"), true));
        assert!(!wants_unicode(Some("dumb"), locale("C.UTF-8"), true));
        assert!(wants_unicode(None, [None, None, None], false));
    }

    #[test]
    fn cutting_and_wrapping_keep_the_width() {
        assert_eq!(fit("abcdef", 4, true), "abc…");
        assert_eq!(fit("abc", 4, true), "abc");
        assert_eq!(fit("abc", 0, true), "");
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij x", 4), ["abcd", "efgh", "ij x"]);
        assert!(wrap("", 4).is_empty());
        assert_eq!(
            (fit("日本語", 6, true), fit("日本語", 5, true), fit("日本語", 4, true)),
            ("日本語".into(), "日本…".into(), "日…".into())
        );
        assert_eq!(wrap("日本語 x", 4), ["日本", "語 x"]);
        assert_eq!(wrap("日本", 1), ["日", "本"], "what fits nowhere has a line of its own");
    }

    #[test]
    fn what_a_terminal_cannot_show_is_replaced() {
        let ascii = Style { unicode: false, ..Style::plain(80) };
        assert_eq!(ascii.shown("a\x1b[31müb"), "a?[31m?b");
        assert_eq!(Style::plain(80).shown("a\x1b[31müb"), "a?[31müb");
    }

    /// Each character is looked at once or twice, however long a word is: a name of a megabyte is broken at once.
    #[test]
    fn wrapping_takes_time_in_proportion() {
        let long = "x".repeat(4 << 20);
        let lines = wrap(&long, 40);
        assert_eq!(lines.len(), long.len().div_ceil(40));
        assert_eq!(lines.concat(), long);
        assert_eq!(fit(&long, 40, true).chars().count(), 40);
    }
}
