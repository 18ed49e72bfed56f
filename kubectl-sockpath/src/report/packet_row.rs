//! One packet with its hops, as the report and `-o jsonl` print it.

use std::net::SocketAddr;

use serde::Serialize;
use sockpath_protocol::packet::{Context, Device, Direction, Flow, HeaderOffsets, Outcome, PacketKind, RuleFacts};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::capture::Capture;
use super::journey::Journey;

/// One packet.
#[derive(Debug, Clone, Serialize)]
pub struct PacketRow {
    /// Its number.
    pub id: u64,
    /// Number of its conversation.
    pub conversation: u64,
    /// Its direction.
    pub direction: Direction,
    /// Transport protocol.
    pub protocol: Protocol,
    /// What it is.
    pub kind: PacketKind,
    /// Source at its first hop.
    pub from: SocketAddr,
    /// Destination at its first hop.
    pub to: SocketAddr,
    /// TCP sequence number, or identification.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// Payload bytes.
    pub payload: u32,
    /// Time from its first to its last hop, in nanoseconds.
    pub end_to_end_ns: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its hops.
    pub hops: Vec<HopRow>,
}

/// One hop.
#[derive(Debug, Clone, Serialize)]
pub struct HopRow {
    /// The stage that begins here.
    pub stage: StageId,
    /// The article's number.
    pub step: Option<&'static str>,
    /// The hook that saw it.
    pub hook: String,
    /// `CLOCK_MONOTONIC` of the node, in nanoseconds.
    pub at_ns: u64,
    /// Time until the next hop, in nanoseconds.
    pub took_ns: Option<u64>,
    /// Node.
    pub node: Option<String>,
    /// Pod whose namespace it is in.
    pub pod: Option<String>,
    /// Inode of the network namespace.
    pub netns: Option<u32>,
    /// Device.
    pub device: Option<Device>,
    /// CPU.
    pub cpu: u16,
    /// Who ran it.
    pub context: Context,
    /// Length of the skb, in bytes.
    pub len: u32,
    /// GSO segments.
    pub segments: u16,
    /// Header offsets.
    pub offsets: Option<HeaderOffsets>,
    /// Addresses, when they differ from the hop before.
    pub rewritten: Option<Flow>,
    /// What is worth saying.
    pub note: Option<String>,
    /// At a netfilter hook: what its rules see besides the headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facts: Option<RuleFacts>,
}

impl PacketRow {
    /// The row of a packet.
    pub(super) fn of(capture: &Capture, journey: &Journey<'_>) -> Self {
        let first = journey.first();
        let mut hops: Vec<HopRow> = Vec::with_capacity(journey.hops.len());
        let mut before: Option<usize> = None;
        for reference in &journey.hops {
            let (helper, packet) = journey.parts[reference.part];
            let hop = &packet.hops[reference.hop];
            if let Some(last) = hops.last_mut() {
                let comparable = before == Some(reference.part) || journey.end_to_end_ns.is_some();
                last.took_ns = comparable.then(|| hop.at_ns.saturating_sub(last.at_ns));
            }
            before = Some(reference.part);
            let place = capture.place(helper, hop.place);
            hops.push(HopRow {
                stage: hop.stage,
                step: hop.stage.stage().step,
                hook: hop.hook.clone(),
                at_ns: hop.at_ns,
                took_ns: Some(0),
                node: place.map(|p| p.node.clone()),
                pod: place.and_then(|p| p.pod.clone()),
                netns: place.map(|p| p.netns),
                device: place.and_then(|p| p.device.clone()),
                cpu: hop.cpu,
                context: hop.context.clone(),
                len: hop.len,
                segments: hop.segments,
                offsets: hop.offsets,
                rewritten: hop.rewritten,
                note: hop.note.clone(),
                facts: hop.facts.as_deref().cloned(),
            });
        }
        Self {
            id: first.id,
            conversation: first.conversation,
            direction: first.direction,
            protocol: first.protocol,
            kind: first.kind,
            from: first.flow.from,
            to: first.flow.to,
            seq: first.seq,
            ack: first.ack,
            payload: first.payload,
            end_to_end_ns: journey.end_to_end_ns,
            outcome: journey.outcome().clone(),
            hops,
        }
    }
}
