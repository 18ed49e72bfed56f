//! Recordings of a trace: JSON lines, the first says what was asked and of whom, the others are what helpers said.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sockpath_protocol::Message;
use sockpath_protocol::message::{End, EndReason};

use crate::report::{Capture, Origin};
use crate::session::{ClockEstimate, Event};

/// Version of the format.
const FORMAT: u32 = 1;

/// Longest line that is read.
const MAX_LINE: usize = 64 << 20;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// [`FORMAT`].
    recording: u32,
    origin: Origin,
}

/// Every other line.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    helper: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    /// The stream was cut off, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    /// How its clock lies to the plugin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<ClockEstimate>,
}

/// A recording that is being written. After the first failure nothing more is.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
    failed: bool,
}

impl Recorder {
    /// Creates the file, so that a path that cannot be written is known before anything starts.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create the recording {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(256 << 10, file), failed: false })
    }

    /// Writes the first line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(&mut self, origin: &Origin) -> Result<()> {
        self.line(&Head { recording: FORMAT, origin: origin.clone() })
    }

    /// Writes what a helper said.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn take(&mut self, helper: usize, event: &Event) -> Result<()> {
        let entry = match event {
            Event::Said(message) => Entry { helper, message: Some((**message).clone()), lost: None, clock: None },
            Event::Ended(reason) => Entry { helper, message: Some(Message::End(End { reason: *reason })), lost: None, clock: None },
            Event::Lost(error) => Entry { helper, message: None, lost: Some(error.to_string()), clock: None },
        };
        self.line(&entry)
    }

    /// Writes how a helper's clock lies to ours.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn compare(&mut self, helper: usize, clock: ClockEstimate) -> Result<()> {
        self.line(&Entry { helper, message: None, lost: None, clock: Some(clock) })
    }

    /// Writes what is still buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if self.failed {
            return Ok(());
        }
        self.file.flush().with_context(|| self.failure())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).context("cannot encode a line of the recording")?;
        line.push(b'\n');
        if self.failed {
            return Ok(());
        }
        let written = self.file.write_all(&line);
        self.failed = written.is_err();
        written.with_context(|| self.failure())
    }

    fn failure(&self) -> String {
        format!("the recording {} cannot be written, it ends early", self.path.display())
    }
}

/// Reads a recording.
///
/// # Errors
/// When the file cannot be read, is no recording, or is one of another release. A last line cut short is taken as the end.
pub fn replay(path: &Path) -> Result<Capture> {
    let file = File::open(path).with_context(|| format!("cannot open the recording {}", path.display()))?;
    read(BufReader::new(file), &path.display().to_string())
}

/// Reads a recording from anywhere; `name` is for error messages.
///
/// # Errors
/// As [`replay`].
pub fn read(mut input: impl BufRead, name: &str) -> Result<Capture> {
    let mut line = Vec::new();
    read_line(&mut input, &mut line, name)?;
    #[derive(Deserialize)]
    struct Version {
        recording: u32,
    }
    match serde_json::from_slice::<Version>(&line) {
        Ok(v) if v.recording == FORMAT => {}
        Ok(v) => bail!("{name} is a recording of format {}, this release reads format {FORMAT}", v.recording),
        Err(_) => bail!("{name} is no recording of `trace --record`"),
    }
    let head: Head = serde_json::from_slice(&line).with_context(|| format!("the first line of {name} is damaged"))?;
    let mut capture = Capture::new(head.origin);
    let mut number = 1;
    loop {
        number += 1;
        if read_line(&mut input, &mut line, name)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let whole = line.ends_with(b"\n");
        let entry: Entry = match serde_json::from_slice(&line) {
            Ok(entry) => entry,
            Err(_) if !whole => break,
            Err(e) => return Err(e).with_context(|| format!("line {number} of {name} is damaged")),
        };
        if let Some(clock) = entry.clock {
            capture.compare(entry.helper, clock);
        }
        match (entry.message, entry.lost) {
            (Some(Message::End(end)), _) => capture.take(entry.helper, Event::Ended(end.reason)),
            (Some(message), _) => capture.take(entry.helper, Event::Said(Box::new(message))),
            (None, Some(text)) => capture.lose(entry.helper, text),
            (None, None) => {}
        }
    }
    for log in &mut capture.helpers {
        // A recording that was cut off still renders; the report says that the end is missing.
        if log.ended.is_none() && log.lost.is_none() {
            log.lost = Some("the recording ends before the trace did".to_owned());
        }
        if log.ended == Some(EndReason::Signal) {
            log.ended = Some(EndReason::Finished);
        }
    }
    Ok(capture)
}

fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>, name: &str) -> Result<usize> {
    line.clear();
    let n = std::io::Read::take(&mut *input, MAX_LINE as u64 + 1).read_until(b'\n', line).with_context(|| format!("cannot read {name}"))?;
    if n > MAX_LINE {
        bail!("{name} has a line of more than {MAX_LINE} bytes");
    }
    Ok(n)
}
