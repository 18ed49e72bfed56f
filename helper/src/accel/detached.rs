//! An acceleration that outlives its session: a process meets and pairs connections until the lease ends. In a helper pod it is the
//! one that served the session, and the pod stays as long as it does; in the lab it is a process of its own. Without it (it was
//! killed, for instance) the pairs that exist go on until then, and new ones use TCP.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sockpath_protocol::Request;
use sockpath_protocol::accel::AccelerateRequest;
use sockpath_protocol::limits::LONGEST_REQUEST;

use super::attend::{Audience, attend};
use super::chosen::Chosen;
use super::instance::Instance;
use super::meeting;
use super::pins::Pins;
use super::stop::dismantle;
use crate::session::Session;
use crate::site::Site;

/// How long queues may take to drain when the lease has ended.
const DRAIN: Duration = Duration::from_secs(30);
const DRAIN_IN_POD: Duration = Duration::from_secs(10);

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
///
/// # Errors
/// When the request cannot be read, or the kernel refuses.
pub async fn run(site: &Site) -> Result<ExitCode> {
    let mut request = Vec::new();
    std::io::stdin().take(LONGEST_REQUEST as u64 + 1).read_to_end(&mut request).context("cannot read the request")?;
    if request.len() > LONGEST_REQUEST {
        bail!("the request has more than {LONGEST_REQUEST} bytes");
    }
    let request = serde_json::from_slice(&request).context("cannot read the request")?;
    let request = Request::Accelerate(Box::new(request));
    request.check().context("the request cannot be served")?;
    let Request::Accelerate(request) = request else { bail!("the request is for something else") };
    go_on(site, &request, None).await?;
    Ok(ExitCode::SUCCESS)
}

/// What the process of a helper pod does after its session: the pod is there for as long as it goes on.
pub async fn stay(session: &mut Session, request: &AccelerateRequest) -> Result<()> {
    go_on(&session.site().clone(), request, Some(session)).await
}

/// Attends until the lease ends, somebody stops it, or a signal (eviction, node drain, deletion of the pod) asks for an end.
async fn go_on(site: &Site, request: &AccelerateRequest, session: Option<&mut Session>) -> Result<()> {
    let pins = Pins::of(site);
    let Some(instance) = Instance::open(&pins)? else { return Ok(()) };
    let (mut chosen, _) = Chosen::find(site, &request.pods, &request.elsewhere);
    meeting::take_over(&instance, chosen.pods())?;
    // A pod that is being deleted has 15 s left.
    let drain = if session.is_some() { DRAIN_IN_POD } else { DRAIN };
    attend(&instance, &mut chosen, Audience::Nobody(session)).await?;
    if !instance.is_stopped() && dismantle(&instance, chosen.pods(), drain).await?.left_enrolled == 0 {
        drop(instance);
        pins.remove()?;
    }
    Ok(())
}
