//! `cleanup`: finds and removes every leftover of ours in cluster and nodes, and only ours.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use sockpath_protocol::{Message, Request};

use super::print;
use crate::backend::{Backend, Mode};
use crate::cli::{self, Global, TableOutput};
use crate::exit::{Exit, Interrupted};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::session::Event;

/// How long a node may take: queues of an acceleration that was left behind are drained first.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Serialize)]
struct Outcome {
    /// What was removed.
    removed: Vec<String>,
    /// What is somebody's and was left alone.
    kept: Vec<String>,
    #[serde(skip)]
    failed: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// When something could not be removed.
pub async fn run(args: &cli::Cleanup, global: &Global, progress: &Progress) -> Result<Exit> {
    let interrupt = Interrupt::watch()?;
    let backend = Backend::connect(global, false).await?;
    let mut outcome = Outcome::default();
    let finished = tokio::select! {
        biased;
        () = interrupt.wait() => None,
        result = clean(&backend, progress, &mut outcome) => Some(result),
    };
    progress.clear();
    match finished {
        Some(result) => result?,
        None => return Err(Interrupted.into()),
    }
    if args.output == Some(TableOutput::Json) {
        print(&format!("{}\n", serde_json::to_string_pretty(&outcome)?))?;
    } else {
        let removed = outcome.removed.iter().map(|r| format!("removed {r}\n"));
        let kept = outcome.kept.iter().map(|k| format!("kept {k}\n"));
        let text: String = removed.chain(kept).collect();
        print(if text.is_empty() && outcome.failed.is_empty() { "nothing was left behind\n" } else { &text })?;
    }
    if !outcome.failed.is_empty() {
        bail!("{}", outcome.failed.join("\n"));
    }
    Ok(Exit::Done)
}

async fn clean(backend: &Backend, progress: &Progress, outcome: &mut Outcome) -> Result<()> {
    if let Backend::Cluster(cluster) = backend {
        progress.phase("", "looking for leftover pods");
        let (removed, kept) = cluster.remove_leftovers().await?;
        outcome.removed.extend(removed);
        outcome.kept.extend(kept);
    }
    let nodes = backend.all_nodes().await?;
    if nodes.is_empty() {
        return Ok(());
    }
    let mut fleet = backend.helpers(&nodes, &[], Mode::Accelerate, progress).await?;
    let names: Vec<String> = fleet.members().iter().map(|m| m.name()).collect();
    progress.phase("", "cleaning nodes");
    fleet.send_all(&Request::Cleanup).await;
    fleet
        .finish(PATIENCE, |index, event| {
            let node = names.get(index).map_or("", String::as_str);
            match event {
                Event::Said(message) => match *message {
                    Message::Removed { what } => outcome.removed.push(format!("{what} on {node}")),
                    Message::Warning { text } => outcome.kept.push(format!("{text} on {node}")),
                    Message::Error { text, .. } => outcome.failed.push(format!("{node}: {text}")),
                    _ => {}
                },
                Event::Lost(e) => outcome.failed.push(format!("the helper on {node}: {e}")),
                Event::Ended(_) => {}
            }
        })
        .await;
    Ok(())
}
