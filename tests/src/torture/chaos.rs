//! The actor that switches acceleration on and off while connections run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use sockpath_protocol::accel::Reason;

use super::accelerator::{self, Accelerator, Choice};
use super::prng::Prng;
use crate::lab::Lab;

/// How an acceleration ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EndMode {
    /// The plugin asks for the end.
    Finish,
    /// SIGTERM to the helper.
    Terminate,
    /// SIGINT to the helper.
    Interrupt,
    /// The plugin is killed: the helper's stdin closes.
    PluginDies,
    /// SIGKILL to the helper; the lease runs out by itself.
    HelperDies,
    /// The helper stands still (SIGSTOP) until the lease has run out, then goes on.
    LeaseRunsOut,
    /// It goes on without a helper until it is stopped.
    Detach,
}

/// What the actor did.
#[derive(Debug, Clone, Default)]
pub struct Deeds {
    /// How often acceleration was on, by how it ended.
    pub modes: BTreeMap<String, u64>,
    /// Bytes that went by the short path or socket to socket, as far as the helper lived to tell.
    pub bypassed_bytes: u64,
    /// Packets and messages that did.
    pub bypassed_messages: u64,
    /// Messages on sockets in the map that went by TCP, by reason.
    pub passes: BTreeMap<Reason, u64>,
    /// How long it was on, without the time that starting and ending took.
    pub on: Duration,
    /// Sockets that were still in the sockmap after the drain deadline.
    pub left_enrolled: u64,
}

/// Switches acceleration on and off at random until `over`, and leaves it off. Drops `on` when it is on for the first time, or when that fails.
///
/// # Errors
/// When the helper does not do as asked.
pub fn run(lab: &Lab, seed: u64, choice: &Choice, over: &AtomicBool, on: Sender<()>) -> Result<Deeds> {
    let mut first = Some(on);
    let mut rng = Prng::new(seed, u64::MAX);
    let mut deeds = Deeds::default();
    let modes = [
        EndMode::Finish,
        EndMode::Finish,
        EndMode::Terminate,
        EndMode::Interrupt,
        EndMode::PluginDies,
        EndMode::HelperDies,
        EndMode::LeaseRunsOut,
        EndMode::Detach,
    ];
    while !over.load(Ordering::Acquire) {
        let mode = rng.pick(&modes);
        let round = round(lab, mode, choice, &mut rng, &mut deeds, over, first.take());
        round.with_context(|| format!("acceleration that ends by {mode:?}"))?;
        *deeds.modes.entry(format!("{mode:?}")).or_default() += 1;
        doze(Duration::from_millis(rng.log_between(1, 300)), over);
    }
    Ok(deeds)
}

/// `first` is there at the first time: then it is on for all pods and for long, so that a short run shows something, too.
fn round(
    lab: &Lab,
    mode: EndMode,
    choice: &Choice,
    rng: &mut Prng,
    deeds: &mut Deeds,
    over: &AtomicBool,
    first: Option<Sender<()>>,
) -> Result<()> {
    let brief = matches!(mode, EndMode::HelperDies | EndMode::LeaseRunsOut | EndMode::Detach);
    let lease = Duration::from_millis(if brief { rng.between(1_000, 2_000) } else { 5_000 });
    // All pods, mostly; sometimes one end only, whose connections have to be excluded.
    let pods = if first.is_none() && rng.one_in(8) { vec![rng.pick(&["curl", "httpbin"]).to_owned()] } else { Vec::new() };
    let mut on = Accelerator::start_with(lab, &Choice { pods, lease, detach: mode == EndMode::Detach, ..choice.clone() })?;
    let began = Instant::now();
    // Starting takes seconds on a busy machine; most of the time it shall be on.
    let on_for = match first {
        Some(_) => rng.between(3_000, 6_000),
        None if rng.one_in(3) => rng.log_between(20, 2_000),
        None => rng.between(2_000, 12_000),
    };
    // Connections begin now.
    drop(first);
    doze(Duration::from_millis(on_for), over);
    deeds.on += began.elapsed();
    let summary = match mode {
        EndMode::Finish => on.finish()?,
        EndMode::Terminate => on.terminate(Signal::SIGTERM)?,
        EndMode::Interrupt => on.terminate(Signal::SIGINT)?,
        EndMode::PluginDies => on.hang_up()?,
        EndMode::HelperDies => {
            on.0.kill()?;
            if rng.one_in(2) {
                doze(lease + Duration::from_millis(200), over);
            }
            accelerator::stop(lab).context("stop after a killed helper")?.context("a killed helper left nothing to stop")?
        }
        EndMode::LeaseRunsOut => {
            on.0.signal(Signal::SIGSTOP)?;
            accelerator::await_lease_end(lab)?;
            on.0.signal(Signal::SIGCONT)?;
            on.finish()?
        }
        EndMode::Detach => {
            let summary = on.finish()?;
            let went_on = rng.below(1_500);
            doze(Duration::from_millis(went_on), over);
            // Its lease may have run out before, and then it has cleaned up.
            accelerator::stop(lab).context("stop after detach")?.unwrap_or(summary)
        }
    };
    deeds.left_enrolled += summary.left_enrolled;
    deeds.bypassed_bytes += summary.totals.bypassed_bytes;
    deeds.bypassed_messages += summary.totals.bypassed_messages;
    for (reason, count) in summary.totals.passes {
        *deeds.passes.entry(reason).or_default() += count;
    }
    Ok(())
}

/// Waits, but not past the end of the run.
fn doze(time: Duration, over: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !over.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(5).min(time));
    }
}

/// Makes sure that nothing of an acceleration is left.
///
/// # Errors
/// When something is.
pub fn nothing_left(lab: &Lab) -> Result<()> {
    let status = accelerator::status(lab)?;
    if status.active {
        bail!("still active after the last stop: {status:?}");
    }
    Ok(())
}
