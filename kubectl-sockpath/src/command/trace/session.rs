//! A running trace, from its helpers' start to its exit code.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use sockpath_protocol::Message;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::packet::Packet;
use sockpath_protocol::pod::Pod;
use tokio::time::Instant;

use super::compare::Shortcut;
use super::follow::{Following, Leg};
use super::output::{exports, show};
use crate::backend::Backend;
use crate::cli::{self, TraceOutput};
use crate::cluster::{PodNews, PodWatch};
use crate::duration::human;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output::{Machine, Stream, Text, complain};
use crate::progress::Progress;
use crate::recording::Recorder;
use crate::report::{self, Capture, HelperOrigin, Origin};
use crate::session::{Event, Fleet, Member, Patience, SessionError, disconnected, reconnected};
use crate::target::Plan;
use crate::terminal::Style;

/// How long a trace lasts by default.
const DURATION: Duration = Duration::from_secs(10);

/// The same with a count, and for a stream of packets: every trace has an end.
const DURATION_WITH_COUNT: Duration = Duration::from_secs(300);
const DURATION_OF_STREAM: Duration = Duration::from_secs(3600);

/// How many request packets end a trace by default.
const COUNT: u64 = 100;

/// How long helpers that end are waited for without a sign of life, and at most: on a busy node it takes seconds to detach.
const ENDING_SILENCE: Duration = Duration::from_secs(10);
const ENDING_LONGEST: Duration = Duration::from_secs(45);

/// The same after Ctrl-C.
const ENDING_INTERRUPTED: Duration = Duration::from_millis(1500);

/// How long a reader of stdout may still take after Ctrl-C.
const AFTER_INTERRUPT: Duration = Duration::from_millis(200);

/// Why a trace ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// Enough was seen, or the time is over.
    Enough,
    /// Ctrl-C.
    Interrupted,
    /// No helper is left.
    Over,
    /// The plugin's own output failed: stdout, the recording.
    Failed(anyhow::Error),
}

/// A running trace.
pub(super) struct Session<'a> {
    pub(super) args: &'a cli::Trace,
    pub(super) fleet: Fleet,
    pub(super) capture: Capture,
    pub(super) recorder: Option<Recorder>,
    pub(super) stream: Option<Stream>,
    pub(super) interrupt: Interrupt,
    pub(super) progress: &'a Progress,
    pub(super) backend: &'a Backend,
    pub(super) probes_sent: usize,
    /// Present while a comparison measures another path than that through the stack.
    pub(super) shortcut: Option<Shortcut>,
    /// The number of this part of a trace that follows its pods.
    part: u32,
    pub(super) count: Option<u64>,
    pub(super) duration: Duration,
    /// Some hooks are not attached yet: packets that nodes see by then are half seen, and no part of the report.
    pub(super) warming_up: bool,
    /// What happens to the pods.
    pub(super) pods: PodWatch,
    /// Those that are gone, by UID.
    pub(super) gone: BTreeSet<String>,
    /// With them the source or all targets.
    pub(super) lost: bool,
    /// When all hooks were attached.
    pub(super) began: Option<Instant>,
}

impl<'a> Session<'a> {
    /// A trace that is about to start.
    ///
    /// # Errors
    /// When stdout cannot be written in the background.
    pub(super) fn new(
        args: &'a cli::Trace,
        plan: Plan,
        fleet: Fleet,
        recorder: Option<Recorder>,
        interrupt: Interrupt,
        progress: &'a Progress,
        backend: &'a Backend,
    ) -> Result<Self> {
        let streaming = args.output == Some(TraceOutput::Jsonl);
        let helpers = fleet.members().iter().map(|m| HelperOrigin::expected(m.nodes.clone())).collect();
        let pods: Vec<Pod> = std::iter::once(&plan.request.source).chain(&plan.request.targets).cloned().collect();
        let origin = Origin { plan, release: env!("CARGO_PKG_VERSION").to_owned(), helpers };
        let duration = match args.duration {
            Some(duration) => duration,
            None if args.count.is_some() => DURATION_WITH_COUNT,
            None if streaming || args.follow => DURATION_OF_STREAM,
            None => DURATION,
        };
        // A duration alone decides alone.
        let open = streaming || args.follow || args.duration.is_some();
        Ok(Self {
            args,
            fleet,
            capture: Capture::new(origin),
            recorder,
            stream: if streaming { Some(Stream::stdout()?) } else { None },
            interrupt,
            progress,
            backend,
            probes_sent: 0,
            shortcut: None,
            part: 1,
            count: args.count.or((!open).then_some(COUNT)),
            duration,
            warming_up: false,
            pods: backend.watch_pods(&pods),
            gone: BTreeSet::new(),
            lost: false,
            began: None,
        })
    }

    /// The same with what earlier parts have left of time and count.
    pub(super) fn within(mut self, following: &mut Following<'_>) -> Self {
        self.part = following.part();
        (self.count, self.duration) = following.left(self.count, self.duration);
        self
    }

    /// Traces to the end, whatever ends it: helpers, the recording and stdout are closed on every exit path.
    pub(super) async fn run(mut self, style: &Style) -> Result<Leg> {
        self.fleet.compare_clocks();
        let mut stop = match self.arm().await {
            Ok(()) => self.listen().await,
            Err(stop) => stop,
        };
        let clocks = self.keep_clocks();
        if self.args.compare && matches!(stop, Stop::Enough) {
            stop = self.listen_to_other_paths().await;
        }
        self.progress.clear();
        let patience = self.patience(matches!(stop, Stop::Interrupted));
        let (late, rest) = self.end_helpers(&patience).await;
        // The normal path is restored after the trace has ended, so that the restoring is not part of it.
        self.end_shortcut(&patience).await;
        if let (Err(e), Stop::Enough | Stop::Over) = (self.close_stream(&late, matches!(stop, Stop::Interrupted)).await, &stop) {
            stop = Stop::Failed(e);
        }
        let flushed = self.recorder.take().map_or(Ok(()), Recorder::finish);
        let (progress, follows, lost) = (self.progress, self.args.follow, self.lost);
        let (delivered, saw, gone) = (self.capture.requests_delivered, self.capture.saw_something(), std::mem::take(&mut self.gone));
        let exit = match self.conclude(stop, clocks.and(rest).and(flushed), style) {
            // The node went with the pods.
            Err(e) if follows && lost && !crate::exit::is_broken_pipe(&e) => {
                progress.warn(&format!("{e:#}"));
                if saw { Exit::Done } else { Exit::Nothing }
            }
            concluded => concluded?,
        };
        Ok(Leg { exit, lost, delivered, gone })
    }

    /// How long helpers that end are waited for.
    pub(super) fn patience(&self, interrupted: bool) -> Patience {
        if interrupted {
            return Patience::of(ENDING_INTERRUPTED);
        }
        let hurry = Some((self.interrupt.clone(), ENDING_INTERRUPTED));
        Patience { silence: ENDING_SILENCE, longest: ENDING_LONGEST, hurry }
    }

    /// Restores the normal path.
    pub(super) async fn end_shortcut(&mut self, patience: &Patience) {
        if let Some(shortcut) = self.shortcut.take() {
            shortcut.end(patience, self.progress).await;
        }
    }

    /// Keeps how the helpers' clocks lie to ours, in the report and in the recording.
    fn keep_clocks(&mut self) -> Result<()> {
        let clocks: Vec<_> = self.fleet.members().iter().enumerate().filter_map(|(i, m)| Some((i, m.clock()?))).collect();
        for &(helper, clock) in &clocks {
            self.capture.compare(helper, clock);
        }
        match &mut self.recorder {
            Some(recorder) => clocks.into_iter().try_for_each(|(helper, clock)| recorder.compare(helper, clock)),
            None => Ok(()),
        }
    }

    /// Ends the helpers; returns the packets that still arrived, if they are streamed, and whether the recording is complete.
    async fn end_helpers(&mut self, patience: &Patience) -> (Vec<(usize, Box<Packet>)>, Result<()>) {
        let (capture, recorder, streams) = (&mut self.capture, &mut self.recorder, self.stream.is_some());
        let (mut late, mut recorded) = (Vec::new(), Ok(()));
        let hear = |helper, event: Event| {
            if let (Some(recorder), Ok(())) = (&mut *recorder, &recorded) {
                recorded = recorder.take(helper, &event);
            }
            if let (Event::Said(message), true) = (&event, streams)
                && let Message::Packet(packet) = &**message
            {
                late.push((helper, packet.clone()));
            }
            capture.take(helper, event);
        };
        self.fleet.finish(patience, hear).await;
        (late, recorded)
    }

    /// Sends what is left to a stdout that streams, and closes it.
    async fn close_stream(&mut self, late: &[(usize, Box<Packet>)], interrupted: bool) -> Result<()> {
        let Some(mut stream) = self.stream.take() else { return Ok(()) };
        let closing = async {
            for (helper, packet) in late {
                stream.send(Machine::line(&report::row_of_packet(&self.capture, *helper, packet))?).await?;
            }
            stream.close(if interrupted { AFTER_INTERRUPT } else { Duration::MAX }).await
        };
        tokio::select! {
            biased;
            outcome = closing => outcome,
            // A reader that does not read must not hold us after Ctrl-C.
            () = async { self.interrupt.wait().await; tokio::time::sleep(AFTER_INTERRUPT).await } => Ok(()),
        }
    }

    /// Keeps, records and streams what a helper said.
    pub(super) async fn take(&mut self, helper: usize, event: Event) -> Result<(), Stop> {
        let event = match event {
            Event::Disconnected(why) => {
                self.progress.warn(&disconnected(&self.fleet.name(helper), "", &why));
                return Ok(());
            }
            Event::Reconnected(away) => {
                // A watch may have broken with it.
                let request = &self.capture.origin.plan.request;
                let pods: Vec<Pod> = std::iter::once(&request.source).chain(&request.targets).cloned().collect();
                self.pods = self.backend.watch_pods(&pods);
                let text = reconnected(&self.fleet.name(helper), away, ": packets of this time are missing");
                Event::Said(Box::new(Message::Warning { text }))
            }
            other => other,
        };
        let observed = |m: &Message| matches!(m, Message::Packet(_) | Message::Incident(_));
        if self.warming_up && self.stream.is_none() && matches!(&event, Event::Said(message) if observed(message)) {
            return Ok(());
        }
        if let (Event::Lost(error @ SessionError::Absent { .. }), Some(member)) = (&event, self.fleet.members().get(helper)) {
            self.progress.warn(&error.on(&member.name()));
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.take(helper, &event).map_err(Stop::Failed)?;
        }
        if let Event::Said(message) = &event {
            match &**message {
                Message::Armed(_) => self.fleet.works(helper),
                Message::Warning { text } if !self.capture.warnings.contains_key(text) => self.progress.warn(text),
                Message::Packet(packet) => {
                    if let Some(stream) = &mut self.stream {
                        let line = Machine::line(&report::row_of_packet(&self.capture, helper, packet)).map_err(Stop::Failed)?;
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

    /// Takes note of what happened to a pod; whether the trace has lost its source, or all its targets, with it.
    pub(super) fn notice(&mut self, news: PodNews) -> Result<bool, Stop> {
        self.progress.note(&news.text);
        if let Some(recorder) = &mut self.recorder {
            recorder.change(&news.text).map_err(Stop::Failed)?;
        }
        self.capture.change(news.text);
        if news.readdressed && self.args.follow {
            // The same pod in another network namespace, as after a reboot of its node.
            self.lost = true;
            return Ok(true);
        }
        if !news.gone {
            return Ok(false);
        }
        self.gone.insert(news.uid);
        let request = &self.capture.origin.plan.request;
        let targets_gone = !request.targets.is_empty() && request.targets.iter().all(|t| self.gone.contains(&t.uid));
        self.lost |= targets_gone || self.gone.contains(&request.source.uid);
        Ok(self.lost)
    }

    fn conclude(self, stop: Stop, recorded: Result<()>, style: &Style) -> Result<Exit> {
        let interrupted = matches!(stop, Stop::Interrupted);
        let failed = match stop {
            Stop::Failed(e) if crate::exit::is_broken_pipe(&e) => return Err(e),
            Stop::Failed(e) => Some(e),
            Stop::Enough | Stop::Interrupted | Stop::Over => None,
        };
        let capture = Arc::new(self.capture);
        let report = report::report(&capture);
        let saw = capture.saw_something();
        let armed = capture.helpers.iter().any(|h| h.armed.is_some());
        if self.args.output != Some(TraceOutput::Jsonl) && (saw || (armed && self.args.output == Some(TraceOutput::Json))) {
            show(self.args, &report, style)?;
        }
        exports(self.args, self.part, &report)?;
        if let Some(e) = failed.or(recorded.err()) {
            return Err(e);
        }
        for (log, member) in capture.helpers.iter().zip(self.fleet.members()) {
            match (&log.error, self.backend) {
                // One helper serves the whole lab.
                (Some((text, _)), Backend::Lab(_)) => bail!("{text}"),
                (Some((text, _)), Backend::Cluster(_)) => bail!("{}: {text}", member.name()),
                (None, _) => {}
            }
        }
        let missing = missing_nodes(&capture, &self.fleet);
        for (log, member) in capture.helpers.iter().zip(self.fleet.members()) {
            if let (Some(text), true) = (&log.lost, member.has_joined()) {
                bail!("the helper on {}: {text}", member.name());
            }
            if let (Some(why), false) = (log.ended.and_then(ended_from_outside), interrupted) {
                bail!("the helper on {} {why}; later observations are missing", member.name());
            }
        }
        if interrupted {
            self.progress.note(&watched_until_now(&capture, &self.fleet, self.began, saw));
            missing.iter().for_each(|text| self.progress.warn(text));
            return Ok(Exit::Interrupted);
        }
        if !missing.is_empty() {
            bail!("{}", missing.join("\n"));
        }
        if !saw {
            let plan = &capture.origin.plan;
            let hint = if self.probes_sent == 0 && plan.probe.is_some() { "; use --probe to send one from the source pod" } else { "" };
            let mut text = Text::of_line(&format!("no packet from {} to {} was observed{hint}", plan.request.source.name, plan.target));
            for finding in &report.findings {
                text.line(&format!("  {}", finding.text));
                finding.next.iter().for_each(|next| text.line(&format!("    {next}")));
            }
            complain(&text);
            return Ok(Exit::Nothing);
        }
        Ok(Exit::Done)
    }
}

/// Why nodes took no part, each as a sentence.
fn missing_nodes(capture: &Capture, fleet: &Fleet) -> Vec<String> {
    let logs = capture.helpers.iter().zip(fleet.members()).filter(|(_, member)| !member.has_joined());
    let sentence = |text: &String, name: String| SessionError::Absent { detail: text.clone() }.on(&name);
    logs.filter_map(|(log, member)| Some(sentence(log.lost.as_ref()?, member.name()))).collect()
}

/// After Ctrl-C: what was watched, for how long, and whether anything came.
fn watched_until_now(capture: &Capture, fleet: &Fleet, began: Option<Instant>, saw: bool) -> String {
    let plan = &capture.origin.plan;
    let nodes: Vec<String> = fleet.members().iter().filter(|m| m.has_joined()).map(Member::name).collect();
    let (from, to, nodes) = (&plan.request.source.name, &plan.target, nodes.join(", "));
    let Some(began) = began else { return format!("interrupted before {from} to {to} was watched on every node") };
    let watched = human(Duration::from_secs(began.elapsed().as_secs()));
    let seen = if saw { "" } else { ", and no packet was observed" };
    format!("interrupted: {from} to {to} was watched on {nodes} for {watched}{seen}")
}

/// Ends of a helper's session that this plugin did not request.
fn ended_from_outside(reason: EndReason) -> Option<&'static str> {
    match reason {
        EndReason::Signal => Some("received a signal to end (its pod was deleted, or its node is being drained)"),
        EndReason::HeartbeatMissed => Some("received no heartbeat from the plugin and ended"),
        EndReason::StdinClosed => Some("lost its connection to the plugin and ended"),
        EndReason::Done | EndReason::Finished | EndReason::Failed => None,
    }
}
