//! `--pcapng`: the packets as capture tools show them, one frame per device a packet passed.
//!
//! Payload and most header fields are not observed, so headers are rebuilt from what is (addresses, ports, sequence numbers, kind,
//! length) and everything else is zero; the section and every frame say so. What cannot be seen in a capture, the stages and their
//! times, is in each frame's comment. Format: draft-ietf-opsawg-pcapng. Link type NULL (an address family before the IP header): no link
//! header has to be made up, and unlike RAW it has one number everywhere (libpcap refuses several RAW interfaces in one file).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use sockpath_protocol::packet::{Direction, Flow, Outcome, PacketKind};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::text::field;

use crate::duration::nanos;
use crate::report::Report;
use crate::report::packet_row::{HopRow, PacketRow};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_NULL: u16 = 0;
/// Address families of LINKTYPE_NULL.
const FAMILY_IPV4: u32 = 2;
const FAMILY_IPV6: u32 = 30;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;

const ABOUT: &str = "Written by kubectl sockpath from observed hops. Headers are rebuilt from addresses, ports, sequence numbers and lengths; \
window, TTL, options, checksums and payload were not observed and are zero or absent. Comments hold the stages and their times.";

/// Writes it, packet by packet: what it takes in memory does not grow with the number of hops.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend_from_slice(&BYTE_ORDER.to_le_bytes());
    body.extend_from_slice(&1u16.to_le_bytes());
    body.extend_from_slice(&0u16.to_le_bytes());
    body.extend_from_slice(&u64::MAX.to_le_bytes());
    option(&mut body, OPT_COMMENT, ABOUT.as_bytes());
    option(&mut body, SHB_USERAPPL, concat!("kubectl-sockpath ", env!("CARGO_PKG_VERSION")).as_bytes());
    end_options(&mut body);
    block(out, SECTION_HEADER, &body)?;

    let offsets: BTreeMap<&str, i128> = report.nodes.iter().map(|n| (n.name.as_str(), i128::from(n.clock_offset_ns))).collect();
    let (interfaces, timed) = plan(report, &offsets);
    for name in &interfaces {
        let mut body = Vec::new();
        body.extend_from_slice(&LINKTYPE_NULL.to_le_bytes());
        body.extend_from_slice(&[0; 2]);
        body.extend_from_slice(&0u32.to_le_bytes());
        option(&mut body, IF_NAME, name.as_bytes());
        option(&mut body, IF_TSRESOL, &[9]);
        end_options(&mut body);
        block(out, INTERFACE, &body)?;
    }
    // Frames of one packet often follow each other.
    let mut packet: Option<(usize, PacketRow)> = None;
    for Timed { at_ns, packet: index, frame } in timed {
        if packet.as_ref().is_none_or(|(known, _)| *known != index) {
            packet = report.packets.get(index).map(|row| (index, row));
        }
        let Some((_, row)) = &packet else { continue };
        let frames = frames(row);
        let Some(frame) = frames.get(frame) else { continue };
        let interface = interfaces.binary_search(&frame.interface()).unwrap_or(0);
        block(out, ENHANCED_PACKET, &enhanced_packet(frame, at_ns, interface))?;
    }
    out.flush()
}

/// When a frame was seen, and where it is found again.
struct Timed {
    at_ns: u64,
    packet: usize,
    frame: usize,
}

/// The interfaces, sorted by name, and the frames, sorted by time.
fn plan(report: &Report, offsets: &BTreeMap<&str, i128>) -> (Vec<String>, Vec<Timed>) {
    let (mut interfaces, mut timed) = (BTreeSet::new(), Vec::new());
    for (packet, row) in report.packets.iter().enumerate() {
        for (frame, seen) in frames(&row).iter().enumerate() {
            interfaces.insert(seen.interface());
            timed.push(Timed { at_ns: seen.time(offsets), packet, frame });
        }
    }
    timed.sort_by_key(|t| t.at_ns);
    (interfaces.into_iter().collect(), timed)
}

fn enhanced_packet(frame: &Frame<'_>, at_ns: u64, interface: usize) -> Vec<u8> {
    let data = headers(frame.packet, frame.flow);
    let whole = u32::try_from(data.len()).unwrap_or(0).max(data_length(frame));
    let mut body = Vec::new();
    body.extend_from_slice(&u32::try_from(interface).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(&u32::try_from(at_ns >> 32).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(&u32::try_from(at_ns & 0xffff_ffff).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(&whole.to_le_bytes());
    body.extend_from_slice(&data);
    pad(&mut body);
    option(&mut body, OPT_COMMENT, frame.comment().as_bytes());
    end_options(&mut body);
    body
}

/// A packet at one device.
struct Frame<'r> {
    packet: &'r PacketRow,
    hops: &'r [HopRow],
    /// Addresses there.
    flow: Flow,
    last: bool,
}

/// One frame for each run of hops at one device; hops without a device (the socket) go with the device next to them.
fn frames(packet: &PacketRow) -> Vec<Frame<'_>> {
    let here = |h: &HopRow| (h.node.clone(), h.pod.clone(), h.device.as_ref().map(|d| d.name.clone()));
    let mut cuts = vec![0];
    let mut device = packet.hops.iter().find(|h| h.device.is_some()).map(here);
    for (i, hop) in packet.hops.iter().enumerate() {
        if hop.device.is_some() && device.as_ref() != Some(&here(hop)) {
            cuts.push(i);
            device = Some(here(hop));
        }
    }
    cuts.push(packet.hops.len());
    let mut flow = Flow { from: packet.from, to: packet.to };
    let mut frames = Vec::new();
    for pair in cuts.windows(2) {
        let Some(hops) = packet.hops.get(pair[0]..pair[1]).filter(|h| !h.is_empty()) else { continue };
        flow = hops.first().and_then(|h| h.rewritten).unwrap_or(flow);
        frames.push(Frame { packet, hops, flow, last: pair[1] == packet.hops.len() });
        flow = hops.iter().rev().find_map(|h| h.rewritten).unwrap_or(flow);
    }
    frames
}

impl Frame<'_> {
    /// `node-1/default/curl/eth0`.
    fn interface(&self) -> String {
        let hop = self.hops.iter().find(|h| h.device.is_some()).or(self.hops.first());
        let node = hop.and_then(|h| h.node.as_deref()).unwrap_or("?");
        let pod = hop.and_then(|h| h.pod.as_deref()).map_or_else(String::new, |p| format!("/{p}"));
        let device = hop.and_then(|h| h.device.as_ref()).map_or("?", |d| d.name.as_str());
        field(&format!("{node}{pod}/{device}")).into_owned()
    }

    /// Wall-clock time of its first hop.
    fn time(&self, offsets: &BTreeMap<&str, i128>) -> u64 {
        let Some(hop) = self.hops.first() else { return 0 };
        let offset = hop.node.as_deref().and_then(|n| offsets.get(n)).copied().unwrap_or(0);
        u64::try_from(i128::from(hop.at_ns) + offset).unwrap_or(0)
    }

    fn comment(&self) -> String {
        let mut lines = vec![format!("sockpath packet {} of conversation {}, headers rebuilt", self.packet.id, self.packet.conversation)];
        for hop in self.hops {
            let step = hop.step.map_or_else(String::new, |s| format!("{s} "));
            let took = hop.took_ns.map_or_else(|| "?".to_owned(), nanos);
            let note = hop.note.as_ref().map_or_else(String::new, |n| format!(", {n}"));
            let line = format!("{step}{} {took} ({}, cpu {}{note})", hop.stage.stage().name, hop.hook, hop.cpu);
            lines.push(field(&line).into_owned());
        }
        if let (true, Outcome::Dropped(drop)) = (self.last, &self.packet.outcome) {
            lines.push(format!("dropped: {}", field(&drop.reason)));
        }
        lines.join("\n")
    }
}

/// Length of the whole packet with its address family.
fn data_length(frame: &Frame<'_>) -> u32 {
    let overhead: u32 = if frame.flow.from.is_ipv4() { 20 } else { 40 };
    let transport: u32 = match frame.packet.protocol {
        Protocol::Tcp => 20,
        Protocol::Udp | Protocol::Icmp => 8,
    };
    (4 + overhead + transport).saturating_add(frame.packet.payload)
}

/// Address family, IP and transport header.
fn headers(packet: &PacketRow, flow: Flow) -> Vec<u8> {
    let transport = transport(packet, flow);
    let number: u8 = match (packet.protocol, flow.from.is_ipv4()) {
        (Protocol::Tcp, _) => 6,
        (Protocol::Udp, _) => 17,
        (Protocol::Icmp, true) => 1,
        (Protocol::Icmp, false) => 58,
    };
    let length = u32::try_from(transport.len()).unwrap_or(0).saturating_add(packet.payload);
    let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(64);
    let family = if flow.from.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
    out.extend_from_slice(&family.to_le_bytes());
    match (flow.from.ip(), flow.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x45, 0]);
            out.extend_from_slice(&short(length.saturating_add(20)).to_be_bytes());
            out.extend_from_slice(&[0, 0, 0x40, 0, 0, number, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let v6 = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&short(length).to_be_bytes());
            out.extend_from_slice(&[number, 0]);
            out.extend_from_slice(&v6(from).octets());
            out.extend_from_slice(&v6(to).octets());
        }
    }
    out.extend_from_slice(&transport);
    out
}

fn transport(packet: &PacketRow, flow: Flow) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    let ports = |out: &mut Vec<u8>, from: SocketAddr, to: SocketAddr| {
        out.extend_from_slice(&from.port().to_be_bytes());
        out.extend_from_slice(&to.port().to_be_bytes());
    };
    match packet.protocol {
        Protocol::Tcp => {
            const FIN: u8 = 1;
            const SYN: u8 = 2;
            const RST: u8 = 4;
            const PSH: u8 = 8;
            const ACK: u8 = 16;
            let flags = match packet.kind {
                PacketKind::Syn => SYN,
                PacketKind::SynAck => SYN | ACK,
                PacketKind::Fin => FIN | ACK,
                PacketKind::Rst => RST,
                PacketKind::Data | PacketKind::Bypass => PSH | ACK,
                _ => ACK,
            };
            ports(&mut out, flow.from, flow.to);
            out.extend_from_slice(&packet.seq.to_be_bytes());
            out.extend_from_slice(&packet.ack.to_be_bytes());
            out.extend_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
        }
        Protocol::Udp => {
            ports(&mut out, flow.from, flow.to);
            out.extend_from_slice(&u16::try_from(packet.payload.saturating_add(8)).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(&[0, 0]);
        }
        Protocol::Icmp => {
            let echo = match (flow.from.is_ipv4(), packet.direction) {
                (true, Direction::Request) => 8,
                (true, Direction::Reply) => 0,
                (false, Direction::Request) => 128,
                (false, Direction::Reply) => 129,
            };
            out.extend_from_slice(&[echo, 0, 0, 0]);
            out.extend_from_slice(&packet.seq.to_be_bytes());
        }
    }
    out
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
    body.extend_from_slice(value);
    pad(body);
}

fn end_options(body: &mut Vec<u8>) {
    body.extend_from_slice(&[0; 4]);
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&length)?;
    out.write_all(body)?;
    out.write_all(&length)
}
