//! The picture: one line per stage, bars on one time axis, grouped by place; what rewrote or dropped the packet where it did.

use sockpath_protocol::packet::{Direction, RewriteKind};
use sockpath_protocol::stage::StageId;

use super::axis::{Axis, Layout, STEP, TIME, axis_line, known_times};
use super::heading::heading;
use super::line::Line;
use crate::duration::nanos;
use crate::output::Text;
use crate::report::Report;
use crate::report::document::{DropRow, Finding, LegSummary, Saving, Severity, VanishedRow};
use crate::report::leg::Leg;
use crate::report::rewrites::RewriteRow;
use crate::report::stage_row::{Seen, StageRow};
use crate::report::times::Times;
use crate::terminal::{Paint, Style, wrap};

/// Renders it.
#[must_use]
pub fn render(report: &Report, style: &Style) -> Text {
    let mut out = heading(report, style);
    let Some(request) = &report.request else {
        Line::new(style).paint(Paint::Warn, "no packet between them was observed").end(&mut out);
        out.append(&findings(report, style));
        return out;
    };
    let layout = Layout::new(style);
    let axis = Axis::of(&known_times(&report.stages));
    out.end_line();
    axis_line(&layout, &axis, &mut out);
    let groups = groups(&report.stages);
    let mut start = 0;
    for group in &groups {
        start = draw_group(group, report, &layout, &axis, start, &mut out);
    }
    if !request.complete {
        path_end(report, style, &mut out);
    }
    if let Some(reply) = &report.reply {
        compact(reply, "reply", Direction::Reply, report, &layout, &mut out);
    }
    for (leg, name) in [(&report.short, "short path"), (&report.accelerated, "accelerated")] {
        if let Some(leg) = leg {
            compact(leg, name, Direction::Request, report, &layout, &mut out);
        }
    }
    summary(report, request, style, &mut out);
    out.append(&findings(report, style));
    out
}

/// Stages in one namespace, in a row.
struct Group<'r> {
    stages: Vec<&'r StageRow>,
}

fn groups(stages: &[StageRow]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for stage in stages {
        // Sending and receiving in one namespace are two groups: the packet leaves the stack and comes back to it.
        let here = |s: &StageRow| (s.node.clone(), s.pod.clone(), s.netns, s.side);
        match groups.last_mut() {
            Some(group) if group.stages.last().is_some_and(|s| here(s) == here(stage)) => group.stages.push(stage),
            _ => groups.push(Group { stages: vec![stage] }),
        }
    }
    groups
}

impl Group<'_> {
    /// `default/curl (node-1)  eth0`.
    fn title(&self, arrow: &str) -> String {
        let first = self.stages.first();
        let node = first.and_then(|s| s.node.as_deref()).unwrap_or("?");
        let mut text = match first.and_then(|s| s.pod.as_deref()) {
            Some(pod) => format!("{pod} on {node}"),
            None => node.to_owned(),
        };
        let mut devices: Vec<&str> = self.stages.iter().filter_map(|s| s.device.as_deref()).collect();
        devices.dedup();
        if !devices.is_empty() {
            text.push_str(": ");
            text.push_str(&devices.join(arrow));
        }
        text
    }

    fn total(&self) -> u64 {
        self.stages.iter().filter_map(|s| s.times.p50_ns).sum()
    }
}

/// Draws a group; returns where the time axis stands after it.
fn draw_group(group: &Group<'_>, report: &Report, layout: &Layout<'_>, axis: &Axis, start: u64, out: &mut Text) -> u64 {
    let direction = Direction::Request;
    let style = layout.style;
    let arrow = if style.unicode { " → " } else { " > " };
    let title = group.title(arrow);
    for (i, line) in wrap(&title, style.width).iter().enumerate() {
        let line = if i == 0 { line.clone() } else { format!("  {line}") };
        Line::new(style).paint(Paint::Heading, &line).end(out);
    }
    let mut now = start;
    for stage in group.stages.iter().filter(|s| s.seen == Seen::Observed) {
        let took = stage.times.p50_ns.unwrap_or(0);
        let step = stage.step.unwrap_or("");
        let mut line = Line::new(style).to(STEP.saturating_sub(step.len())).paint(Paint::Dim, step).to(STEP + 1);
        line = line.text(&crate::terminal::fit(stage.name, layout.name, style.unicode));
        if !is_end(stage, report) {
            line = layout.times(line, None, &stage.times);
        }
        if stage.times.p50_ns.is_some() && !is_end(stage, report) {
            line = layout.bar(line, stage.waits, now, took, axis);
        } else if stage.times.p50_ns.is_none() {
            line = line.to(layout.bars).paint(Paint::Dim, "time unknown");
        }
        line.end(out);
        now += axis.drawn(took);
        for rewrite in report.rewrites.iter().filter(|r| r.direction == direction && at(r, stage)) {
            draw_rewrite(rewrite, style, out);
        }
    }
    let folded = folded(&group.stages);
    for line in wrap(&folded, style.width.saturating_sub(STEP + 1)) {
        Line::new(style).to(STEP + 1).paint(Paint::Dim, &line).end(out);
    }
    now
}

/// Whether this is the last stage seen: a moment, not a span.
fn is_end(stage: &StageRow, report: &Report) -> bool {
    stage.times.p50_ns == Some(0)
        && report.stages.iter().rev().find(|s| s.seen == Seen::Observed).is_some_and(|last| std::ptr::eq(last, stage))
}

/// Whether an address was translated in this stage.
pub(super) fn at(rewrite: &RewriteRow, stage: &StageRow) -> bool {
    rewrite.stage == stage.id
        && Some(rewrite.node.as_str()) == stage.node.as_deref()
        && rewrite.pod == stage.pod
        && (rewrite.device == stage.device || rewrite.device.is_none() || stage.device.is_none())
}

/// `10.96.0.10:80 → 10.42.1.3:8080  DNAT KUBE-SEP-X`.
pub(super) fn rewrite_words(rewrite: &RewriteRow, arrow: &str) -> String {
    let kind = match rewrite.kind {
        RewriteKind::Dnat => "DNAT",
        RewriteKind::Snat => "SNAT",
        RewriteKind::UnDnat => "DNAT undone",
        RewriteKind::UnSnat => "SNAT undone",
    };
    let rule = rewrite.rule.as_ref().map_or_else(String::new, |r| format!(" {r}"));
    format!("{} {arrow} {}  {kind}{rule}", rewrite.from, rewrite.to)
}

fn draw_rewrite(rewrite: &RewriteRow, style: &Style, out: &mut Text) {
    let text = rewrite_words(rewrite, if style.unicode { "→" } else { "->" });
    for (i, line) in wrap(&text, style.width.saturating_sub(STEP + 3)).iter().enumerate() {
        Line::new(style).to(STEP + 1 + if i == 0 { 0 } else { 2 }).paint(Paint::Rewrite, line).end(out);
    }
}

/// Stages that were not observed, in one line: `S2 S3 S5 inferred, S4 route cached, S9 S13 unseen`.
pub(super) fn folded(stages: &[&StageRow]) -> String {
    let mut parts: Vec<(&str, Vec<&str>)> = Vec::new();
    for stage in stages.iter().filter(|s| s.seen != Seen::Observed) {
        let why = match (stage.seen, stage.id) {
            (Seen::Skipped, StageId::RouteOut | StageId::RouteIn) => "route cached",
            (Seen::Skipped, StageId::NeighbourOut) => "MAC cached",
            (Seen::Skipped, StageId::Qdisc) => "noqueue",
            (Seen::Skipped, StageId::TcEgress | StageId::TcIngress) => "no tc filter",
            (Seen::Inferred, StageId::TcEgress | StageId::TcIngress) => "tc filters passed",
            (Seen::Skipped, _) => "skipped",
            (Seen::NotObservable, _) => "unseen",
            _ => "inferred",
        };
        let step = stage.step.unwrap_or(stage.name);
        match parts.iter_mut().find(|(w, _)| *w == why) {
            Some((_, steps)) => steps.push(step),
            None => parts.push((why, vec![step])),
        }
    }
    parts.sort_by_key(|(why, _)| match *why {
        "inferred" => 0,
        "unseen" => 2,
        _ => 1,
    });
    parts.iter().map(|(why, steps)| format!("{} {why}", runs(steps))).collect::<Vec<_>>().join(", ")
}

/// `S2 S3 S4 S7` as `S2-S4 S7`.
fn runs(steps: &[&str]) -> String {
    let number = |s: &str| s.get(1..).and_then(|n| n.parse::<u32>().ok());
    let mut out: Vec<(String, String)> = Vec::new();
    for step in steps {
        match out.last_mut() {
            Some((_, to)) if number(to).zip(number(step)).is_some_and(|(a, b)| a + 1 == b) => *to = (*step).to_owned(),
            _ => out.push(((*step).to_owned(), (*step).to_owned())),
        }
    }
    let show = |(from, to): &(String, String)| if from == to { from.clone() } else { format!("{from}-{to}") };
    out.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// The end of a path that was not completed.
fn path_end(report: &Report, style: &Style, out: &mut Text) {
    let mark = if style.unicode { "✗" } else { "x" };
    let say = |paint: Paint, text: &str, out: &mut Text| {
        for (i, line) in wrap(text, style.width.saturating_sub(STEP + 1)).iter().enumerate() {
            let head = Line::new(style).to(STEP - 1);
            let head = if i == 0 { head.paint(paint, mark) } else { head };
            head.to(STEP + 1).paint(paint, line).end(out);
        }
    };
    let dropped = report.drops.iter().find(|d| d.direction == Direction::Request);
    let vanished = report.vanished.iter().find(|v| v.direction == Direction::Request);
    match (dropped, vanished) {
        (Some(d), _) => {
            say(Paint::Bad, &drop_text(d), out);
            if let Some(advice) = d.advice {
                for line in wrap(advice, style.width.saturating_sub(STEP + 1)) {
                    Line::new(style).to(STEP + 1).text(&line).end(out);
                }
            }
        }
        (None, Some(v)) => say(Paint::Bad, &vanished_text(v), out),
        (None, None) => say(Paint::Warn, "the rest of the path was not observed", out),
    }
}

/// What dropped packets, where, and how often.
pub(super) fn drop_text(d: &DropRow) -> String {
    let place = match (&d.pod, &d.node) {
        (Some(pod), _) => format!(" in pod {pod}"),
        (None, Some(node)) => format!(" on {node}"),
        (None, None) => String::new(),
    };
    let device = d.device.as_ref().map_or_else(String::new, |dev| format!(" at {dev}"));
    let step = d.stage.stage().step.map_or_else(String::new, |s| format!("{s} "));
    let times = if d.count > 1 { format!(", {} times", d.count) } else { String::new() };
    let location = d.location.as_ref().map_or_else(String::new, |l| format!(", by {l}"));
    let detail = d.detail.as_ref().map_or_else(String::new, |l| format!(" ({l})"));
    format!("dropped: {} in {step}{}{place}{device}{location}{detail}{times}", d.reason, d.stage.stage().name)
}

/// Where packets were seen last.
pub(super) fn vanished_text(v: &VanishedRow) -> String {
    let place = match (&v.pod, &v.node) {
        (Some(pod), _) => format!(" in pod {pod}"),
        (None, Some(node)) => format!(" on {node}"),
        (None, None) => String::new(),
    };
    format!("last seen at {}{place}, expected next at {}", v.last_seen.stage().name, v.expected.stage().name)
}

/// A leg with one line per place.
fn compact(leg: &Leg, word: &str, direction: Direction, report: &Report, layout: &Layout<'_>, out: &mut Text) {
    let style = layout.style;
    out.end_line();
    let plural = if leg.count == 1 { "packet" } else { "packets" };
    let head = format!("{word}: {} {} {plural}", leg.count, leg.packets_of);
    let mut line = Line::new(style).paint(Paint::Heading, &head);
    if line.used() < layout.time_end().saturating_sub(TIME) {
        line = layout.times(line, Some(Paint::Heading), &leg.end_to_end);
    }
    line.end(out);
    let axis = Axis::of(&known_times(&leg.stages));
    let arrow = if style.unicode { " → " } else { " > " };
    let mut now = 0;
    for group in groups(&leg.stages) {
        let took = group.total();
        let waits = group.stages.iter().filter(|s| s.waits).filter_map(|s| s.times.p50_ns).sum::<u64>();
        let title = crate::terminal::fit(&group.title(arrow), layout.time_end() - TIME - 2, style.unicode);
        let line = Line::new(style).to(1).text(&title);
        let line = layout.times(line, None, &Times { p50_ns: Some(took), ..Times::default() });
        // Working first, then waiting: the parts of a place, not their order.
        let mut line = if took > waits { layout.bar(line, false, now, took - waits, &axis) } else { line };
        now += axis.drawn(took - waits);
        for wait in group.stages.iter().filter(|s| s.waits).filter_map(|s| s.times.p50_ns).filter(|t| *t > 0) {
            if axis.is_broken() && wait >= axis.limit {
                line = layout.bar(line, true, now, wait, &axis);
                now += axis.drawn(wait);
            }
        }
        let rest: u64 = group.stages.iter().filter(|s| s.waits).filter_map(|s| s.times.p50_ns).filter(|t| *t < axis.limit).sum();
        if rest > 0 {
            line = layout.bar(line, true, now, rest, &axis);
            now += rest;
        }
        line.end(out);
        for stage in &group.stages {
            for rewrite in report.rewrites.iter().filter(|r| r.direction == direction && at(r, stage)) {
                draw_rewrite(rewrite, style, out);
            }
        }
    }
    if !leg.complete
        && let Some(d) = report.drops.iter().find(|d| d.direction == direction)
    {
        for line in wrap(&drop_text(d), style.width.saturating_sub(STEP + 1)) {
            Line::new(style).to(STEP + 1).paint(Paint::Bad, &line).end(out);
        }
    }
}

/// The time from end to end and what it consists of; empty if it is not known.
pub(super) fn summary_parts(report: &Report, request: &LegSummary) -> Vec<String> {
    let Some(total) = report.end_to_end.p50_ns else { return Vec::new() };
    let mut parts = vec![format!("{} end to end (p50)", nanos(total))];
    if let Some(p99) = report.end_to_end.p99_ns.filter(|_| request.count > 1) {
        parts.push(format!("{} p99", nanos(p99)));
    }
    if let Some(waiting) = request.waiting_ns {
        parts.push(format!("{} % of it waiting", percent(waiting, total)));
    }
    let stacks = if report.stack_traversals == 1 { "network stack" } else { "network stacks" };
    parts.push(format!("{} {stacks}", report.stack_traversals));
    parts
}

fn summary(report: &Report, request: &LegSummary, style: &Style, out: &mut Text) {
    let Some(total) = report.end_to_end.p50_ns else { return };
    out.end_line();
    let parts = summary_parts(report, request);
    for line in wrap(&parts.join(", "), style.width) {
        Line::new(style).paint(Paint::Heading, &line).end(out);
    }
    let mut top: Vec<&StageRow> = report.stages.iter().filter(|s| s.times.p50_ns.unwrap_or(0) > 0).collect();
    top.sort_by_key(|s| std::cmp::Reverse(s.times.p50_ns));
    let most: Vec<String> = top.iter().take(3).map(|s| format!("{} {} %", s.name, percent(s.times.p50_ns.unwrap_or(0), total))).collect();
    if !most.is_empty() {
        for line in wrap(&format!("most time: {}", most.join(", ")), style.width) {
            Line::new(style).text(&line).end(out);
        }
    }
    for (saving, path) in [(report.short_saving, "short path"), (report.saving, "accelerated")] {
        let Some(Saving { accelerated_p50_ns: took, .. }) = saving else { continue };
        let text = match total.checked_sub(took) {
            Some(saved) => format!("{path} {} instead of {}: {} % of the time saved", nanos(took), nanos(total), percent(saved, total)),
            None => format!("{path} {} instead of {}: {} % more time", nanos(took), nanos(total), percent(took - total, total)),
        };
        let paint = if took <= total { Paint::Good } else { Paint::Dim };
        for line in wrap(&text, style.width) {
            Line::new(style).paint(paint, &line).end(out);
        }
    }
}

pub(super) fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100 + u128::from(whole) / 2).checked_div(u128::from(whole)).and_then(|p| u64::try_from(p).ok()).unwrap_or(0)
}

/// What the reader should know, with what to do next.
#[must_use]
pub fn findings(report: &Report, style: &Style) -> Text {
    let mut out = Text::default();
    // The picture's end already shows this finding.
    let shown = |f: &Finding| {
        report.request.as_ref().is_some_and(|r| !r.complete)
            && matches!(f.id, "dropped" | "vanished")
            && f.direction == Some(Direction::Request)
    };
    let mut shown_once = false;
    let findings = grouped(&report.findings);
    let hidden: Vec<bool> = findings.iter().map(|(f, _)| shown(f) && !std::mem::replace(&mut shown_once, true)).collect();
    if findings.iter().zip(&hidden).all(|((_, follow), hidden)| *hidden && follow.is_empty()) {
        return out;
    }
    out.end_line();
    for ((finding, follow), hidden) in findings.iter().zip(hidden) {
        if !hidden {
            draw_finding(finding, style, &mut out);
        }
        consequences(follow, style, &mut out);
    }
    out
}

fn draw_finding(finding: &Finding, style: &Style, out: &mut Text) {
    let (mark, paint) = match finding.severity {
        Severity::Critical => ("!", Paint::Bad),
        Severity::Warning => ("*", Paint::Warn),
        Severity::Info => ("-", Paint::Dim),
    };
    for (i, line) in wrap(&finding.text, style.width.saturating_sub(2)).iter().enumerate() {
        let head = Line::new(style).paint(paint, if i == 0 { mark } else { "" }).to(2);
        if finding.severity == Severity::Critical { head.paint(paint, line) } else { head.text(line) }.end(out);
    }
    if let Some(next) = &finding.next {
        let arrow = if style.unicode { "→ " } else { "> " };
        for (i, line) in wrap(next, style.width.saturating_sub(4)).iter().enumerate() {
            Line::new(style).to(2).paint(Paint::Dim, if i == 0 { arrow } else { "" }).to(4).paint(Paint::Dim, line).end(out);
        }
    }
}

/// What follows from a finding: one paragraph below it.
fn consequences(follow: &[&Finding], style: &Style, out: &mut Text) {
    if follow.is_empty() {
        return;
    }
    let text = follow.iter().map(|f| f.text.as_str()).collect::<Vec<_>>().join("; ");
    for (i, line) in wrap(&format!("hence: {text}"), style.width.saturating_sub(4)).iter().enumerate() {
        Line::new(style).to(2).paint(Paint::Dim, if i == 0 { "+" } else { "" }).to(4).paint(Paint::Dim, line).end(out);
    }
}

/// Findings with what follows from each; a consequence whose cause is not listed stands alone.
pub(super) fn grouped(findings: &[Finding]) -> Vec<(&Finding, Vec<&Finding>)> {
    let causes = findings.iter().enumerate().filter(|(_, f)| f.root.is_none());
    causes.map(|(at, cause)| (cause, findings.iter().filter(|f| f.root == Some(at)).collect())).collect()
}
