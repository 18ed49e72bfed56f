//! What the helper tells the plugin.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::accel::{AccelStatus, AccelSummary, PairsSnapshot, SelfTest};
use crate::bypass::Bypassed;
use crate::packet::{Cause, Incident, Packet, Place};
use crate::request::Protocol;

/// One line from the helper to the plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// First line: who speaks.
    Hello(Hello),
    /// The hooks are attached; packets from now on are seen.
    Armed(Armed),
    /// A place that hops refer to by index; sent before the first hop that uses it.
    Place(Place),
    /// A packet whose path has ended (delivered, dropped, left this node, or no longer observed).
    Packet(Box<Packet>),
    /// Something that is not a packet's hop: a reset, a retransmission, an overflowing backlog.
    Incident(Incident),
    /// Running totals, about once a second and before `end`.
    Counters(Counters),
    /// What became of a probe.
    Probed(Probed),
    /// The pairs of an acceleration: about once a second, after 0.2 s when there is news, after up to 3 s when there are many.
    Pairs(PairsSnapshot),
    /// What bytes that go socket to socket would bypass (during a dry run).
    Bypassed {
        /// Each thing once.
        found: Vec<Bypassed>,
    },
    /// What is accelerated here (answer to `status`).
    Status(AccelStatus),
    /// What an acceleration achieved, when it ends.
    Summary(AccelSummary),
    /// Result of a run-time check of the kernel.
    Canary(SelfTest),
    /// One row of `doctor`.
    Check(Check),
    /// Something was removed (answer to `cleanup` and `stop`).
    Removed {
        /// What it was, in words.
        what: String,
    },
    /// Something the user should know; the session goes on.
    Warning {
        /// What, on which object, and what to do.
        text: String,
    },
    /// The session failed; `end` follows.
    Error {
        /// What, on which object, and what to do.
        text: String,
        /// A word scripts can rely on, e.g. `no-btf`, `held`, `canary`.
        code: String,
    },
    /// The clocks (answer to `clock`).
    Clock(ClockReading),
    /// The helper is alive.
    Heartbeat,
    /// Last line. A stream without it was cut off.
    End(End),
}

/// Who speaks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the helper.
    pub protocol: u32,
    /// Release of the helper.
    pub version: String,
    /// `uname -r` of the node.
    pub kernel: String,
    /// Architecture of the node, as `uname -m` says.
    pub arch: String,
    /// `/proc/sys/kernel/random/boot_id` of the node, or empty: helpers with the same one read the same clocks.
    #[serde(default)]
    pub boot: String,
    /// What this kernel offers, by name: `btf`, `fentry`, `kprobe`, `netfilter-link`, `sockops`, ...
    pub features: BTreeMap<String, bool>,
    /// Whether it was built for tests, with switches that corrupt connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_switches: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds when this line was written, for comparing clocks of nodes.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME` in nanoseconds at the same moment.
    pub realtime_ns: u64,
}

/// A node's clocks at one moment between question and answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// Of the question.
    pub id: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME` in nanoseconds.
    pub realtime_ns: u64,
}

/// Key of [`Armed::unavailable`] for the rules of netfilter.
pub const NETFILTER_RULES: &str = "netfilter rules";

/// The trace is armed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Hooks in use, by the name of the kernel's hook (`tp_btf/net_dev_queue`, `netfilter/PRE_ROUTING first`).
    pub hooks: Vec<String>,
    /// Hooks, and [`NETFILTER_RULES`], that would have been used, and why they are not.
    pub unavailable: BTreeMap<String, String>,
    /// What packets pass at tc in the pods, for each device that could be asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<DeviceFilters>,
    /// Time from request to armed, in nanoseconds.
    pub took_ns: u64,
    /// When it was armed, `CLOCK_MONOTONIC` of the node in nanoseconds; 0 when it is not known (recordings of before).
    #[serde(default)]
    pub at_ns: u64,
}

/// The filters and programs at tc and tcx of one device, in words and in the order they are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFilters {
    /// Node.
    pub node: String,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Name of the device.
    pub device: String,
    /// Ingress.
    pub ingress: Vec<String>,
    /// Egress.
    pub egress: Vec<String>,
}

/// Running totals of a trace. All counts are since it was armed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets that matched the pair.
    pub matched: u64,
    /// Packets whose hops were recorded.
    pub recorded: u64,
    /// Packets left out by sampling (matched, counted, not recorded).
    pub sampled_out: u64,
    /// Events that found no room in the ring buffer.
    pub lost_events: u64,
    /// Packets that could not be tracked because the tracking table was full.
    pub untracked: u64,
    /// Events that belonged to no packet known (filter misses).
    pub filter_misses: u64,
    /// Times a program could not run because it was already running on that CPU.
    pub recursion_misses: u64,
    /// Time spent in our programs, by hook, in nanoseconds, and how often each ran. The kernel counts it at a price, so when
    /// the programs run often a fiftieth of the time is counted and the rest extrapolated.
    pub programs: BTreeMap<String, RunTime>,
    /// Time in which the hooks that fire for every packet of the node were detached, in nanoseconds: the pair was silent while
    /// others were busy, or its own packet rate was so high that a part of each second is enough.
    #[serde(default)]
    pub rested_ns: u64,
    /// CPU time of the helper process, in nanoseconds.
    pub helper_cpu_ns: u64,
    /// Resident memory of the helper, in bytes.
    pub helper_rss_bytes: u64,
    /// Time since armed, in nanoseconds.
    pub elapsed_ns: u64,
    /// What conntrack counted meanwhile, by node; empty where that cannot be read (CAP_NET_ADMIN).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conntrack: Vec<ConntrackOfNode>,
}

/// Conntrack in the network namespace of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackOfNode {
    /// Name of the node.
    pub node: String,
    /// What it counted.
    #[serde(flatten)]
    pub counts: ConntrackCounts,
}

/// What conntrack counted since the trace began, of all packets of its namespace, and how full its table is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounts {
    /// Packets found invalid.
    pub invalid: u64,
    /// New connections that could not be entered into the table.
    pub insert_failed: u64,
    /// Packets dropped because the table was full, or memory was short.
    pub drop: u64,
    /// Entries that were given up for new ones because the table was full.
    pub early_drop: u64,
    /// New connections that another packet had entered at the same time, and that were entered nevertheless.
    pub clash_resolve: u64,
    /// New connections that were not entered because a chain of the table was too long.
    pub chain_too_long: u64,
    /// Lookups that were done again because the table was resized.
    pub search_restart: u64,
    /// Entries in the table at the end.
    pub entries: u64,
    /// Entries that it may have; 0 where the kernel does not say.
    pub max_entries: u64,
}

/// Run time of one program as the kernel counts it (`bpf_prog_info.run_time_ns`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTime {
    /// How often it ran.
    pub runs: u64,
    /// Total time in it, in nanoseconds; 0 when the kernel's statistics are off.
    pub ns: u64,
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The protocol that was used.
    pub protocol: Protocol,
    /// Where it went.
    pub to: String,
    /// Whether an answer came.
    pub answered: bool,
    /// Time until the answer or the failure, in nanoseconds.
    pub took_ns: u64,
    /// The failure in words, when there was one.
    pub error: Option<String>,
    /// What in the source's namespace did it, when that could be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Box<Why>>,
}

/// What made a call of the source fail before there was a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// In words.
    pub detail: String,
    /// What did it, and how sure that is.
    pub cause: Cause,
}

/// One row of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub state: CheckState,
    /// What was found.
    pub found: String,
    /// What to do, when it is not well.
    pub remedy: Option<String>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// As it should be.
    Ok,
    /// Works with less.
    Degraded,
    /// Does not work.
    Failed,
}

/// How the session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: EndReason,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The work is done.
    Done,
    /// The plugin asked for it.
    Finished,
    /// The plugin's side of the stream was closed.
    StdinClosed,
    /// No message arrived from the plugin in time.
    HeartbeatMissed,
    /// A signal.
    Signal,
    /// It failed; an `error` line says why.
    Failed,
}
