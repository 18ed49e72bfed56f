//! Request and reply as a sequence: the packets of one conversation between its two ends, in the order in which they were sent.

use std::net::SocketAddr;

use sockpath_protocol::packet::{Direction, Outcome, PacketKind};

use super::wording::kind_word;
use crate::duration::nanos;
use crate::render::page::Page;
use crate::render::picture::Picture;
use crate::report::packet_row::PacketRow;
use crate::report::{CommonClock, Report};

/// Packets of a conversation that are shown.
const SHOWN: usize = 40;

pub(super) fn section(page: &mut Page, report: &Report) {
    let clock = CommonClock::of(report);
    let client = typical_client(report);
    let mut packets: Vec<(i128, PacketRow)> = report
        .packets
        .iter()
        .filter(|p| client.is_none_or(|client| is_of(p, client)))
        .filter_map(|p| Some((p.hops.first().map(|h| clock.at(h.node.as_deref(), h.at_ns))?, p)))
        .collect();
    packets.sort_by_key(|(at, _)| *at);
    let Some(begin) = packets.first().map(|(at, _)| *at) else { return };
    page.markup("<section id=\"sequence\" aria-labelledby=\"h-sequence\">\n<h2 id=\"h-sequence\">Request and reply</h2>\n<p class=\"dim\">The conversation");
    if let Some(client) = client {
        page.text(&format!(" of {client}"));
    }
    page.markup(": when each packet was first seen, and how long it took.");
    if packets.len() > SHOWN {
        page.text(&format!(" The first {SHOWN} of {} packets.", packets.len()));
    }
    if !report.clocks.is_empty() {
        page.markup(" The nodes have different clocks: the order of packets from different nodes is only as certain as their offset.");
    }
    page.markup("</p>\n<ol class=\"seq\">\n<li aria-hidden=\"true\"><span></span><span class=\"lane ends\"><span>");
    page.text(&report.source.name).markup("</span><span>").text(&report.target.name).markup("</span></span><span></span></li>\n");
    let stations = stations(report);
    for (at, packet) in packets.iter().take(SHOWN) {
        row(page, packet, at - begin, &stations);
    }
    page.markup("</ol>\n</section>\n");
}

/// The address of the source in the conversation of the typical packet, else of the first request.
fn typical_client(report: &Report) -> Option<SocketAddr> {
    let typical = report.request.as_ref().and_then(|r| r.typical_packet);
    let requests = || report.packets.iter().filter(|p| p.direction == Direction::Request);
    let found = requests().find(|p| Some(p.id) == typical).or_else(|| requests().next());
    found.map(|p| p.from)
}

/// Requests from this address, and replies that are sent or translated to it.
fn is_of(packet: &PacketRow, client: SocketAddr) -> bool {
    match packet.direction {
        Direction::Request => packet.from == client,
        Direction::Reply => packet.to == client || packet.hops.iter().any(|h| h.rewritten.is_some_and(|f| f.to == client)),
    }
}

/// A namespace of the path: node and pod.
type Station = (Option<String>, Option<String>);

/// The namespaces of the path from source to target.
fn stations(report: &Report) -> Vec<Station> {
    let mut stations: Vec<Station> = Vec::new();
    for stage in &report.stages {
        let here = (stage.node.clone(), stage.pod.clone());
        if stations.last() != Some(&here) {
            stations.push(here);
        }
    }
    let drawn = Picture::of(report).lanes().count();
    // A target that was not reached is a station, too.
    while stations.len() < drawn {
        stations.push((None, None));
    }
    stations
}

fn row(page: &mut Page, packet: &PacketRow, after: i128, stations: &[Station]) {
    let ended = match &packet.outcome {
        Outcome::Dropped(drop) => Some(format!("dropped: {}", drop.reason)),
        Outcome::Vanished { expected } => Some(format!("not seen at {}", expected.stage().name)),
        Outcome::Delivered | Outcome::Left => None,
    };
    page.markup(match (packet.direction, ended.is_some()) {
        (Direction::Request, false) => "<li class=\"request\">",
        (Direction::Request, true) => "<li class=\"request ended\">",
        (Direction::Reply, false) => "<li class=\"reply\">",
        (Direction::Reply, true) => "<li class=\"reply ended\">",
    });
    let time = u64::try_from(after).unwrap_or(0);
    page.markup("<span class=\"t\">+").text(&nanos(time)).markup("</span> <span class=\"lane\"><span class=\"arrow\"");
    if ended.is_some() {
        page.markup(" style=\"width:").text(&reached(packet, stations).to_string()).markup("%\"");
    }
    let arrow = if packet.direction == Direction::Request { "→ " } else { "← " };
    page.markup(">").text(arrow).text(kind_word(packet.kind));
    if packet.payload > 0 && !matches!(packet.kind, PacketKind::Syn | PacketKind::SynAck) {
        page.text(&format!(", {} bytes", packet.payload));
    }
    if let Some(ended) = &ended {
        page.markup(" ").text(ended);
    }
    let took = packet.end_to_end_ns.map_or_else(|| "two clocks".to_owned(), nanos);
    page.markup("</span></span> <span class=\"took\">").text(&took).markup("</span></li>\n");
}

/// How far a packet came, in per cent of the stations.
fn reached(packet: &PacketRow, stations: &[Station]) -> usize {
    let last = packet.hops.last().map(|h| (h.node.clone(), h.pod.clone()));
    let at = last.and_then(|last| stations.iter().position(|s| *s == last)).unwrap_or(stations.len() / 2);
    let passed = if packet.direction == Direction::Request { at } else { stations.len().saturating_sub(at + 1) };
    ((2 * passed + 1) * 50 / stations.len().max(1)).clamp(12, 96)
}
