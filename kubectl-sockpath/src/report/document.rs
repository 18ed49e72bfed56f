//! The report as one document. Its JSON form is a contract (docs/json.md).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use sockpath_protocol::message::ConntrackCounts;
use sockpath_protocol::packet::{Certainty, Direction, Flow, IncidentKind, Mechanism, PacketKind, Rule};
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::StageId;

use super::leg::Leg;
use super::overhead::Overhead;
use super::packets::Packets;
use super::rewrites::RewriteRow;
use super::stage_row::StageRow;
use super::times::Times;
use crate::target::Scenario;

/// Version of the document's form; grows when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// The whole report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this form.
    pub schema: u32,
    /// How source and target lie to each other, as observed.
    pub scenario: Scenario,
    /// The Service packets were sent to, `namespace/name`; absent when they went to the pod itself.
    pub via_service: Option<String>,
    /// Address and port requests were sent to.
    pub dialled: Option<SocketAddr>,
    /// Who sends requests.
    pub source: Party,
    /// Who answers.
    pub target: Party,
    /// The nodes that were watched.
    pub nodes: Vec<NodeRow>,
    /// Kernel of the source's node.
    pub kernel: String,
    /// Stages of the request packets.
    pub stages: Vec<StageRow>,
    /// The whole path of a request packet.
    pub end_to_end: Times,
    /// How many times a kernel network stack was run through per request packet.
    pub stack_traversals: u32,
    /// What `stages` is about: see [`Leg`].
    pub request: Option<LegSummary>,
    /// The path of the replies.
    pub reply: Option<Leg>,
    /// The socket path, when packets took it as well.
    pub accelerated: Option<Leg>,
    /// What the socket path saved against the normal path, when both were seen.
    pub saving: Option<Saving>,
    /// The path from device to device, past the stacks of the nodes, when packets took it as well.
    pub short: Option<Leg>,
    /// The same for it.
    pub short_saving: Option<Saving>,
    /// How many packets were seen.
    pub seen: SeenCounts,
    /// Address translations.
    pub rewrites: Vec<RewriteRow>,
    /// Drops.
    pub drops: Vec<DropRow>,
    /// Packets that were seen no more.
    pub vanished: Vec<VanishedRow>,
    /// Resets, retransmissions and the like.
    pub incidents: Vec<IncidentRow>,
    /// What became of probes.
    pub probes: Vec<ProbeRow>,
    /// What the reader should know and do: causes, most urgent first, each with what follows from it.
    pub findings: Vec<Finding>,
    /// How the clocks of several nodes lie to each other; empty on one node.
    pub clocks: Vec<ClockRow>,
    /// Events that found no room in the ring buffer.
    pub lost_events: u64,
    /// What watching cost.
    pub overhead: Overhead,
    /// The packets, hop by hop.
    pub packets: Packets,
}

impl Report {
    /// What the packets of a direction are.
    #[must_use]
    pub fn packets_of(&self, direction: Direction) -> Option<&'static str> {
        match direction {
            Direction::Request => self.request.as_ref().map(|l| l.packets_of),
            Direction::Reply => self.reply.as_ref().map(|l| l.packets_of),
        }
    }
}

/// A pod, a Service's pods, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Namespace.
    pub namespace: Option<String>,
    /// Name of the pod, or what was typed when it is none or several.
    pub name: String,
    /// Node.
    pub node: Option<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Port it answers on.
    pub port: Option<u16>,
}

/// A node that was watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// Its kernel.
    pub kernel: String,
    /// Its architecture.
    pub arch: String,
    /// Release of the helper there.
    pub helper: String,
    /// Hooks in use.
    pub hooks: Vec<String>,
    /// Hooks that would have been used, and why they are not.
    pub unavailable: BTreeMap<String, String>,
    /// Time from request to armed, in nanoseconds.
    pub armed_ns: Option<u64>,
    /// Add this to `at_ns` of a hop for nanoseconds since 1970; by the node's own clocks.
    pub clock_offset_ns: i64,
    /// What conntrack counted there during the trace, of all traffic; absent where it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conntrack: Option<ConntrackCounts>,
}

/// How a node's clock lies to that of the first node, by round trips to both. Times are never computed across nodes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClockRow {
    /// The node.
    pub node: String,
    /// The node it is compared with.
    pub against: String,
    /// Its `CLOCK_REALTIME` minus the other's, in nanoseconds.
    pub offset_ns: i64,
    /// Uncertainty of the offset in either direction, in nanoseconds: half a round trip to each.
    pub uncertainty_ns: u64,
    /// Round trips to the node that it is the best of.
    pub round_trips: u32,
}

/// What the request's figures are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LegSummary {
    /// Which packets they are about.
    pub packets_of: &'static str,
    /// Whether they went from device to device, past the stacks of the nodes: by the short path, or by another tc program.
    pub redirected: bool,
    /// How many.
    pub count: usize,
    /// Whether they reached the other side.
    pub complete: bool,
    /// Of the typical time, what was waiting.
    pub waiting_ns: Option<u64>,
    /// The routes that packets of this kind took.
    pub routes: Vec<super::leg::Route>,
    /// Id of a typical packet.
    pub typical_packet: Option<u64>,
    /// Protocol of these packets.
    pub protocol: Protocol,
}

/// How many packets were seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SeenCounts {
    /// From source to target.
    pub requests: u64,
    /// From target to source.
    pub replies: u64,
    /// Connections (both directions).
    pub conversations: u64,
}

/// What another path saves against that through the stack: typical times, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Saving {
    /// The network path.
    pub normal_p50_ns: u64,
    /// The other path.
    pub accelerated_p50_ns: u64,
    /// Share of the network path's time that is saved; negative when the other path took longer.
    pub share: f64,
}

/// Drops of one kind at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DropRow {
    /// `enum skb_drop_reason` without its prefix, or the enumerator of a subsystem, such as `OVS_DROP_EXPLICIT`.
    pub reason: String,
    /// Direction of the packets.
    pub direction: Direction,
    /// The stage they were in.
    pub stage: StageId,
    /// Kernel function.
    pub location: Option<String>,
    /// Node.
    pub node: Option<String>,
    /// Pod whose namespace it happened in.
    pub pod: Option<String>,
    /// Device there.
    pub device: Option<String>,
    /// State of the socket that dropped them, where the kernel names it: `TIME_WAIT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// What is known besides.
    pub detail: Option<String>,
    /// The netfilter rule that did it, when it could be found.
    pub rule: Option<Rule>,
    /// What in netfilter did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<Mechanism>,
    /// How sure that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certainty: Option<Certainty>,
    /// What speaks for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// Rules that may have done it, when none is named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Rule>,
    /// Id of the finding that it follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<&'static str>,
    /// What to do.
    pub advice: Option<&'static str>,
    /// How many packets.
    pub count: usize,
    /// Addresses of the first one, as it was sent.
    pub flow: Flow,
    /// What the first one was.
    pub kind: PacketKind,
}

/// Packets that were seen no more at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VanishedRow {
    /// Direction of the packets.
    pub direction: Direction,
    /// The stage they were last seen in.
    pub last_seen: StageId,
    /// The stage that should have come next.
    pub expected: StageId,
    /// Node.
    pub node: Option<String>,
    /// Pod whose namespace they were last seen in.
    pub pod: Option<String>,
    /// Device there.
    pub device: Option<String>,
    /// Addresses of the first one, as it was sent.
    pub flow: Flow,
    /// How many packets.
    pub count: usize,
}

/// Incidents of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncidentRow {
    /// What happened.
    pub what: IncidentKind,
    /// Node.
    pub node: Option<String>,
    /// Pod whose namespace it happened in.
    pub pod: Option<String>,
    /// More, in words.
    pub detail: Option<String>,
    /// Addresses of the first one.
    pub flow: Option<Flow>,
    /// How often.
    pub count: usize,
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbeRow {
    /// The protocol that was used.
    pub protocol: Protocol,
    /// Where it went.
    pub to: String,
    /// Whether an answer came.
    pub answered: bool,
    /// Time until the answer or the failure, in nanoseconds.
    pub took_ns: u64,
    /// The failure.
    pub error: Option<String>,
    /// What in the source's namespace did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<Mechanism>,
    /// How sure that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certainty: Option<Certainty>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What speaks for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// Something the reader should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A word scripts can rely on.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Direction of the packets it is about, when it is about packets that did not arrive.
    pub direction: Option<Direction>,
    /// What it is.
    pub text: String,
    /// What to do or run next.
    pub next: Option<String>,
    /// What did it, of drops and of calls that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<Mechanism>,
    /// How sure it is, where that was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certainty: Option<Certainty>,
    /// What speaks for it: counters, functions of the kernel, what rules saw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// Id of the finding that it follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<&'static str>,
    /// Place in `findings[]` of the cause at the end of these links, which stands before it; absent for a cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<usize>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Packets do not arrive, or not where they should.
    Critical,
    /// Costs time or hides something.
    Warning,
    /// Good to know.
    Info,
}
