//! One end of one connection, from the first byte after the header to the close.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use super::content::{Content, Direction, check_tiling};
use super::net::Socket;
use super::outcome::{End, Outcome, closer};
use super::plan::{Ending, Plan, SETTLED, Shape, Side, SidePlan};
use super::prng::{Prng, mix};
use super::reader::{Reader, ReaderKind};
use super::watch::{Call, Guard, Watch};
use super::writer::{Writer, WriterKind};

/// Bytes before the content of a connection: its number, and a check of it.
pub const HEADER: usize = 16;

/// The header of connection `id`.
#[must_use]
pub fn header(seed: u64, id: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(seed ^ mix(id)).to_le_bytes());
    bytes
}

/// The number in a header, if it is one of this run.
#[must_use]
pub fn parse_header(seed: u64, bytes: &[u8; HEADER]) -> Option<u64> {
    let id = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    (header(seed, id) == *bytes).then_some(id)
}

/// Options that both ends set before they talk.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_options(socket: &Socket, plan: &SidePlan, peer: &SidePlan) -> io::Result<()> {
    if let Some(n) = plan.send_buffer {
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUF, n)?;
    }
    if let Some(n) = plan.receive_buffer {
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, n)?;
    }
    if plan.linger {
        socket.linger(Some(5))?;
    }
    if peer.writer == WriterKind::Urgent {
        socket.set(libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    }
    socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, i32::from(plan.nodelay))
}

/// One end.
struct Talk<'a> {
    plan: &'a Plan,
    side: Side,
    seed: u64,
    socket: &'a Socket,
    watched: &'a Guard,
    /// Content bytes already sent together with the header.
    ahead: usize,
    doomed: bool,
}

/// What a conversation needs besides its plan.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    /// The run's seed.
    pub seed: u64,
    /// Who looks for hangs.
    pub watch: &'a Watch,
    /// For reports of hangs.
    pub label: String,
    /// Content bytes that went out with the header.
    pub ahead: usize,
    /// The peer may be killed at any moment.
    pub doomed: bool,
}

/// Plays `side` of `plan` on a connected socket and closes it.
#[must_use]
pub fn run(plan: &Plan, side: Side, socket: Socket, setting: Setting<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let guard = setting.watch.add(setting.label, &socket);
    let Setting { seed, ahead, doomed, .. } = setting;
    let talk = Talk { plan, side, seed, socket: &socket, watched: &guard, ahead, doomed };
    if let Err(e) = talk.talk(&mut outcome) {
        outcome.faults.push(format!("cannot even begin: {e}"));
    }
    if guard.hung() {
        outcome.faults.push("hung".to_owned());
    }
    drop(guard);
    // A time-out of SO_LINGER shows as an error, and nothing is promised about it.
    let _ = socket.close();
    outcome
}

impl Talk<'_> {
    fn mine(&self) -> &SidePlan {
        self.plan.of(self.side)
    }

    fn content(&self, of: Side) -> Content {
        Content::new(self.seed, self.plan.id, if of == Side::Client { Direction::ToServer } else { Direction::ToClient })
    }

    fn rng(&self, purpose: u64) -> Prng {
        Prng::new(self.seed ^ purpose, self.plan.id * 2 + u64::from(self.side == Side::Server))
    }

    fn talk(&self, outcome: &mut Outcome) -> io::Result<()> {
        let mut writer = self.writer()?;
        let mut reader = Reader::new(self.socket, self.mine().reader, self.rng(3))?;
        let result = self.play(&mut writer, &mut reader, outcome);
        outcome.misled = reader.misled;
        result
    }

    fn play(&self, writer: &mut Writer<'_>, reader: &mut Reader<'_>, outcome: &mut Outcome) -> io::Result<()> {
        let mut rng = self.rng(5);
        for round in 0..self.plan.prelude {
            if !self.round(writer, reader, round, &mut rng, outcome) {
                return Ok(());
            }
        }
        match (self.plan.shape, self.plan.ending) {
            (_, Ending::Abrupt(by, at)) if by == self.side => {
                outcome.write_end = self.write_all(writer, Some(at), &mut outcome.sent);
                self.socket.linger(Some(0))?;
            }
            (Shape::Duplex, _) => self.duplex(writer, reader, outcome)?,
            (Shape::Upload, _) | (Shape::Download, _) => {
                if (self.plan.shape == Shape::Upload) == (self.side == Side::Client) {
                    outcome.write_end = self.write_all(writer, None, &mut outcome.sent);
                } else {
                    self.read_to_end(reader, outcome);
                    outcome.write_end = End::Done;
                }
            }
            (Shape::AnswerAfterEof, _) if self.side == Side::Client => {
                outcome.write_end = self.write_all(writer, None, &mut outcome.sent);
                let _ = self.socket.shutdown(libc::SHUT_WR);
                self.read_to_end(reader, outcome);
            }
            (Shape::AnswerAfterEof, _) => {
                self.read_to_end(reader, outcome);
                outcome.write_end = self.write_all(writer, None, &mut outcome.sent);
            }
            (Shape::PingPong, _) => self.ping_pong(writer, reader, outcome)?,
        }
        Ok(())
    }

    fn duplex(&self, writer: &mut Writer<'_>, reader: &mut Reader<'_>, outcome: &mut Outcome) -> io::Result<()> {
        let before = outcome.sent;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut sent = before;
                let end = self.write_all(writer, None, &mut sent);
                let _ = self.socket.shutdown(libc::SHUT_WR);
                (end, sent)
            });
            self.read_to_end(reader, outcome);
            (outcome.write_end, outcome.sent) = writing.join().map_err(|_| io::Error::other("the writing thread panicked"))?;
            Ok(())
        })
    }

    /// Writes what the plan says after the prelude, up to offset `limit`.
    fn write_all(&self, writer: &mut Writer<'_>, limit: Option<u64>, sent: &mut u64) -> End {
        let mut rng = self.rng(1);
        let (before, writes) = self.mine().writes.split_at(self.plan.prelude);
        let mut at: usize = before.iter().map(|w| *w as usize).sum();
        for n in writes {
            let from = at;
            at += *n as usize;
            let to = limit.map_or(at, |l| at.min(usize::try_from(l).unwrap_or(usize::MAX)));
            if to <= from.max(self.ahead) {
                *sent = (*sent).max(to as u64);
                continue;
            }
            pause(&mut rng, self.mine().write_pause_us);
            let end = self.write(writer, from.max(self.ahead), to, sent);
            if end != End::Done {
                return end;
            }
        }
        writer.release(Duration::from_secs(1));
        End::Done
    }

    fn writer(&self) -> io::Result<Writer<'_>> {
        let total = usize::try_from(self.mine().total()).unwrap_or(usize::MAX);
        Writer::new(self.socket, self.mine().writer, self.content(self.side).bytes(0, total), self.rng(2))
    }

    fn write(&self, writer: &mut Writer<'_>, from: usize, to: usize, sent: &mut u64) -> End {
        self.watched.begin(Call::Write, from as u64);
        let mut done = from;
        let result = writer.write(from, to, |at| {
            done = at;
            self.watched.begin(Call::Write, at as u64);
        });
        self.watched.end(Call::Write, done as u64);
        *sent = done as u64;
        result.map_or_else(|e| End::of(&e), |()| End::Done)
    }

    fn read_to_end(&self, reader: &mut Reader<'_>, outcome: &mut Outcome) {
        if self.mine().reader == ReaderKind::Threads {
            return self.read_by_threads(outcome);
        }
        let mut rng = self.rng(4);
        while outcome.read_end == End::NotSeen {
            pause(&mut rng, self.mine().read_pause_us);
            self.read_once(reader, u64::MAX, outcome);
        }
    }

    /// Reads at most `most` bytes and checks them; an end goes into the outcome.
    fn read_once(&self, reader: &mut Reader<'_>, most: u64, outcome: &mut Outcome) {
        let mut buf = vec![0; self.mine().read_size.min(usize::try_from(most).unwrap_or(usize::MAX))];
        self.watched.begin(Call::Read, outcome.received);
        let result = reader.read(&mut buf);
        match result {
            Ok(0) => outcome.read_end = End::Done,
            Ok(n) => {
                // One fault is enough: what follows a wrong byte is wrong as well.
                if outcome.faults.is_empty()
                    && let Err(wrong) = self.content(self.side.other()).check(outcome.received, &buf[..n])
                {
                    outcome.faults.push(wrong.to_string());
                }
                outcome.received += n as u64;
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::InvalidData {
                    outcome.faults.push(e.to_string());
                }
                outcome.read_end = End::of(&e);
            }
        }
        self.watched.end(Call::Read, outcome.received);
    }

    fn read_by_threads(&self, outcome: &mut Outcome) {
        let pieces = Mutex::new(Vec::new());
        let ends: Vec<End> = std::thread::scope(|scope| {
            let read = || {
                loop {
                    let mut buf = vec![0; self.mine().read_size];
                    self.watched.begin(Call::Read, 0);
                    match self.socket.recv(&mut buf, 0) {
                        Ok(0) => return End::Done,
                        Ok(n) => {
                            buf.truncate(n);
                            pieces.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(buf);
                        }
                        Err(e) => return End::of(&e),
                    }
                }
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
            threads.into_iter().map(|t| t.join().unwrap_or(End::Error(0))).collect()
        });
        self.watched.end(Call::Read, 0);
        // One of them gets an error, the others see the end of the stream.
        outcome.read_end = ends.iter().copied().find(|e| *e != End::Done).unwrap_or(End::Done);
        let pieces = pieces.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = outcome.received;
        outcome.received += pieces.iter().map(|p| p.len() as u64).sum::<u64>();
        if let Err(text) = check_tiling(self.content(self.side.other()), before, &pieces) {
            outcome.faults.push(format!("concurrent readers: {text}"));
        }
    }

    /// One message of each side; whether both went through.
    fn round(&self, writer: &mut Writer<'_>, reader: &mut Reader<'_>, round: usize, rng: &mut Prng, outcome: &mut Outcome) -> bool {
        let message = u64::from(self.plan.of(self.side.other()).writes[round]);
        let answers = self.side == Side::Server;
        if answers && !self.receive_message(reader, message, rng, outcome) {
            return false;
        }
        self.send_message(writer, round, rng, outcome) && (answers || self.receive_message(reader, message, rng, outcome))
    }

    fn ping_pong(&self, writer: &mut Writer<'_>, reader: &mut Reader<'_>, outcome: &mut Outcome) -> io::Result<()> {
        let mut rng = self.rng(4);
        let Some(last) = self.mine().writes.len().checked_sub(1) else { return Ok(()) };
        for round in 0..last {
            if !self.round(writer, reader, round, &mut rng, outcome) {
                return Ok(());
            }
        }
        if self.side == Side::Client && !self.send_message(writer, last, &mut rng, outcome) {
            return Ok(());
        }
        let message = u64::from(self.plan.of(self.side.other()).writes[last]);
        if self.plan.ending == Ending::CloseUnread(self.side) {
            self.receive_message(reader, message / 2, &mut rng, outcome);
            let rest = usize::try_from(message - message / 2).unwrap_or(usize::MAX);
            if let Err(e) = self.socket.await_unread(rest, Duration::from_secs(10)) {
                // A peer that was killed may have sent less.
                if !(self.doomed && e.kind() == io::ErrorKind::ConnectionAborted) {
                    outcome.faults.push(format!("the rest of the last message: {e}"));
                }
            }
            outcome.write_end = End::Done;
            return Ok(());
        }
        if !self.receive_message(reader, message, &mut rng, outcome) {
            return Ok(());
        }
        if self.side == Side::Server {
            if self.plan.ending == Ending::ResetAfterAll(Side::Server) {
                outcome.write_end = End::Done;
                return self.socket.linger(Some(0));
            }
            if !self.send_message(writer, last, &mut rng, outcome) {
                return Ok(());
            }
        }
        outcome.write_end = End::Done;
        self.part(reader, outcome)
    }

    /// What follows the last message.
    fn part(&self, reader: &mut Reader<'_>, outcome: &mut Outcome) -> io::Result<()> {
        let (first, half) = match self.plan.ending {
            Ending::ResetAfterAll(by) | Ending::WriteAfterClose(by) | Ending::CloseUnread(by) => (by, false),
            _ => closer(self.plan),
        };
        if self.side == first {
            if self.plan.ending == Ending::ResetAfterAll(first) {
                return self.socket.linger(Some(0));
            }
            if half {
                let _ = self.socket.shutdown(libc::SHUT_WR);
                self.read_once(reader, u64::MAX, outcome);
            }
            return Ok(());
        }
        self.read_once(reader, u64::MAX, outcome);
        if self.plan.ending == Ending::WriteAfterClose(first) && outcome.read_end == End::Done {
            outcome.write_end = self.write_until_refused();
        }
        Ok(())
    }

    /// The peer has closed: the first write is taken, its answer is a reset, the next write is refused.
    fn write_until_refused(&self) -> End {
        self.watched.begin(Call::Write, 0);
        let first = self.socket.send(b"?", 0);
        let _ = self.socket.poll(0, Some(Duration::from_secs(10)));
        let second = self.socket.send(b"?", 0);
        self.watched.end(Call::Write, 0);
        match (first, second) {
            (Err(e), _) | (Ok(_), Err(e)) => End::of(&e),
            (Ok(_), Ok(_)) => End::Done,
        }
    }

    fn send_message(&self, writer: &mut Writer<'_>, round: usize, rng: &mut Prng, outcome: &mut Outcome) -> bool {
        if round == SETTLED && self.side == Side::Client {
            std::thread::sleep(Duration::from_micros(self.plan.settle_us));
        }
        let from: usize = self.mine().writes[..round].iter().map(|w| *w as usize).sum();
        let to = from + self.mine().writes[round] as usize;
        pause(rng, self.mine().write_pause_us);
        if from.max(self.ahead) >= to {
            outcome.sent = to as u64;
            return true;
        }
        outcome.write_end = self.write(writer, from.max(self.ahead), to, &mut outcome.sent);
        outcome.write_end == End::Done
    }

    fn receive_message(&self, reader: &mut Reader<'_>, n: u64, rng: &mut Prng, outcome: &mut Outcome) -> bool {
        let end = outcome.received + n;
        while outcome.received < end && outcome.read_end == End::NotSeen {
            pause(rng, self.mine().read_pause_us);
            self.read_once(reader, end - outcome.received, outcome);
        }
        if outcome.received < end {
            outcome.write_end = End::Done;
        }
        outcome.received == end
    }
}

/// Sleeps before one call in eight.
fn pause(rng: &mut Prng, us: u64) {
    if us > 0 && rng.one_in(8) {
        std::thread::sleep(Duration::from_micros(us));
    }
}
