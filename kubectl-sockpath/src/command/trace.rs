//! `trace`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::packet::Direction;
use sockpath_protocol::request::{ProbeRequest, Protocol, TraceRequest};
use sockpath_protocol::{Message, Request};
use tokio::time::{Instant, sleep_until};

use super::compare::{REQUESTS, Shortcut};
use super::print;
use super::trace_output::{exports, rendered, replay};
use crate::backend::{Backend, Mode};
use crate::cli::{self, Global, ProbeProtocol, TraceOutput};
use crate::cluster;
use crate::duration::{human, nanos};
use crate::exit::{Exit, Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::output::Stream;
use crate::progress::Progress;
use crate::recording::Recorder;
use crate::render::json;
use crate::report::{self, Capture, HelperOrigin, Origin};
use crate::session::{Event, Fleet};
use crate::target::{self, Plan};
use crate::terminal::Style;

/// How long to wait for traffic before saying so.
const QUIET: Duration = Duration::from_secs(2);

/// How long a trace lasts by default.
const DURATION: Duration = Duration::from_secs(10);

/// How many request packets end a trace by default.
const COUNT: u64 = 100;

/// How long to listen after a probe that nobody asked to repeat: enough for the connection to close.
const AFTER_PROBE: Duration = Duration::from_millis(300);

/// Least time between two probes.
const BETWEEN_PROBES: Duration = Duration::from_millis(10);

/// Time between two updates of the counts beside the spinner.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// How long hooks may take to be attached.
const ARMING: Duration = Duration::from_secs(30);

/// How long helpers may take to end.
const ENDING: Duration = Duration::from_secs(3);

/// The same after Ctrl-C.
const ENDING_INTERRUPTED: Duration = Duration::from_millis(1500);

/// Runs it.
pub async fn run(args: &cli::Trace, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color);
    if let Some(path) = &args.replay {
        return replay(path, args, &style);
    }
    if args.dry_run.as_deref() == Some("client") {
        print(&cluster::helper_pod_manifest(global, Mode::Trace, args.output == Some(TraceOutput::Json))?)?;
        return Ok(Exit::Done);
    }
    if args.output == Some(TraceOutput::Yaml) {
        return Err(UsageError::new("-o yaml goes with --dry-run=client only; -o json prints the trace"));
    }
    let (Some(source), Some(target)) = (&args.source, &args.target) else {
        return Err(UsageError::new("SOURCE and TARGET are needed"));
    };
    for path in [&args.html, &args.pcapng].into_iter().flatten() {
        std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let recorder = args.record.as_deref().map(Recorder::create).transpose()?;
    let interrupt = Interrupt::watch()?;

    progress.phase("", "looking up names");
    let backend = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        backend = Backend::connect(global, true) => backend?,
    };
    let plan = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        plan = target::plan(&backend, source, target, args.container.as_deref(), protocol(args.protocol)) => plan?,
    };
    if args.probe && plan.probe.is_none() {
        return Err(UsageError::new(format!(
            "--probe needs a port, and none is known for `{target}`: write {target}:PORT, or --protocol icmp"
        )));
    }
    let pods: Vec<_> = std::iter::once(&plan.request.source).chain(&plan.request.targets).cloned().collect();
    let fleet = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        fleet = backend.helpers(&plan.request.nodes, &pods, Mode::Trace, progress) => fleet?,
    };
    let session = Session::new(args, plan, fleet, recorder, interrupt, progress, &backend)?;
    session.run(&style).await
}

fn protocol(protocol: ProbeProtocol) -> Protocol {
    match protocol {
        ProbeProtocol::Tcp => Protocol::Tcp,
        ProbeProtocol::Udp => Protocol::Udp,
        ProbeProtocol::Icmp => Protocol::Icmp,
    }
}

/// Why a trace ends.
#[derive(Debug)]
enum Stop {
    /// Enough was seen, or the time is over.
    Enough,
    /// Ctrl-C.
    Interrupted,
    /// No helper is left.
    Over,
    /// Something of ours failed: stdout, the recording.
    Failed(anyhow::Error),
}

/// A running trace.
struct Session<'a> {
    args: &'a cli::Trace,
    fleet: Fleet,
    capture: Capture,
    recorder: Option<Recorder>,
    recording_failed: Option<anyhow::Error>,
    stream: Option<Stream>,
    interrupt: Interrupt,
    progress: &'a Progress,
    backend: &'a Backend,
    probes_sent: usize,
    /// Present in the second half of a comparison.
    shortcut: Option<Shortcut>,
    count: Option<u64>,
    duration: Option<Duration>,
}

impl<'a> Session<'a> {
    fn new(
        args: &'a cli::Trace,
        plan: Plan,
        fleet: Fleet,
        recorder: Option<Recorder>,
        interrupt: Interrupt,
        progress: &'a Progress,
        backend: &'a Backend,
    ) -> Result<Self> {
        let streaming = args.output == Some(TraceOutput::Jsonl);
        let helpers = fleet.members().iter().map(|m| HelperOrigin { nodes: m.nodes.clone(), hello: m.hello.clone() }).collect();
        let origin = Origin { plan, release: env!("CARGO_PKG_VERSION").to_owned(), helpers };
        // Only one of the two given means: that one alone decides.
        let open = streaming || args.count.is_some() || args.duration.is_some();
        Ok(Self {
            args,
            fleet,
            capture: Capture::new(origin),
            recorder,
            recording_failed: None,
            stream: if streaming { Some(Stream::stdout()?) } else { None },
            interrupt,
            progress,
            backend,
            probes_sent: 0,
            shortcut: None,
            count: args.count.or((!open).then_some(COUNT)),
            duration: args.duration.or((!open).then_some(DURATION)),
        })
    }

    async fn run(mut self, style: &Style) -> Result<Exit> {
        let begun = match &mut self.recorder {
            Some(recorder) => recorder.begin(&self.capture.origin),
            None => Ok(()),
        };
        self.fleet.compare_clocks();
        let mut stop = match begun {
            Ok(()) => match self.arm().await {
                Ok(()) => self.listen().await,
                Err(stop) => stop,
            },
            Err(e) => Stop::Failed(e),
        };
        for (helper, clock) in self.fleet.members().iter().enumerate().filter_map(|(i, m)| Some((i, m.clock()?))) {
            self.capture.compare(helper, clock);
            if let Some(recorder) = &mut self.recorder
                && let Err(e) = recorder.compare(helper, clock)
            {
                self.recording_failed.get_or_insert(e);
            }
        }
        if self.args.compare && matches!(stop, Stop::Enough) {
            stop = self.listen_to_the_short_way().await;
        }
        self.progress.clear();
        let patience = if matches!(stop, Stop::Interrupted) { ENDING_INTERRUPTED } else { ENDING };
        let (capture, recorder, failed) = (&mut self.capture, &mut self.recorder, &mut self.recording_failed);
        let mut late = Vec::new();
        self.fleet
            .finish(patience, |helper, event| {
                record(recorder, failed, helper, &event);
                if let (Event::Said(message), true) = (&event, self.stream.is_some())
                    && let Message::Packet(packet) = &**message
                {
                    late.push((helper, packet.clone()));
                }
                capture.take(helper, event);
            })
            .await;
        // The normal path is restored after the trace has ended, so that the restoring is not part of it.
        if let Some(shortcut) = self.shortcut.take() {
            shortcut.end(patience, self.progress).await;
        }
        if let Some(mut stream) = self.stream.take() {
            let outcome = async {
                for (helper, packet) in late {
                    stream.send(json::line(&report::packet_row(&self.capture, helper, &packet))?).await?;
                }
                stream.close(if matches!(stop, Stop::Interrupted) { Duration::from_millis(200) } else { Duration::MAX }).await
            };
            let outcome = tokio::select! {
                biased;
                outcome = outcome => outcome,
                // A reader that does not read must not hold us after Ctrl-C.
                () = async { self.interrupt.wait().await; tokio::time::sleep(Duration::from_millis(200)).await } => Ok(()),
            };
            if let (Err(e), Stop::Enough | Stop::Over) = (outcome, &stop) {
                stop = Stop::Failed(e);
            }
        }
        if let Some(recorder) = self.recorder.take()
            && let Err(e) = recorder.finish()
        {
            self.recording_failed.get_or_insert(e);
        }
        self.conclude(stop, style)
    }

    /// Asks helpers to watch and waits until all do.
    async fn arm(&mut self) -> Result<(), Stop> {
        self.progress.phase("", "attaching hooks");
        for (index, request) in requests(&self.capture.origin.plan.request, &self.fleet, self.args.every_packet) {
            self.fleet.send(index, Request::Trace(Box::new(request))).await;
        }
        let deadline = Instant::now() + ARMING;
        loop {
            let done = |h: &report::HelperLog| h.armed.is_some() || h.error.is_some() || h.lost.is_some() || h.ended.is_some();
            if self.capture.helpers.iter().all(done) {
                self.progress.done("");
                return if self.capture.helpers.iter().any(|h| h.armed.is_some()) { Ok(()) } else { Err(Stop::Over) };
            }
            tokio::select! {
                biased;
                () = self.interrupt.wait() => return Err(Stop::Interrupted),
                () = sleep_until(deadline) => {
                    return Err(Stop::Failed(anyhow!("hooks were not attached within {}: run `{} doctor`", human(ARMING), super::invocation())));
                }
                event = self.fleet.next() => match event {
                    Some((helper, event)) => self.take(helper, event).await?,
                    None => return Err(Stop::Over),
                },
            }
        }
    }

    /// The second half of `--compare`: accelerates the two pods and listens again.
    async fn listen_to_the_short_way(&mut self) -> Stop {
        self.progress.clear();
        self.fleet.send_all(&Request::LookForBypass).await;
        let starting = Shortcut::start(self.backend, &self.capture.origin.plan.request, self.progress);
        let started = tokio::select! {
            biased;
            () = self.interrupt.wait() => return Stop::Interrupted,
            started = starting => started,
        };
        match started {
            Ok(shortcut) => self.shortcut = Some(shortcut),
            Err(e) => return Stop::Failed(e),
        }
        let stop = self.listen().await;
        if let (Some(shortcut), Stop::Enough, 0) = (&self.shortcut, &stop, self.capture.requests_bypassed) {
            self.progress.note(&format!("nothing went socket to socket: {}", shortcut.why_not()));
        }
        stop
    }

    async fn listen(&mut self) -> Stop {
        let start = Instant::now();
        // A second round (`--compare`) counts from where the first one ended.
        let (delivered_before, probes_before) = (self.delivered(), self.probes_sent);
        let seen_before = self.capture.seen.values().sum::<u64>();
        let never = start + Duration::from_secs(365 * 86_400);
        let end = self.duration.map_or(never, |d| start + d);
        let may_probe = !self.args.no_probe && self.capture.origin.plan.probe.is_some();
        let mut quiet = Some(start + QUIET);
        // Where only probes speak, nobody has to wait for silence a second time.
        let only_probes = self.shortcut.is_some() && probes_before > 0 && self.capture.probes.len() >= probes_before;
        let mut probe_at = ((self.args.probe || only_probes) && may_probe).then_some(start);
        // After a single probe nobody wants to wait for the whole duration.
        let mut after_probe: Option<Instant> = None;
        let mut shown = Instant::now();
        self.announce();
        loop {
            if self.count.is_some_and(|n| self.delivered() - delivered_before >= n) {
                return Stop::Enough;
            }
            let probes_sent = self.probes_sent - probes_before;
            let answered = probes_sent > 0 && self.capture.probes.len() >= self.probes_sent;
            if answered && self.args.count.is_none() && self.args.duration.is_none() && after_probe.is_none() {
                after_probe = Some(Instant::now() + AFTER_PROBE);
            }
            // With a count, one probe after the other, but not for ever where they do not get through.
            if let (true, Some(count)) = (answered, self.args.count) {
                if self.answers_come() && (probes_sent as u64) < count {
                    probe_at.get_or_insert_with(|| Instant::now() + BETWEEN_PROBES);
                } else if self.args.duration.is_none() {
                    after_probe.get_or_insert_with(|| Instant::now() + AFTER_PROBE);
                }
            }
            if self.capture.seen.values().sum::<u64>() > seen_before {
                quiet = None;
            }
            tokio::select! {
                biased;
                () = self.interrupt.wait() => return Stop::Interrupted,
                () = sleep_until(end) => return Stop::Enough,
                () = sleep_until(after_probe.unwrap_or(never)), if after_probe.is_some() => return Stop::Enough,
                () = sleep_until(probe_at.unwrap_or(never)), if probe_at.is_some() => {
                    probe_at = None;
                    self.probes_sent += 1;
                    self.probe().await;
                }
                () = sleep_until(quiet.unwrap_or(never)), if quiet.is_some() => {
                    quiet = None;
                    if probes_sent == 0 {
                        self.say_quiet(may_probe);
                        probe_at = may_probe.then(Instant::now);
                    }
                }
                () = attend(&mut self.shortcut) => {}
                event = self.fleet.next() => match event {
                    Some((helper, event)) => {
                        if let Err(stop) = self.take(helper, event).await {
                            return stop;
                        }
                        if shown.elapsed() >= BETWEEN_LOOKS {
                            shown = Instant::now();
                            self.show_counts();
                        }
                    }
                    None => return Stop::Over,
                },
            }
        }
    }

    /// What `--count` counts: in the second half of a comparison only what went the short way.
    fn delivered(&self) -> u64 {
        if self.shortcut.is_some() { self.capture.requests_bypassed } else { self.capture.requests_delivered }
    }

    /// What was seen so far, beside the spinner.
    fn show_counts(&self) {
        if !self.progress.is_live() {
            return;
        }
        let seen = |d| self.capture.seen.get(&d).copied().unwrap_or(0);
        let (requests, replies) = (seen(Direction::Request), seen(Direction::Reply));
        let dropped = self.capture.dropped;
        let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
        self.progress.phase("", &format!("watching: {requests} request and {replies} reply packets{dropped}, Ctrl-C ends"));
    }

    fn announce(&self) {
        let plan = &self.capture.origin.plan;
        let took = self.capture.helpers.iter().filter_map(|h| h.armed.as_ref()).map(|a| a.took_ns).max().unwrap_or(0);
        let until = match (self.count, self.duration) {
            (Some(n), Some(d)) => format!("{n} requests or {}", human(d)),
            (Some(n), None) => format!("{n} requests"),
            (None, Some(d)) => human(d),
            (None, None) => "Ctrl-C".to_owned(),
        };
        let text = format!("watching {} to {} until {until} (armed in {})", plan.request.source.name, plan.target, nanos(took));
        self.progress.announce(&text);
    }

    /// Whether repeated probes make sense: the last one was answered.
    fn answers_come(&self) -> bool {
        self.capture.probes.last().is_none_or(|p| p.answered)
    }

    fn say_quiet(&self, may_probe: bool) {
        let plan = &self.capture.origin.plan;
        let what = format!("no traffic from {} to {} within {}", plan.request.source.name, plan.target, human(QUIET));
        match (&plan.probe, may_probe) {
            (Some(probe), true) => self.progress.note(&format!("{what}: sending a probe to {} ({})", probe.to, probe_words(probe))),
            (None, _) if !self.args.no_probe => {
                self.progress.note(&format!("{what}, and no port is known to probe: write {}:PORT", plan.target));
            }
            _ => self.progress.note(&format!("{what}: still watching")),
        }
    }

    /// Sends a probe from the source; only the helper of its node can.
    async fn probe(&mut self) {
        let plan = &self.capture.origin.plan;
        let Some(mut probe) = plan.probe.clone() else { return };
        if self.args.compare {
            probe.requests = REQUESTS;
        }
        let node = &plan.request.source.node;
        let index = self.fleet.members().iter().position(|m| m.nodes.contains(node)).unwrap_or(0);
        self.fleet.send(index, Request::Probe(probe)).await;
    }

    async fn take(&mut self, helper: usize, event: Event) -> Result<(), Stop> {
        record(&mut self.recorder, &mut self.recording_failed, helper, &event);
        if let Some(e) = self.recording_failed.take() {
            return Err(Stop::Failed(e));
        }
        if let Event::Said(message) = &event {
            match &**message {
                Message::Warning { text } if !self.capture.warnings.contains_key(text) => self.progress.note(&format!("warning: {text}")),
                Message::Packet(packet) => {
                    if let Some(stream) = &mut self.stream {
                        let line = json::line(&report::packet_row(&self.capture, helper, packet)).map_err(Stop::Failed)?;
                        tokio::select! {
                            biased;
                            sent = stream.send(line) => sent.map_err(Stop::Failed)?,
                            () = self.interrupt.wait() => return Err(Stop::Interrupted),
                        }
                    }
                }
                _ => {}
            }
        }
        self.capture.take(helper, event);
        Ok(())
    }

    fn conclude(mut self, stop: Stop, style: &Style) -> Result<Exit> {
        let interrupted = matches!(stop, Stop::Interrupted);
        let failed = match stop {
            Stop::Failed(e) if crate::exit::is_broken_pipe(&e) => return Err(e),
            Stop::Failed(e) => Some(e),
            Stop::Enough | Stop::Interrupted | Stop::Over => None,
        };
        let report = report::report(&self.capture);
        let saw = self.capture.saw_something();
        let armed = self.capture.helpers.iter().any(|h| h.armed.is_some());
        if self.args.output != Some(TraceOutput::Jsonl) && (saw || (armed && self.args.output == Some(TraceOutput::Json))) {
            print(&rendered(self.args, &report, style)?)?;
        }
        exports(self.args, &report)?;
        if let Some(e) = failed.or(self.recording_failed.take()) {
            return Err(e);
        }
        if let Some((text, _)) = self.capture.helpers.iter().find_map(|h| h.error.as_ref()) {
            bail!("{text}");
        }
        for (log, member) in self.capture.helpers.iter().zip(self.fleet.members()) {
            if let Some(text) = &log.lost {
                bail!("the helper on {}: {text}", member.name());
            }
            if let (Some(why), false) = (log.ended.and_then(ended_from_outside), interrupted) {
                bail!("the helper on {} {why}, what it would have seen later is missing", member.name());
            }
        }
        if interrupted {
            return Ok(Exit::Interrupted);
        }
        if !saw {
            let plan = &self.capture.origin.plan;
            let mut text = format!("no packet from {} to {} was seen", plan.request.source.name, plan.target);
            for finding in &report.findings {
                text.push_str(&format!("\n  {}", finding.text));
                if let Some(next) = &finding.next {
                    text.push_str(&format!("\n    {next}"));
                }
            }
            let _ = writeln!(std::io::stderr(), "{text}");
            return Ok(Exit::Nothing);
        }
        Ok(Exit::Done)
    }
}

async fn attend(shortcut: &mut Option<Shortcut>) {
    match shortcut {
        Some(shortcut) => shortcut.attend().await,
        None => std::future::pending().await,
    }
}

/// Ends of a helper's session that nobody here asked for.
fn ended_from_outside(reason: EndReason) -> Option<&'static str> {
    match reason {
        EndReason::Signal => Some("was told to end (its pod was deleted, or its node drains)"),
        EndReason::HeartbeatMissed => Some("heard nothing from here for too long and ended"),
        EndReason::StdinClosed => Some("lost its connection to here and ended"),
        EndReason::Done | EndReason::Finished | EndReason::Failed => None,
    }
}

fn probe_words(probe: &ProbeRequest) -> &'static str {
    match probe.protocol {
        Protocol::Tcp if probe.http => "TCP, one small HTTP request",
        Protocol::Tcp => "TCP connect",
        Protocol::Udp => "one UDP datagram",
        Protocol::Icmp => "one ICMP echo request",
    }
}

fn record(recorder: &mut Option<Recorder>, failed: &mut Option<anyhow::Error>, helper: usize, event: &Event) {
    if let Some(writer) = recorder
        && let Err(e) = writer.take(helper, event)
    {
        *recorder = None;
        failed.get_or_insert(e);
    }
}

/// What each helper is asked: the whole, with the nodes it serves.
fn requests(request: &TraceRequest, fleet: &Fleet, every_packet: bool) -> Vec<(usize, TraceRequest)> {
    let of_member = |(index, member): (usize, &crate::session::Member)| {
        let nodes = request.nodes.iter().filter(|n| member.nodes.contains(&n.name)).cloned().collect();
        (index, TraceRequest { nodes, every_packet, ..request.clone() })
    };
    fleet.members().iter().enumerate().map(of_member).collect()
}
