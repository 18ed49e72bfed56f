//! The time on the path: a table for each direction, with a bar for each stage.

use sockpath_protocol::packet::Direction;

use super::wording::plural;
use crate::duration::nanos;
use crate::render::page::Page;
use crate::render::waterfall::{at, rewrite_words};
use crate::report::Report;
use crate::report::stage_row::{Seen, StageRow};

pub(super) fn section(page: &mut Page, report: &Report) {
    page.markup("<section id=\"time\" aria-labelledby=\"h-time\">\n<h2 id=\"h-time\">Time on the path</h2>\n");
    page.markup("<p class=\"dim\"><i class=\"key\"></i> works <i class=\"key wait\"></i> waits. ")
        .markup("Grey stages were not observed: their time is part of the stage before.</p>\n");
    if let Some(summary) = &report.request {
        let title = format!("Request: {} {} packet{}", summary.count, summary.packets_of, plural(summary.count));
        table(page, &title, &report.stages, report, Some(Direction::Request));
    } else {
        page.markup("<p>No packet between them was observed.</p>\n");
    }
    if let Some(leg) = &report.reply {
        let title = format!("Reply: {} {} packet{}", leg.count, leg.packets_of, plural(leg.count));
        table(page, &title, &leg.stages, report, Some(Direction::Reply));
    }
    for (leg, name) in [(&report.short, "Short path"), (&report.accelerated, "Socket path")] {
        if let Some(leg) = leg {
            table(page, &format!("{name}: {} packet{}", leg.count, plural(leg.count)), &leg.stages, report, None);
        }
    }
    page.markup("</section>\n");
}

fn table(page: &mut Page, title: &str, stages: &[StageRow], report: &Report, rewrites_of: Option<Direction>) {
    page.markup("<h3>").text(title).markup("</h3>\n<table class=\"stages\">\n<thead><tr><th scope=\"col\">step</th>");
    page.markup(
        "<th scope=\"col\" class=\"name\">stage</th><th scope=\"col\" class=\"w\">device</th><th scope=\"col\" class=\"n\">p50</th>",
    );
    page.markup("<th scope=\"col\" class=\"n w\">p99</th><th scope=\"col\" class=\"bar\">time</th><th scope=\"col\" class=\"w\">observed by</th></tr></thead>\n");
    let scale = stages.iter().filter_map(|s| s.times.p50_ns).sum::<u64>().max(1);
    let mut start = 0;
    let mut place = None;
    for stage in stages {
        let here = (&stage.node, &stage.pod, stage.netns, stage.side);
        if place != Some(here) {
            let node = stage.node.as_deref().unwrap_or("?");
            let name = stage.pod.as_ref().map_or_else(|| node.to_owned(), |pod| format!("{pod} on {node}"));
            page.markup(if place.is_some() { "</tbody>\n<tbody>" } else { "<tbody>" });
            page.markup("<tr><th scope=\"rowgroup\" colspan=\"7\">").text(&name).markup("</th></tr>\n");
            place = Some(here);
        }
        row(page, stage, start, scale);
        start += stage.times.p50_ns.unwrap_or(0);
        for rewrite in report.rewrites.iter().filter(|r| Some(r.direction) == rewrites_of && stage.seen == Seen::Observed && at(r, stage)) {
            page.markup("<tr class=\"nat\"><td></td><td colspan=\"6\">").text(&rewrite_words(rewrite, "→")).markup("</td></tr>\n");
        }
    }
    page.markup(if place.is_some() { "</tbody>\n</table>\n" } else { "</table>\n" });
}

fn row(page: &mut Page, stage: &StageRow, start: u64, scale: u64) {
    let time = |t: Option<u64>| t.map_or_else(String::new, nanos);
    page.markup(if stage.seen == Seen::Observed { "<tr><td>" } else { "<tr class=\"absent\"><td>" })
        .text(stage.step.unwrap_or_default())
        .markup("</td><td>")
        .text(stage.name)
        .markup("</td><td class=\"w\">")
        .text(stage.device.as_deref().unwrap_or_default())
        .markup("</td><td class=\"n\">")
        .text(&time(stage.times.p50_ns))
        .markup("</td><td class=\"n w\">")
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
            .markup("%\"></i></div></td><td class=\"by w\">"),
        // The reason for the missing time replaces the bar.
        None => page.markup("<td class=\"by\" colspan=\"2\">"),
    };
    page.text(by).markup("</td></tr>\n");
}

/// With two decimals, without floating point.
fn per_cent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}
