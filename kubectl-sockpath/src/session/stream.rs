//! One helper's stream: messages in, requests and heartbeats out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::{Message, Request};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::ClockMeter;
use super::fleet::{Event, SessionError};

/// Longest line taken from a helper, in bytes; a packet with a few hundred hops stays far below.
const MAX_LINE: usize = 16 << 20;

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
        Self { reader: BufReader::with_capacity(64 << 10, reader), line: Vec::new() }
    }

    /// The next message; `None` at the end of the stream. A half line at the end counts as cut off.
    pub async fn next(&mut self) -> Result<Option<Message>, String> {
        loop {
            self.line.clear();
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
                if self.line.len() > MAX_LINE {
                    return Err(format!("a line of more than {MAX_LINE} bytes"));
                }
                if newline.is_some() {
                    break;
                }
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                return serde_json::from_slice(line).map(Some).map_err(|e| {
                    let cut = |text: &str| crate::terminal::fit(&crate::terminal::printable(text), 80, false);
                    format!("{} in `{}`", cut(&e.to_string()), cut(&String::from_utf8_lossy(line)))
                });
            }
        }
    }
}

/// Hands on what a helper says until its stream is over.
pub async fn listen(index: usize, mut lines: Lines, sink: mpsc::Sender<(usize, Event)>, clock: Clock) {
    loop {
        let event = match lines.next().await {
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
        if sink.send((index, event)).await.is_err() || last {
            return;
        }
    }
}

/// Writes requests and, in between, heartbeats; ends when the helper's stdin is gone or nobody asks any more.
pub async fn talk(mut writer: Box<dyn AsyncWrite + Send + Unpin>, mut inbox: mpsc::Receiver<Request>, clock: Clock, beat: Duration) {
    let mut ticks = interval(beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut questions = interval(CLOCK_INTERVAL);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            biased;
            request = inbox.recv() => match request {
                Some(request) => request,
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
    }
}

async fn write(writer: &mut (dyn AsyncWrite + Send + Unpin), request: &Request) -> Result<()> {
    let mut line = serde_json::to_vec(request).context("cannot encode a request")?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await?;
    Ok(())
}
