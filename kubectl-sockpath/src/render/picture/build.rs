//! From a report to its picture.

use std::collections::HashMap;

use sockpath_protocol::packet::{DeviceKind, Direction};
use sockpath_protocol::stage::{Side, StageId};

use super::place::{namespace_title, node_title, push};
use super::{Bar, DeviceBox, Item, Lane, Link, LinkKind, Part, Picture, StageMark, State, beside, ends};
use crate::render::heading::heading;
use crate::render::waterfall::{at, folded, rewrite_words, summary_parts};
use crate::report::Report;
use crate::report::stage_row::{Seen, StageRow};
use crate::terminal::Style;

/// Packets that are searched for what devices are.
const SEARCHED: usize = 256;

impl Picture {
    /// The picture of a report.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let heading = heading(report, &Style::plain(10_000));
        let mut lines = heading.lines().map(str::to_owned);
        let title = lines.next().unwrap_or_default();
        let mut picture = Self {
            title,
            about: lines.collect(),
            figures: match &report.request {
                Some(request) => summary_parts(report, request).join(", "),
                None => "no packet between them was observed".to_owned(),
            },
            nodes: Vec::new(),
            links: Vec::new(),
            beside: Vec::new(),
            bars: bars(report),
        };
        let devices = Devices::of(report);
        for stages in groups(&report.stages) {
            let Some(first) = stages.first() else { continue };
            let lane = lane(&stages, report, &devices);
            let node = node_title(report, first.node.as_deref());
            let namespace = (namespace_title(first.node.as_deref(), first.pod.as_deref()), inode(first.netns));
            push(&mut picture.nodes, &node, namespace, State::Passed, lane);
        }
        let passed = picture.lanes().count();
        ends::unreached(report, &mut picture);
        ends::mark(report, &mut picture);
        links(&mut picture, passed);
        beside::add(report, &mut picture);
        picture
    }
}

/// Stages in one namespace, in a row; sending and receiving in one namespace are two groups.
fn groups(stages: &[StageRow]) -> Vec<Vec<&StageRow>> {
    let here = |s: &StageRow| (s.node.clone(), s.pod.clone(), s.netns, s.side);
    let mut groups: Vec<Vec<&StageRow>> = Vec::new();
    for stage in stages {
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(|s| here(s) == here(stage)) => group.push(stage),
            _ => groups.push(vec![stage]),
        }
    }
    groups
}

fn inode(netns: Option<u32>) -> String {
    netns.map_or_else(|| "network namespace unknown".to_owned(), |n| format!("network namespace {n}"))
}

/// What the devices of the path are, by node, namespace and name.
struct Devices(HashMap<(String, u32, String), (DeviceKind, Option<String>)>);

impl Devices {
    fn of(report: &Report) -> Self {
        let mut known = HashMap::new();
        for packet in report.packets.iter().take(SEARCHED) {
            for hop in packet.hops {
                if let (Some(node), Some(netns), Some(device)) = (hop.node, hop.netns, hop.device) {
                    known.entry((node, netns, device.name)).or_insert((device.kind, device.bridge));
                }
            }
        }
        Self(known)
    }

    fn device(&self, stage: &StageRow, name: &str) -> DeviceBox {
        let key = (stage.node.clone().unwrap_or_default(), stage.netns.unwrap_or(0), name.to_owned());
        let (kind, bridge) = self.0.get(&key).map_or((None, None), |(kind, bridge)| (Some(*kind), bridge.clone()));
        DeviceBox { name: name.to_owned(), kind, bridge }
    }
}

fn lane(stages: &[&StageRow], report: &Report, devices: &Devices) -> Lane {
    let side = stages.first().map_or(Side::Transit, |s| s.side);
    let observed = || stages.iter().filter(|s| s.seen == Seen::Observed);
    let mut items = Vec::new();
    let process = |stage: &&&StageRow| matches!(stage.id, StageId::SocketWrite | StageId::Dequeued | StageId::Copied);
    let socket = observed().filter(process).find_map(|s| s.comm.clone()).map(|comm| Item::Socket(format!("socket of {comm}")));
    if side == Side::Send {
        items.extend(socket.clone());
    }
    let mut device: Option<&str> = None;
    for stage in observed() {
        if stage.device.is_some() && stage.device.as_deref() != device {
            device = stage.device.as_deref();
            items.extend(device.map(|name| Item::Device(devices.device(stage, name))));
        }
        items.push(Item::Stage(mark(stage, report)));
        for rewrite in report.rewrites.iter().filter(|r| r.direction == Direction::Request && at(r, stage)) {
            items.push(Item::Rewrite(rewrite_words(rewrite, "→")));
        }
    }
    if side == Side::Receive {
        items.extend(socket);
    }
    let unobserved = folded(stages);
    if !unobserved.is_empty() {
        items.push(Item::Unobserved(unobserved));
    }
    let known: Vec<u64> = observed().filter_map(|s| s.times.p50_ns).collect();
    Lane { side, items, took_ns: (!known.is_empty()).then(|| known.iter().sum()) }
}

fn mark(stage: &StageRow, report: &Report) -> StageMark {
    let last = report.stages.iter().rev().find(|s| s.seen == Seen::Observed).is_some_and(|last| std::ptr::eq(last, stage));
    StageMark {
        step: stage.step,
        name: stage.name,
        // The last stage is a moment.
        took_ns: stage.times.p50_ns.filter(|t| *t > 0 || !last),
        unmeasurable: stage.times.p50_ns.is_none(),
        waits: stage.waits,
    }
}

/// What lies between the lanes; the first `passed` of them were observed.
fn links(picture: &mut Picture, passed: usize) {
    let mut ends = Vec::new();
    for node in &picture.nodes {
        for ns in &node.namespaces {
            for lane in &ns.lanes {
                let tunnel = lane.items.iter().any(|i| matches!(i, Item::Device(d) if d.kind == Some(DeviceKind::Tunnel)));
                ends.push((&node.title, (&ns.title, &ns.detail), ns.state, tunnel));
            }
        }
    }
    let kind = |a: usize, b: usize| match (&ends[a], &ends[b]) {
        (a, b) if a.2 != State::Passed || b.2 != State::Passed => LinkKind::Unknown,
        (a, b) if a.0 != b.0 && a.3 && b.3 => LinkKind::Tunnel,
        (a, b) if a.0 != b.0 => LinkKind::Wire,
        (a, b) if a.1 == b.1 => LinkKind::Loopback,
        _ => LinkKind::Veth,
    };
    picture.links = (1..ends.len()).map(|b| Link { kind: kind(b - 1, b), taken: b < passed }).collect();
}

/// The time of each direction, by place.
fn bars(report: &Report) -> Vec<Bar> {
    let bar = |name, stages: &[StageRow], whole: bool| {
        let parts: Vec<Part> = groups(stages).iter().map(|group| part(group)).filter(|p| p.took_ns > 0).collect();
        (!parts.is_empty()).then_some(Bar { name, parts, whole })
    };
    let request = bar("request", &report.stages, report.end_to_end.p50_ns.is_some());
    let leg = |name, leg: &crate::report::leg::Leg| bar(name, &leg.stages, leg.end_to_end.p50_ns.is_some());
    let reply = report.reply.as_ref().and_then(|l| leg("reply", l));
    let short = report.short.as_ref().and_then(|l| leg("short path", l));
    let socket = report.accelerated.as_ref().and_then(|l| leg("socket path", l));
    request.into_iter().chain(reply).chain(short).chain(socket).collect()
}

fn part(group: &[&StageRow]) -> Part {
    let sum = |stages: &mut dyn Iterator<Item = &&StageRow>| stages.filter_map(|s| s.times.p50_ns).sum();
    let first = group.first();
    let place = match (first.and_then(|s| s.pod.as_deref()), first.and_then(|s| s.node.as_deref())) {
        (Some(pod), _) => pod.to_owned(),
        (None, Some(node)) => node.to_owned(),
        (None, None) => "?".to_owned(),
    };
    Part { place, took_ns: sum(&mut group.iter()), waits_ns: sum(&mut group.iter().filter(|s| s.waits)) }
}
