//! Running `trace` from a test, and reading its JSON document.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::lab::Lab;

/// What a finished `trace -o json` left.
#[derive(Debug)]
pub struct Traced {
    /// The JSON document; `Null` when it printed none.
    pub document: Value,
    /// Exit code.
    pub code: i32,
    /// What it said on stderr.
    pub stderr: String,
}

/// A `trace -o json` that runs.
#[derive(Debug)]
pub struct Trace {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<String>,
}

/// What the plugin prints on stderr (with `-v` where that is not a terminal) once its hooks are attached.
const ARMED: &str = "watching";

impl Trace {
    /// Starts a trace and waits until it is armed (or has ended).
    ///
    /// # Panics
    /// When the plugin cannot be started.
    #[must_use]
    pub fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut child = lab
            .plugin()
            .args(["-v", "trace", "--lab", "-o", "json"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start the plugin");
        // Read from the start: a document may be larger than a pipe.
        let mut document = child.stdout.take().expect("stdout is piped");
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = document.read_to_end(&mut bytes);
            bytes
        });
        let mut reader = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut said = read_until_armed(&mut reader);
        let stderr = std::thread::spawn(move || {
            let _ = reader.read_to_string(&mut said);
            said
        });
        Self { child, stdout, stderr }
    }

    /// Process id of the plugin.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end as Ctrl-C does.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("cannot interrupt the plugin");
    }

    /// Waits for its end and reads the document.
    ///
    /// # Panics
    /// When the plugin cannot be waited for.
    #[must_use]
    pub fn finish(mut self) -> Traced {
        let status = self.child.wait().expect("cannot wait for the plugin");
        let stdout = self.stdout.join().unwrap_or_default();
        let stderr = self.stderr.join().unwrap_or_default();
        let document = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
        Traced { document, code: status.code().unwrap_or(-1), stderr }
    }
}

fn read_until_armed(reader: &mut BufReader<ChildStderr>) -> String {
    let mut said = String::new();
    let mut line = String::new();
    while !line.contains(ARMED) {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            break;
        }
        said.push_str(&line);
    }
    said
}

/// Runs a trace to its end.
#[must_use]
pub fn trace(lab: &Lab, args: &[&str]) -> Traced {
    Trace::start(lab, args).finish()
}

impl Traced {
    /// An array of the document, empty when absent.
    #[must_use]
    pub fn list(&self, key: &str) -> &[Value] {
        self.document[key].as_array().map_or(&[], Vec::as_slice)
    }

    /// The stages of the request with this id.
    pub fn stages<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Value> {
        self.list("stages").iter().filter(move |s| s["id"] == id)
    }

    /// The stage of the request that took longest.
    #[must_use]
    pub fn slowest(&self) -> &Value {
        self.list("stages").iter().max_by_key(|s| s["p50_ns"].as_u64().unwrap_or(0)).unwrap_or(&Value::Null)
    }

    /// Whether a text anywhere below `key` contains `needle`, without regard to case.
    #[must_use]
    pub fn mentions(&self, key: &str, needle: &str) -> bool {
        self.document[key].to_string().to_lowercase().contains(&needle.to_lowercase())
    }

    /// Everything, for a failing test's message.
    #[must_use]
    pub fn dump(&self) -> String {
        let mut short = self.document.clone();
        if let Some(packets) = short["packets"].as_array_mut() {
            packets.truncate(6);
        }
        format!("exit code {}\n{}\n{}", self.code, self.stderr, serde_json::to_string_pretty(&short).unwrap_or_default())
    }
}
