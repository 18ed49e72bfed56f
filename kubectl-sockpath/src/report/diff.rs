//! Two traces compared: what changed from one to the other. Pods and nodes are compared by their part in the trace (source, target, and the nodes
//! that these are on), so that a pod with a new name is one change and not one for each stage.

use std::collections::BTreeSet;

use serde::Serialize;
use sockpath_protocol::packet::{Direction, RewriteKind};
use sockpath_protocol::stage::StageId;

use super::document::Report;
use super::role::{party, place};
use super::spread::{Spreads, StageKey, passes, within_noise};
use super::stage_row::{Seen, StageRow};

/// Version of this form; grows when a field changes its meaning.
pub const DIFF_SCHEMA: u32 = 1;

/// What changed from one trace to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Version of this form.
    pub schema: u32,
    /// Nothing changed, and every time is within noise.
    pub same: bool,
    /// What changed, by subject.
    pub changes: Vec<Change>,
    /// Stages that only one of them passed, or in another manner; only of a direction in which both traced packets of one kind.
    pub stages: Vec<StageChange>,
    /// Times of both: of the whole path, and of the stages that both observed.
    pub times: Vec<TimeRow>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// Name of what changed.
    pub what: String,
    /// What it was before; absent for what is new.
    pub before: Option<String>,
    /// What it is after; absent for what is gone.
    pub after: Option<String>,
}

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Source, target, Service, and the packets that were traced.
    Endpoints,
    /// Nodes, their kernels, helpers and hooks.
    Nodes,
    /// The namespaces that packets pass.
    Path,
    /// Address translations and their rules.
    Rewrites,
    /// Drops and packets that were not seen again.
    Drops,
    /// Findings.
    Findings,
}

/// A stage that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageChange {
    /// Direction of the packets.
    pub direction: Direction,
    /// The stage.
    pub stage: StageId,
    /// The place, by its part in the trace.
    pub place: String,
    /// How often packets pass the stage there before.
    pub pass: usize,
    /// How it was known before: observed or skipped; absent if it was neither.
    pub before: Option<Seen>,
    /// How it is known after.
    pub after: Option<Seen>,
}

/// A time in both traces, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimeRow {
    /// Direction of the packets.
    pub direction: Direction,
    /// The stage; absent for the time from end to end.
    pub stage: Option<StageId>,
    /// The place, by its part in the trace; absent for the time from end to end.
    pub place: Option<String>,
    /// Typical time before.
    pub before_p50_ns: u64,
    /// Typical time after.
    pub after_p50_ns: u64,
    /// They differ by a twentieth at most, or each lies within the middle half of the other's times.
    pub within_noise: bool,
}

/// Compares two reports.
#[must_use]
pub fn diff(before: &Report, after: &Report) -> Diff {
    let mut changes = Changes(Vec::new());
    changes.endpoints(before, after);
    changes.nodes(before, after);
    changes.paths(before, after);
    let described = |of: fn(&Report) -> Named| (of(before), of(after));
    changes.named(Subject::Rewrites, described(rewrites));
    changes.named(Subject::Drops, described(drops));
    let (old, new) = described(findings);
    // The texts of a finding contain counts and times, which differ from trace to trace.
    let only_in =
        |all: &Named, other: &Named| -> Named { all.iter().filter(|(id, _)| !other.iter().any(|(o, _)| o == id)).cloned().collect() };
    changes.named(Subject::Findings, (only_in(&old, &new), only_in(&new, &old)));
    let comparable: Vec<Direction> =
        [Direction::Request, Direction::Reply].into_iter().filter(|d| are_comparable(before, after, *d)).collect();
    let stages: Vec<StageChange> = comparable.iter().flat_map(|d| stages(before, after, *d)).collect();
    let times: Vec<TimeRow> = comparable.iter().flat_map(|d| times(before, after, *d)).collect();
    let same = changes.0.is_empty() && stages.is_empty() && times.iter().all(|t| t.within_noise);
    Diff { schema: DIFF_SCHEMA, same, changes: changes.0, stages, times }
}

/// Things with a name and a description.
type Named = Vec<(String, String)>;

struct Changes(Vec<Change>);

impl Changes {
    fn compare(&mut self, subject: Subject, what: &str, before: Option<String>, after: Option<String>) {
        if before != after {
            self.0.push(Change { subject, what: what.to_owned(), before, after });
        }
    }

    /// What is gone, new, or described differently.
    fn named(&mut self, subject: Subject, (before, after): (Named, Named)) {
        let find = |all: &[(String, String)], name: &String| all.iter().find(|(n, _)| n == name).map(|(_, text)| text.clone());
        let names = before.iter().chain(&after).map(|(name, _)| name);
        let mut done = BTreeSet::new();
        for name in names {
            if done.insert(name) {
                self.compare(subject, name, find(&before, name), find(&after, name));
            }
        }
    }

    fn endpoints(&mut self, before: &Report, after: &Report) {
        let mut field = |what, of: &dyn Fn(&Report) -> Option<String>| self.compare(Subject::Endpoints, what, of(before), of(after));
        field("source", &|r| Some(party(&r.source)));
        field("target", &|r| Some(party(&r.target)));
        field("target's port", &|r| r.target.port.map(|p| p.to_string()));
        field("Service", &|r| r.via_service.clone());
        field("scenario", &|r| serde_json::to_value(r.scenario).ok().and_then(|v| v.as_str().map(str::to_owned)));
        field("protocol", &|r| r.request.as_ref().map(|l| format!("{:?}", l.protocol).to_uppercase()));
        field("packets that were traced", &|r| r.request.as_ref().map(|l| l.packets_of.to_owned()));
        field("requests arrive", &|r| Some(yes(r.request.as_ref().is_some_and(|l| l.complete))));
        field("replies arrive", &|r| Some(yes(r.reply.as_ref().is_some_and(|l| l.complete))));
    }

    fn nodes(&mut self, before: &Report, after: &Report) {
        let part = |of: fn(&Report) -> Option<&String>| (of(before).cloned(), of(after).cloned());
        let (source, target) = (part(|r| r.source.node.as_ref()), part(|r| r.target.node.as_ref()));
        self.compare(Subject::Nodes, "source's node", source.0, source.1);
        self.compare(Subject::Nodes, "target's node", target.0, target.1);
        let described = |of: fn(&super::document::NodeRow) -> String| {
            let all = |r: &Report| r.nodes.iter().map(|n| (place(r, Some(&n.name), None), of(n))).collect::<Vec<_>>();
            (all(before), all(after))
        };
        let suffixed = |(before, after): (Named, Named), word: &str| {
            let add = |all: Named| all.into_iter().map(|(n, text)| (format!("{word} of {n}"), text)).collect();
            (add(before), add(after))
        };
        self.named(Subject::Nodes, suffixed(described(|n| n.kernel.clone()), "kernel"));
        self.named(Subject::Nodes, suffixed(described(|n| n.arch.clone()), "architecture"));
        self.named(Subject::Nodes, suffixed(described(|n| n.helper.clone()), "helper"));
        // The hooks of a node that only one of them watched say nothing.
        for old in &before.nodes {
            let name = place(before, Some(&old.name), None);
            let Some(new) = after.nodes.iter().find(|n| place(after, Some(&n.name), None) == name) else { continue };
            let hooks =
                |node: &super::document::NodeRow| node.hooks.iter().map(|h| (format!("hook {h} on {name}"), "in use".to_owned())).collect();
            self.named(Subject::Nodes, (hooks(old), hooks(new)));
        }
    }

    /// The paths of request, reply and socket path.
    fn paths(&mut self, before: &Report, after: &Report) {
        for (name, direction) in [("request", Direction::Request), ("reply", Direction::Reply)] {
            self.compare(Subject::Path, &format!("path of the {name}"), path(before, direction), path(after, direction));
        }
        let stacks = |r: &Report| r.request.as_ref().map(|_| r.stack_traversals.to_string());
        self.compare(Subject::Path, "network stacks", stacks(before), stacks(after));
        let socket = |r: &Report| r.accelerated.as_ref().map(|_| "observed".to_owned());
        self.compare(Subject::Path, "socket path", socket(before), socket(after));
        let short = |r: &Report| r.short.as_ref().map(|_| "observed".to_owned());
        self.compare(Subject::Path, "short path", short(before), short(after));
    }
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// The stages of a direction.
fn leg(report: &Report, direction: Direction) -> &[StageRow] {
    match direction {
        Direction::Request => &report.stages,
        Direction::Reply => report.reply.as_ref().map_or(&[], |leg| &leg.stages),
    }
}

/// Whether both traces have packets of one kind in this direction: data and SYN pass different stages.
#[must_use]
pub fn are_comparable(before: &Report, after: &Report, direction: Direction) -> bool {
    let of = before.packets_of(direction);
    of.is_some() && of == after.packets_of(direction)
}

/// The places that packets pass.
fn path(report: &Report, direction: Direction) -> Option<String> {
    let mut places: Vec<String> = Vec::new();
    for stage in leg(report, direction) {
        let here = place(report, stage.node.as_deref(), stage.pod.as_deref());
        if places.last() != Some(&here) {
            places.push(here);
        }
    }
    (!places.is_empty()).then(|| places.join(", "))
}

/// The stages that changed. Whether those that were neither observed nor skipped are inferred or not observable depends on hooks only.
fn stages(before: &Report, after: &Report, direction: Direction) -> Vec<StageChange> {
    let known = |r| -> Vec<(StageKey, Seen)> {
        let rows = leg(r, direction).iter().filter(|s| matches!(s.seen, Seen::Observed | Seen::Skipped));
        passes(rows, |s| key(r, s)).into_iter().map(|(key, row)| (key, row.seen)).collect()
    };
    let (old, new) = (known(before), known(after));
    let find = |all: &[(StageKey, Seen)], key: &StageKey| all.iter().find(|(k, _)| k == key).map(|(_, seen)| *seen);
    let mut changes: Vec<StageChange> = Vec::new();
    for (key, _) in old.iter().chain(new.iter().filter(|(key, _)| find(&old, key).is_none())) {
        let (was, is) = (find(&old, key), find(&new, key));
        if was != is {
            let StageKey { stage, place, pass } = key.clone();
            changes.push(StageChange { direction, stage, place, pass, before: was, after: is });
        }
    }
    changes
}

fn key(report: &Report, stage: &StageRow) -> StageKey {
    StageKey { stage: stage.id, place: place(report, stage.node.as_deref(), stage.pod.as_deref()), pass: 0 }
}

fn rewrites(report: &Report) -> Named {
    let row = |r: &super::rewrites::RewriteRow| {
        let kind = match r.kind {
            RewriteKind::Dnat => "DNAT",
            RewriteKind::Snat => "SNAT",
            RewriteKind::UnDnat => "DNAT undone",
            RewriteKind::UnSnat => "SNAT undone",
        };
        // The ports of clients are new for each connection.
        let addresses = match r.kind {
            RewriteKind::Dnat | RewriteKind::UnDnat => format!("{} to {}", r.from, r.to),
            RewriteKind::Snat | RewriteKind::UnSnat => format!("{} to {}", r.from.ip(), r.to.ip()),
        };
        let at = place(report, Some(&r.node), r.pod.as_deref());
        (format!("{kind} of {addresses} in {} in {at}", r.stage.stage().name), r.rule.clone().unwrap_or_else(|| "rule unknown".to_owned()))
    };
    report.rewrites.iter().map(row).collect()
}

fn drops(report: &Report) -> Named {
    let word = |d: Direction| if d == Direction::Request { "request" } else { "reply" };
    let packets = |n: usize| if n == 1 { "1 packet".to_owned() } else { format!("{n} packets") };
    let dropped = report.drops.iter().map(|d| {
        let rule = d.rule.as_ref().map_or_else(String::new, |rule| format!(" by {rule}"));
        let at = place(report, d.node.as_deref(), d.pod.as_deref());
        (format!("{} of the {} in {} in {at}{rule}", d.reason, word(d.direction), d.stage.stage().name), packets(d.count))
    });
    let vanished = report.vanished.iter().map(|v| {
        let at = place(report, v.node.as_deref(), v.pod.as_deref());
        let (last, expected) = (v.last_seen.stage().name, v.expected.stage().name);
        (format!("{} last seen at {last} in {at}, expected at {expected}", word(v.direction)), packets(v.count))
    });
    dropped.chain(vanished).collect()
}

/// Findings by their ids.
fn findings(report: &Report) -> Named {
    report.findings.iter().map(|f| (f.id.to_owned(), f.text.clone())).collect()
}

/// The times of what both traces measured.
fn times(before: &Report, after: &Report, direction: Direction) -> Vec<TimeRow> {
    let spreads = (Spreads::of(before, direction), Spreads::of(after, direction));
    let whole = |r: &Report| match direction {
        Direction::Request => r.end_to_end.p50_ns,
        Direction::Reply => r.reply.as_ref().and_then(|l| l.end_to_end.p50_ns),
    };
    let mut rows = Vec::new();
    if let (Some(a), Some(b)) = (whole(before), whole(after)) {
        let within_noise = within_noise((a, spreads.0.whole), (b, spreads.1.whole));
        rows.push(TimeRow { direction, stage: None, place: None, before_p50_ns: a, after_p50_ns: b, within_noise });
    }
    let later = stage_times(after, direction);
    for (key, a) in stage_times(before, direction) {
        let Some((_, b)) = later.iter().find(|(k, _)| *k == key) else { continue };
        let within_noise = within_noise((a, spreads.0.stage(&key)), (*b, spreads.1.stage(&key)));
        let (stage, place) = (Some(key.stage), Some(key.place));
        rows.push(TimeRow { direction, stage, place, before_p50_ns: a, after_p50_ns: *b, within_noise });
    }
    rows
}

/// The stages that last; the last one observed is a moment.
fn stage_times(report: &Report, direction: Direction) -> Vec<(StageKey, u64)> {
    let observed = leg(report, direction).iter().filter(|s| s.seen == Seen::Observed);
    let times = passes(observed, |s| key(report, s)).into_iter().filter_map(|(key, row)| Some((key, row.times.p50_ns?)));
    times.filter(|(_, time)| *time > 0).collect()
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
