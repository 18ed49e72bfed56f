//! `status`, `stop` and `cleanup`: one look at what other sessions do on this node, or have left.

use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::Message;
use sockpath_protocol::accel::StopRequest;
use sockpath_protocol::message::EndReason;

use super::existing::Existing;
use crate::accel::stop::LOOK_AGAIN;
use crate::pins::{Pins, is_missing};
use crate::session::Session;
use crate::short::pins as short;

/// How long `cleanup` waits for queues to drain.
const CLEANUP_DRAIN: Duration = Duration::from_secs(5);

/// How long another process may take to remove its pins.
const REMOVAL: Duration = Duration::from_secs(2);

/// Answers `status`.
pub async fn status(session: &mut Session) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    let status = match Existing::open(&pins).and_then(|existing| existing.status()) {
        Err(e) if is_gone(&pins, &e).await => Existing::open(&pins)?.status()?,
        status => status?,
    };
    session.send(&Message::Status(status))?;
    Ok(EndReason::Done)
}

/// Puts connections back on their normal path.
pub async fn stop(session: &mut Session, request: &StopRequest) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    if pins.exist() {
        let stopped = stop_existing(session, &pins, request).await;
        unless_gone(&pins, stopped).await?;
    }
    Ok(EndReason::Done)
}

/// Removes everything of sockpath that remains on this node and is not in use.
pub async fn cleanup(session: &mut Session) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    if pins.exist() {
        let cleaned = clean_existing(session, &pins).await;
        unless_gone(&pins, cleaned).await?;
    }
    Ok(EndReason::Done)
}

async fn stop_existing(session: &mut Session, pins: &Pins, request: &StopRequest) -> Result<()> {
    end(session, pins, &Existing::open(pins)?, Duration::from_millis(request.drain_ms), &request.by).await
}

async fn clean_existing(session: &mut Session, pins: &Pins) -> Result<()> {
    let existing = Existing::open(pins)?;
    match existing.user().await? {
        Some(owner) => session.warn(format!("what {owner} accelerates; `stop` ends it")),
        None => end(session, pins, &existing, CLEANUP_DRAIN, "").await,
    }
}

/// The same, where nothing that is missing by then is an error.
async fn unless_gone(pins: &Pins, done: Result<()>) -> Result<()> {
    match done {
        Err(e) if is_gone(pins, &e).await => Ok(()),
        done => done,
    }
}

/// Whether this failed because the acceleration's own process, or another `stop`, is just removing its pins: waits until they are gone.
async fn is_gone(pins: &Pins, e: &anyhow::Error) -> bool {
    let until = Instant::now() + REMOVAL;
    while is_missing(e) && pins.exist() && Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    is_missing(e) && !pins.exist()
}

/// Drains, removes, unpins, and reports it. The session that accelerates learns who has done so.
async fn end(session: &mut Session, pins: &Pins, existing: &Existing, drain: Duration, by: &str) -> Result<()> {
    if !existing.is_empty() {
        let summary = existing.stop(by, drain).await?;
        let left = summary.left_enrolled;
        session.send(&Message::Summary(summary))?;
        if left > 0 {
            pins.unpin(short::is_ours)?;
            session.warn(format!(
                "{left} sockets still have unread bytes in their queues; they go by TCP, and the pins in {} stay until a later `stop` finds them empty",
                pins.dir().display()
            ))?;
            return Ok(());
        }
    }
    let removed = pins.remove()?;
    session.send(&Message::Removed { what: format!("{} ({removed} pins)", pins.dir().display()) })
}
