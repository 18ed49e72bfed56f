//! Recordings of a trace: JSON lines, the first holds the request and the nodes, the others the helpers' messages.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Take, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sockpath_protocol::limits::{LONGEST_MESSAGE, MOST_NODES};
use sockpath_protocol::message::{End, EndReason};
use sockpath_protocol::text::message;
use sockpath_protocol::{Message, Request};

use crate::report::{Capture, HelperOrigin, Origin};
use crate::session::{ClockEstimate, Event};

/// Version of the format.
const FORMAT: u32 = 1;

/// Longest line that is read, in bytes: the longest a helper says with what is around it here.
const LONGEST_LINE: usize = LONGEST_MESSAGE + (64 << 10);

/// Largest recording that is written or read, in bytes: some half a million packets, of which the report keeps a part anyway.
const LARGEST: u64 = 4 << 30;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// [`FORMAT`].
    recording: u32,
    origin: Origin,
}

/// Every other line.
#[derive(Debug, Default, Serialize, Deserialize)]
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
    /// What happened to a pod, which no helper said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed: Option<String>,
}

/// A recording that is being written. After the first failure nothing more is.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes so far.
    written: u64,
    failed: bool,
}

impl Recorder {
    /// Creates the file, so that a path that cannot be written is known before anything starts.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create the recording {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(256 << 10, file), written: 0, failed: false })
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
        let said = |message| Entry { helper, message: Some(message), ..Entry::default() };
        let entry = match event {
            Event::Said(message) => said((**message).clone()),
            Event::Joined(hello) => said(Message::Hello((**hello).clone())),
            Event::Ended(reason) => said(Message::End(End { reason: *reason })),
            Event::Lost(error) => Entry { helper, lost: Some(error.to_string()), ..Entry::default() },
            // What follows from it is a warning, which is recorded as one.
            Event::Disconnected(_) | Event::Reconnected(_) => return Ok(()),
        };
        self.line(&entry)
    }

    /// Writes how a helper's clock lies to ours.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn compare(&mut self, helper: usize, clock: ClockEstimate) -> Result<()> {
        self.line(&Entry { helper, clock: Some(clock), ..Entry::default() })
    }

    /// Writes what happened to a pod.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn change(&mut self, text: &str) -> Result<()> {
        self.line(&Entry { changed: Some(text.to_owned()), ..Entry::default() })
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
        self.written += line.len() as u64;
        if self.written > LARGEST {
            self.failed = true;
            self.file.flush().with_context(|| self.failure())?;
            bail!("the recording {} has reached its limit of {LARGEST} bytes and ends here", self.path.display());
        }
        let written = self.file.write_all(&line);
        self.failed = written.is_err();
        written.with_context(|| self.failure())
    }

    fn failure(&self) -> String {
        format!("the recording {} cannot be written and is incomplete", self.path.display())
    }
}

/// Reads a recording.
///
/// # Errors
/// When the file cannot be read, is not a recording, or is one of another release. A truncated last line counts as the end.
pub fn replay(path: &Path) -> Result<Capture> {
    let file = File::open(path).with_context(|| format!("cannot open the recording {}", path.display()))?;
    read(BufReader::new(file), &path.display().to_string())
}

/// Reads a recording from anywhere; `name` is for error messages.
///
/// # Errors
/// As [`replay`].
pub fn read(input: impl BufRead, name: &str) -> Result<Capture> {
    read_within(input, name, LARGEST)
}

fn read_within(input: impl BufRead, name: &str, largest: u64) -> Result<Capture> {
    let mut input = Lines { input: input.take(largest), name, largest };
    let mut line = Vec::new();
    input.next(&mut line)?;
    #[derive(Deserialize)]
    struct Version {
        recording: u32,
    }
    match serde_json::from_slice::<Version>(&line) {
        Ok(v) if v.recording == FORMAT => {}
        Ok(v) => bail!("{name} is a recording of format {}, this release reads format {FORMAT}", v.recording),
        Err(_) => bail!("{name} is not a recording of `trace --record`"),
    }
    let head: Head = serde_json::from_slice(&line).with_context(|| format!("the first line of {name} is damaged"))?;
    let head = head.checked().with_context(|| format!("the first line of {name} cannot be used"))?;
    let mut capture = Capture::new(head.origin);
    let mut number = 1;
    loop {
        number += 1;
        if input.next(&mut line)? == 0 {
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
        if let Some(text) = entry.changed {
            capture.change(text);
        }
        if let Some(clock) = entry.clock {
            capture.compare(entry.helper, clock);
        }
        match (entry.message, entry.lost) {
            (Some(Message::End(end)), _) => capture.take(entry.helper, Event::Ended(end.reason)),
            (Some(mut message), _) => {
                message.check().with_context(|| format!("line {number} of {name} cannot be used"))?;
                capture.take(entry.helper, Event::Said(Box::new(message)));
            }
            (None, Some(text)) => capture.lose(entry.helper, message(&text)),
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

impl Head {
    /// Checks the contents, which are untrusted.
    fn checked(mut self) -> Result<Self> {
        if self.origin.helpers.len() > MOST_NODES {
            bail!("it names {} helpers, at most {MOST_NODES} are supported", self.origin.helpers.len());
        }
        Request::Trace(Box::new(self.origin.plan.request.clone())).check()?;
        for HelperOrigin { nodes, hello } in &mut self.origin.helpers {
            if nodes.len() > MOST_NODES {
                bail!("it names {} nodes of one helper, at most {MOST_NODES} are supported", nodes.len());
            }
            let mut checked = Message::Hello(hello.clone());
            checked.check()?;
            if let Message::Hello(checked) = checked {
                *hello = checked;
            }
        }
        Ok(self)
    }
}

/// The lines of a recording, each and all of bounded length.
struct Lines<'n, R> {
    input: Take<R>,
    name: &'n str,
    largest: u64,
}

impl<R: BufRead> Lines<'_, R> {
    /// Reads the next; how many bytes it has, 0 at the end.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<usize> {
        let name = self.name;
        line.clear();
        let n =
            Read::take(&mut self.input, LONGEST_LINE as u64 + 1).read_until(b'\n', line).with_context(|| format!("cannot read {name}"))?;
        if n > LONGEST_LINE {
            bail!("{name} has a line of more than {LONGEST_LINE} bytes: is it a recording of `trace --record`?");
        }
        if self.input.limit() == 0 && !line.ends_with(b"\n") {
            bail!("{name} exceeds the limit of {} bytes: truncate it after a line", self.largest);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name);
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn what_does_not_end_is_not_read_to_its_end() {
        let head = recording("in-pod.jsonl").lines().next().unwrap().to_owned() + "\n";
        // Blank lines are skipped, but not without end.
        let endless = BufReader::new(head.as_bytes().chain(std::io::repeat(b'\n')));
        let error = format!("{:#}", read_within(endless, "x", 1 << 20).map(|_| ()).unwrap_err());
        assert!(error.contains("x exceeds the limit of 1048576 bytes"), "{error}");
        let endless = BufReader::new(std::io::repeat(b' '));
        let error = format!("{:#}", read(endless, "x").map(|_| ()).unwrap_err());
        assert!(error.contains("a line of more than 16842752 bytes"), "{error}");
    }

    #[test]
    fn parts_that_are_too_many_are_refused_with_their_line() {
        let text = recording("in-pod.jsonl");
        let head = text.lines().next().unwrap();
        let mut hostile: serde_json::Value = serde_json::from_str(head).unwrap();
        hostile["origin"]["helpers"][0]["nodes"] = vec!["x"; MOST_NODES + 1].into();
        let error = format!("{:#}", read(format!("{hostile}\n").as_bytes(), "x").map(|_| ()).unwrap_err());
        assert!(error.contains("the first line of x cannot be used: it names 5001 nodes of one helper"), "{error}");
        let armed =
            serde_json::json!({"helper": 0, "message": {"type": "armed", "hooks": vec!["h"; 2000], "unavailable": {}, "took_ns": 1}});
        let error = format!("{:#}", read(format!("{head}\n{armed}\n").as_bytes(), "x").map(|_| ()).unwrap_err());
        assert!(error.contains("line 2 of x cannot be used: the trace has 2000 hooks, at most 1024"), "{error}");
    }
}
