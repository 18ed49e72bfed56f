//! What a helper says on stderr: the last of it is kept for error messages.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::terminal::printable;

/// Lines that are kept.
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

    /// What was said last. The stream's end is waited for no longer than `patience`: others may hold it open.
    pub async fn conclude(mut self, patience: Duration) -> String {
        let _ = timeout(patience, &mut self.listener).await;
        self.listener.abort();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

async fn keep(stderr: impl AsyncRead + Unpin, kept: Arc<Mutex<VecDeque<String>>>, passthrough: bool) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let line = printable(&line);
        if passthrough {
            let _ = writeln!(std::io::stderr(), "helper: {line}");
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}
