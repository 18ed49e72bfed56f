//! What one end of a connection saw, and whether a TCP socket may show that.

use std::io;

use serde::{Deserialize, Serialize};

use super::plan::{Ending, Plan, Shape, Side};

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// This side did not look.
    NotSeen,
    /// All written, or end of stream read.
    Done,
    /// `ECONNRESET`.
    Reset,
    /// `EPIPE`.
    BrokenPipe,
    /// Another error, by number.
    Error(i32),
}

impl End {
    /// The end that an error means.
    #[must_use]
    pub fn of(e: &io::Error) -> Self {
        match e.raw_os_error() {
            Some(libc::ECONNRESET) => Self::Reset,
            Some(libc::EPIPE) => Self::BrokenPipe,
            Some(n) => Self::Error(n),
            None => Self::Error(0),
        }
    }
}

/// What one end saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Bytes read, all of them right unless a fault says otherwise.
    pub received: u64,
    /// Bytes written.
    pub sent: u64,
    /// How reading ended.
    pub read_end: End,
    /// How writing ended.
    pub write_end: End,
    /// How often FIONREAD counted 0 bytes where some were unread, for a reader that uses it now and then: a known deviation.
    pub misled: u32,
    /// What no TCP socket may do, in words.
    pub faults: Vec<String>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { received: 0, sent: 0, read_end: End::NotSeen, write_end: End::NotSeen, misled: 0, faults: Vec::new() }
    }
}

/// The side that closes first where neither is forced to, and whether it half-closes.
#[must_use]
pub fn closer(plan: &Plan) -> (Side, bool) {
    (if plan.id & 2 == 0 { Side::Client } else { Side::Server }, plan.id & 1 == 0)
}

/// What `side` has to see when the plan alone decides it.
#[must_use]
pub fn expected(plan: &Plan, side: Side) -> Option<Outcome> {
    let (mine, theirs) = (plan.of(side), plan.of(side.other()));
    let last = |p: &super::plan::SidePlan| p.writes.last().copied().map_or(0, u64::from);
    let mut o = Outcome { received: theirs.total(), sent: mine.total(), read_end: End::Done, write_end: End::Done, ..Outcome::default() };
    match (plan.shape, plan.ending) {
        (_, Ending::Abrupt(..)) => return None,
        (Shape::Upload, _) if side == Side::Client => o.read_end = End::NotSeen,
        (Shape::Download, _) if side == Side::Server => o.read_end = End::NotSeen,
        (Shape::PingPong, Ending::Graceful) => {
            let (by, half) = closer(plan);
            if side == by && !half {
                o.read_end = End::NotSeen;
            }
        }
        (Shape::PingPong, Ending::ResetAfterAll(by) | Ending::CloseUnread(by)) => {
            let half_read = matches!(plan.ending, Ending::CloseUnread(_));
            o.read_end = if side == by { End::NotSeen } else { End::Reset };
            // A server breaks off instead of its last answer.
            if by == Side::Server {
                if side == Side::Server { o.sent -= last(mine) } else { o.received -= last(theirs) }
            }
            if half_read && side == by {
                o.received -= last(theirs) - last(theirs) / 2;
            }
        }
        (Shape::PingPong, Ending::WriteAfterClose(by)) => {
            if side == by {
                o.read_end = End::NotSeen;
            } else {
                o.write_end = End::BrokenPipe;
            }
        }
        _ => {}
    }
    Some(o)
}

/// Whether this is the one known deviation of accelerated connections: the peer closed with unread bytes, and this side saw the end
/// of the stream instead of a reset.
#[must_use]
pub fn deviates(plan: &Plan, side: Side, outcome: &Outcome) -> bool {
    plan.ending == Ending::CloseUnread(side.other()) && outcome.read_end == End::Done && outcome.faults.is_empty()
}

/// Adds what is wrong with an outcome. `doomed` means that the peer may have been killed at any moment.
pub fn judge(plan: &Plan, side: Side, doomed: bool, outcome: &mut Outcome) {
    let most = plan.of(side.other()).total();
    let found = &*outcome;
    let fault = if found.received > most {
        Some(format!("read {} bytes of a stream of {most}", found.received))
    } else if doomed {
        None
    } else if let Some(mut expected) = expected(plan, side) {
        expected.faults.clone_from(&found.faults);
        expected.misled = found.misled;
        (expected != *found).then(|| {
            format!(
                "read {} of {} ending {:?} (expected {:?}), wrote {} of {} ending {:?} (expected {:?})",
                found.received,
                expected.received,
                found.read_end,
                expected.read_end,
                found.sent,
                expected.sent,
                found.write_end,
                expected.write_end
            )
        })
    } else {
        let Ending::Abrupt(by, at) = plan.ending else { return };
        let broken = |e| matches!(e, End::Reset | End::BrokenPipe);
        // One of the two directions hears of the reset first; the other then finds end of stream or a broken pipe.
        let fine = side == by
            || (found.received <= at && (found.read_end == End::Reset || (found.read_end == End::Done && broken(found.write_end))));
        (!fine).then(|| {
            format!("after a reset at {at}: read {} ending {:?}, writing ended {:?}", found.received, found.read_end, found.write_end)
        })
    };
    outcome.faults.extend(fault);
}
