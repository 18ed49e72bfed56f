//! Watching the packets of one pair of pods.
//!
//! `environment` finds the pair, `programs` observes, `assemble` makes packets of the observations, and this module serves the
//! session: it reads the ring buffer every few milliseconds and reports to the plugin.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::ClockId;
use sockpath_protocol::message::{Armed, Counters, EndReason, NETFILTER_RULES, Probed};
use sockpath_protocol::packet::IncidentKind;
use sockpath_protocol::request::{ProbeRequest, Protocol, TraceRequest};
use sockpath_protocol::text::field;
use sockpath_protocol::{Message, Request};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::pins::Pins;
use crate::session::{Inbound, Session};
use assemble::Assembler;
use conntrack::Conntrack;
use cost::Meter;
use counters::{Rise, Watch};
use duty_cycle::{DutyCycle, Look, Mode};
use environment::Environment;
use hooks::Offer;
use names::Names;
use programs::Programs;
use rules::Rules;
use sockpath_kernel::clock::clock_ns;
use throttle::Throttles;

pub mod assemble;
mod attachment;
mod conntrack;
mod cost;
mod counters;
pub mod devices;
mod duty_cycle;
mod environment;
pub mod event;
pub mod functions;
pub mod hooks;
pub mod names;
pub mod places;
mod probe;
mod programs;
pub mod rules;
pub mod settings;
mod sockets;
mod subsystems;
pub mod tc;
mod throttle;

/// Packets reported a second when the request does not say.
const DEFAULT_PACKETS_PER_SECOND: u32 = 200;
/// How often the ring buffer is read: a wake-up for each event would cost the traced traffic more than the event itself.
const CONSUME_EVERY: Duration = Duration::from_millis(5);
/// Pieces of the ring buffer that are taken in one turn.
const CHUNKS: usize = 32;
/// How often the totals are sent.
const COUNTERS_EVERY: Duration = Duration::from_secs(1);
/// How often packets are forgotten whose end the programs did not see.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// How long the end of a trace waits for the rules that were asked about.
const RULES_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is decided whether the programs' run time is counted.
const METER_EVERY: Duration = Duration::from_millis(20);

/// Serves a trace until it is done or the session has to end.
pub async fn run(session: &mut Session, request: TraceRequest) -> Result<EndReason> {
    let start = Instant::now();
    let environment = Environment::find(session.site(), &request)?;
    let mut offer = Offer::read()?;
    let rate = match (request.every_packet, request.packets_per_second) {
        (true, _) => 0,
        (false, 0) => DEFAULT_PACKETS_PER_SECOND,
        (false, n) => n,
    };
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let names = Names::new(offer.drop_reasons.clone()).with_release(&release);
    // Reading begins here, so that counters are those of before the first packet.
    let unread = if request.no_rules { Some("--no-rules leaves them out") } else { rules::unreadable() };
    let rules = Rules::of(&environment, unread.is_none())?;
    let conntrack = Conntrack::begin(&environment);
    let mut assembler = Assembler::new(environment.pair(&request), environment.places()?, names).with_rules(rules);
    if !offer.has_netfilter() {
        assembler = assembler.without_netfilter();
    }
    let (mut storage, mut plain) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let programs = match Programs::start(&mut storage, &environment, &offer, rate) {
        // What functions show is worth much, but not the trace.
        Err(e) if offer.functions.attach_kind().is_some() => {
            offer.functions.give_up(&format!("the kernel refused the programs: {e:#}"));
            Programs::start(&mut plain, &environment, &offer, rate)?
        }
        result => result?,
    };
    let counters = Watch::begin(&environment);
    let now = clock_ns(ClockId::CLOCK_MONOTONIC)?;
    let duty_cycle = DutyCycle::new(rate, offer.has_netfilter() && environment.uplinks.is_empty(), now);
    let mut trace = Trace {
        meter: Meter::start(programs.fds()),
        programs,
        counters,
        conntrack,
        throttles: environment.throttles(),
        armed: Instant::now(),
        duty_cycle,
        mode: Mode::Watching,
        bypass: false,
        rested: Duration::ZERO,
        rests: None,
    };
    drop(offer);
    let rules = unread.map(|why| (NETFILTER_RULES.to_owned(), why.to_owned()));
    session.send(&Message::Armed(Armed {
        hooks: trace.programs.hooks.used.clone(),
        unavailable: trace.programs.hooks.unavailable.clone().into_iter().chain(rules).collect(),
        filters: tc::of_pods(&environment),
        took_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        at_ns: clock_ns(ClockId::CLOCK_MONOTONIC)?,
    }))?;
    let reason = trace.serve(session, &request, &environment, &mut assembler).await?;
    session.ends();
    let until = clock_ns(ClockId::CLOCK_MONOTONIC)?;
    trace.observe(session, &mut assembler)?;
    trace.look_at_counters(&mut assembler)?;
    assembler.finish(until);
    let mut last = assembler.take_last(RULES_PATIENCE);
    last.push(Message::Counters(trace.counters(&assembler)?));
    session.send_all(&last)?;
    Ok(reason)
}

/// A trace that is armed.
struct Trace<'a> {
    programs: Programs<'a>,
    meter: Meter,
    counters: Watch,
    conntrack: Conntrack,
    throttles: Throttles,
    armed: Instant,
    duty_cycle: DutyCycle,
    mode: Mode,
    /// Whether the pair may be accelerated.
    bypass: bool,
    /// How long the machine-wide hooks were detached, and since when they are.
    rested: Duration,
    rests: Option<Instant>,
}

impl Trace<'_> {
    async fn serve(
        &mut self,
        session: &mut Session,
        request: &TraceRequest,
        environment: &Environment,
        assembler: &mut Assembler,
    ) -> Result<EndReason> {
        let accelerations = Pins::of(session.site());
        let (probed_tx, mut probed) = mpsc::channel(16);
        let mut consume = interval(CONSUME_EVERY);
        let mut count = interval(COUNTERS_EVERY);
        let mut sweep = interval(SWEEP_EVERY);
        let mut meter = interval(METER_EVERY);
        for ticks in [&mut consume, &mut count, &mut sweep, &mut meter] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                inbound = session.next() => match inbound {
                    Inbound::Request(Request::Finish) => return Ok(EndReason::Finished),
                    Inbound::Request(Request::Probe(probe)) => {
                        let look = self.look()?;
                        self.duty_cycle.watch(look);
                        self.set_mode(Mode::Watching, environment)?;
                        if probe.protocol != Protocol::Tcp {
                            self.programs.watch_calls(environment)?;
                        }
                        start_probe(environment, probe, probed_tx.clone());
                    }
                    Inbound::Request(Request::LookForBypass) => self.look_for_bypass(environment)?,
                    Inbound::Request(other) => session.warn(format!("not during a trace: {}", field(&format!("{other:?}"))))?,
                    Inbound::Stop(reason) => return Ok(reason),
                },
                Some(done) = probed.recv() => session.send(&Message::Probed(done))?,
                _ = consume.tick() => {
                    let look = self.look()?;
                    let mode = self.duty_cycle.look(look);
                    self.set_mode(mode, environment)?;
                    self.observe(session, assembler)?;
                    if assembler.saw_datagrams() {
                        self.programs.watch_calls(environment)?;
                    }
                    if request.count.is_some_and(|n| assembler.delivered_requests() >= n) {
                        return Ok(EndReason::Finished);
                    }
                }
                _ = sweep.tick() => self.programs.sweep(|id| assembler.is_done_with(id)),
                _ = meter.tick() => self.meter.look(),
                _ = count.tick() => {
                    self.look_at_counters(assembler)?;
                    if accelerations.exist() {
                        self.look_for_bypass(environment)?;
                    }
                    let counters = self.counters(assembler)?;
                    session.send(&Message::Counters(counters))?;
                }
            }
        }
    }

    fn look_for_bypass(&mut self, environment: &Environment) -> Result<()> {
        if self.bypass {
            return Ok(());
        }
        self.bypass = true;
        self.duty_cycle.never_silent();
        let look = self.look()?;
        self.duty_cycle.watch(look);
        self.set_mode(Mode::Watching, environment)?;
        self.programs.look_for_bypass(environment)
    }

    fn look(&self) -> Result<Look> {
        Ok(Look {
            now_ns: clock_ns(ClockId::CLOCK_MONOTONIC)?,
            wall_ms: clock_ns(ClockId::CLOCK_REALTIME)? / 1_000_000,
            packets: self.programs.pair_packets(),
            runs_per_second: self.meter.runs_per_second(),
        })
    }

    fn set_mode(&mut self, mode: Mode, environment: &Environment) -> Result<()> {
        if mode == self.mode && (mode == Mode::Watching || self.rests.is_some()) {
            return Ok(());
        }
        let done = self.programs.set_mode(mode, environment)?;
        self.mode = mode;
        if mode == Mode::Watching {
            self.rested += self.rests.take().map_or(Duration::ZERO, |since| since.elapsed());
        } else if done {
            self.rests = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes what has been observed, and reports the packets whose path has ended. The ring buffer is emptied in
    /// pieces; what is too much for one turn waits there for the next, and what does not fit there is counted as lost.
    fn observe(&mut self, session: &mut Session, assembler: &mut Assembler) -> Result<()> {
        for _ in 0..CHUNKS {
            let events = self.programs.consume()?;
            let more = !events.is_empty();
            for event in events {
                assembler.see(event);
            }
            assembler.settle(clock_ns(ClockId::CLOCK_MONOTONIC)?);
            let messages = assembler.take();
            if !messages.is_empty() {
                session.send_all(&messages)?;
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn look_at_counters(&mut self, assembler: &mut Assembler) -> Result<()> {
        let now = clock_ns(ClockId::CLOCK_MONOTONIC)?;
        for Rise { netns, what, detail } in self.counters.rises() {
            assembler.counted(now, netns, what, detail);
        }
        for (netns, periods, waited_us) in self.throttles.rises() {
            let detail = format!("throttled in {periods} periods, {} ms in all", waited_us / 1000);
            assembler.counted(now, netns, IncidentKind::CpuThrottled, detail);
        }
        Ok(())
    }

    fn counters(&mut self, assembler: &Assembler) -> Result<Counters> {
        let stats = self.programs.stats()?;
        let (programs, recursion_misses) = self.meter.read();
        Ok(Counters {
            matched: stats.matched,
            recorded: stats.recorded,
            sampled_out: stats.sampled_out,
            lost_events: stats.lost_events,
            untracked: stats.untracked,
            filter_misses: assembler.misses(),
            recursion_misses,
            programs,
            rested_ns: u64::try_from((self.rested + self.rests.map_or(Duration::ZERO, |since| since.elapsed())).as_nanos())
                .unwrap_or(u64::MAX),
            helper_cpu_ns: cost::cpu_ns(),
            helper_rss_bytes: cost::rss_bytes(),
            elapsed_ns: u64::try_from(self.armed.elapsed().as_nanos()).unwrap_or(u64::MAX),
            conntrack: self.conntrack.counts(),
        })
    }
}

/// A probe blocks, so it has a thread of its own; one that outlives the trace ends with the process.
fn start_probe(environment: &Environment, request: ProbeRequest, done: mpsc::Sender<Probed>) {
    let failed = |error: String| Probed {
        protocol: request.protocol,
        to: request.to.to_string(),
        answered: false,
        took_ns: 0,
        error: Some(error),
        why: None,
    };
    let Some(Ok(source)) = environment.source.as_ref().map(std::fs::File::try_clone) else {
        let _ = done.try_send(failed("the source is not on this node".to_owned()));
        return;
    };
    let group = environment.group_of_source();
    tokio::task::spawn_blocking(move || {
        let _ = done.blocking_send(probe::probe(&source, group.as_deref(), &request));
    });
}
