//! A helper as a child process: the lab.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Aftermath, Ending, Keeper, Transport};

/// How long a helper that has said `end` may take to exit.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);

/// Lines of stderr that are kept.
const STDERR_LINES: usize = 20;

/// Starts the helper with these arguments; with `passthrough` its stderr is also shown.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(helper: &Path, args: &[&OsStr], nodes: Vec<String>, passthrough: bool) -> Result<Transport> {
    let mut command = Command::new(helper);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C on the terminal is for the plugin, which ends the helper in order; killed outright, the helper notices by its stdin.
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start the helper {}", helper.display()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        anyhow::bail!("the helper {} was started without pipes", helper.display());
    };
    let last = Arc::new(Mutex::new(VecDeque::new()));
    let listener = tokio::spawn(keep_lines(stderr, last.clone(), passthrough));
    Ok(Transport { nodes, reader: Box::new(stdout), writer: Box::new(stdin), keeper: Box::new(Parent { child, last, listener }) })
}

struct Parent {
    child: Child,
    last: Arc<Mutex<VecDeque<String>>>,
    listener: JoinHandle<()>,
}

impl Keeper for Parent {
    fn end(mut self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async move {
            // A helper whose stdout is closed is exiting: give it the moment that tells its own status from our SIGKILL.
            let patience = if matches!(how, Ending::Done | Ending::Stay) { EXIT_PATIENCE } else { EXIT_PATIENCE / 5 };
            let status = match timeout(patience, self.child.wait()).await {
                Ok(status) => status.ok(),
                Err(_) => {
                    let _ = self.child.start_kill();
                    let _ = timeout(EXIT_PATIENCE, self.child.wait()).await;
                    None
                }
            };
            // Grandchildren could hold stderr open, so this wait is bounded, too.
            let _ = timeout(EXIT_PATIENCE / 5, &mut self.listener).await;
            self.listener.abort();
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            Aftermath { cause: status.map(describe).unwrap_or_default(), stderr: last.iter().cloned().collect::<Vec<_>>().join("\n") }
        })
    }
}

async fn keep_lines(stderr: impl AsyncRead + Unpin, last: Arc<Mutex<VecDeque<String>>>, passthrough: bool) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if passthrough {
            let _ = writeln!(std::io::stderr(), "helper: {line}");
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == STDERR_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("killed by signal {signal}");
    }
    match status.code() {
        Some(0) | None => String::new(),
        Some(code) => format!("exit status {code}"),
    }
}
