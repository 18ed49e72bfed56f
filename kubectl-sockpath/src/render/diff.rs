//! `--diff`: what changed from one trace to another, as text.

use sockpath_protocol::packet::Direction;

use super::heading::heading;
use super::line::Line;
use crate::duration::nanos;
use crate::output::Text;
use crate::report::Report;
use crate::report::diff::{Change, Diff, StageChange, Subject, TimeRow, are_comparable};
use crate::report::stage_row::Seen;
use crate::terminal::{Paint, Style, fit, wrap};

/// Columns of a time, and of its change.
const TIME: usize = 9;
const CHANGE: usize = 8;

/// Renders it.
#[must_use]
pub fn render(diff: &Diff, before: &Report, after: &Report, style: &Style) -> Text {
    let mut out = Text::default();
    for (mark, report) in [("A ", before), ("B ", after)] {
        let narrower = Style { width: style.width.saturating_sub(2), color: false, ..*style };
        for (n, line) in heading(report, &narrower).lines().enumerate() {
            let paint = if n == 0 { Paint::Heading } else { Paint::Dim };
            Line::new(style).paint(paint, if n == 0 { mark } else { "  " }).to(2).paint(paint, line).end(&mut out);
        }
    }
    out.end_line();
    if diff.same {
        Line::new(style).paint(Paint::Good, "no difference").end(&mut out);
        return out;
    }
    for subject in SUBJECTS {
        let changes: Vec<&Change> = diff.changes.iter().filter(|c| c.subject == subject).collect();
        if !changes.is_empty() {
            Line::new(style).paint(Paint::Heading, word(subject)).end(&mut out);
            changes.iter().for_each(|change| draw(change, style, &mut out));
        }
    }
    if !diff.stages.is_empty() {
        Line::new(style).paint(Paint::Heading, "stages").end(&mut out);
        folded(&diff.stages).iter().for_each(|change| draw(change, style, &mut out));
    }
    if before.request.is_some() && after.request.is_some() && !are_comparable(before, after, Direction::Request) {
        let text = "stages and times of requests are not compared: A and B traced different kinds of packets";
        for line in wrap(text, style.width) {
            Line::new(style).paint(Paint::Dim, &line).end(&mut out);
        }
    }
    times(diff, style, &mut out);
    out
}

/// Stages of one place that changed alike, as one change.
fn folded(stages: &[StageChange]) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    let mut last: Option<&StageChange> = None;
    for stage in stages {
        let name = stage.stage.stage().name;
        let here = |c: &StageChange| (c.direction, c.place.clone(), c.before, c.after);
        if let (Some(change), true) = (all.last_mut(), last.is_some_and(|l| here(l) == here(stage))) {
            for text in [&mut change.before, &mut change.after].into_iter().flatten() {
                *text = format!("{text}, {name}");
            }
        } else {
            let direction = if stage.direction == Direction::Request { "request" } else { "reply" };
            let manner = |seen: Option<Seen>| seen.map(|s| if s == Seen::Skipped { format!("skipped {name}") } else { name.to_owned() });
            let what = format!("{direction}, in {}", stage.place);
            all.push(Change { subject: Subject::Path, what, before: manner(stage.before), after: manner(stage.after) });
        }
        last = Some(stage);
    }
    all
}

const SUBJECTS: [Subject; 6] = [Subject::Endpoints, Subject::Nodes, Subject::Path, Subject::Drops, Subject::Findings, Subject::Rewrites];

fn word(subject: Subject) -> &'static str {
    match subject {
        Subject::Endpoints => "endpoints",
        Subject::Nodes => "nodes",
        Subject::Path => "path",
        Subject::Rewrites => "translations",
        Subject::Drops => "drops",
        Subject::Findings => "findings",
    }
}

fn draw(change: &Change, style: &Style, out: &mut Text) {
    let arrow = if style.unicode { "→" } else { "->" };
    let (mark, paint, text) = match (&change.before, &change.after) {
        (None, Some(after)) => ("+", Paint::Good, format!("{}: {after}", change.what)),
        (Some(before), None) => ("-", Paint::Bad, format!("{}: {before}", change.what)),
        (before, after) => {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            ("~", Paint::Warn, format!("{}: {} {arrow} {}", change.what, text(before), text(after)))
        }
    };
    for (n, line) in wrap(&text, style.width.saturating_sub(4)).iter().enumerate() {
        Line::new(style).to(2).paint(paint, if n == 0 { mark } else { "" }).to(4).text(line).end(out);
    }
}

fn times(diff: &Diff, style: &Style, out: &mut Text) {
    let shown: Vec<&TimeRow> = diff.times.iter().filter(|t| t.stage.is_none() || !t.within_noise).collect();
    if shown.is_empty() {
        return;
    }
    let name = style.width.saturating_sub(2 * TIME + CHANGE + 2).min(52);
    let head = Line::new(style).paint(Paint::Heading, "time (p50)").to(name + TIME - 1).paint(Paint::Dim, "A");
    head.to(name + 2 * TIME - 1).paint(Paint::Dim, "B").end(out);
    for row in &shown {
        let direction = if row.direction == Direction::Request { "request" } else { "reply" };
        let what = match (row.stage, &row.place) {
            (Some(stage), Some(place)) => format!("{direction}: {} in {place}", stage.stage().name),
            _ => format!("{direction}: end to end"),
        };
        let change = if row.within_noise { "noise".to_owned() } else { percent(row) };
        let cells = [nanos(row.before_p50_ns), nanos(row.after_p50_ns), change];
        let ends = [name + TIME, name + 2 * TIME, name + 2 * TIME + CHANGE];
        let paint = (!row.within_noise).then_some(if row.after_p50_ns > row.before_p50_ns { Paint::Bad } else { Paint::Good });
        let mut line = Line::new(style).to(2).text(&fit(&what, name.saturating_sub(3), style.unicode));
        for (cell, end) in cells.iter().zip(ends) {
            line = line.to(end.saturating_sub(cell.chars().count()));
            line = match paint {
                Some(paint) => line.paint(paint, cell),
                None => line.text(cell),
            };
        }
        line.end(out);
    }
    let hidden = diff.times.len() - shown.len();
    if hidden > 0 {
        let text = format!("{hidden} other time{} within noise", if hidden == 1 { " is" } else { "s are" });
        Line::new(style).to(2).paint(Paint::Dim, &text).end(out);
    }
}

/// `+12 %`, `-30 %`, `x12` where it is more than ten times as long.
fn percent(row: &TimeRow) -> String {
    let (before, after) = (i128::from(row.before_p50_ns.max(1)), i128::from(row.after_p50_ns));
    if after >= before * 10 {
        return format!("x{}", after / before);
    }
    format!("{:+} %", (after - before) * 100 / before)
}
