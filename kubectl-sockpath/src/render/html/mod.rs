//! `--html`: the report as one page to share: findings first, then the picture, the time on the path, the conversation and its packets. It needs
//! nothing else: no script, no font, no picture from anywhere.

mod measured;
mod packets;
mod sequence;
mod stages;
mod style;
mod table;
mod wording;

use wording::plural;

use super::page::Page;
use super::picture::{Picture, svg};
use super::waterfall::{grouped, percent};
use crate::duration::nanos;
use crate::report::Report;
use crate::report::document::{Finding, Severity};

/// Renders it.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Page::new();
    let picture = Picture::of(report);
    head(&mut page, &picture);
    header(&mut page, report, &picture);
    page.markup("<main>\n");
    findings(&mut page, &report.findings);
    page.markup("<section id=\"picture\" aria-labelledby=\"h-picture\">\n<h2 id=\"h-picture\">The path</h2>\n<figure>\n");
    svg::draw(&picture, svg::Form::Wide, svg::Place::Page("wide"), &mut page);
    page.markup("\n");
    svg::draw(&picture, svg::Form::Tall, svg::Place::Page("tall"), &mut page);
    page.markup("\n</figure>\n</section>\n");
    stages::section(&mut page, report);
    sequence::section(&mut page, report);
    packets::section(&mut page, report);
    measured::section(&mut page, report);
    page.markup("</main>\n<footer>Written by kubectl-sockpath ")
        .text(env!("CARGO_PKG_VERSION"))
        .markup(". This page contains no script and needs no network.</footer>\n</body>\n</html>\n");
    page.end()
}

fn head(page: &mut Page, picture: &Picture) {
    page.markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
        .markup("<meta name=\"color-scheme\" content=\"light dark\">\n<title>sockpath: ")
        .text(&picture.title)
        .markup("</title>\n<style>")
        .markup(style::STYLE)
        .markup(svg::PAGE_STYLE)
        .markup("</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#findings\">Skip to the findings</a>\n");
}

fn header(page: &mut Page, report: &Report, picture: &Picture) {
    page.markup("<header>\n<h1>").text(&picture.title).markup("</h1>\n");
    for line in &picture.about {
        page.markup("<p class=\"dim\">").text(line).markup("</p>\n");
    }
    page.markup("<dl class=\"figures\">");
    for (name, value, bad) in figures(report) {
        page.markup(if bad { "<div class=\"bad\"><dt>" } else { "<div><dt>" })
            .text(name)
            .markup("</dt><dd>")
            .text(&value)
            .markup("</dd></div>");
    }
    page.markup("</dl>\n<nav aria-label=\"Sections\"><ul>");
    let mut sections = vec![("findings", "Findings"), ("picture", "The path"), ("time", "Time")];
    if !report.packets.is_empty() {
        sections.extend([("sequence", "Sequence"), ("packets", "Packets")]);
    }
    sections.push(("measured", "Measurement"));
    for (target, name) in sections {
        page.markup("<li><a href=\"#").markup(target).markup("\">").markup(name).markup("</a></li>");
    }
    page.markup("</ul></nav>\n</header>\n");
}

/// The figures at the top: name, value, and whether it is bad.
fn figures(report: &Report) -> Vec<(&'static str, String, bool)> {
    let mut all = Vec::new();
    if let Some(total) = report.end_to_end.p50_ns {
        all.push(("end to end (p50)", nanos(total), false));
        if let Some(p99) = report.end_to_end.p99_ns {
            all.push(("p99", nanos(p99), false));
        }
        if let Some(waiting) = report.request.as_ref().and_then(|r| r.waiting_ns) {
            all.push(("of it waiting", format!("{} %", percent(waiting, total)), false));
        }
    }
    if let Some(reply) = report.reply.as_ref().and_then(|r| r.end_to_end.p50_ns) {
        all.push(("reply (p50)", nanos(reply), false));
    }
    if report.request.is_some() {
        all.push(("network stacks", report.stack_traversals.to_string(), false));
    }
    all.push(("request packets", report.seen.requests.to_string(), report.seen.requests == 0));
    all.push(("reply packets", report.seen.replies.to_string(), report.seen.requests > 0 && report.seen.replies == 0));
    let dropped: usize = report.drops.iter().map(|d| d.count).sum();
    if dropped > 0 {
        all.push(("dropped", dropped.to_string(), true));
    }
    let lost: usize = report.vanished.iter().map(|v| v.count).sum();
    if lost > 0 {
        all.push(("not seen again", lost.to_string(), true));
    }
    all
}

fn findings(page: &mut Page, findings: &[Finding]) {
    page.markup("<section id=\"findings\" aria-labelledby=\"h-findings\">\n<h2 id=\"h-findings\">Findings</h2>\n");
    if findings.is_empty() {
        page.markup("<p>None: no packet was dropped, sent again or held up.</p>\n</section>\n");
        return;
    }
    page.markup("<ul class=\"findings\">\n");
    for (finding, follow) in grouped(findings) {
        let (open, tag) = match finding.severity {
            Severity::Critical => ("<li class=\"finding critical\"><span class=\"tag\">", "critical"),
            Severity::Warning => ("<li class=\"finding warning\"><span class=\"tag\">", "warning"),
            Severity::Info => ("<li class=\"finding info\"><span class=\"tag\">", "note"),
        };
        page.markup(open).markup(tag).markup("</span> <strong>").text(&finding.text).markup("</strong>");
        if let Some(next) = &finding.next {
            page.markup("<p class=\"next\">").text(next).markup("</p>");
        }
        details(page, finding, &follow);
        page.markup("</li>\n");
    }
    page.markup("</ul>\n</section>\n");
}

/// What speaks for a finding and what follows from it.
fn details(page: &mut Page, finding: &Finding, follow: &[&Finding]) {
    if !follow.is_empty() {
        page.markup("<details><summary>").text(&format!("{} consequence{}", follow.len(), plural(follow.len()))).markup("</summary><ul>");
        for consequence in follow {
            page.markup("<li>").text(&consequence.text).markup("</li>");
        }
        page.markup("</ul></details>");
    }
    if !finding.evidence.is_empty() {
        page.markup("<details><summary>Evidence</summary><ul>");
        for sentence in &finding.evidence {
            page.markup("<li>").text(sentence).markup("</li>");
        }
        page.markup("</ul></details>");
    }
    page.markup("<p class=\"dim\"><code>kubectl sockpath trace --explain ").text(finding.id).markup("</code></p>");
}
