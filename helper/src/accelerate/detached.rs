//! An acceleration that outlives its session: a process tracks and pairs connections until its time is over. In a helper pod it is the
//! one that served the session, and the pod stays as long as it does; in the lab it is a process of its own. Without it (it was
//! killed, for instance) pairs in the sockmap go on until the lease ends, the short path ends with its process, and new connections use TCP.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, Via};
use sockpath_protocol::limits::LONGEST_REQUEST;
use sockpath_protocol::{Message, Request};

use super::driver::{Controller, Driver};
use super::engines::Engines;
use crate::accel::chosen::Chosen;
use crate::accel::event_loop;
use crate::accel::instance::Instance;
use crate::accel::proven::Proven;
use crate::accel::stop::dismantle;
use crate::accel::tracking;
use crate::pins::Pins;
use crate::session::Session;
use crate::short::Worker;
use crate::short::pins::is_ours;
use crate::site::Site;

/// How long queues may take to drain when the lease has ended.
const DRAIN: Duration = Duration::from_secs(30);
const DRAIN_IN_POD: Duration = Duration::from_secs(10);

/// How long the process may take to go on with what the session has begun, in milliseconds.
const READY_MS: u16 = 30_000;

/// What goes on in the process of a helper pod after its session.
#[derive(Debug)]
pub struct Afterwards {
    request: AccelerateRequest,
    short: Option<Worker>,
}

/// Leaves an acceleration to the process that goes on with it, and reports so; what this process has to go on with, if it is the one.
pub fn hand_over(session: &mut Session, pins: &Pins, engines: Engines, request: AccelerateRequest) -> Result<Option<Afterwards>> {
    let lease = Duration::from_millis(request.lease_ms);
    if let Some(instance) = &engines.socket {
        instance.control().end_after(lease)?;
        instance.control().renew(lease)?;
    }
    let summary = AccelSummary { left_enrolled: 0, ..engines.summary(true)? };
    let Engines { short: worker, socket } = engines;
    drop(socket);
    if request.stay {
        session.send(&Message::Summary(summary))?;
        return Ok(Some(Afterwards { request, short: worker }));
    }
    // The process starts a short path of its own: what this one has approved takes the stack until then.
    drop(worker);
    pins.unpin(is_ours)?;
    let spawned = spawn(&request);
    session.send(&Message::Summary(summary))?;
    match spawned {
        Err(e) if request.via != Via::Short => {
            session.warn(format!("connections that are made from now on are not accelerated: {e:#}"))?;
        }
        Err(e) => {
            pins.remove()?;
            return Err(e);
        }
        Ok(()) => {}
    }
    Ok(None)
}

/// Starts the process, which reads the request from its stdin, and waits until it goes on.
fn spawn(request: &AccelerateRequest) -> Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .arg("serve-detached")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Ctrl-C in the terminal of the plugin is not meant for it.
        .process_group(0)
        .spawn()
        .context("cannot start the process that serves them")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    serde_json::to_writer(&mut stdin, request).context("cannot hand over the request")?;
    stdin.flush().context("cannot hand over the request")?;
    drop(stdin);
    let mut stdout = child.stdout.take().context("no stdout")?;
    let ready = poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], PollTimeout::from(READY_MS)).context("cannot wait for it")?;
    ensure!(ready > 0, "the process that serves them is not ready after {} s", READY_MS / 1000);
    let mut word = String::new();
    stdout.read_to_string(&mut word).context("cannot wait for the process that serves them")?;
    ensure!(word.trim() == "ready", "the process that serves them has failed: {}", word.trim());
    Ok(())
}

/// What that process does.
///
/// # Errors
/// When the request cannot be read, or the kernel refuses.
pub async fn run(site: &Site) -> Result<ExitCode> {
    let mut request = Vec::new();
    std::io::stdin().take(LONGEST_REQUEST as u64 + 1).read_to_end(&mut request).context("cannot read the request")?;
    if request.len() > LONGEST_REQUEST {
        bail!("the request has more than {LONGEST_REQUEST} bytes");
    }
    let request = serde_json::from_slice(&request).context("cannot read the request")?;
    let request = Request::Accelerate(Box::new(request));
    request.check().context("the request cannot be served")?;
    let Request::Accelerate(request) = request else { bail!("the request is for something else") };
    let short = match start_short(site, &request) {
        Ok(short) => short,
        Err(e) => {
            report(&format!("{e:#}"));
            return Err(e);
        }
    };
    report("ready");
    go_on(site, &request, short, None).await?;
    Ok(ExitCode::SUCCESS)
}

/// A short path that goes on; with [`Via::Auto`] it is done without where it cannot be had.
fn start_short(site: &Site, request: &AccelerateRequest) -> Result<Option<Worker>> {
    match Worker::start(site, request) {
        _ if request.via == Via::Socket => Ok(None),
        Err(_) if request.via == Via::Auto => Ok(None),
        outcome => outcome.map(|(worker, _)| worker),
    }
}

/// Tells the session that waits how it went: a word, and the end of the stream.
fn report(word: &str) {
    // A session that has ended does not read.
    let _ = std::io::stdout().write_all(word.as_bytes());
    let _ = std::io::stdout().flush();
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

/// What the process of a helper pod does after its session: the pod is there for as long as it goes on.
pub async fn stay(session: &mut Session, afterwards: Afterwards) -> Result<()> {
    let Afterwards { request, short } = afterwards;
    go_on(&session.site().clone(), &request, short, Some(session)).await
}

/// Runs the event loop until the lease ends, another session stops it, or a signal (eviction, node drain, deletion of the pod) asks for an end.
async fn go_on(site: &Site, request: &AccelerateRequest, short: Option<Worker>, session: Option<&mut Session>) -> Result<()> {
    let until = Instant::now() + Duration::from_millis(request.lease_ms);
    let pins = Pins::of(site);
    let instance = if request.via == Via::Short { None } else { Instance::open(&pins)? };
    // The short path needs no pods here, and holds the network namespace of none.
    let mut chosen = match &instance {
        Some(_) => Chosen::find(site, &request.pods, &request.elsewhere).0,
        None => Chosen::none(site),
    };
    // A pod that is being deleted has 15 s left.
    let drain = if session.is_some() { DRAIN_IN_POD } else { DRAIN };
    let mut driver = Driver::new(Controller::Nobody { session, until }, short.as_ref());
    match &instance {
        Some(instance) => {
            tracking::take_over(instance, chosen.pods())?;
            event_loop::run(instance, &mut chosen, &mut driver, Proven::with(&request.socket_programs)).await?;
        }
        None if short.is_some() => {
            driver.run_short().await?;
        }
        None => return Ok(()),
    }
    if driver.stopped.is_some() || instance.as_ref().is_some_and(Instance::is_stopped) {
        return Ok(());
    }
    if let Some(worker) = &short {
        worker.stop()?;
        pins.unpin(is_ours)?;
    }
    let left = match &instance {
        Some(instance) => dismantle(instance, chosen.pods(), drain).await?.left_enrolled,
        None => 0,
    };
    if left == 0 {
        drop(instance);
        pins.remove()?;
    }
    Ok(())
}
