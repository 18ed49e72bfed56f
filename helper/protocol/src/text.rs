//! Text from outside made harmless for terminals, logs and pages: names, notes, error messages, process names.
//!
//! The author of such text (an API server, a process that names itself, a recording) must not move the cursor, recolour, reorder
//! or hide what is around it, begin a line of its own, or fill the screen. What could is replaced, not removed, so that it shows.

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar;

/// Characters of one field at most: the API server's longest refusals have some 2,000.
pub const LONGEST_FIELD: usize = 4096;

/// Lines of one message at most: a refusal with its hints has fewer than ten.
pub const MOST_LINES: usize = 64;

/// Stands for a character that is not shown.
const REPLACEMENT: char = '?';

/// Stands for what was cut off; ASCII, because not every terminal has an ellipsis.
const CUT: &str = "...";

/// Columns a character takes on a terminal; 0 for those that combine with others or are not shown.
#[must_use]
pub fn columns_of(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// Columns a text takes on a terminal.
#[must_use]
pub fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Whether a character takes its own columns and does nothing else: no control character (C0, DEL, C1), nothing that changes the
/// direction of text, is invisible, combines with its neighbours or separates lines, and no noncharacter.
#[must_use]
pub fn is_harmless(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Soft hyphen, marks that enclose digits, interlinear annotation, object replacement, and blanks that are letters.
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' => false,
        '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' => false,
        // Zero width, direction marks; line and paragraph separator, embeddings and overrides; isolates.
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => false,
        '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' => false,
        '\u{e0000}'..='\u{e0fff}' => false,
        c => u32::from(c) & 0xfffe != 0xfffe && !('\u{fdd0}'..='\u{fdef}').contains(&c) && columns_of(c) > 0,
    }
}

/// One field of a table, a line or a message: harmless, on one line, of at most [`LONGEST_FIELD`] characters.
#[must_use]
pub fn field(text: &str) -> Cow<'_, str> {
    field_within(text, LONGEST_FIELD)
}

/// As [`field`], of at most `most` characters.
#[must_use]
pub fn field_within(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most && text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().min(most));
    let mut left = most;
    for c in text.chars() {
        if left == 0 {
            out.truncate(out.char_indices().rev().nth(CUT.len() - 1).map_or(0, |(at, _)| at));
            out.push_str(CUT);
            break;
        }
        left -= 1;
        out.push(match c {
            '\t' | '\n' | '\r' => ' ',
            c if is_harmless(c) => c,
            _ => REPLACEMENT,
        });
    }
    Cow::Owned(out)
}

/// The first line of a text of several.
#[must_use]
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A message that may have several lines, without a line break at its end. All lines but the first are indented, so that none can
/// pass for a message of its own.
#[must_use]
pub fn message(text: &str) -> String {
    let mut lines = text.trim_end_matches(['\n', '\r']).split('\n').map(|line| line.trim_end_matches('\r'));
    let mut out = field(lines.next().unwrap_or_default()).into_owned();
    for (number, line) in lines.enumerate() {
        out.push_str("\n  ");
        if number + 2 >= MOST_LINES {
            out.push_str(CUT);
            break;
        }
        out.push_str(&field(line));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the classes of characters that do harm consist of, by their names in the Unicode standard.
    const HARMFUL: [&str; 8] = [
        "\0\x07\x08\x1b\x7f",
        "\u{80}\u{85}\u{9b}\u{9d}\u{9f}",
        "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\u{200f}\u{61c}",
        "\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{ad}\u{34f}\u{180e}\u{2061}\u{206f}",
        "\u{2028}\u{2029}",
        "\u{300}\u{489}\u{20dd}\u{fe0f}\u{e0100}",
        "\u{e0001}\u{e0041}\u{fff9}\u{fffb}\u{fffc}\u{1d173}",
        "\u{fffe}\u{ffff}\u{1fffe}\u{fdd0}",
    ];

    #[test]
    fn harmful_characters_are_replaced_and_others_stay() {
        for class in HARMFUL {
            for c in class.chars() {
                assert!(!is_harmless(c), "{c:?}");
                assert_eq!(field(&format!("a{c}b")), "a?b", "{c:?}");
            }
        }
        for text in ["httpbin-7d4b", "Zürich", "日本", "→█…", "a b"] {
            assert_eq!(field(text), text);
        }
        assert_eq!(field("a\tb\nc\rd"), "a b c d", "one line");
        // All that are left take columns of their own.
        for c in (0..=0x0010_ffff).filter_map(char::from_u32).filter(|c| is_harmless(*c)) {
            assert!(columns_of(c) > 0 && !c.is_control(), "{c:?}");
        }
    }

    #[test]
    fn long_fields_are_cut() {
        let long = "x".repeat(LONGEST_FIELD + 1);
        let cut = field(&long);
        assert!(cut.chars().count() == LONGEST_FIELD && cut.ends_with("x..."), "{}", cut.len());
        assert_eq!(field_within("äöüäöü", 5), "äö...");
        assert_eq!(field_within("abcde", 5), "abcde");
        assert_eq!(field_within("äöüäö", 5), "äöüäö");
        assert_eq!(field_within("abc", 2), "...");
    }

    #[test]
    fn no_line_of_a_message_passes_for_another_message() {
        assert_eq!(message("a\nerror: b\r\nc\n\n"), "a\n  error: b\n  c");
        assert_eq!(message("a\rerror: b"), "a error: b");
        assert_eq!(message(""), "");
        let many = message(&"x\n".repeat(10_000));
        assert_eq!(many.lines().count(), MOST_LINES);
        assert!(many.ends_with("\n  ..."));
    }
}
