//! Requests out of a byte stream: bounded line by line, and no longer than the plugin shows that it is alive.

use std::time::Duration;

use sockpath_protocol::limits::LONGEST_REQUEST;
use sockpath_protocol::message::EndReason;
use sockpath_protocol::text::field;
use sockpath_protocol::{HEARTBEAT_TIMEOUT_MS, Request};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::inbound::{Inbound, Refused};
use crate::stderr;

/// Bytes of a line's buffer that stay allocated for the next one.
const LINE_KEPT: usize = 64 << 10;

/// What reading a line came to.
enum Read {
    Line,
    TooLong,
    End,
}

/// Reads request lines until the stream closes, heartbeats stay away, or a line cannot be taken.
pub async fn read_requests(stream: impl AsyncRead + Unpin, tx: mpsc::Sender<Result<Inbound, Refused>>) {
    read_within(Duration::from_millis(HEARTBEAT_TIMEOUT_MS), stream, tx).await;
}

/// The same, where a plugin that sends no request for `patience` has fallen silent; blank lines are none.
async fn read_within(patience: Duration, stream: impl AsyncRead + Unpin, tx: mpsc::Sender<Result<Inbound, Refused>>) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    let mut given_up_at = Instant::now() + patience;
    loop {
        line.clear();
        line.shrink_to(LINE_KEPT);
        let read = match timeout_at(given_up_at, read_line(&mut lines, &mut line)).await {
            Err(_) => Ok(Inbound::Stop(EndReason::HeartbeatMissed)),
            Ok(Read::End) => Ok(Inbound::Stop(EndReason::StdinClosed)),
            Ok(Read::TooLong) => Err(refused(&format!("it has more than {LONGEST_REQUEST} bytes: choose fewer pods at a time"))),
            Ok(Read::Line) if line.trim_ascii().is_empty() => continue,
            Ok(Read::Line) => match request(&line) {
                Some(request) => request,
                None => continue,
            },
        };
        let last = !matches!(read, Ok(Inbound::Request(_)));
        if tx.send(read).await.is_err() || last {
            return;
        }
        given_up_at = Instant::now() + patience;
    }
}

/// The request of a line; `None` where the line is the beginning of one: its connection broke, and the next one begins with a line break.
fn request(line: &[u8]) -> Option<Result<Inbound, Refused>> {
    // Without its line break, which within a string would be another error.
    let request = match serde_json::from_slice::<Request>(line.trim_ascii_end()) {
        Err(e) if e.is_eof() => {
            stderr::error("a request was cut off: the connection to the plugin broke");
            return None;
        }
        other => other.map_err(|e| refused(&e.to_string())),
    };
    Some(request.and_then(|request| request.check().map(|()| Inbound::Request(request)).map_err(|e| refused(&e.to_string()))))
}

fn refused(why: &str) -> Refused {
    Refused(format!("a request could not be read: {}", field(why)))
}

/// Reads up to and including the next line break; a half line at the end counts as one.
async fn read_line(lines: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> Read {
    loop {
        let Ok(available) = lines.fill_buf().await else { return Read::End };
        if available.is_empty() {
            return if line.is_empty() { Read::End } else { Read::Line };
        }
        let newline = available.iter().position(|b| *b == b'\n');
        let taken = newline.map_or(available.len(), |at| at + 1);
        if line.len() + taken > LONGEST_REQUEST {
            return Read::TooLong;
        }
        line.extend_from_slice(&available[..taken]);
        lines.consume(taken);
        if newline.is_some() {
            return Read::Line;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{MissedTickBehavior, interval};

    use super::*;

    fn reading() -> (DuplexStream, mpsc::Receiver<Result<Inbound, Refused>>) {
        let (ours, theirs) = duplex(64 << 10);
        let (tx, inbound) = mpsc::channel(4);
        tokio::spawn(read_requests(ours, tx));
        (theirs, inbound)
    }

    const TICK: Duration = Duration::from_millis(50);

    /// Reads with a patience of twenty ticks, and a clock of ticks.
    fn reading_impatiently() -> (DuplexStream, mpsc::Receiver<Result<Inbound, Refused>>, tokio::time::Interval) {
        let (ours, theirs) = duplex(64 << 10);
        let (tx, inbound) = mpsc::channel(4);
        tokio::spawn(read_within(20 * TICK, ours, tx));
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (theirs, inbound, clock)
    }

    #[tokio::test]
    async fn a_line_that_does_not_end_is_refused_before_it_is_read() {
        let (mut theirs, mut inbound) = reading();
        let mut written = 0;
        while theirs.write_all(&[b'x'; 1 << 16]).await.is_ok() {
            written += 1 << 16;
        }
        let Some(Err(Refused(why))) = inbound.recv().await else { panic!("taken") };
        assert!(why.contains("more than 8388608 bytes"), "{why}");
        assert!(written <= LONGEST_REQUEST + (256 << 10), "{written}");
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_to_serve_is_refused() {
        let (mut theirs, mut inbound) = reading();
        theirs.write_all(b"{\"type\":\"status\"}\n").await.unwrap();
        assert!(matches!(inbound.recv().await, Some(Ok(Inbound::Request(Request::Status)))));
        let pods: Vec<_> = (0..200_000).map(|i| serde_json::json!({"namespace": "a", "name": i.to_string()})).collect();
        let pause = serde_json::json!({"type": "pause", "pods": pods, "reason": "network-policy"});
        theirs.write_all(format!("{pause}\n").as_bytes()).await.unwrap();
        let Some(Err(Refused(why))) = inbound.recv().await else { panic!("taken") };
        assert!(why.contains("the request has 200000 pods, at most 150000 are supported"), "{why}");
    }

    #[tokio::test]
    async fn a_request_that_was_cut_off_is_skipped() {
        let (mut theirs, mut inbound) = reading();
        theirs.write_all(b"{\"type\":\"pause\",\"pods\":[{\"name\n{\"type\":\"hello\",\"secret\":\"s\"}\n").await.unwrap();
        assert!(matches!(inbound.recv().await, Some(Ok(Inbound::Request(Request::Hello { secret: Some(s) }))) if s == "s"));
        theirs.write_all(b"{\"type\":\"pause\"}\n").await.unwrap();
        assert!(matches!(inbound.recv().await, Some(Err(_))), "a whole line without a request is refused");
    }

    #[tokio::test]
    async fn a_plugin_that_sends_heartbeats_is_not_given_up() {
        let (mut theirs, mut inbound, mut clock) = reading_impatiently();
        let begun = Instant::now();
        while begun.elapsed() < 45 * TICK {
            clock.tick().await;
            theirs.write_all(b"{\"type\":\"heartbeat\"}\n").await.unwrap();
            assert!(matches!(inbound.recv().await, Some(Ok(Inbound::Request(Request::Heartbeat)))));
        }
    }

    #[tokio::test]
    async fn a_plugin_that_completes_no_line_is_given_up() {
        assert_given_up(b" ").await;
    }

    #[tokio::test]
    async fn a_plugin_that_sends_blank_lines_is_given_up() {
        assert_given_up(b"\n").await;
    }

    /// What keeps sending these bytes does not count as a plugin.
    async fn assert_given_up(bytes: &[u8]) {
        let (mut theirs, mut inbound, mut clock) = reading_impatiently();
        let begun = Instant::now();
        let stopped = loop {
            tokio::select! {
                message = inbound.recv() => break message,
                _ = clock.tick() => theirs.write_all(bytes).await.unwrap(),
            }
            assert!(begun.elapsed() < 2000 * TICK, "it is not noticed");
        };
        assert!(matches!(stopped, Some(Ok(Inbound::Stop(EndReason::HeartbeatMissed)))));
        assert!(begun.elapsed() >= 20 * TICK, "given up after {:?}", begun.elapsed());
    }
}
