//! `-o plain`: the report as one fact per line, without columns and drawing characters, for screen readers and speech.

use sockpath_protocol::packet::Direction;

use super::heading::heading;
use super::waterfall::{at, drop_text, folded, grouped, rewrite_words, summary_parts, vanished_text};
use crate::duration::nanos;
use crate::output::Text;
use crate::report::Report;
use crate::report::document::Severity;
use crate::report::stage_row::{Seen, StageRow};
use crate::terminal::Style;

/// Renders it.
#[must_use]
pub fn render(report: &Report) -> Text {
    let mut out = Text::default();
    let ascii = Style { width: 10_000, color: false, unicode: false };
    for (n, line) in heading(report, &ascii).lines().enumerate() {
        out.line(&format!("{}{}", if n == 0 { "Trace: " } else { "" }, line.replace(" -> ", " to ")));
    }
    match &report.request {
        Some(request) => summary_parts(report, request).iter().for_each(|part| out.line(&format!("Time: {part}"))),
        None => out.line("No packet between them was observed"),
    }
    findings(report, &mut out);
    leg(report, "Request", &report.stages, Some(Direction::Request), &mut out);
    for drop in &report.drops {
        let direction = if drop.direction == Direction::Request { "Request" } else { "Reply" };
        out.line(&format!("{direction} {}", drop_text(drop)));
    }
    for lost in &report.vanished {
        out.line(&format!("Packets were not seen again: {}", vanished_text(lost)));
    }
    if let Some(reply) = &report.reply {
        let time = reply.end_to_end.p50_ns.map_or_else(String::new, |t| format!(", {} end to end", nanos(t)));
        out.line(&format!("Reply: {} {} packets{time}", reply.count, reply.packets_of));
        leg(report, "Reply", &reply.stages, Some(Direction::Reply), &mut out);
    }
    for (path, name) in [(&report.short, "Short path"), (&report.accelerated, "Socket path")] {
        let Some(path) = path else { continue };
        let time = path.end_to_end.p50_ns.map_or_else(String::new, |t| format!(", {} end to end", nanos(t)));
        out.line(&format!("{name}: {} packets{time}", path.count));
        leg(report, name, &path.stages, None, &mut out);
    }
    out
}

fn findings(report: &Report, out: &mut Text) {
    for (finding, follow) in grouped(&report.findings) {
        let severity = match finding.severity {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
            Severity::Info => "note",
        };
        out.line(&format!("Finding, {severity}: {}", finding.text));
        if let Some(next) = &finding.next {
            out.line(&format!("What to do: {next}"));
        }
        for consequence in follow {
            out.line(&format!("Consequence: {}", consequence.text));
        }
    }
}

fn leg(report: &Report, name: &str, stages: &[StageRow], rewrites_of: Option<Direction>, out: &mut Text) {
    let mut rest = stages;
    while let Some(first) = rest.first() {
        let here = |s: &StageRow| (s.node.clone(), s.pod.clone(), s.netns, s.side);
        let length = rest.iter().take_while(|s| here(s) == here(first)).count();
        let (group, later) = rest.split_at(length);
        rest = later;
        let node = first.node.as_deref().unwrap_or("an unknown node");
        let place = first.pod.as_ref().map_or_else(|| format!("node {node}"), |pod| format!("pod {pod} on {node}"));
        out.line(&format!("{name}, in {place}:"));
        for stage in group.iter().filter(|s| s.seen == Seen::Observed) {
            out.line(&stage_words(stage));
            for rewrite in report.rewrites.iter().filter(|r| Some(r.direction) == rewrites_of && at(r, stage)) {
                out.line(&format!("Translated: {}", rewrite_words(rewrite, "to")));
            }
        }
        let unobserved = folded(&group.iter().collect::<Vec<_>>());
        if !unobserved.is_empty() {
            out.line(&format!("Not observed: {unobserved}"));
        }
    }
}

fn stage_words(stage: &StageRow) -> String {
    let step = stage.step.map_or_else(String::new, |s| format!("{s} "));
    let device = stage.device.as_ref().map_or_else(String::new, |d| format!(" at {d}"));
    let time = match stage.times.p50_ns {
        Some(0) => String::new(),
        Some(took) => format!(": {}{}", nanos(took), if stage.waits { " waiting" } else { "" }),
        None => ": time unknown, it lies between two clocks".to_owned(),
    };
    format!("{step}{}{device}{time}", stage.name)
}
