//! Inferred stages: those of the article that no hook saw, put in their place, each with the reason (must have happened, was left out by
//! the kernel, cannot be seen here). Never shown as observed.

use sockpath_protocol::message::{Armed, DeviceFilters};
use sockpath_protocol::packet::Direction;
use sockpath_protocol::request::Protocol;
use sockpath_protocol::stage::{STAGES, Side, Stage, StageId};

use super::journey::{Class, is_netfilter};
use super::stage_row::{Seen, StageRow};
use super::times::Times;

/// What decides about stages that were not seen.
pub(super) struct Situation<'a> {
    pub protocol: Protocol,
    pub class: Class,
    pub direction: Direction,
    /// The packets reached the other side.
    pub complete: bool,
    /// What the helpers watch with.
    pub watch: &'a Watch,
}

/// What the helpers watch with, and what they know of the pods' devices.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Hooks in use.
    hooks: Vec<String>,
    /// What packets pass at tc, for each device that could be asked about.
    filters: Vec<DeviceFilters>,
}

impl Watch {
    /// Of all helpers that are armed.
    pub(super) fn of<'a>(armed: impl Iterator<Item = &'a Armed>) -> Self {
        let mut watch = Self::default();
        for helper in armed {
            watch.hooks.extend(helper.hooks.iter().cloned());
            watch.filters.extend(helper.filters.iter().cloned());
        }
        watch
    }
}

impl Situation<'_> {
    /// Whether a hook that shows this stage is in use.
    fn sees(&self, stage: &Stage) -> bool {
        stage.hooks.iter().any(|hook| self.sees_by(hook))
    }

    /// Whether this hook is in use, or a kprobe in its place.
    fn sees_by(&self, hook: &str) -> bool {
        let kprobe = hook.strip_prefix("fentry/");
        self.watch.hooks.iter().any(|a| a.starts_with(hook) || (kprobe.is_some() && a.strip_prefix("kprobe/") == kprobe))
    }

    /// What this stage is known to have passed at the device where a neighbouring stage was seen: nothing, or filters and programs
    /// whose time was not measured.
    fn filtered(&self, stage: StageId, neighbour: &StageRow, device: &str) -> Option<(Seen, String)> {
        let here =
            |f: &&DeviceFilters| (Some(f.netns), Some(&f.node), f.device.as_str()) == (neighbour.netns, neighbour.node.as_ref(), device);
        let there = self.watch.filters.iter().find(here)?;
        let passed = match stage {
            StageId::TcEgress => &there.egress,
            StageId::TcIngress => &there.ingress,
            _ => return None,
        };
        Some(match passed.as_slice() {
            [] => (Seen::Skipped, format!("no filter and no program at {device}")),
            some => (Seen::Inferred, format!("at {device}: {}", some.join(", "))),
        })
    }

    /// A ping is answered by the kernel: no socket, no reader.
    fn kernel_answers(&self) -> bool {
        self.protocol == Protocol::Icmp && self.direction == Direction::Request
    }
}

/// Whether a stage of the receiver is about its socket and what reads from it.
fn is_socket(id: StageId) -> bool {
    use StageId::{Copied, Dequeued, ReaderWoken, ReceiveQueue, ReceiveStackDone, SocketLookup};
    matches!(id, SocketLookup | ReceiveQueue | ReaderWoken | ReceiveStackDone | Dequeued | Copied)
}

/// Adds the stages that were not seen.
pub(super) fn fill(rows: Vec<StageRow>, situation: &Situation<'_>) -> Vec<StageRow> {
    if situation.class == Class::Bypass {
        return socket_path(rows);
    }
    let split = rows.iter().position(|r| r.side != Side::Send).unwrap_or(rows.len());
    let receive = rows.iter().position(|r| r.side == Side::Receive).unwrap_or(rows.len());
    let mut rows = rows.into_iter();
    let sent: Vec<StageRow> = rows.by_ref().take(split).collect();
    let transit: Vec<StageRow> = rows.by_ref().take(receive.saturating_sub(split)).collect();
    let received: Vec<StageRow> = rows.collect();
    let left = !transit.is_empty() || !received.is_empty();
    // Control packets and the kernel's own answers to a ping have no socket call.
    let by_application = match situation.class {
        Class::Data | Class::Redirected => !(situation.protocol == Protocol::Icmp && situation.direction == Direction::Reply),
        _ => false,
    };
    let mut all = side(sent, Side::Send, by_application, left, situation);
    all.extend(transit);
    // Only data reaches a reader; everything else ends in the protocol.
    let to_the_end =
        situation.complete && matches!(situation.class, Class::Data | Class::Redirected) && situation.protocol != Protocol::Icmp;
    all.extend(side(received, Side::Receive, true, to_the_end, situation));
    all
}

/// What must have happened between the stages of the socket path that were seen: the verdict and the queue before the reader was
/// woken, the dequeuing before the bytes were copied.
fn socket_path(rows: Vec<StageRow>) -> Vec<StageRow> {
    let mut all: Vec<StageRow> = Vec::with_capacity(rows.len() + 3);
    for row in rows {
        let before: &[StageId] = match row.id {
            StageId::ReaderWoken => &[StageId::Verdict, StageId::IngressQueue],
            StageId::Copied => &[StageId::Dequeued],
            _ => &[],
        };
        for id in before {
            let stage = id.stage();
            let neighbour = if stage.side == Side::Send { all.last() } else { Some(&row) };
            let inferred = inferred(stage, neighbour, Seen::Inferred, "inferred from what was seen around it".to_owned());
            all.push(inferred);
        }
        all.push(row);
    }
    all
}

/// A row without figures, in the place of its neighbour.
fn inferred(stage: &Stage, neighbour: Option<&StageRow>, seen: Seen, note: String) -> StageRow {
    StageRow {
        id: stage.id,
        step: stage.step,
        name: stage.name,
        side: stage.side,
        node: neighbour.and_then(|r| r.node.clone()),
        pod: neighbour.and_then(|r| r.pod.clone()),
        netns: neighbour.and_then(|r| r.netns),
        device: None,
        context: None,
        comm: None,
        observed_by: None,
        seen,
        count: 0,
        times: Times::default(),
        share: None,
        waits: stage.waits,
        note: Some(note),
    }
}

/// Fills one side, from its first stage or the first observed to its last or the last observed.
fn side(rows: Vec<StageRow>, side: Side, from_start: bool, to_end: bool, situation: &Situation<'_>) -> Vec<StageRow> {
    if rows.is_empty() {
        return rows;
    }
    let numbered = |r: &&StageRow| r.step.is_some() && r.side == side;
    let observed: Vec<usize> = rows.iter().filter(numbered).map(|r| r.id as usize).collect();
    let (Some(first), Some(last)) = (observed.iter().min().copied(), observed.iter().max().copied()) else { return rows };
    let device = rows.iter().rev().find_map(|r| r.device.clone());
    let mut rows = rows;
    for stage in STAGES.iter().filter(|s| s.side == side && s.step.is_some()) {
        let index = stage.id as usize;
        let wanted = (from_start || index > first) && (to_end || index < last) && !observed.contains(&index);
        if !wanted || (is_socket(stage.id) && situation.kernel_answers()) {
            continue;
        }
        // Behind the last row of a lower number, so that times stay with the stage that was observed to begin there.
        let at = rows.iter().rposition(|r| r.step.is_some() && r.side == side && (r.id as usize) < index).map_or(0, |i| i + 1);
        let neighbour = rows.get(at.saturating_sub(1));
        let known = neighbour.zip(device.as_deref()).and_then(|(row, device)| situation.filtered(stage.id, row, device));
        let (seen, note) = known.unwrap_or_else(|| reason(stage, device.as_deref(), situation));
        let row = inferred(stage, neighbour, seen, note);
        rows.insert(at, row);
    }
    rows
}

fn reason(stage: &Stage, device: Option<&str>, situation: &Situation<'_>) -> (Seen, String) {
    let armed = situation.sees(stage);
    let loopback = device == Some("lo");
    let skipped = |text: &str| (Seen::Skipped, text.to_owned());
    match stage.id {
        StageId::RouteOut if armed => skipped("no lookup: the socket's cached route"),
        StageId::NeighbourOut if loopback => skipped("loopback needs no neighbour"),
        StageId::NeighbourOut if armed => skipped("no lookup: the neighbour's MAC address was cached"),
        StageId::Qdisc if armed => skipped("no queueing: noqueue"),
        StageId::Segment if armed => skipped("not cut, as far as functions and lengths tell"),
        StageId::TcEgress | StageId::TcIngress if armed => skipped("no tc filter ran (programs attached by tcx are not seen)"),
        id if is_netfilter(id) && situation.sees_by("fentry/nf_hook_slow") => skipped("no rules at this hook"),
        StageId::Segment => (Seen::NotObservable, "no change of length was seen".to_owned()),
        StageId::Merge => (Seen::NotObservable, "nothing was merged as far as lengths tell".to_owned()),
        StageId::RouteIn if armed && situation.protocol == Protocol::Tcp => skipped("no lookup: the socket's cached route"),
        StageId::TcEgress | StageId::TcIngress | StageId::RouteOut | StageId::RouteIn | StageId::NeighbourOut | StageId::Qdisc => {
            (Seen::NotObservable, format!("no hook of this kernel shows it{}", elsewhere(stage, situation)))
        }
        _ => (Seen::Inferred, format!("inferred from what was seen around it{}", elsewhere(stage, situation))),
    }
}

/// Which hook would show it, on kernels that have it.
fn elsewhere(stage: &Stage, situation: &Situation<'_>) -> String {
    let of_functions = |h: &&&str| h.starts_with("fentry/") || h.starts_with("fexit/");
    match stage.hooks.iter().find(of_functions) {
        Some(hook) if !situation.sees_by(hook) => format!("; {hook} would show it"),
        _ => String::new(),
    }
}
