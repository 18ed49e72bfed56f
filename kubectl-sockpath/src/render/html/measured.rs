//! How the figures were measured: nodes, hooks, clocks, and what the trace cost.

use super::table::cell;
use super::wording::plural;
use crate::duration::nanos;
use crate::render::page::Page;
use crate::report::Report;

pub(super) fn section(page: &mut Page, report: &Report) {
    page.markup("<section id=\"measured\" aria-labelledby=\"h-measured\">\n<h2 id=\"h-measured\">Measurement</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Nodes\">\n<table>\n<thead><tr>");
    for name in ["node", "kernel", "architecture", "helper", "hooks"] {
        page.markup("<th scope=\"col\">").markup(name).markup("</th>");
    }
    page.markup("</tr></thead>\n<tbody>\n");
    for node in &report.nodes {
        page.markup("<tr>");
        for text in [&node.name, &node.kernel, &node.arch, &node.helper] {
            cell(page, text);
        }
        cell(page, &node.hooks.len().to_string());
        page.markup("</tr>\n");
    }
    page.markup("</tbody></table></div>\n");
    for node in &report.nodes {
        hooks(page, node);
    }
    page.markup("<ul>\n");
    for line in cost(report) {
        page.markup("<li>").text(&line).markup("</li>\n");
    }
    page.markup("</ul>\n</section>\n");
}

fn hooks(page: &mut Page, node: &crate::report::document::NodeRow) {
    if node.hooks.is_empty() && node.unavailable.is_empty() {
        return;
    }
    page.markup("<details><summary>Hooks of ").text(&node.name).markup("</summary><p>").text(&node.hooks.join(", ")).markup("</p>");
    if !node.unavailable.is_empty() {
        page.markup("<p>Not available:</p><ul>");
        for (hook, why) in &node.unavailable {
            page.markup("<li>").text(hook).markup(": ").text(why).markup("</li>");
        }
        page.markup("</ul>");
    }
    page.markup("</details>\n");
}

/// Sampling, losses, clocks and overhead.
fn cost(report: &Report) -> Vec<String> {
    let overhead = &report.overhead;
    let mut lines = Vec::new();
    if overhead.matched > 0 {
        lines.push(format!("{} of {} packets were recorded", overhead.recorded, overhead.matched));
    }
    let lost = |n: u64| if n == 1 { "1 event was".to_owned() } else { format!("{n} events were") };
    lines.push(format!("{} lost because the ring buffer was full", lost(report.lost_events)));
    for clock in &report.clocks {
        let difference = if clock.offset_ns < 0 { "behind" } else { "ahead of" };
        let offset = nanos(clock.offset_ns.unsigned_abs());
        lines.push(format!(
            "the clock of {} is {offset} {difference} that of {}, uncertain by {} in either direction",
            clock.node,
            clock.against,
            nanos(clock.uncertainty_ns)
        ));
    }
    if overhead.elapsed_ns > 0 {
        let programs =
            overhead.programs_ns.map_or_else(|| "time of the programs not counted".to_owned(), |t| format!("{} in programs", nanos(t)));
        let helpers = report.nodes.len();
        let cost = format!("{programs}, {} of CPU in the helper{}", nanos(overhead.helper_cpu_ns), plural(helpers));
        lines.push(format!("{} of tracing cost {cost}", nanos(overhead.elapsed_ns)));
    }
    lines
}
