//! An acceleration while its session lasts.

use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, Via};
use sockpath_protocol::bypass::BypassKind;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::{Message, Request};

use super::detached::{self, Afterwards};
use super::driver::{Controller, Driver};
use super::engines::Engines;
use super::existing::Existing;
use super::merge;
use crate::accel::bypassed;
use crate::accel::chosen::Chosen;
use crate::accel::event_loop::{self, refreshed};
use crate::accel::instance::Instance;
use crate::accel::programs::Programs;
use crate::accel::proven::Proven;
use crate::accel::report::Snapshot;
use crate::accel::stop::{LOOK_AGAIN, dismantle};
use crate::coded::Coded;
use crate::pins::Pins;
use crate::schedule::REPORT;
use crate::session::{Inbound, Session};

/// How long queues may take to drain when the session ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves an acceleration until it is done or the session has to end, and what this process goes on with when the session is over.
pub async fn run(session: &mut Session, request: AccelerateRequest) -> Result<(EndReason, Option<Afterwards>)> {
    let mut chosen = find_pods(session, &request)?;
    let pins = Pins::of(session.site());
    claim(session, &pins).await?;
    report_bypassed(session, &chosen, &request)?;
    let engines = Engines::start(session, &pins, &request, &chosen)?;
    if request.dry_run_ms.is_some() {
        let reason = watch(session, &engines, &chosen, &request).await;
        drop(engines);
        pins.remove()?;
        return Ok((reason?, None));
    }
    if engines.socket.is_none() {
        // The short path holds the network namespace of no pod.
        chosen = Chosen::none(session.site());
    }
    let controller = Controller::Plugin { session: &mut *session, lease: Duration::from_millis(request.lease_ms) };
    let mut driver = Driver::new(controller, engines.short.as_ref());
    let reason = match &engines.socket {
        Some(instance) => event_loop::run(instance, &mut chosen, &mut driver, Proven::with(&request.socket_programs)).await,
        None => driver.run_short().await,
    };
    let stopped = driver.stopped.take();
    finish(session, Run { pins, engines, chosen, request, stopped }, reason).await
}

/// An acceleration whose session is about to end.
struct Run {
    pins: Pins,
    engines: Engines,
    chosen: Chosen,
    request: AccelerateRequest,
    /// The owner of the short path with who has ended it, if another session has.
    stopped: Option<String>,
}

/// Leaves it to go on, or ends it.
async fn finish(session: &mut Session, run: Run, reason: Result<EndReason>) -> Result<(EndReason, Option<Afterwards>)> {
    session.ends();
    let Run { pins, engines, chosen, request, stopped } = run;
    let is_stopped = stopped.is_some() || engines.socket.as_ref().is_some_and(Instance::is_stopped);
    if request.detach && reason.is_ok() && !is_stopped {
        let afterwards = detached::hand_over(session, &pins, engines, request)?;
        return Ok((reason?, afterwards));
    }
    if is_stopped {
        // The other session drains and removes; two at once would interfere.
        let until = Instant::now() + DRAIN;
        while pins.exist() && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let by_socket = engines.socket.as_ref().and_then(|instance| instance.control().stopped_by());
        let by = by_socket.or_else(|| crate::short::pins::stopped_by(&stopped?)).unwrap_or_else(|| "another session".to_owned());
        session.send(&Message::Summary(AccelSummary { stopped_by: Some(by), ..engines.summary(false)? }))?;
        return Ok((reason?, None));
    }
    let Engines { short, socket } = engines;
    // One that has failed has ended its redirects.
    let of_short = short.map(|worker| worker.stop()).transpose()?;
    let mut summary = match &socket {
        Some(instance) => dismantle(instance, chosen.pods(), DRAIN).await?,
        None => AccelSummary { ran_ms: of_short.as_ref().map_or(0, |s| s.ran_ms), ..AccelSummary::default() },
    };
    if let Some(short) = &of_short {
        merge::add_path(&mut summary.totals, &short.totals);
    }
    let left = summary.left_enrolled;
    session.send(&Message::Summary(summary))?;
    if left == 0 {
        drop(socket);
        pins.remove()?;
    } else {
        pins.unpin(crate::short::pins::is_ours)?;
    }
    Ok((reason?, None))
}

/// The pods of the request as this node has them.
fn find_pods(session: &mut Session, request: &AccelerateRequest) -> Result<Chosen> {
    let (chosen, warnings) = Chosen::find(session.site(), &request.pods, &request.elsewhere);
    if request.via != Via::Short {
        warnings.into_iter().try_for_each(|text| session.warn(text))?;
    }
    if chosen.pods().is_empty() {
        return Err(Coded::new("no-pods", "none of the chosen pods runs on this node"));
    }
    Ok(chosen)
}

/// Claims the node; what a run has left whose lease is over is removed.
async fn claim(session: &mut Session, pins: &Pins) -> Result<()> {
    if pins.claim(session.site())? {
        return Ok(());
    }
    let existing = Existing::open(pins)?;
    if !existing.is_empty() {
        if !existing.is_helper_gone()? {
            return Err(Coded::new(
                "held",
                format!(
                    "{} accelerates on this node already (ends in {} s unless renewed); end it with `kubectl sockpath stop{}`",
                    existing.owner(),
                    existing.time_left()?.as_secs().max(1),
                    if session.site().is_lab() { " --lab" } else { "" }
                ),
            ));
        }
        if existing.stop("", DRAIN).await?.left_enrolled > 0 {
            return Err(Coded::new(
                "held",
                "what an earlier run left still holds unread bytes; read or close those connections and try again",
            ));
        }
        session.warn(format!("removed what {} left behind", existing.owner()))?;
    }
    drop(existing);
    pins.remove()?;
    if pins.claim(session.site())? {
        Ok(())
    } else {
        Err(Coded::new("held", "another session has just started to accelerate on this node"))
    }
}

/// Reports what connections on these paths bypass, before any program is attached.
fn report_bypassed(session: &mut Session, chosen: &Chosen, request: &AccelerateRequest) -> Result<()> {
    let bypassed::Findings { mut bypassed, unknown } = bypassed::find(chosen, request);
    if request.via == Via::Short {
        // It begins behind the pods' own devices, and connections of devices with limits, filters or programs are refused.
        bypassed.retain(|b| b.kind == BypassKind::NetfilterRule && !b.place.ends_with("in the pod"));
    }
    session.send(&Message::Bypassed { found: bypassed })?;
    unknown.into_iter().try_for_each(|text| session.warn(text))
}

/// Only reports what would be done.
async fn watch(session: &mut Session, engines: &Engines, chosen: &Chosen, request: &AccelerateRequest) -> Result<EndReason> {
    let _observers = match &engines.socket {
        Some(instance) => {
            let observers = (instance.observe_calls()?, instance.observe_sends()?, instance.observe_arrivals()?);
            instance.control().begin_epoch();
            instance.control().observe_arrivals(true);
            Some(observers)
        }
        None => None,
    };
    let mut programs = Programs::new(Proven::with(&request.socket_programs));
    let end = Instant::now() + Duration::from_millis(request.dry_run_ms.unwrap_or(0));
    let mut snapshots = tokio::time::interval(REPORT);
    let reason = loop {
        tokio::select! {
            inbound = session.next() => match inbound {
                Inbound::Request(Request::Finish) => break EndReason::Finished,
                Inbound::Request(_) => {}
                Inbound::Stop(reason) => break reason,
            },
            () = tokio::time::sleep_until(end.into()) => break EndReason::Done,
            _ = snapshots.tick() => preview(session, engines, chosen, &mut programs)?,
        }
    };
    preview(session, engines, chosen, &mut programs)?;
    session.send(&Message::Summary(engines.summary(false)?))?;
    Ok(reason)
}

/// Reports the paths that connections would take.
fn preview(session: &mut Session, engines: &Engines, chosen: &Chosen, programs: &mut Programs) -> Result<()> {
    let short = engines.short.as_ref().map(crate::short::Worker::snapshot).transpose()?;
    let socket = engines.socket.as_ref().map(|instance| {
        let mut all = refreshed(instance, chosen)?;
        programs.judge(instance, &mut all)?;
        anyhow::Ok(Snapshot { instance, all: &all, pods: chosen.names(), dry: true }.collect())
    });
    let pairs = match (socket.transpose()?, short) {
        (Some(socket), Some(short)) => merge::snapshots(socket, short),
        (one, other) => one.or(other).unwrap_or_default(),
    };
    session.send(&Message::Pairs(pairs))
}
