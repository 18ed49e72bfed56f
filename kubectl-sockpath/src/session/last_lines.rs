//! What a helper says on stderr: the last of it is kept for error messages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sockpath_protocol::limits::LONGEST_STDERR_LINE;
use sockpath_protocol::text::field;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::output;

/// Lines that are kept: an error with its hints has fewer than ten.
const KEPT: usize = 20;

/// The last lines of a stream that is read all the while, so that its writer never has to wait.
pub struct LastLines {
    lines: Arc<Mutex<VecDeque<String>>>,
    listener: JoinHandle<()>,
}

impl LastLines {
    /// Reads `stderr` to its end; with `passthrough` every line is shown as well.
    pub fn of(stderr: impl AsyncRead + Unpin + Send + 'static, passthrough: bool) -> Self {
        let lines = Arc::default();
        Self { listener: tokio::spawn(keep(stderr, Arc::clone(&lines), passthrough)), lines }
    }

    /// The last lines. Waits for the stream's end at most `patience`: other processes may hold it open.
    pub async fn conclude(mut self, patience: Duration) -> String {
        let _ = timeout(patience, &mut self.listener).await;
        self.listener.abort();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

async fn keep(stderr: impl AsyncRead + Unpin, kept: Arc<Mutex<VecDeque<String>>>, passthrough: bool) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while read_line(&mut reader, &mut line).await {
        let text = String::from_utf8_lossy(&line);
        let text = field(text.trim_end_matches(['\n', '\r']));
        if passthrough {
            output::say(&format!("helper: {text}"));
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(text.into_owned());
    }
}

/// Reads a line, of which at most [`LONGEST_STDERR_LINE`] bytes are kept; `false` at the end of the stream.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> bool {
    line.clear();
    let mut any = false;
    loop {
        let Ok(available) = reader.fill_buf().await else { return any };
        if available.is_empty() {
            return any;
        }
        any = true;
        let newline = available.iter().position(|b| *b == b'\n');
        let taken = newline.map_or(available.len(), |at| at + 1);
        let room = LONGEST_STDERR_LINE.saturating_sub(line.len());
        line.extend_from_slice(&available[..taken.min(room)]);
        reader.consume(taken);
        if newline.is_some() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_in_length_and_number() {
        let (ours, mut theirs) = duplex(64 << 10);
        let lines = LastLines::of(ours, false);
        let writer = tokio::spawn(async move {
            // One line of 64 MiB, then many short ones.
            for _ in 0..1024 {
                theirs.write_all(&[b'x'; 64 << 10]).await.unwrap();
            }
            for i in 0..1000 {
                theirs.write_all(format!("\nline {i}\x1b[2J").as_bytes()).await.unwrap();
            }
        });
        writer.await.unwrap();
        let said = lines.conclude(Duration::from_secs(5)).await;
        assert_eq!(said.lines().count(), KEPT);
        assert!(said.ends_with("line 999?[2J"), "{said}");
    }

    #[tokio::test]
    async fn no_more_of_a_line_is_kept_than_is_shown() {
        let endless = vec![b'x'; 1 << 20];
        let mut reader = BufReader::new(&endless[..]);
        let mut line = Vec::new();
        assert!(read_line(&mut reader, &mut line).await);
        assert!(line.len() == LONGEST_STDERR_LINE && line.capacity() <= 2 * LONGEST_STDERR_LINE, "{}", line.capacity());
        assert!(!read_line(&mut reader, &mut line).await);
    }
}
