//! `-o wide`: one typical packet in each direction, hop by hop, with everything that is known. Columns without borders and without
//! wrapping, as kubectl's wide output, so that it can be cut and grepped.

use sockpath_protocol::packet::{Context, HeaderOffsets};

use crate::duration::nanos;
use crate::output::Text;
use crate::render::table::Table;
use crate::render::{heading::heading, waterfall};
use crate::report::Report;
use crate::report::packet_row::{HopRow, PacketRow};
use crate::terminal::{Paint, Style};

/// Renders it.
#[must_use]
pub fn render(report: &Report, style: &Style) -> Text {
    let mut out = heading(report, style);
    let ids = [
        ("request", report.request.as_ref().and_then(|r| r.typical_packet), sockpath_protocol::packet::Direction::Request),
        ("reply", report.reply.as_ref().and_then(|r| r.typical_packet), sockpath_protocol::packet::Direction::Reply),
    ];
    for (word, id, direction) in ids {
        let packet = report.packets.iter().find(|p| Some(p.id) == id && p.direction == direction);
        if let Some(packet) = packet {
            out.end_line();
            title(word, &packet, style, &mut out);
            table(&packet, style, &mut out);
        }
    }
    out.append(&waterfall::findings(report, style));
    out
}

fn title(word: &str, packet: &PacketRow, style: &Style, out: &mut Text) {
    let time = packet.end_to_end_ns.map_or_else(|| "unknown time".to_owned(), nanos);
    let arrow = if style.unicode { "→" } else { "->" };
    let text = format!("{word} packet {} of conversation {}", packet.id, packet.conversation);
    let rest = format!("  {} {arrow} {}  seq {} ack {}  {} bytes  {time}", packet.from, packet.to, packet.seq, packet.ack, packet.payload);
    out.paint(style, Paint::Heading, &text);
    out.line(&rest);
}

fn table(packet: &PacketRow, style: &Style, out: &mut Text) {
    let heads = [
        "STEP",
        "STAGE",
        "AT",
        "TOOK",
        "NODE",
        "POD",
        "NETNS",
        "DEVICE",
        "PEER",
        "BRIDGE",
        "CPU",
        "CONTEXT",
        "LEN",
        "SEGS",
        "MAC/NET/TRANS",
        "HOOK",
        "NOTE",
    ];
    let mut table = Table::wide(style, &heads);
    let start = packet.hops.first().map_or(0, |h| h.at_ns);
    for hop in &packet.hops {
        table.row(None, None, row(hop, start, packet.end_to_end_ns.is_some()));
    }
    table.align_right(&[2, 3, 6, 10, 12, 13]);
    table.end(true, out);
}

fn row(hop: &HopRow, start: u64, one_clock: bool) -> [String; 17] {
    let device = hop.device.as_ref();
    let context = match &hop.context {
        Context::Process { pid, comm } => format!("{comm}[{pid}]"),
        Context::Softirq => "softirq".to_owned(),
    };
    let mut note = hop.note.clone().unwrap_or_default();
    if let Some(flow) = hop.rewritten {
        note = format!("now {} > {} {note}", flow.from, flow.to).trim_end().to_owned();
    }
    let or_dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or_else(|| "-".to_owned());
    [
        hop.step.unwrap_or("-").to_owned(),
        hop.stage.key().to_owned(),
        if one_clock { format!("+{}", nanos(hop.at_ns.saturating_sub(start))) } else { hop.at_ns.to_string() },
        hop.took_ns.map_or_else(|| "?".to_owned(), nanos),
        or_dash(hop.node.clone()),
        or_dash(hop.pod.clone()),
        or_dash(hop.netns.map(|n| n.to_string())),
        or_dash(device.map(|d| d.name.clone())),
        or_dash(device.and_then(|d| d.peer.clone())),
        or_dash(device.and_then(|d| d.bridge.clone())),
        hop.cpu.to_string(),
        context,
        hop.len.to_string(),
        hop.segments.to_string(),
        offsets(hop.offsets),
        hop.hook.clone(),
        or_dash(Some(note)),
    ]
}

fn offsets(offsets: Option<HeaderOffsets>) -> String {
    let show = |o: Option<u16>| o.map_or_else(|| "-".to_owned(), |o| o.to_string());
    match offsets {
        Some(o) => format!("{}/{}/{}", show(o.mac), o.network, show(o.transport)),
        None => "-".to_owned(),
    }
}
