//! `status`, `stop` and `cleanup`: one look at what other sessions do on this node, or have left.

use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::Message;
use sockpath_protocol::accel::StopRequest;
use sockpath_protocol::message::EndReason;

use super::existing::Existing;
use crate::accel::pins::Pins;
use crate::session::Session;
use crate::short::pins as short;

/// How long `cleanup` waits for queues to drain.
const CLEANUP_DRAIN: Duration = Duration::from_secs(5);

/// Answers `status`.
pub fn status(session: &mut Session) -> Result<EndReason> {
    let status = Existing::open(&Pins::of(session.site()))?.status()?;
    session.send(&Message::Status(status))?;
    Ok(EndReason::Done)
}

/// Puts connections back on their normal path.
pub async fn stop(session: &mut Session, request: &StopRequest) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    if pins.exist() {
        end(session, &pins, &Existing::open(&pins)?, Duration::from_millis(request.drain_ms), &request.by).await?;
    }
    Ok(EndReason::Done)
}

/// Removes everything of sockpath that remains on this node and is not in use.
pub async fn cleanup(session: &mut Session) -> Result<EndReason> {
    let pins = Pins::of(session.site());
    if pins.exist() {
        let existing = Existing::open(&pins)?;
        match existing.user().await? {
            Some(owner) => session.warn(format!("what {owner} accelerates; `stop` ends it"))?,
            None => end(session, &pins, &existing, CLEANUP_DRAIN, "").await?,
        }
    }
    Ok(EndReason::Done)
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
