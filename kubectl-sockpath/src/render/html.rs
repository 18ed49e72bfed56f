//! `--html`: the report as one page that needs nothing else: no script, no font, no picture from anywhere.

use std::fmt::Write;

use anyhow::Result;
use sockpath_protocol::packet::RewriteKind;

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
///
/// # Errors
/// When the report cannot be encoded.
pub fn render(report: &Report) -> Result<String> {
    let mut page = String::with_capacity(32 << 10);
    let heading = super::heading::heading(report, &Style::plain(10_000));
    let mut lines = heading.lines();
    let title = escape(lines.next().unwrap_or_default());
    let about = lines.map(|l| format!("<p>{}</p>\n", escape(l))).collect::<String>();
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n"
    )?;
    write!(page, "<title>sockpath: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{about}")?;
    if let Some(total) = report.end_to_end.p50_ns {
        write!(page, "<p><strong>{}</strong> end to end (p50)", nanos(total))?;
        if let Some(p99) = report.end_to_end.p99_ns {
            write!(page, ", {} p99", nanos(p99))?;
        }
        writeln!(page, ", {} network stacks</p>", report.stack_traversals)?;
    }
    findings(&mut page, &report.findings)?;
    let request: Vec<&RewriteRow> = report.rewrites.iter().filter(|r| matches!(r.kind, RewriteKind::Dnat | RewriteKind::Snat)).collect();
    let reply: Vec<&RewriteRow> = report.rewrites.iter().filter(|r| matches!(r.kind, RewriteKind::UnDnat | RewriteKind::UnSnat)).collect();
    if let Some(summary) = &report.request {
        stages(&mut page, &format!("Request: {}", packets(summary.count, &format!("{} ", summary.packets_of))), &report.stages, &request)?;
    }
    if let Some(leg) = &report.reply {
        stages(&mut page, &format!("Reply: {}", packets(leg.count, &format!("{} ", leg.packets_of))), &leg.stages, &reply)?;
    }
    if let Some(leg) = &report.accelerated {
        stages(&mut page, &format!("Accelerated: {}", packets(leg.count, "")), &leg.stages, &[])?;
    }
    write!(
        page,
        "<p class=\"dim\"><i class=\"key\"></i> works <i class=\"key wait\"></i> waits. Grey stages were not observed: their time is part of the stage before.</p>\n</body>\n</html>\n"
    )?;
    Ok(page)
}

fn findings(page: &mut String, findings: &[Finding]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    page.push_str("<ul>\n");
    for finding in findings {
        let class = if finding.severity == Severity::Critical { " class=\"critical\"" } else { "" };
        write!(page, "<li{class}>{}", escape(&finding.text))?;
        if let Some(next) = &finding.next {
            write!(page, "<br><span class=\"dim\">{}</span>", escape(next))?;
        }
        page.push_str("</li>\n");
    }
    page.push_str("</ul>\n");
    Ok(())
}

fn stages(page: &mut String, title: &str, stages: &[StageRow], rewrites: &[&RewriteRow]) -> Result<()> {
    writeln!(page, "<h2>{}</h2>\n<table>", escape(title))?;
    page.push_str(
        "<tr><th>step</th><th>stage</th><th>device</th><th class=\"n\">p50</th><th class=\"n\">p99</th><th class=\"bar\"></th><th>observed by</th></tr>\n",
    );
    let scale = stages.iter().filter_map(|s| s.times.p50_ns).sum::<u64>().max(1);
    let mut start = 0;
    let mut place = None;
    for stage in stages {
        let here = (stage.node.clone(), stage.pod.clone(), stage.side);
        if place.as_ref() != Some(&here) {
            let node = stage.node.as_deref().unwrap_or("?");
            let name = stage.pod.as_ref().map_or_else(|| node.to_owned(), |pod| format!("{pod} on {node}"));
            writeln!(page, "<tr class=\"place\"><td colspan=\"7\">{}</td></tr>", escape(&name))?;
            place = Some(here);
        }
        row(page, stage, start, scale)?;
        start += stage.times.p50_ns.unwrap_or(0);
        let at = |r: &&&RewriteRow| {
            r.stage == stage.id && Some(&r.node) == stage.node.as_ref() && r.pod == stage.pod && stage.seen == Seen::Observed
        };
        for rewrite in rewrites.iter().filter(at) {
            let rule = rewrite.rule.as_deref().unwrap_or_default();
            writeln!(page, "<tr class=\"nat\"><td></td><td colspan=\"6\">{} → {} {}</td></tr>", rewrite.from, rewrite.to, escape(rule))?;
        }
    }
    page.push_str("</table>\n");
    Ok(())
}

fn row(page: &mut String, stage: &StageRow, start: u64, scale: u64) -> Result<()> {
    let class = if stage.seen == Seen::Observed { "" } else { " class=\"absent\"" };
    let time = |t: Option<u64>| t.map_or_else(String::new, nanos);
    write!(page, "<tr{class}><td>{}</td><td>{}</td>", stage.step.unwrap_or_default(), escape(stage.name))?;
    write!(page, "<td>{}</td>", escape(stage.device.as_deref().unwrap_or_default()))?;
    write!(page, "<td class=\"n\">{}</td><td class=\"n\">{}</td>", time(stage.times.p50_ns), time(stage.times.p99_ns))?;
    let by = escape(stage.observed_by.as_deref().or(stage.note.as_deref()).unwrap_or_default());
    match stage.times.p50_ns {
        Some(took) => {
            let (left, width) = (per_cent(start, scale), per_cent(took, scale));
            let wait = if stage.waits { " class=\"wait\"" } else { "" };
            write!(page, "<td><div class=\"track\"><i{wait} style=\"left:{left}%;width:{width}%\"></i></div></td>")?;
            writeln!(page, "<td class=\"by\">{by}</td></tr>")?;
        }
        // Why there is no time takes the place of the bar.
        None => writeln!(page, "<td class=\"by\" colspan=\"2\">{by}</td></tr>")?,
    }
    Ok(())
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

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}
