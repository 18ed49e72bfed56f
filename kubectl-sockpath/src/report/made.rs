//! Journeys made by hand, for tests.

use std::sync::Arc;

use sockpath_protocol::packet::{ConnectionState, Context, Direction, Drop, Flow, Hop, Outcome, Packet, PacketKind, RuleFacts};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::journey::{HopRef, Journey, Spot, Step};

/// A flow of two addresses with ports.
pub fn flow(from: &str, to: &str) -> Flow {
    Flow { from: from.parse().expect("an address"), to: to.parse().expect("an address") }
}

/// A packet of a conversation that was delivered and has no hops yet.
pub fn packet(protocol: Protocol, kind: PacketKind, direction: Direction, flow: Flow) -> Packet {
    Packet {
        id: 1,
        conversation: 1,
        direction,
        protocol,
        kind,
        flow,
        seq: 100,
        ack: 0,
        payload: 0,
        hops: Vec::new(),
        outcome: Outcome::Delivered,
    }
}

/// A hop at the node's FORWARD, behind conntrack.
pub fn forwarded(at_ns: u64, connection: ConnectionState, reply: bool) -> Hop {
    let facts = RuleFacts { connection, reply, mark: 0, connection_mark: 0, input: None, output: None, tcp_flags: None };
    Hop { facts: Some(Box::new(facts)), ..hop(StageId::NodeForward, "netfilter/FORWARD last", at_ns) }
}

/// A hop without facts.
pub fn hop(stage: StageId, hook: &str, at_ns: u64) -> Hop {
    Hop {
        stage,
        hook: hook.to_owned(),
        at_ns,
        place: 0,
        cpu: 0,
        context: Context::Softirq,
        len: 60,
        segments: 1,
        rewritten: None,
        rule: None,
        offsets: None,
        note: None,
        facts: None,
    }
}

/// A drop at the target.
pub fn dropped(reason: &str, socket: Option<&str>) -> Outcome {
    Outcome::Dropped(Drop {
        reason: reason.to_owned(),
        location: None,
        place: 0,
        stage: StageId::ReceiveTransport,
        socket: socket.map(str::to_owned),
        detail: None,
        rule: None,
        cause: None,
    })
}

/// The journey of a packet on one node: its hops at the node are in the node's namespace, all others in pod `default/b`.
pub fn journey(packet: &Packet) -> Journey<'_> {
    let step = |(index, hop): (usize, &Hop)| {
        let pod = (hop.stage != StageId::NodeForward).then(|| "default/b".to_owned());
        let spot = Arc::new(Spot { node: "n".to_owned(), pod, netns: 1, device: None });
        Step { stage: hop.stage, spot, took_ns: Some(0), first_hop: index, hops: 1 }
    };
    Journey {
        parts: vec![(0, packet)],
        hops: (0..packet.hops.len()).map(|hop| HopRef { part: 0, hop }).collect(),
        steps: packet.hops.iter().enumerate().map(step).collect(),
        end_to_end_ns: Some(0),
        is_redirected: false,
    }
}
