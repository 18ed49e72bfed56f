//! `--perfetto`: the packets for ui.perfetto.dev, chrome://tracing and what else reads the JSON trace event format.
//!
//! A network namespace is a process and a device in it a thread; a stage is a slice, and an arrow follows a packet from one device to the next. Slices
//! of one thread must not overlap, so that packets that are at one device at the same time get threads of their own. Times are on the clock
//! of the first node.

use std::collections::HashMap;
use std::io::{self, Write};

use serde_json::{Value, json};
use sockpath_protocol::packet::{Context, Direction, Outcome};
use sockpath_protocol::text::field;

use crate::output::Machine;
use crate::report::packet_row::{HopRow, PacketRow};
use crate::report::{CommonClock, Report, is_netfilter};

/// Name of the thread of what has no device: sockets and the protocol stack before a device is chosen.
const NO_DEVICE: &str = "socket and stack";

/// Writes it, packet by packet.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let clock = CommonClock::of(report);
    let plan = Plan::of(report, &clock);
    let about = json!({
        "program": concat!("kubectl-sockpath ", env!("CARGO_PKG_VERSION")),
        "begin_unix_ns": plan.begin.to_string(),
        "source": report.source.name, "target": report.target.name, "kernel": report.kernel,
    });
    writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{},\"traceEvents\":[", line(&about)?)?;
    let mut first = true;
    let mut put = |event: &Value, out: &mut dyn Write| -> io::Result<()> {
        out.write_all(if first { b"" } else { b",\n" })?;
        first = false;
        out.write_all(line(event)?.as_bytes())
    };
    for event in plan.metadata() {
        put(&event, out)?;
    }
    for (index, packet) in report.packets.iter().enumerate() {
        for event in events(&packet, index, &plan, &clock) {
            put(&event, out)?;
        }
    }
    out.write_all(b"\n]}\n")?;
    out.flush()
}

fn line(value: &Value) -> io::Result<String> {
    Machine::line(value).map(|text| text.trim_end().to_owned()).map_err(io::Error::other)
}

/// A network namespace.
type Process = (Option<String>, Option<String>, Option<u32>);

/// A device in it.
type Track = (Process, Option<String>);

/// The stages of a packet at one device, in a row.
struct Visit<'p> {
    track: Track,
    slices: Vec<Slice<'p>>,
}

/// One stage.
struct Slice<'p> {
    hops: &'p [HopRow],
    /// On the common clock, in nanoseconds.
    at: i128,
    took: u64,
    /// Its end lies on another clock.
    unmeasurable: bool,
}

impl Slice<'_> {
    fn end(&self) -> i128 {
        self.at + i128::from(self.took)
    }
}

/// The visits of a packet; a device that is not known is that of the visit before in the same namespace.
fn visits<'p>(packet: &'p PacketRow, clock: &CommonClock) -> Vec<Visit<'p>> {
    let mut visits: Vec<Visit<'p>> = Vec::new();
    let mut begin = 0;
    while let Some(first) = packet.hops.get(begin) {
        let same = |h: &HopRow| {
            h.stage == first.stage
                && (&h.node, h.netns) == (&first.node, first.netns)
                && (device(h) == device(first) || is_netfilter(first.stage))
        };
        let hops = &packet.hops[begin..begin + packet.hops[begin..].iter().take_while(|h| same(h)).count()];
        begin += hops.len();
        let track = ((first.node.clone(), first.pod.clone(), first.netns), device(first).map(str::to_owned));
        let mut slice = Slice {
            hops,
            at: clock.at(first.node.as_deref(), first.at_ns),
            took: hops.iter().filter_map(|h| h.took_ns).sum(),
            unmeasurable: hops.iter().any(|h| h.took_ns.is_none()),
        };
        match visits.last_mut() {
            Some(visit) if visit.track == track => {
                // Observations of two CPUs can be out of order by less than a microsecond.
                slice.at = visit.slices.last().map_or(slice.at, |last| slice.at.max(last.end()));
                visit.slices.push(slice);
            }
            _ => visits.push(Visit { track, slices: vec![slice] }),
        }
    }
    visits
}

fn device(hop: &HopRow) -> Option<&str> {
    hop.device.as_ref().map(|d| d.name.as_str())
}

/// Which thread each visit is drawn in.
struct Plan {
    begin: i128,
    processes: Vec<Process>,
    /// Threads with their process and name, by their number minus one.
    threads: Vec<(usize, String)>,
    /// By packet and visit.
    lanes: HashMap<(usize, usize), usize>,
}

impl Plan {
    fn of(report: &Report, clock: &CommonClock) -> Self {
        let mut spans = Vec::new();
        for (index, packet) in report.packets.iter().enumerate() {
            for (number, visit) in visits(&packet, clock).into_iter().enumerate() {
                let (Some(first), Some(last)) = (visit.slices.first(), visit.slices.last()) else { continue };
                spans.push((first.at, last.end(), index, number, visit.track));
            }
        }
        spans.sort_by_key(|(at, end, index, number, _)| (*at, *end, *index, *number));
        let begin = spans.first().map_or(0, |s| s.0);
        let mut tracks: Vec<(Track, Vec<(usize, i128)>)> = on_the_path(report);
        let mut plan = Self { begin, processes: Vec::new(), threads: Vec::new(), lanes: HashMap::new() };
        plan.processes = tracks.iter().map(|((process, _), _)| process.clone()).collect();
        plan.processes.dedup();
        for (at, end, index, number, track) in spans {
            let known = tracks.iter().position(|(t, _)| *t == track).unwrap_or_else(|| {
                tracks.push((track.clone(), Vec::new()));
                tracks.len() - 1
            });
            let lanes = &mut tracks[known].1;
            let lane = match lanes.iter_mut().find(|(_, free)| *free <= at) {
                Some((thread, free)) => {
                    *free = end;
                    *thread
                }
                None => {
                    let thread = plan.thread(&track, lanes.len());
                    lanes.push((thread, end));
                    thread
                }
            };
            plan.lanes.insert((index, number), lane);
        }
        plan
    }

    /// A new thread for a device; the first has its name, the others a number, too.
    fn thread(&mut self, (process, device): &Track, before: usize) -> usize {
        let process = self.processes.iter().position(|p| p == process).unwrap_or_else(|| {
            self.processes.push(process.clone());
            self.processes.len() - 1
        });
        let name = device.as_deref().unwrap_or(NO_DEVICE);
        self.threads.push((process, if before == 0 { name.to_owned() } else { format!("{name} ({})", before + 1) }));
        self.threads.len() - 1
    }

    /// Names and order of processes and threads.
    fn metadata(&self) -> Vec<Value> {
        let mut events = Vec::new();
        let used = |n: usize| self.threads.iter().any(|(process, _)| *process == n);
        for (n, (node, pod, netns)) in self.processes.iter().enumerate().filter(|(n, _)| used(*n)) {
            let node = node.as_deref().unwrap_or("?");
            let place = pod.as_ref().map_or_else(|| format!("host network of {node}"), |pod| format!("pod {pod} on {node}"));
            let name = netns.map_or_else(|| place.clone(), |inode| format!("{place} (netns {inode})"));
            events.push(json!({"ph": "M", "name": "process_name", "pid": n + 1, "args": {"name": field(&name)}}));
            events.push(json!({"ph": "M", "name": "process_sort_index", "pid": n + 1, "args": {"sort_index": n}}));
        }
        // Threads of one device stand together, in the order in which packets pass the devices.
        for (n, (process, name)) in self.threads.iter().enumerate() {
            let device = name.split(" (").next().unwrap_or(name);
            let first = self.threads.iter().position(|(p, other)| p == process && other == device).unwrap_or(n);
            let order = first * self.threads.len() + n;
            events.push(json!({"ph": "M", "name": "thread_name", "pid": process + 1, "tid": n + 1, "args": {"name": field(name)}}));
            events.push(json!({"ph": "M", "name": "thread_sort_index", "pid": process + 1, "tid": n + 1, "args": {"sort_index": order}}));
        }
        events
    }

    /// Nanoseconds since the beginning as microseconds.
    #[expect(clippy::cast_precision_loss, reason = "a trace lasts hours: 2^53 ns are a hundred days")]
    fn micros(&self, at: i128) -> f64 {
        (at - self.begin).max(0) as f64 / 1e3
    }
}

/// The devices of the request's path and then those of the reply's: the order in which they are listed.
fn on_the_path(report: &Report) -> Vec<(Track, Vec<(usize, i128)>)> {
    let mut tracks: Vec<(Track, Vec<(usize, i128)>)> = Vec::new();
    let stages = report.stages.iter().chain(report.reply.iter().flat_map(|leg| &leg.stages));
    for stage in stages.filter(|s| s.observed_by.is_some()) {
        let track = ((stage.node.clone(), stage.pod.clone(), stage.netns), stage.device.clone());
        if !tracks.iter().any(|(known, _)| *known == track) {
            tracks.push((track, Vec::new()));
        }
    }
    tracks.sort_by_key(|((process, _), _)| {
        report.stages.iter().position(|s| (&s.node, &s.pod, s.netns) == (&process.0, &process.1, process.2))
    });
    tracks
}

/// The slices of a packet, the arrows between its visits, and where it ended.
fn events(packet: &PacketRow, index: usize, plan: &Plan, clock: &CommonClock) -> Vec<Value> {
    let visits = visits(packet, clock);
    let mut events = Vec::new();
    let mut ended: Option<(usize, i128)> = None;
    for (number, visit) in visits.iter().enumerate() {
        let Some(thread) = plan.lanes.get(&(index, number)).copied() else { continue };
        let (pid, tid) = (plan.threads[thread].0 + 1, thread + 1);
        for slice in &visit.slices {
            events.push(slice_event(packet, slice, plan, pid, tid));
            ended = Some((thread, slice.end()));
        }
        if let (Some(first), true) = (visit.slices.first(), visits.len() > 1) {
            let phase = if number == 0 {
                "s"
            } else if number + 1 == visits.len() {
                "f"
            } else {
                "t"
            };
            let mut arrow = json!({"ph": phase, "name": "packet", "cat": "packet", "id": index + 1, "ts": plan.micros(first.at), "pid": pid, "tid": tid});
            if phase == "f" {
                arrow["bp"] = json!("e");
            }
            events.push(arrow);
        }
    }
    let end = match &packet.outcome {
        Outcome::Dropped(drop) => Some(format!("dropped: {}", drop.reason)),
        Outcome::Vanished { expected } => Some(format!("not seen at {}", expected.stage().name)),
        Outcome::Delivered | Outcome::Left => None,
    };
    if let (Some(name), Some((thread, at))) = (end, ended) {
        let (pid, tid) = (plan.threads[thread].0 + 1, thread + 1);
        events.push(json!({"ph": "i", "s": "t", "name": field(&name), "cat": "drop", "ts": plan.micros(at), "pid": pid, "tid": tid}));
    }
    events
}

fn slice_event(packet: &PacketRow, slice: &Slice<'_>, plan: &Plan, pid: usize, tid: usize) -> Value {
    let stage = slice.hops.first().map(|h| h.stage.stage());
    let name = stage.map_or_else(String::new, |s| s.step.map_or_else(|| s.name.to_owned(), |step| format!("{step} {}", s.name)));
    let hooks: Vec<&str> = slice.hops.iter().map(|h| h.hook.as_str()).collect();
    let mut args = json!({
        "packet": packet.id, "conversation": packet.conversation, "kind": packet.kind, "from": packet.from, "to": packet.to,
        "payload": packet.payload, "hook": field(&hooks.join(", ")),
    });
    if let Some(hop) = slice.hops.first() {
        args["cpu"] = json!(hop.cpu);
        args["run by"] = match &hop.context {
            Context::Process { pid, comm } => json!(format!("{} ({pid})", field(comm))),
            Context::Softirq => json!("softirq"),
        };
    }
    if stage.is_some_and(|s| s.waits) {
        args["waits"] = json!(true);
    }
    if let Some(flow) = slice.hops.iter().rev().find_map(|h| h.rewritten) {
        args["translated"] = json!(format!("{} > {}", flow.from, flow.to));
    }
    let notes: Vec<&str> = slice.hops.iter().filter_map(|h| h.note.as_deref()).collect();
    if !notes.is_empty() {
        args["note"] = json!(field(&notes.join("; ")));
    }
    if slice.unmeasurable {
        args["duration"] = json!("not known: it ends on the clock of another node");
    }
    let category = if packet.direction == Direction::Request { "request" } else { "reply" };
    let (begin, end) = (plan.micros(slice.at), plan.micros(slice.end()));
    // The difference of two times in whole nanoseconds, so that the end of a slice is the beginning of the next.
    let took = ((end - begin) * 1e3).round() / 1e3;
    json!({"ph": "X", "name": name, "cat": category, "ts": begin, "dur": took, "pid": pid, "tid": tid, "args": args})
}

#[cfg(test)]
#[path = "perfetto_tests.rs"]
mod tests;
