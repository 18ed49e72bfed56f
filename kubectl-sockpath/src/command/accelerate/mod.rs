//! `accelerate`.

mod by_node;
mod results;
mod running;

use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::accel::{AccelerateRequest, Via};
use sockpath_protocol::request::{Node, Pod};

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

use running::{Session, Started};

/// The lease while a session renews it: how long connections stay accelerated after plugin and helper were killed.
const FOREGROUND_LEASE: Duration = Duration::from_secs(5);

/// The lease of `--detach` when none is given.
const DETACHED_LEASE: Duration = Duration::from_secs(3600);

/// Shortest and longest time that can be asked for.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// What a detached acceleration on a cluster does not do: helpers have no credentials to watch anything with.
pub const UNWATCHED: &str = "a detached acceleration does not watch the cluster: pods that come later are not included, and connections go on past \
                             NetworkPolicies that change; after such a change run `stop`, then `accelerate --detach` again";

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

/// What `trace --compare` asks the helper of these nodes: accelerate the pods on this path while the session lasts.
pub fn foreground_request(pods: &[Pod], nodes: Vec<Node>, via: Via) -> AccelerateRequest {
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let by_node::ByNode { here: pods, elsewhere } = by_node::at(pods, &names);
    let lease_ms = u64::try_from(FOREGROUND_LEASE.as_millis()).unwrap_or(u64::MAX);
    AccelerateRequest {
        pods,
        elsewhere,
        nodes,
        lease_ms,
        detach: false,
        dry_run_ms: None,
        stay: false,
        owner: owner(),
        leave_blocking_readers: true,
        via,
        socket_programs: Vec::new(),
    }
}

/// Who starts it: a second user sees this name.
pub fn owner() -> String {
    let user = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "unknown".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let at = if host.is_empty() { String::new() } else { format!("@{host}") };
    format!("{user}{at} (process {})", std::process::id())
}
