//! Packets to click open, hop by hop.

use sockpath_protocol::packet::{Context, Direction, Outcome, PacketKind};

use super::table::{cell, number};
use super::wording::kind_word;
use crate::duration::nanos;
use crate::render::page::Page;
use crate::report::Report;
use crate::report::packet_row::{HopRow, PacketRow};

/// Packets that a page shows.
const SHOWN: usize = 24;

/// Packets of them that did not arrive.
const ENDED: usize = 10;

pub(super) fn section(page: &mut Page, report: &Report) {
    let shown = choice(report);
    if shown.is_empty() {
        return;
    }
    page.markup("<section id=\"packets\" aria-labelledby=\"h-packets\">\n<h2 id=\"h-packets\">Packets</h2>\n");
    if shown.len() < report.packets.len() {
        let text = format!("{} of {} packets: ", shown.len(), report.packets.len());
        page.markup("<p class=\"dim\">").text(&text);
        page.markup("those that did not arrive, the typical and the slowest, and the first. <code>-o json</code> lists all.</p>\n");
    }
    let typical = typical(report);
    for index in shown {
        if let Some(packet) = report.packets.get(index) {
            details(page, &packet, typical.contains(&index));
        }
    }
    page.markup("</section>\n");
}

/// Places of the typical request and reply.
fn typical(report: &Report) -> Vec<usize> {
    let of = |direction: Direction, id: Option<u64>| {
        let mut rows = report.packets.iter().enumerate();
        id.and_then(|id| rows.find(|(_, p)| p.direction == direction && p.id == id)).map(|(index, _)| index)
    };
    let request = of(Direction::Request, report.request.as_ref().and_then(|r| r.typical_packet));
    let reply = of(Direction::Reply, report.reply.as_ref().and_then(|r| r.typical_packet));
    request.into_iter().chain(reply).collect()
}

/// The packets that are shown, in the order of the report.
fn choice(report: &Report) -> Vec<usize> {
    let mut chosen = typical(report);
    let mut slowest: Option<(u64, usize)> = None;
    let mut ended = Vec::new();
    for (index, packet) in report.packets.iter().enumerate() {
        if matches!(packet.outcome, Outcome::Dropped(_) | Outcome::Vanished { .. }) && ended.len() < ENDED {
            ended.push(index);
        }
        if let (Direction::Request, PacketKind::Data, Some(took)) = (packet.direction, packet.kind, packet.end_to_end_ns) {
            slowest = slowest.max(Some((took, index)));
        }
    }
    chosen.extend(ended);
    chosen.extend(slowest.map(|(_, index)| index));
    chosen.sort_unstable();
    chosen.dedup();
    let others: Vec<usize> = (0..report.packets.len()).filter(|i| !chosen.contains(i)).take(SHOWN.saturating_sub(chosen.len())).collect();
    chosen.extend(others);
    chosen.sort_unstable();
    chosen
}

fn details(page: &mut Page, packet: &PacketRow, typical: bool) {
    let direction = if packet.direction == Direction::Request { "request" } else { "reply" };
    let took = packet.end_to_end_ns.map_or_else(String::new, |t| format!(", {}", nanos(t)));
    let payload = if packet.payload > 0 { format!(", {} bytes", packet.payload) } else { String::new() };
    let addresses = format!("{} → {}", packet.from, packet.to);
    page.markup("<details class=\"packet\"><summary>").text(&format!("{direction} {}: {addresses}{payload}{took}", kind_word(packet.kind)));
    match &packet.outcome {
        Outcome::Delivered => {}
        Outcome::Left => drop(page.markup(", left the watched nodes")),
        Outcome::Dropped(drop) => {
            page.markup(", <span class=\"bad\">dropped: ").text(&drop.reason).markup("</span>");
        }
        Outcome::Vanished { expected } => {
            page.markup(", <span class=\"bad\">not seen at ").text(expected.stage().name).markup("</span>");
        }
    }
    if typical {
        page.markup(" <span class=\"tag\">typical</span>");
    }
    page.markup("</summary>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Hops of the packet\">\n<table>\n<caption>");
    page.text(&format!("Packet {} of conversation {}, seq {}, ack {}", packet.id, packet.conversation, packet.seq, packet.ack));
    page.markup(
        "</caption>\n<thead><tr><th scope=\"col\">stage</th><th scope=\"col\" class=\"n\">at</th><th scope=\"col\" class=\"n\">took</th>",
    );
    page.markup("<th scope=\"col\">place</th><th scope=\"col\">device</th><th scope=\"col\">CPU</th><th scope=\"col\">run by</th><th scope=\"col\">hook</th><th scope=\"col\">note</th></tr></thead>\n<tbody>\n");
    let mut since: u64 = 0;
    for hop in &packet.hops {
        self::hop(page, hop, since);
        since += hop.took_ns.unwrap_or(0);
    }
    page.markup("</tbody></table></div></details>\n");
}

fn hop(page: &mut Page, hop: &HopRow, since: u64) {
    page.markup("<tr>");
    let stage = hop.stage.stage();
    cell(page, &hop.step.map_or_else(|| stage.name.to_owned(), |step| format!("{step} {}", stage.name)));
    number(page, &format!("+{}", nanos(since)));
    number(page, &hop.took_ns.map_or_else(|| "two clocks".to_owned(), nanos));
    cell(page, hop.pod.as_deref().or(hop.node.as_deref()).unwrap_or("?"));
    cell(page, hop.device.as_ref().map_or("", |d| d.name.as_str()));
    number(page, &hop.cpu.to_string());
    cell(
        page,
        &match &hop.context {
            Context::Process { pid, comm } => format!("{comm} ({pid})"),
            Context::Softirq => "softirq".to_owned(),
        },
    );
    cell(page, &hop.hook);
    let rewritten = hop.rewritten.map(|f| format!("now {} → {}", f.from, f.to));
    let notes: Vec<&str> = rewritten.as_deref().into_iter().chain(hop.note.as_deref().filter(|n| !n.starts_with("now "))).collect();
    cell(page, &notes.join("; "));
    page.markup("</tr>\n");
}
