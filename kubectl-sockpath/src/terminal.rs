//! The one place that decides on width, colour and characters of what is printed.

use std::io::IsTerminal;

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

/// Narrowest width that is drawn for; narrower terminals wrap.
pub const MIN_WIDTH: usize = 40;

impl Style {
    /// What suits stdout.
    #[must_use]
    pub fn of_stdout(choice: ColorChoice) -> Self {
        let tty = std::io::stdout().is_terminal();
        let env = |name| std::env::var(name).ok();
        let columns = env("COLUMNS").and_then(|c| c.parse::<usize>().ok()).filter(|c| *c > 0);
        let measured = if tty { terminal_size::terminal_size().map(|(w, _)| usize::from(w.0)) } else { None };
        Self {
            width: measured.or(columns).unwrap_or(DEFAULT_WIDTH).max(MIN_WIDTH),
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
    /// `text` in that colour, when colours are on.
    #[must_use]
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Heading => "1",
            Paint::Dim => "2",
            Paint::Work => "36",
            Paint::Wait => "33",
            Paint::Rewrite => "35",
            Paint::Bad => "1;31",
            Paint::Warn => "33",
            Paint::Good => "32",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Text from outside (process and device names) made safe for a terminal: control characters become `?`.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `text` cut to at most `width` characters, with an ellipsis where something is missing.
#[must_use]
pub fn fit(text: &str, width: usize, unicode: bool) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mark = if unicode { "…" } else { "~" };
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        cut.push_str(mark);
    }
    cut
}

/// `text` broken at spaces into lines of at most `width` characters; a word that is longer is broken where it has to be.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word;
        let used = line.chars().count();
        if used > 0 && used + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        while word.chars().count() > width {
            let at = word.char_indices().nth(width).map_or(word.len(), |(i, _)| i);
            lines.push(word[..at].to_owned());
            word = &word[at..];
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
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
        assert_eq!(printable("a\x1b[31mb"), "a?[31mb");
    }
}
