//! `--html`: the report as one page that needs nothing else: no script, no font, no picture from anywhere.

use sockpath_protocol::packet::RewriteKind;

use super::page::Page;
use super::waterfall::grouped;
use crate::duration::nanos;
use crate::report::Report;
use crate::report::document::{Finding, Severity};
use crate::report::leg::{Seen, StageRow};
use crate::report::rewrites::RewriteRow;
use crate::terminal::Style;

const STYLE: &str = "\
:root{color-scheme:light dark;--work:#2b7bb9;--wait:#e0a030;--dim:#808080;--bad:#c62828;--nat:#8e44ad}\
body{font:14px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.3rem;margin:0}h2{font-size:1rem;margin:1.5rem 0 .3rem}\
table{border-collapse:collapse;width:100%}th,td{padding:.1rem .5rem;text-align:left;white-space:nowrap;font-weight:400;vertical-align:top}\
th{color:var(--dim);font-size:.85rem}th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}th.bar{width:45%;min-width:16rem}\
td.by{white-space:normal;min-width:13rem;font-size:.85rem;color:var(--dim)}\
tr.place td{font-weight:600;padding-top:.7rem}tr.absent td,.dim{color:var(--dim)}tr.nat td{color:var(--nat)}\
.track{position:relative;height:.8rem;margin-top:.3rem;background:color-mix(in srgb,var(--dim) 12%,transparent)}.track i{position:absolute;top:0;bottom:0;min-width:2px;background:var(--work)}.track i.wait{background:var(--wait)}\
.key{display:inline-block;width:1rem;height:.7rem;background:var(--work)}.key.wait{background:var(--wait)}\
.critical{color:var(--bad);font-weight:600}li{margin:.2rem 0}code{font-size:.9em}summary{cursor:pointer}pre{overflow:auto;font-size:12px}";

/// Renders it.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Page::new();
    let heading = super::heading::heading(report, &Style::plain(10_000));
    let mut lines = heading.lines();
    let title = lines.next().unwrap_or_default();
    page.markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .markup("<meta name=\"viewport\" content=\"width=device-width\">\n")
        .markup("<title>sockpath: ")
        .text(title)
        .markup("</title>\n<style>")
        .markup(STYLE)
        .markup("</style>\n</head>\n<body>\n<h1>")
        .text(title)
        .markup("</h1>\n");
    for line in lines {
        page.markup("<p>").text(line).markup("</p>\n");
    }
    if let Some(total) = report.end_to_end.p50_ns {
        page.markup("<p><strong>").text(&nanos(total)).markup("</strong> end to end (p50)");
        if let Some(p99) = report.end_to_end.p99_ns {
            page.markup(", ").text(&nanos(p99)).markup(" p99");
        }
        page.markup(", ").text(&report.stack_traversals.to_string()).markup(" network stacks</p>\n");
    }
    findings(&mut page, &report.findings);
    let request: Vec<&RewriteRow> = report.rewrites.iter().filter(|r| matches!(r.kind, RewriteKind::Dnat | RewriteKind::Snat)).collect();
    let reply: Vec<&RewriteRow> = report.rewrites.iter().filter(|r| matches!(r.kind, RewriteKind::UnDnat | RewriteKind::UnSnat)).collect();
    if let Some(summary) = &report.request {
        stages(&mut page, &format!("Request: {}", packets(summary.count, &format!("{} ", summary.packets_of))), &report.stages, &request);
    }
    if let Some(leg) = &report.reply {
        stages(&mut page, &format!("Reply: {}", packets(leg.count, &format!("{} ", leg.packets_of))), &leg.stages, &reply);
    }
    if let Some(leg) = &report.accelerated {
        stages(&mut page, &format!("Accelerated: {}", packets(leg.count, "")), &leg.stages, &[]);
    }
    page.markup("<p class=\"dim\"><i class=\"key\"></i> works <i class=\"key wait\"></i> waits. ")
        .markup("Grey stages were not observed: their time is part of the stage before.</p>\n</body>\n</html>\n");
    page.end()
}

fn findings(page: &mut Page, findings: &[Finding]) {
    if findings.is_empty() {
        return;
    }
    page.markup("<ul>\n");
    for (finding, follow) in grouped(findings) {
        page.markup(if finding.severity == Severity::Critical { "<li class=\"critical\">" } else { "<li>" }).text(&finding.text);
        if let Some(next) = &finding.next {
            page.markup("<br><span class=\"dim\">").text(next).markup("</span>");
        }
        if !follow.is_empty() {
            page.markup("<details class=\"dim\"><summary>").text(&consequences(follow.len())).markup("</summary><ul>");
            for consequence in follow {
                page.markup("<li>").text(&consequence.text).markup("</li>");
            }
            page.markup("</ul></details>");
        }
        page.markup("</li>\n");
    }
    page.markup("</ul>\n");
}

fn consequences(count: usize) -> String {
    format!("{count} consequence{}", if count == 1 { "" } else { "s" })
}

fn stages(page: &mut Page, title: &str, stages: &[StageRow], rewrites: &[&RewriteRow]) {
    page.markup("<h2>").text(title).markup("</h2>\n<table>\n");
    page.markup("<tr><th>step</th><th>stage</th><th>device</th><th class=\"n\">p50</th><th class=\"n\">p99</th>")
        .markup("<th class=\"bar\"></th><th>observed by</th></tr>\n");
    let scale = stages.iter().filter_map(|s| s.times.p50_ns).sum::<u64>().max(1);
    let mut start = 0;
    let mut place = None;
    for stage in stages {
        let here = (stage.node.clone(), stage.pod.clone(), stage.side);
        if place.as_ref() != Some(&here) {
            let node = stage.node.as_deref().unwrap_or("?");
            let name = stage.pod.as_ref().map_or_else(|| node.to_owned(), |pod| format!("{pod} on {node}"));
            page.markup("<tr class=\"place\"><td colspan=\"7\">").text(&name).markup("</td></tr>\n");
            place = Some(here);
        }
        row(page, stage, start, scale);
        start += stage.times.p50_ns.unwrap_or(0);
        let at = |r: &&&RewriteRow| {
            r.stage == stage.id && Some(&r.node) == stage.node.as_ref() && r.pod == stage.pod && stage.seen == Seen::Observed
        };
        for rewrite in rewrites.iter().filter(at) {
            let rule = rewrite.rule.as_deref().unwrap_or_default();
            page.markup("<tr class=\"nat\"><td></td><td colspan=\"6\">")
                .text(&format!("{} → {} {rule}", rewrite.from, rewrite.to))
                .markup("</td></tr>\n");
        }
    }
    page.markup("</table>\n");
}

fn row(page: &mut Page, stage: &StageRow, start: u64, scale: u64) {
    let time = |t: Option<u64>| t.map_or_else(String::new, nanos);
    page.markup(if stage.seen == Seen::Observed { "<tr><td>" } else { "<tr class=\"absent\"><td>" })
        .text(stage.step.unwrap_or_default())
        .markup("</td><td>")
        .text(stage.name)
        .markup("</td><td>")
        .text(stage.device.as_deref().unwrap_or_default())
        .markup("</td><td class=\"n\">")
        .text(&time(stage.times.p50_ns))
        .markup("</td><td class=\"n\">")
        .text(&time(stage.times.p99_ns))
        .markup("</td>");
    let by = stage.observed_by.as_deref().or(stage.note.as_deref()).unwrap_or_default();
    match stage.times.p50_ns {
        Some(took) => page
            .markup("<td><div class=\"track\"><i")
            .markup(if stage.waits { " class=\"wait\"" } else { "" })
            .markup(" style=\"left:")
            .text(&per_cent(start, scale))
            .markup("%;width:")
            .text(&per_cent(took, scale))
            .markup("%\"></i></div></td><td class=\"by\">"),
        // Why there is no time takes the place of the bar.
        None => page.markup("<td class=\"by\" colspan=\"2\">"),
    };
    page.text(by).markup("</td></tr>\n");
}

/// A count of packets of a kind (`data `, or nothing).
fn packets(count: usize, of: &str) -> String {
    format!("{count} {of}packet{}", if count == 1 { "" } else { "s" })
}

/// With two decimals, without floating point.
fn per_cent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
