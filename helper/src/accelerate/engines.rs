//! The two paths of a session, as far as the request and the kernel allow them.

use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::Message;
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, Via};

use super::merge;
use crate::accel::chosen::Chosen;
use crate::accel::instance::Instance;
use crate::accel::mechanism::Mechanism;
use crate::accel::self_test;
use crate::accel::start::Start;
use crate::accel::stop::summary;
use crate::accel::tracking;
use crate::coded::Coded;
use crate::pins::Pins;
use crate::session::Session;
use crate::short::{Worker, pins as short};
use crate::switches;

/// What carries connections past the stack. One of them at least is there.
#[derive(Debug)]
pub struct Engines {
    /// The short path.
    pub short: Option<Worker>,
    /// The socket path.
    pub socket: Option<Instance>,
}

impl Engines {
    /// Starts what the request asks for on claimed pins. With [`Via::Auto`] one path that cannot be had is warned of and done without.
    ///
    /// # Errors
    /// Why a path cannot be had; nothing is left then.
    pub fn start(session: &mut Session, pins: &Pins, request: &AccelerateRequest, chosen: &Chosen) -> Result<Self> {
        let mut engines = Self { short: None, socket: None };
        match engines.start_all(session, pins, request, chosen) {
            Ok(()) => Ok(engines),
            Err(e) => {
                drop(engines);
                pins.remove().context("after a failed start")?;
                Err(e)
            }
        }
    }

    fn start_all(&mut self, session: &mut Session, pins: &Pins, request: &AccelerateRequest, chosen: &Chosen) -> Result<()> {
        let mut failed = None;
        if request.via != Via::Socket {
            match start_short(session, request) {
                Ok(worker) => self.short = worker,
                Err(e) if request.via == Via::Auto => failed = Some(e),
                Err(e) => return Err(e),
            }
        }
        if request.via != Via::Short {
            match start_socket(session, pins, request, chosen) {
                Ok(instance) => self.socket = Some(instance),
                Err(e) if self.short.is_some() => {
                    pins.unpin(|name| !short::is_ours(name)).context("after a failed start")?;
                    session.warn(format!("the socket path cannot be used on this node, connections get the short path only: {e:#}"))?;
                }
                Err(e) => {
                    return Err(match failed {
                        Some(short) => {
                            e.context(format!("neither the short path can be used on this node ({short:#}) nor the socket path"))
                        }
                        None => e,
                    });
                }
            }
        }
        if let (Some(e), Some(_)) = (failed, &self.socket) {
            session.warn(format!("the short path cannot be used on this node, proven connections get the socket path only: {e:#}"))?;
        }
        if self.short.is_none() && self.socket.is_none() {
            return Err(Coded::new("no-pods", "none of the chosen pods runs on this node"));
        }
        Ok(())
    }

    /// What both achieved so far.
    pub fn summary(&self, detached: bool) -> Result<AccelSummary> {
        let short = self.short.as_ref().map(Worker::snapshot).transpose()?;
        let mut all = self.socket.as_ref().map_or_else(|| Ok(AccelSummary::default()), |instance| summary(instance, detached))?;
        if let Some(short) = short {
            merge::add_path(&mut all.totals, &short.totals);
        }
        all.detached = detached;
        Ok(all)
    }
}

fn start_short(session: &mut Session, request: &AccelerateRequest) -> Result<Option<Worker>> {
    let (worker, warnings) = Worker::start(session.site(), request).context("the short path cannot be used")?;
    if request.via == Via::Short {
        warnings.into_iter().try_for_each(|text| session.warn(text))?;
    }
    Ok(worker)
}

/// Loads the programs, tries the kernel out on private sockets, then tracks the sockets of the pods.
fn start_socket(session: &mut Session, pins: &Pins, request: &AccelerateRequest, chosen: &Chosen) -> Result<Instance> {
    let start = Start {
        owner: &request.owner,
        lease: Duration::from_millis(request.lease_ms),
        leave_blocking_readers: request.leave_blocking_readers,
        detached: request.detach,
        without: if switches::is_absent("sockmap") { &[Mechanism::Messages] } else { &[] },
    };
    let instance = Instance::create(pins, &start)?;
    let tests = self_test::run(&instance).context("the kernel could not be tried out on private sockets")?;
    let is_sound = tests.iter().all(|c| c.passed);
    let failed = tests.iter().find(|c| !c.passed && c.corruption_risk).cloned();
    for test in tests {
        session.send(&Message::Canary(test))?;
    }
    if let Some(failed) = failed.filter(|_| !switches::without_order_gate()) {
        return Err(Coded::new(
            "canary",
            format!(
                "this kernel's sockmap does not keep the bytes of a connection safe ({}: {}); nothing was touched",
                failed.name, failed.detail
            ),
        ));
    }
    instance.control().set_selective(request.via == Via::Auto && !is_sound);
    tracking::attach(&instance, chosen.pods())?;
    for pod in chosen.pods() {
        instance.track_live(pod)?;
    }
    Ok(instance)
}
