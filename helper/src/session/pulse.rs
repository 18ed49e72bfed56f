//! Signs of life while a session ends: its thread may be busy for seconds, in the kernel or with rules.

use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use sockpath_protocol::Message;

/// Time between two signs.
const EVERY: Duration = Duration::from_secs(1);

/// A heartbeat every second until it is dropped; none is written after that.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The thread ends with the sender.
    alive: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pulse {
    /// Begins it, on stdout. Without a thread there are none, which costs patience of the plugin only.
    pub(super) fn start() -> Self {
        Self::with(EVERY, || {
            let mut line = serde_json::to_vec(&Message::Heartbeat)?;
            line.push(b'\n');
            let mut out = io::stdout().lock();
            out.write_all(&line)?;
            out.flush()
        })
    }

    fn with(every: Duration, mut beat: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        let (alive, over) = channel::<()>();
        let beats = move || while over.recv_timeout(every) == Err(RecvTimeoutError::Timeout) && beat().is_ok() {};
        Self { alive: Some(alive), thread: thread::Builder::new().name("pulse".to_owned()).spawn(beats).ok() }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but its turn to write, as its owner would.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_beats_until_it_is_dropped() {
        let (beats, received) = channel();
        let pulse = Pulse::with(Duration::from_millis(1), move || beats.send(()).map_err(io::Error::other));
        for _ in 0..3 {
            received.recv().unwrap();
        }
        drop(pulse);
        while received.try_recv().is_ok() {}
        assert!(received.recv().is_err(), "the thread has ended");
    }

    #[test]
    fn it_ends_when_nothing_can_be_written() {
        let pulse = Pulse::with(Duration::from_millis(1), || Err(io::ErrorKind::BrokenPipe.into()));
        drop(pulse);
    }
}
