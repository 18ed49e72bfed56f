//! stdout for streams: written by a thread of its own, so that a slow reader holds up the data and not the heartbeats.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};

use super::machine::Machine;
use super::stdout::CANNOT_WRITE;

/// Texts that may wait for the reader.
const AHEAD: usize = 256;

/// A stream to stdout.
#[derive(Debug)]
pub struct Stream {
    texts: Option<mpsc::Sender<Machine>>,
    /// Taken once it is known.
    result: Option<oneshot::Receiver<std::io::Result<()>>>,
}

impl Stream {
    /// Starts the writer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn stdout() -> Result<Self> {
        let (texts, mut inbox) = mpsc::channel::<Machine>(AHEAD);
        let (done, result) = oneshot::channel();
        let write = move || {
            let mut out = std::io::stdout();
            let mut outcome = Ok(());
            while let Some(first) = inbox.blocking_recv() {
                let mut bytes = first.as_bytes().to_vec();
                while let Ok(more) = inbox.try_recv() {
                    bytes.extend_from_slice(more.as_bytes());
                }
                outcome = out.write_all(&bytes).and_then(|()| out.flush());
                if outcome.is_err() {
                    break;
                }
            }
            drop(inbox);
            let _ = done.send(outcome);
        };
        std::thread::Builder::new().name("stdout".to_owned()).spawn(write).context("cannot start a thread for stdout")?;
        Ok(Self { texts: Some(texts), result: Some(result) })
    }

    /// Hands text to the writer; waits while the reader is behind. Cancel-safe.
    ///
    /// # Errors
    /// When stdout cannot be written any more.
    pub async fn send(&mut self, text: Machine) -> Result<()> {
        let sent = match &self.texts {
            Some(texts) => texts.send(text).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { self.outcome().await }
    }

    /// Waits at most `patience` until everything is written.
    ///
    /// # Errors
    /// When stdout could not be written.
    pub async fn close(mut self, patience: Duration) -> Result<()> {
        self.texts = None;
        let Some(result) = self.result.take() else { return Ok(()) };
        match tokio::time::timeout(patience, result).await {
            Ok(Ok(outcome)) => outcome.context(CANNOT_WRITE),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    async fn outcome(&mut self) -> Result<()> {
        self.texts = None;
        let outcome = match self.result.take() {
            Some(result) => result.await.ok(),
            None => None,
        };
        match outcome {
            Some(Err(e)) => Err(e).context(CANNOT_WRITE),
            _ => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe)).context(CANNOT_WRITE),
        }
    }
}
