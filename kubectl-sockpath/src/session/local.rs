//! A helper as a child process: the lab.

use std::ffi::OsStr;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::last_lines::LastLines;
use super::transport::{Aftermath, Ending, Keeper, Transport};
use crate::platform;

/// How long a helper that has said `end` may take to exit.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);

/// Starts the helper with these arguments; with `passthrough` its stderr is also shown.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(helper: &Path, args: &[&OsStr], nodes: Vec<String>, passthrough: bool) -> Result<Transport> {
    let mut command = Command::new(helper);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C on the terminal is for the plugin, which ends the helper in order; killed outright, the helper notices by its stdin.
    platform::isolate(&mut command);
    let mut child = command.spawn().with_context(|| format!("cannot start the helper {}", helper.display()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        anyhow::bail!("the helper {} was started without pipes", helper.display());
    };
    let keeper = Box::new(Parent { child, stderr: LastLines::of(stderr, passthrough) });
    Ok(Transport { nodes, reader: Box::new(stdout), writer: Box::new(stdin), keeper })
}

struct Parent {
    child: Child,
    stderr: LastLines,
}

impl Keeper for Parent {
    fn end(mut self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async move {
            // A helper whose stdout is closed is exiting: give it the moment that tells its own status from our SIGKILL.
            let patience = if matches!(how, Ending::Done | Ending::Stay | Ending::Signalled) { EXIT_PATIENCE } else { EXIT_PATIENCE / 5 };
            let status = match timeout(patience, self.child.wait()).await {
                Ok(status) => status.ok(),
                Err(_) => {
                    let _ = self.child.start_kill();
                    let _ = timeout(EXIT_PATIENCE, self.child.wait()).await;
                    None
                }
            };
            // Grandchildren could hold stderr open.
            let stderr = self.stderr.conclude(EXIT_PATIENCE / 5).await;
            Aftermath { cause: status.map(describe).unwrap_or_default(), stderr }
        })
    }
}

fn describe(status: ExitStatus) -> String {
    if let Some(signal) = platform::signal_of(status) {
        return format!("killed by signal {signal}");
    }
    match status.code() {
        Some(0) | None => String::new(),
        Some(code) => format!("exit status {code}"),
    }
}
