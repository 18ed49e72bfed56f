//! The live part of a trace: hooks are attached, packets are counted, probes are sent, and progress is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::Request;
use sockpath_protocol::accel::Via;
use sockpath_protocol::packet::Direction;
use sockpath_protocol::request::{ProbeRequest, Protocol, TraceRequest};
use tokio::time::{Instant, sleep_until};

use super::compare::{self, REQUESTS, Shortcut};
use super::session::{Session, Stop};
use crate::duration::{human, nanos};
use crate::invocation::invocation;
use crate::report;
use crate::session::Event;

/// How long to wait for traffic before saying so.
const QUIET: Duration = Duration::from_secs(2);

/// How long to listen after a single probe: enough for the connection to close.
const AFTER_PROBE: Duration = Duration::from_millis(300);

/// How long to listen after a pod is gone: its node still has the last packets.
const AFTER_LOSS: Duration = Duration::from_millis(500);

/// With `--follow`: how long the pods may take to go when no helper is left. A pod has 30 s to end by default.
const AFTER_HELPERS: Duration = Duration::from_secs(60);

/// Least time between two probes.
const BETWEEN_PROBES: Duration = Duration::from_millis(10);

/// Time between two updates of the counts beside the spinner.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// How long hooks may take to be attached.
const ARMING: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// Asks each helper to watch when it has started, and waits until all do that can. Packets that the first ones see are streamed
    /// meanwhile.
    pub(super) async fn arm(&mut self) -> Result<(), Stop> {
        if let Some(recorder) = &mut self.recorder {
            recorder.begin(&self.capture.origin).map_err(Stop::Failed)?;
        }
        self.progress.phase("", "attaching hooks");
        self.warming_up = true;
        let mut arming: BTreeMap<usize, Instant> = BTreeMap::new();
        let never = Instant::now() + Duration::from_secs(365 * 86_400);
        loop {
            let done = |h: &report::HelperLog| h.armed.is_some() || h.error.is_some() || h.lost.is_some() || h.ended.is_some();
            arming.retain(|index, _| self.capture.helpers.get(*index).is_some_and(|h| !done(h)));
            let enough = self.stream.is_some() && self.count.is_some_and(|n| self.delivered() >= n);
            if enough || self.capture.helpers.iter().all(done) {
                self.warming_up = false;
                self.began = Some(Instant::now());
                self.progress.done("");
                return if self.capture.helpers.iter().any(|h| h.armed.is_some()) { Ok(()) } else { Err(Stop::Over) };
            }
            let late = arming.iter().min_by_key(|(_, at)| **at).map(|(index, at)| (*index, *at));
            tokio::select! {
                biased;
                () = self.interrupt.wait() => return Err(Stop::Interrupted),
                () = sleep_until(late.map_or(never, |(_, at)| at)), if late.is_some() => {
                    if let Some((index, _)) = late {
                        arming.remove(&index);
                        self.fleet.give_up(index, format!("hooks were not attached within {}: run `{} doctor`", human(ARMING), invocation()));
                    }
                }
                event = self.fleet.next() => match event {
                    Some((helper, event)) => {
                        if matches!(event, Event::Joined(_)) {
                            arming.insert(helper, Instant::now() + ARMING);
                            self.watch_with(helper).await;
                        }
                        self.take(helper, event).await?;
                    }
                    None => return Err(Stop::Over),
                },
            }
        }
    }

    /// Asks one helper to watch: the whole, with the nodes it serves.
    async fn watch_with(&self, index: usize) {
        let Some(member) = self.fleet.members().get(index) else { return };
        let request = &self.capture.origin.plan.request;
        let nodes = request.nodes.iter().filter(|n| member.nodes.contains(&n.name)).cloned().collect();
        let request = TraceRequest { nodes, every_packet: self.args.every_packet, no_rules: self.args.no_rules, ..request.clone() };
        self.fleet.send(index, Request::Trace(Box::new(request))).await;
    }

    /// The helper on the source's node, which alone can send probes.
    fn at_source(&self) -> Option<usize> {
        let node = &self.capture.origin.plan.request.source.node;
        self.fleet.members().iter().position(|m| m.nodes.contains(node) && m.has_joined() && !m.is_over())
    }

    /// The other parts of `--compare`: accelerates the two pods on one path after the other, and listens again.
    pub(super) async fn listen_to_other_paths(&mut self) -> Stop {
        let paths = compare::paths(&self.capture.origin.plan.request);
        if paths.is_empty() {
            self.progress.note("nothing to compare: other paths are between two pods");
        }
        let mut measured = false;
        let last = paths.len().saturating_sub(1);
        for (n, via) in paths.into_iter().enumerate() {
            match self.listen_to_path(via).await {
                Ok(Stop::Enough) => measured = true,
                Ok(stop) => return stop,
                // One that this kernel cannot do leaves the others to be measured.
                Err(e) if n == last && !measured => return Stop::Failed(e),
                Err(e) => self.progress.warn(&format!("the {} is not measured: {e:#}", compare::name(via))),
            }
        }
        Stop::Enough
    }

    /// Accelerates on one path and listens.
    ///
    /// # Errors
    /// When the path cannot be used.
    async fn listen_to_path(&mut self, via: Via) -> Result<Stop> {
        self.progress.clear();
        let patience = self.patience(false);
        self.end_shortcut(&patience).await;
        if via == Via::Socket {
            self.fleet.send_all(&Request::LookForBypass).await;
        }
        let starting = Shortcut::start(self.backend, &self.capture.origin.plan.request, via, self.progress);
        let started = tokio::select! {
            biased;
            () = self.interrupt.wait() => return Ok(Stop::Interrupted),
            started = starting => started,
        };
        self.shortcut = Some(started?);
        let stop = self.listen().await;
        if let (Some(shortcut), Stop::Enough, 0) = (&self.shortcut, &stop, self.delivered()) {
            self.progress.note(&format!("no message took the {}: {}", compare::name(via), shortcut.why_not()));
        }
        Ok(stop)
    }

    /// Watches until enough was seen.
    pub(super) async fn listen(&mut self) -> Stop {
        let start = Instant::now();
        // Another round (`--compare`) counts from where the first one ended.
        let (delivered_before, probes_before) = (self.delivered(), self.probes_sent);
        let seen_before = self.capture.seen.values().sum::<u64>();
        let never = start + Duration::from_secs(365 * 86_400);
        let mut end = start + self.duration;
        let may_probe = !self.args.no_probe && self.capture.origin.plan.probe.is_some() && self.at_source().is_some();
        let mut quiet = Some(start + QUIET);
        // With probes as the only traffic, there is no need to wait for silence again.
        let only_probes = self.shortcut.is_some() && probes_before > 0 && self.capture.probed >= probes_before;
        let mut probe_at = ((self.args.probe || only_probes) && may_probe).then_some(start);
        // After a single probe there is no need to wait for the whole duration.
        let mut after_probe: Option<Instant> = None;
        let (mut shown, mut helpers_gone) = (Instant::now(), false);
        self.announce();
        loop {
            if self.count.is_some_and(|n| self.delivered() - delivered_before >= n) {
                return Stop::Enough;
            }
            let probes_sent = self.probes_sent - probes_before;
            let answered = probes_sent > 0 && self.capture.probed >= self.probes_sent;
            if answered && self.args.count.is_none() && self.args.duration.is_none() && !self.args.follow && after_probe.is_none() {
                after_probe = Some(Instant::now() + AFTER_PROBE);
            }
            // With a count, one probe after the other, but not without end if they are not answered.
            if let (true, Some(count)) = (answered, self.args.count) {
                if self.answers_come() && (probes_sent as u64) < count {
                    probe_at.get_or_insert_with(|| Instant::now() + BETWEEN_PROBES);
                } else if self.args.duration.is_none() && !self.args.follow {
                    after_probe.get_or_insert_with(|| Instant::now() + AFTER_PROBE);
                }
            }
            if self.capture.seen.values().sum::<u64>() > seen_before {
                quiet = None;
            }
            tokio::select! {
                biased;
                () = self.interrupt.wait() => return Stop::Interrupted,
                () = sleep_until(end) => return if helpers_gone && !self.lost { Stop::Over } else { Stop::Enough },
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
                () = receive(&mut self.shortcut) => {}
                news = self.pods.next() => match self.notice(news) {
                    Ok(true) => {
                        if !self.args.follow {
                            self.progress.note("the trace ends, because the pods can no longer be observed");
                        }
                        end = end.min(Instant::now() + AFTER_LOSS);
                    }
                    Ok(false) => {}
                    Err(stop) => return stop,
                },
                event = self.fleet.next(), if !helpers_gone => match event {
                    Some((helper, event)) => {
                        if let Err(stop) = self.take(helper, event).await {
                            return stop;
                        }
                        if shown.elapsed() >= BETWEEN_LOOKS {
                            shown = Instant::now();
                            self.show_counts();
                        }
                    }
                    // A node that is drained or fails ends the helper before the pods are gone.
                    None if self.args.follow && !self.lost => {
                        helpers_gone = true;
                        end = end.min(Instant::now() + AFTER_HELPERS);
                        self.progress.note(&format!("no helper is left; waiting {} for what happens to the pods", human(AFTER_HELPERS)));
                    }
                    None => return Stop::Over,
                },
            }
        }
    }

    /// What `--count` counts: while a comparison measures another path only what took that.
    fn delivered(&self) -> u64 {
        match self.shortcut.as_ref().map(|s| s.via) {
            None => self.capture.requests_delivered,
            Some(Via::Short) => self.capture.requests_redirected,
            Some(Via::Auto | Via::Socket) => self.capture.requests_bypassed,
        }
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
        self.progress.phase("", &format!("watching: {requests} request and {replies} reply packets{dropped}, Ctrl-C to stop"));
    }

    fn announce(&self) {
        let plan = &self.capture.origin.plan;
        let took = self.capture.helpers.iter().filter_map(|h| h.armed.as_ref()).map(|a| a.took_ns).max().unwrap_or(0);
        let one_probe =
            self.args.probe && !self.args.follow && self.args.count.is_none() && self.args.duration.is_none() && plan.probe.is_some();
        let span = match (self.count, self.duration) {
            _ if one_probe && !self.args.compare => "for one probe".to_owned(),
            (Some(n), d) => format!("until {n} requests or {}", human(d)),
            (None, d) => format!("for {}", human(d)),
        };
        let (path, armed) = match &self.shortcut {
            Some(shortcut) => (format!(" on the {}", compare::name(shortcut.via)), String::new()),
            None => (String::new(), format!(" (armed in {})", nanos(took))),
        };
        let text = format!("watching {} to {}{path} {span}{armed}", plan.request.source.name, plan.target);
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
                self.progress.note(&format!("{what}, and the port for a probe is unknown: use {}:PORT", plan.target));
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
        let Some(index) = self.at_source() else { return };
        self.fleet.send(index, Request::Probe(probe)).await;
    }
}

async fn receive(shortcut: &mut Option<Shortcut>) {
    match shortcut {
        Some(shortcut) => shortcut.receive().await,
        None => std::future::pending().await,
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
