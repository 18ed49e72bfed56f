//! An acceleration that outlives its session: a process of its own meets and pairs connections until the lease ends. Without it
//! (it is killed with the pod of the helper, for instance) the pairs that exist go on until then, and new ones use TCP.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::accel::AccelerateRequest;

use super::attend::{Audience, attend};
use super::instance::Instance;
use super::pins::Pins;
use super::shared::field;
use super::stop::dismantle;
use crate::node;

/// How long queues may take to drain when the lease has ended.
const DRAIN: Duration = Duration::from_secs(30);

/// Starts the process; it reads the request from its stdin.
pub fn spawn(request: &AccelerateRequest) -> Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .arg("attend")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C in the terminal of the plugin is not meant for it.
        .process_group(0)
        .spawn()
        .context("cannot start the process that attends to them")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    serde_json::to_writer(&mut stdin, request).context("cannot hand over the request")?;
    stdin.flush().context("cannot hand over the request")
}

/// What that process does.
pub async fn run() -> Result<ExitCode> {
    let mut request = Vec::new();
    std::io::stdin().read_to_end(&mut request).context("cannot read the request")?;
    let request: AccelerateRequest = serde_json::from_slice(&request).context("cannot read the request")?;
    let pins = Pins::of_this_instance()?;
    let Some(instance) = Instance::open(&pins)? else { return Ok(ExitCode::SUCCESS) };
    let pods: Vec<_> = request.pods.iter().filter(|p| !p.host_network).filter_map(|p| node::find(p).ok()).collect();
    let observers = instance.observe()?;
    attend(&instance, &pods, Audience::Nobody).await?;
    drop(observers);
    if instance.control.read(0, field!(paused)) == Some(0) && dismantle(&instance, &pods, DRAIN).await?.left_enrolled == 0 {
        drop(instance);
        pins.remove()?;
    }
    Ok(ExitCode::SUCCESS)
}
