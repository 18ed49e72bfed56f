//! What one side of a connection does.

use super::listener::Listener;
use super::prng::Prng;
use super::reader::ReaderKind;
use super::writer::WriterKind;

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::Client { Self::Server } else { Self::Client }
    }
}

/// What one side does.
#[derive(Debug, Clone)]
pub struct SidePlan {
    /// Its writes, in bytes each.
    pub writes: Vec<u32>,
    /// How it writes.
    pub writer: WriterKind,
    /// How it reads.
    pub reader: ReaderKind,
    /// Most bytes asked for in one read.
    pub read_size: usize,
    /// Microseconds of pause before one write in eight; 0 for none.
    pub write_pause_us: u64,
    /// Microseconds of pause before one read in eight; 0 for none.
    pub read_pause_us: u64,
    /// `SO_SNDBUF`.
    pub send_buffer: Option<i32>,
    /// `SO_RCVBUF`.
    pub receive_buffer: Option<i32>,
    /// `TCP_NODELAY`.
    pub nodelay: bool,
    /// `SO_LINGER` with a time, so that close(2) waits.
    pub linger: bool,
}

impl SidePlan {
    /// Bytes it writes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.writes.iter().map(|w| u64::from(*w)).sum()
    }

    /// How many of its writes lie whole within its first `sent` bytes.
    #[must_use]
    pub fn messages(&self, sent: u64) -> u64 {
        let ends = self.writes.iter().scan(0, |at, w| {
            *at += u64::from(*w);
            Some(*at)
        });
        ends.take_while(|end| *end <= sent).count() as u64
    }
}

/// A side at random. One that `polls` waits elsewhere than in its receive calls, so that it is accelerated by default.
pub fn side_plan(r: &mut Prng, ping_pong: bool, polls: bool) -> SidePlan {
    let count = if r.one_in(20) { 0 } else { r.log_between(1, if ping_pong { 64 } else { 200 }) };
    let (low, high) = r.pick(&[(1, 64), (50, 2_000), (1, 65_536), (1_000, 20_000), (65_536, 1 << 20)]);
    let mut budget = r.log_between(1_000, 2 << 20);
    let mut writes = Vec::new();
    for _ in 0..count.max(u64::from(ping_pong)) {
        let n = r.log_between(low, high).min(budget.max(1));
        budget = budget.saturating_sub(n);
        writes.push(u32::try_from(n).unwrap_or(u32::MAX));
        if budget == 0 {
            break;
        }
    }
    let reader = match () {
        () if polls => r.pick(&ReaderKind::POLLING),
        () if r.one_in(14) => ReaderKind::Threads,
        () => r.pick(&ReaderKind::SINGLE),
    };
    let mut writer = if r.one_in(3) { WriterKind::Send } else { r.pick(&WriterKind::ALL) };
    if polls && matches!(writer, WriterKind::Zerocopy | WriterKind::Urgent) && !r.one_in(4) {
        writer = WriterKind::Sendmsg;
    }
    let pause = |r: &mut Prng| if r.one_in(5) { r.log_between(10, 4_000) } else { 0 };
    let buffer = |r: &mut Prng| match r.below(8) {
        0 => Some(i32::try_from(r.between(2_048, 8_192)).unwrap_or(4_096)),
        1 => Some(4 << 20),
        _ => None,
    };
    SidePlan {
        writes,
        writer,
        reader,
        read_size: usize::try_from(r.log_between(1, 256 << 10)).unwrap_or(1),
        write_pause_us: pause(r),
        read_pause_us: pause(r),
        send_buffer: buffer(r),
        receive_buffer: buffer(r),
        nodelay: r.one_in(2),
        linger: r.one_in(8),
    }
}

/// MPTCP knows fewer calls and other resets than TCP; what is left has to end gracefully.
pub fn restrict_to_mptcp(client: &mut SidePlan, server: &mut SidePlan) {
    for side in [client, server] {
        if !matches!(side.writer, WriterKind::Send | WriterKind::Write | WriterKind::Sendmsg | WriterKind::Nonblocking) {
            side.writer = WriterKind::Send;
        }
        if matches!(side.reader, ReaderKind::Splice | ReaderKind::LowWater | ReaderKind::WaitAll | ReaderKind::Fionread | ReaderKind::Mixed)
        {
            side.reader = ReaderKind::Recv;
        }
        side.linger = false;
    }
}

/// Whether a buffer is so small that a segment may wait for a timer of 200 ms (silly window avoidance).
fn is_tiny(buffer: Option<i32>) -> bool {
    buffer.is_some_and(|b| b < 65_536)
}

/// Keeps a read that waits for all it asks for within what plain TCP brings in a few seconds through a tiny window.
pub fn limit_waiting(to: &mut SidePlan, listener: Listener) {
    if to.reader == ReaderKind::WaitAll && (listener == Listener::TinyBuffers || is_tiny(to.receive_buffer)) {
        to.read_size = to.read_size.min(4 << 10);
    }
}

/// Keeps one direction within `most` bytes and what a plain run finishes in a few seconds: `to` reads what `from` writes.
pub fn limit(from: &mut SidePlan, to: &SidePlan, listener: Listener, most: u64) {
    let most: u64 =
        if listener == Listener::TinyBuffers || is_tiny(to.receive_buffer) || is_tiny(from.send_buffer) { 48 << 10 } else { most };
    // Bounds the number of reads.
    let most = most.min(to.read_size as u64 * 2_000);
    let mut left = most;
    for write in &mut from.writes {
        *write = u32::try_from(u64::from(*write).min(left.max(1))).unwrap_or(u32::MAX);
        left = left.saturating_sub(u64::from(*write));
    }
}
