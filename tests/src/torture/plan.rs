//! What a connection does, derived from the seed and its number alone, so that both ends know it without talking about it.

use std::fmt;

use super::listener::Listener;
use super::prng::Prng;
use super::reader::ReaderKind;
pub use super::side::{Side, SidePlan};
use super::side::{limit, limit_waiting, restrict_to_mptcp, side_plan};
use super::writer::WriterKind;

/// Connections with a number from here on go to servers that are killed, or run where memory is tight: MPTCP stalls there even
/// without us (seen on 6.18, seed 105).
pub const DOOMED: u64 = 30_000_000_000;

/// Connections with a number from here on run where memory is tight.
pub const TIGHT: u64 = 45_000_000_000;

/// Numbers of connections between programs that use FIONREAD begin here: where the kernel's FIONREAD cannot be trusted, all connections
/// of a program that was seen to use it are excluded.
pub const ASKING: u64 = 60_000_000_000;

/// The message before which a client waits once.
pub const SETTLED: usize = 5;

/// The order in which both ends act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Both ends write and read at once, each in its own thread.
    Duplex,
    /// Only the client writes, then closes at once.
    Upload,
    /// Only the server writes, then closes at once.
    Download,
    /// Requests and answers in turn: write `i` of the server answers write `i` of the client.
    PingPong,
    /// The client writes everything and half-closes; the server answers after end of stream.
    AnswerAfterEof,
}

/// How the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both see everything, then end of stream.
    Graceful,
    /// After a whole exchange this side resets (`SO_LINGER` 0).
    ResetAfterAll(Side),
    /// In the last message this side reads half, knows the rest is there, and closes: that resets.
    CloseUnread(Side),
    /// After a whole exchange this side closes, the other writes on until it gets `EPIPE`.
    WriteAfterClose(Side),
    /// This side resets after so many bytes, whatever the other is doing.
    Abrupt(Side, u64),
}

/// What one connection does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its number.
    pub id: u64,
    /// The listener it goes to.
    pub listener: Listener,
    /// Whether it goes to the listener's `AF_INET6` socket.
    pub server_v6: bool,
    /// Whether the client uses an `AF_INET6` socket even for a v4 address.
    pub client_v6: bool,
    /// Who acts when.
    pub shape: Shape,
    /// How it ends.
    pub ending: Ending,
    /// The client's part.
    pub client: SidePlan,
    /// The server's part.
    pub server: SidePlan,
    /// Whether the client's first write carries the header too.
    pub joined_header: bool,
    /// Microseconds the server waits between accept and its first read.
    pub accept_pause_us: u64,
    /// So many writes of each side are exchanged in turn before the shape begins: acceleration needs to know how a side reads.
    pub prelude: usize,
    /// Microseconds that the client waits once before message [`SETTLED`]: the helper of a busy machine needs them to take the pair in.
    pub settle_us: u64,
}

impl Plan {
    /// The plan of connection `id` in the run `seed`.
    #[must_use]
    pub fn new(seed: u64, id: u64) -> Self {
        let mut r = Prng::new(seed, id);
        let mut listener = if r.one_in(3) { Listener::Plain } else { r.pick(&Listener::ALL) };
        if listener == Listener::Mptcp && id >= DOOMED {
            listener = Listener::Plain;
        }
        let shape = r.pick(&[
            Shape::Duplex,
            Shape::Duplex,
            Shape::Upload,
            Shape::Download,
            Shape::PingPong,
            Shape::PingPong,
            Shape::AnswerAfterEof,
        ]);
        let side = r.pick(&[Side::Client, Side::Server]);
        let polls = !r.one_in(5);
        let mut client = side_plan(&mut r, shape == Shape::PingPong, polls);
        let mut server = side_plan(&mut r, shape == Shape::PingPong, polls);
        let heavy = polls && shape != Shape::PingPong && r.one_in(300);
        if shape == Shape::PingPong && r.one_in(if polls { 2 } else { 4 }) {
            // Long enough to be accelerated, paused and accelerated again.
            let rounds = usize::try_from(r.log_between(64, 1_500)).unwrap_or(64);
            for side in [&mut client, &mut server] {
                let most = r.log_between(1, 400);
                side.writes = (0..rounds).map(|_| u32::try_from(r.between(1, most)).unwrap_or(1)).collect();
                side.read_size = side.read_size.max(128);
                (side.write_pause_us, side.read_pause_us) = (side.write_pause_us.min(200), side.read_pause_us.min(200));
            }
        }
        match shape {
            Shape::Upload => server.writes.clear(),
            Shape::Download => client.writes.clear(),
            Shape::PingPong => {
                let rounds = client.writes.len().min(server.writes.len());
                client.writes.truncate(rounds);
                server.writes.truncate(rounds);
                for part in [&mut client, &mut server] {
                    if part.reader == ReaderKind::Threads {
                        part.reader = ReaderKind::Recv;
                    }
                }
            }
            Shape::Duplex | Shape::AnswerAfterEof => {}
        }
        if heavy {
            // More than may lie unread on a redirected connection.
            listener = Listener::Plain;
            for side in [&mut client, &mut server] {
                if !side.writes.is_empty() {
                    side.writes = (0..r.between(12, 40)).map(|_| u32::try_from(r.between(65_536, 1 << 20)).unwrap_or(1)).collect();
                }
                (side.send_buffer, side.receive_buffer, side.read_size) = (None, None, side.read_size.max(32 << 10));
            }
        }
        let prelude = if shape != Shape::PingPong && (heavy || !r.one_in(4)) { r.log_between(6, 40) } else { 0 };
        for side in [&mut client, &mut server] {
            let most = r.log_between(1, 400);
            side.writes.splice(0..0, (0..prelude).map(|_| u32::try_from(r.between(1, most)).unwrap_or(1)));
        }
        let ending = match shape {
            Shape::PingPong if r.one_in(2) => match r.below(3) {
                0 => Ending::ResetAfterAll(side),
                1 => Ending::CloseUnread(side),
                _ => Ending::WriteAfterClose(side),
            },
            Shape::Duplex if r.one_in(6) => {
                let by = if side == Side::Client { &client } else { &server };
                let before: u64 = by.writes.iter().take(usize::try_from(prelude).unwrap_or(0)).map(|w| u64::from(*w)).sum();
                Ending::Abrupt(side, before + r.below(by.total() - before + 1))
            }
            _ => Ending::Graceful,
        };
        if let Ending::Abrupt(by, _) = ending {
            // This side never reads: with a tiny buffer that fills up, TCP drops the peer's segments with the acknowledgements on them.
            if listener == Listener::TinyBuffers {
                listener = Listener::Plain;
            }
            let deaf = if by == Side::Server { &mut server } else { &mut client };
            deaf.receive_buffer = None;
        }
        if let Ending::CloseUnread(by) = ending {
            // The rest of the last message has to fit into the receive buffer, and the reader may not take more than it asks for.
            if listener == Listener::TinyBuffers {
                listener = Listener::Plain;
            }
            let receiver = if by == Side::Server { &mut server } else { &mut client };
            receiver.receive_buffer = None;
            let (writes, reader) =
                if by == Side::Server { (&mut client.writes, &mut server.reader) } else { (&mut server.writes, &mut client.reader) };
            if let Some(last) = writes.last_mut() {
                *last = (*last).clamp(2, 1500);
            }
            if !matches!(
                *reader,
                ReaderKind::Recv
                    | ReaderKind::Poll
                    | ReaderKind::PollRead
                    | ReaderKind::PollRecvmsg
                    | ReaderKind::EpollLevel
                    | ReaderKind::Uring
                    | ReaderKind::UringPoll
                    | ReaderKind::Fionread
            ) {
                *reader = ReaderKind::Recv;
            }
        }
        let ending = if listener == Listener::Mptcp {
            restrict_to_mptcp(&mut client, &mut server);
            Ending::Graceful
        } else {
            ending
        };
        let writers = (client.writer, server.writer);
        for (from, to) in [(writers.0, &mut server), (writers.1, &mut client)] {
            // A read ends at urgent data, so these cannot keep their promises there; splice(2) even says 0.
            let promises = matches!(to.reader, ReaderKind::Fionread | ReaderKind::WaitAll | ReaderKind::Mixed | ReaderKind::Splice);
            if from == WriterKind::Urgent && promises {
                to.reader = ReaderKind::Recv;
            }
            limit_waiting(to, listener);
            // Placing very small pieces of several readers is costly.
            if to.reader == ReaderKind::Threads {
                to.read_size = to.read_size.max(64);
            }
        }
        for side in [&mut client, &mut server] {
            // Notifications of zero-copy writes wake those who poll the same socket.
            let polls =
                !matches!(side.reader, ReaderKind::Recv | ReaderKind::Read | ReaderKind::Uring | ReaderKind::Recvmsg | ReaderKind::Splice);
            if side.writer == WriterKind::Zerocopy && polls {
                side.reader = ReaderKind::Read;
            }
        }
        // Where memory is tight a few large transfers starve all others for longer than any deadline, without us, too (seeds 7 and 2005).
        let most = match () {
            () if (TIGHT..ASKING).contains(&id) => 256 << 10,
            () if heavy => 40 << 20,
            () => 2 << 20,
        };
        limit(&mut client, &server, listener, most);
        limit(&mut server, &client, listener, most);
        if id < ASKING {
            for side in [&mut client, &mut server] {
                side.reader = match side.reader {
                    ReaderKind::Fionread => ReaderKind::Poll,
                    ReaderKind::Mixed => ReaderKind::EpollLevel,
                    other => other,
                };
            }
        }
        Self {
            id,
            listener,
            server_v6: r.one_in(3),
            client_v6: r.one_in(3),
            shape,
            ending,
            client,
            server,
            joined_header: r.one_in(2) || listener == Listener::FastOpen,
            accept_pause_us: if r.one_in(4) { r.log_between(1, 3000) } else { 0 },
            prelude: usize::try_from(prelude).unwrap_or(0),
            settle_us: if r.one_in(4) { 0 } else { r.log_between(5_000, 600_000) },
        }
    }

    /// What `side` does.
    #[must_use]
    pub fn of(&self, side: Side) -> &SidePlan {
        if side == Side::Client { &self.client } else { &self.server }
    }

    /// Whether what each side sees follows from the plan alone.
    #[must_use]
    pub fn deterministic(&self) -> bool {
        !matches!(self.ending, Ending::Abrupt(..))
    }

    /// Whether it sees the same on an accelerated connection. Closing with redirected bytes unread sends a FIN where TCP sends a
    /// reset: `__tcp_close()` looks only at `sk_receive_queue`, and no BPF hook may send a reset there.
    #[must_use]
    pub fn same_when_accelerated(&self) -> bool {
        self.deterministic() && !matches!(self.ending, Ending::CloseUnread(_))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?} at {:?} after {} rounds", self.shape, self.ending, self.listener, self.prelude)?;
        for (name, s) in [("client", &self.client), ("server", &self.server)] {
            write!(f, ", {name} {} writes {} B {:?} reads {:?} by {}", s.writes.len(), s.total(), s.writer, s.reader, s.read_size)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_repeat_and_stay_within_limits() {
        for id in 0..3_000 {
            let (a, b) = (Plan::new(5, id), Plan::new(5, id));
            assert_eq!(format!("{a:?}"), format!("{b:?}"));
            for side in [Side::Client, Side::Server] {
                assert!(a.of(side).total() <= (40 << 20) + 1_500, "{a}");
                assert!(a.of(side).writes.len() >= a.prelude, "{a}");
                assert!(a.of(side).total() / a.of(side.other()).read_size as u64 <= 3_600, "{a}");
            }
            if a.shape == Shape::PingPong {
                assert_eq!(a.client.writes.len(), a.server.writes.len());
                assert!(!a.client.writes.is_empty());
            }
        }
    }
}
