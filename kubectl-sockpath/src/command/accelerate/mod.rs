//! `accelerate`.

mod by_node;
pub mod request;
mod results;
mod running;

use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::pod::Pod;

use crate::backend::Backend;
use crate::cli::{self, Global, ObjectOutput};
use crate::cluster;
use crate::duration::human;
use crate::exit::{Exit, Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::inventory::{Inventory, Scope};
use crate::mode::Mode;
use crate::output;
use crate::progress::Progress;
use crate::target::select_pods;
use crate::terminal::Style;

use request::DETACHED_LEASE;
use running::{Session, Started};

/// Shortest and longest time that can be asked for.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Runs it.
pub async fn run(args: &cli::Accelerate, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color);
    if args.dry_run.as_deref() == Some("client") {
        output::emit(&cluster::helper_pod_manifest(global, Mode::Accelerate, args.output == Some(ObjectOutput::Json))?)?;
        return Ok(Exit::Done);
    }
    let dry_run = args.dry_run.as_deref() == Some("watch");
    check(args, dry_run)?;
    let interrupt = Interrupt::watch()?;
    let started = async {
        progress.phase("", "looking up pods");
        let backend = Backend::connect(global, true).await?;
        let started = start(args, &backend, progress).await?;
        Ok::<_, anyhow::Error>((backend, started))
    };
    let (backend, started) = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        started = started => started?,
    };
    Session::new((args, &backend, progress), started, interrupt, style).run().await
}

fn check(args: &cli::Accelerate, dry_run: bool) -> Result<()> {
    if args.output == Some(ObjectOutput::Yaml) {
        return Err(UsageError::new("-o yaml goes with --dry-run=client only"));
    }
    if let Some(lease) = args.lease
        && !LEASES.contains(&lease)
    {
        let (least, most) = (human(*LEASES.start()), human(*LEASES.end()));
        return Err(UsageError::new(format!("--for takes {least} to {most}, not {}", human(lease))));
    }
    if args.all_namespaces && !args.pods.is_empty() {
        return Err(UsageError::new("name pods or take all namespaces (-A), not both: NS/NAME names a pod of another namespace"));
    }
    if args.via != cli::Via::Auto && !args.socket_programs.is_empty() {
        return Err(UsageError::new("--socket-program goes with --via auto: the other paths do not ask which programs are proven"));
    }
    if dry_run && args.detach {
        return Err(UsageError::new("--dry-run watches and returns, there is nothing to detach"));
    }
    Ok(())
}

async fn start(args: &cli::Accelerate, backend: &Backend, progress: &Progress) -> Result<Started> {
    let namespace = (!args.all_namespaces).then(|| backend.namespace().to_owned());
    let scope = Scope { namespace, selector: args.selector.clone() };
    let pods: Vec<Pod> = select_pods(backend, &args.pods, &scope).await?.into_iter().map(|p| p.pod).collect();
    let mut names: Vec<String> = pods.iter().map(|p| p.node.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let nodes = backend.nodes(&names).await?;
    let fleet = if args.detach {
        backend.helpers_that_stay(&nodes, args.lease.unwrap_or(DETACHED_LEASE), progress).await?
    } else {
        backend.helpers(&nodes, Mode::Accelerate, progress).await?
    };
    Ok(Started { scope, pods, nodes, fleet })
}
