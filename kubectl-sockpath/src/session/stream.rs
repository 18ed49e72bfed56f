//! One helper's stream: messages in, requests and heartbeats out.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::limits::LONGEST_MESSAGE;
use sockpath_protocol::text::field_within;
use sockpath_protocol::{HEARTBEAT_INTERVAL_MS, Message, Request, SILENCE_TIMEOUT_MS};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::clock::ClockMeter;
use super::error::SessionError;
use super::event::Event;
use super::life::Life;

/// Bytes of a line's buffer that stay allocated for the next one; only snapshots of thousands of pairs are longer.
const LINE_KEPT: usize = 256 << 10;

/// Bytes that are read at a time: kept for each of hundreds of helpers.
const READ_AT_ONCE: usize = 16 << 10;

/// Events that wait for the plugin before helpers have to wait, and how many bytes their lines may have together.
const EVENTS_AHEAD: usize = 1024;
const BYTES_AHEAD: usize = 2 * LONGEST_MESSAGE;

/// Bytes of a line that one unit of room stands for.
const ROOM_UNIT: usize = 1 << 10;

/// Characters of a line that is not understood which are quoted.
const QUOTED: usize = 80;

/// While clocks are compared: time between two questions, and how many answers are enough. The quickest of them counts.
const CLOCK_INTERVAL: Duration = Duration::from_millis(100);
const CLOCK_ROUND_TRIPS: u32 = 20;

/// A helper's clock, shared by who asks and who hears the answers.
pub type Clock = Arc<Mutex<ClockTask>>;

/// The comparison of one clock.
#[derive(Debug, Default)]
pub struct ClockTask {
    /// Questions are to be asked.
    pub wanted: bool,
    /// What came of them.
    pub meter: ClockMeter,
}

/// Messages out of a byte stream.
pub struct Lines {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: Vec<u8>,
}

impl Lines {
    /// Those of this stream.
    pub fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        Self { reader: BufReader::with_capacity(READ_AT_ONCE, reader), line: Vec::new() }
    }

    /// The next message; `None` at the end of the stream. A half line at the end counts as cut off.
    pub async fn next(&mut self) -> Result<Option<Message>, String> {
        loop {
            self.line.clear();
            self.line.shrink_to(LINE_KEPT);
            loop {
                let available = match self.reader.fill_buf().await {
                    Ok(b) => b,
                    Err(_) => return Ok(None),
                };
                if available.is_empty() {
                    return Ok(None);
                }
                let newline = available.iter().position(|b| *b == b'\n');
                let take = newline.map_or(available.len(), |i| i + 1);
                self.line.extend_from_slice(&available[..take]);
                self.reader.consume(take);
                if self.line.len() > LONGEST_MESSAGE {
                    return Err(format!("a line of more than {LONGEST_MESSAGE} bytes"));
                }
                if newline.is_some() {
                    break;
                }
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                let message = serde_json::from_slice::<Message>(line).map_err(|e| e.to_string());
                let checked = message.and_then(|mut message| message.check().map(|()| message).map_err(|e| e.to_string()));
                return checked.map(Some).map_err(|why| {
                    let begin = String::from_utf8_lossy(&line[..line.len().min(4 * QUOTED)]);
                    format!("{} in `{}`", field_within(&why, QUOTED), field_within(&begin, QUOTED))
                });
            }
        }
    }
}

/// An event for the plugin, and the room it takes there.
pub struct Queued {
    /// Index of the helper.
    pub helper: usize,
    /// What came from it.
    pub event: Event,
    /// Released when the event is taken.
    _room: OwnedSemaphorePermit,
}

/// Where events of all helpers go.
#[derive(Debug, Clone)]
pub struct Sink {
    events: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

impl Sink {
    /// One, and where events come out.
    pub fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (events, queue) = mpsc::channel(EVENTS_AHEAD);
        (Self { events, room: Arc::new(Semaphore::new(BYTES_AHEAD / ROOM_UNIT)) }, queue)
    }

    /// Queues an event whose line has this many bytes, when there is room for it; `false` if the receiver is gone.
    pub(super) async fn put(&self, helper: usize, event: Event, bytes: usize) -> bool {
        let units = u32::try_from((bytes / ROOM_UNIT + 1).min(BYTES_AHEAD / ROOM_UNIT)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(units).await else { return false };
        self.events.send(Queued { helper, event, _room: room }).await.is_ok()
    }
}

/// Silence of a helper that works, after which its connection counts as broken: three of its answers to heartbeats are missing.
const QUIET: Duration = Duration::from_millis(3 * HEARTBEAT_INTERVAL_MS);
/// What has arrived may still be in the event loop, when this process was suspended.
const ARRIVING: Duration = Duration::from_millis(500);

/// The next message, or how long there was none: longer than `silence`, which may change meanwhile.
async fn next_within(lines: &mut Lines, silence: impl Fn() -> Duration) -> Result<Result<Option<Message>, String>, Duration> {
    let began = Instant::now();
    let mut next = pin!(lines.next());
    loop {
        let patience = silence();
        match timeout_at(began + patience, &mut next).await {
            Ok(next) => return Ok(next),
            Err(_) if silence() > patience => {}
            Err(_) => return timeout(ARRIVING, next).await.map_err(|_| patience),
        }
    }
}

/// Hands on what a helper says until its stream is over, or nothing has come for [`SILENCE_TIMEOUT_MS`]; for [`QUIET`] once it works.
pub async fn listen(index: usize, mut lines: Lines, sink: Sink, clock: Clock, life: Arc<Life>) {
    loop {
        let next = match next_within(&mut lines, || if life.works() { QUIET } else { Duration::from_millis(SILENCE_TIMEOUT_MS) }).await {
            Ok(next) => next,
            Err(patience) => {
                sink.put(index, Event::Lost(SessionError::Silent { patience, detail: String::new() }), 0).await;
                return;
            }
        };
        if matches!(next, Ok(Some(_))) {
            life.note_sign();
        }
        let event = match next {
            Ok(Some(Message::Clock(reading))) => {
                clock.lock().unwrap_or_else(PoisonError::into_inner).meter.answered(&reading);
                continue;
            }
            Ok(Some(Message::Heartbeat | Message::Hello(_))) => continue,
            Ok(Some(Message::End(end))) => Event::Ended(end.reason),
            Ok(Some(message)) => Event::Said(Box::new(message)),
            Ok(None) => Event::Lost(SessionError::CutOff { detail: String::new() }),
            Err(detail) => Event::Lost(SessionError::Garbled { detail }),
        };
        let last = !matches!(event, Event::Said(_));
        if !sink.put(index, event, lines.line.len()).await || last {
            return;
        }
    }
}

/// A request that waits to be sent.
pub(super) enum Outgoing {
    /// As it is.
    Request(Request),
    /// A large one, built when it is its turn: hundreds of them at once would take hundreds of MiB.
    Large(Box<dyn FnOnce() -> Request + Send>),
}

/// Writes requests and, in between, heartbeats; ends when the helper's stdin or the sender of requests is gone.
pub async fn talk(mut writer: Box<dyn AsyncWrite + Send + Unpin>, mut inbox: mpsc::Receiver<Outgoing>, clock: Clock, beat: Duration) {
    let mut ticks = interval(beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut questions = interval(CLOCK_INTERVAL);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            biased;
            request = inbox.recv() => match request {
                Some(Outgoing::Request(request)) => request,
                Some(Outgoing::Large(build)) => {
                    if write_large(&mut writer, build).await.is_err() {
                        return;
                    }
                    continue;
                }
                None => return,
            },
            _ = ticks.tick() => Request::Heartbeat,
            _ = questions.tick() => {
                let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
                if !clock.wanted || clock.meter.estimate().is_some_and(|e| e.round_trips >= CLOCK_ROUND_TRIPS) {
                    continue;
                }
                Request::Clock { id: clock.meter.ask() }
            }
        };
        if write(&mut writer, &request).await.is_err() {
            return;
        }
        if matches!(request, Request::Finish) {
            // The helper exits when it is done. Where its stdin is not `stdinOnce`, containerd closes its stdout with the first byte that
            // it can no longer read, and its last lines would be lost. The writer stays open until the session is over.
            return std::future::pending().await;
        }
    }
}

/// Large requests that are being sent at one time, and how long one may hold the others up.
static LARGE: Semaphore = Semaphore::const_new(2);
const LARGE_ALONE: Duration = Duration::from_secs(3);

async fn write_large(writer: &mut (dyn AsyncWrite + Send + Unpin), build: Box<dyn FnOnce() -> Request + Send>) -> Result<()> {
    let turn = LARGE.acquire().await;
    let line = line_of(&build())?;
    let mut writing = pin!(write_line(writer, &line));
    if let Ok(written) = timeout(LARGE_ALONE, &mut writing).await {
        return written;
    }
    drop(turn);
    writing.await
}

async fn write(writer: &mut (dyn AsyncWrite + Send + Unpin), request: &Request) -> Result<()> {
    write_line(writer, &line_of(request)?).await
}

fn line_of(request: &Request) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request).context("cannot encode a request")?;
    line.push(b'\n');
    Ok(line)
}

async fn write_line(writer: &mut (dyn AsyncWrite + Send + Unpin), line: &[u8]) -> Result<()> {
    writer.write_all(line).await?;
    writer.flush().await?;
    Ok(())
}
