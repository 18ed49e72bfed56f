//! Explains findings, what drops packets, and the kernel's drop reasons: `trace --explain` and docs/findings.md.

use sockpath_protocol::advice;
use sockpath_protocol::mechanism::{MECHANISMS, MechanismRow};

use super::document::Severity;
use super::kind::{KINDS, Kind};
use crate::output::Text;
use crate::terminal::{Paint, Style, wrap};

/// An explanation of an id, of a mechanism of drops, or of a drop reason; `None` for an unknown word. Case does not matter.
#[must_use]
pub fn explain(word: &str, style: &Style) -> Option<Text> {
    let mut out = Text::default();
    if let Some(kind) = KINDS.iter().find(|k| k.id.eq_ignore_ascii_case(word)) {
        heading(kind.id, kind.title, style, &mut out);
        paragraphs(&of_kind(kind), style, &mut out);
    } else if let Some(row) = MECHANISMS.iter().find(|m| m.id.eq_ignore_ascii_case(word)) {
        heading(row.id, row.title, style, &mut out);
        paragraphs(&of_mechanism(row), style, &mut out);
    } else {
        let reason = word.to_uppercase();
        let advice = advice::for_drop(reason.strip_prefix("SKB_DROP_REASON_").unwrap_or(&reason))?;
        heading(&reason, "a drop reason of the kernel", style, &mut out);
        paragraphs(&[("", advice.to_owned())], style, &mut out);
    }
    Some(out)
}

/// All ids with their titles.
#[must_use]
pub fn list(style: &Style) -> Text {
    let mut out = Text::default();
    let rows = |title: &str, rows: &mut dyn Iterator<Item = (&str, &str)>, out: &mut Text| {
        out.paint(style, Paint::Heading, title);
        out.end_line();
        for (id, title) in rows {
            out.line(&format!("  {id:<24} {title}"));
        }
    };
    rows("findings", &mut KINDS.iter().map(|k| (k.id, k.title)), &mut out);
    out.end_line();
    rows("what drops packets (mechanism)", &mut MECHANISMS.iter().map(|m| (m.id, m.title)), &mut out);
    out.end_line();
    out.line("Also the kernel's drop reasons, such as NO_SOCKET.");
    out
}

/// docs/findings.md.
#[must_use]
pub fn document() -> String {
    let mut page = "# Findings\n\n\
        Generated from the tables in `kubectl-sockpath/src/report/kind.rs` and `helper/protocol/src/mechanism.rs`; a test compares\n\
        (`UPDATE_GOLDEN=1 cargo test -p kubectl-sockpath --test findings` writes it). `kubectl sockpath trace --explain ID` prints one entry.\n\n\
        Findings are listed by cause: a cause, then what follows from it (`because`, `root` in docs/json.md). Severity is `critical` (packets do not\n\
        arrive, or not where they should), `warning` or `info`. A finding that rests on lost events is never critical.\n"
        .to_owned();
    for kind in KINDS {
        page.push_str(&format!("\n## `{}`: {}\n\nSeverity: {}.\n", kind.id, kind.title, severity(kind.severity)));
        page.push_str(&markdown(&of_kind(kind)));
    }
    page.push_str("\n# What drops packets\n\n`mechanism` of a drop says what did it, where that is more than the kernel's reason.\n");
    for row in MECHANISMS {
        page.push_str(&format!("\n## `{}`: {}\n", row.id, row.title));
        page.push_str(&markdown(&of_mechanism(row)));
    }
    page
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    }
}

/// Labels and texts.
type Parts = Vec<(&'static str, String)>;

fn of_kind(kind: &Kind) -> Parts {
    let mut parts = vec![("", kind.meaning.to_owned()), ("Evidence", kind.evidence.to_owned())];
    if !kind.next.is_empty() {
        parts.push(("What to do", placeholders(kind.next)));
    }
    parts.push(("Tested", tested(kind.tested)));
    parts
}

fn of_mechanism(row: &MechanismRow) -> Parts {
    vec![("Evidence", row.evidence.to_owned()), ("What to do", row.advice.to_owned()), ("Tested", tested(row.tested))]
}

fn tested(tests: &[&str]) -> String {
    if tests.is_empty() { "by no planted cause yet".to_owned() } else { tests.join(", ") }
}

/// `{device}` as `DEVICE`.
fn placeholders(text: &str) -> String {
    let mut shown = String::new();
    for part in text.split('{') {
        match part.split_once('}') {
            Some((name, rest)) => shown.extend([&name.to_uppercase(), rest]),
            None => shown.push_str(part),
        }
    }
    shown
}

fn markdown(parts: &Parts) -> String {
    let part = |(label, text): &(&str, String)| if label.is_empty() { format!("\n{text}\n") } else { format!("\n- **{label}**: {text}") };
    let text: String = parts.iter().map(part).collect();
    format!("{}\n", text.replace("\n\n- ", "\n- ").trim_end())
}

fn heading(id: &str, title: &str, style: &Style, out: &mut Text) {
    out.paint(style, Paint::Heading, id);
    out.line(&format!("  {title}"));
}

fn paragraphs(parts: &[(&str, String)], style: &Style, out: &mut Text) {
    for (label, text) in parts {
        let text = if label.is_empty() { text.clone() } else { format!("{label}: {text}") };
        for line in wrap(&text, style.width.saturating_sub(2)) {
            out.line(&format!("  {line}"));
        }
    }
}
