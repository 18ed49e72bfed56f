//! `cleanup`: finds and deletes sockpath's remaining resources in cluster and nodes, and no others.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use sockpath_protocol::{Message, Request};

use crate::backend::Backend;
use crate::cli::{self, Global, TableOutput};
use crate::exit::{Exit, Interrupted};
use crate::interrupt::Interrupt;
use crate::mode::Mode;
use crate::output::{self, Machine, Text};
use crate::progress::Progress;
use crate::session::{Event, Kept};

/// Entries of each kind that are kept of what nodes tell: a node has a handful.
const KEPT: usize = 10_000;

/// How long a node may take: queues of an acceleration that was left behind are drained first.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct Outcome {
    /// What was removed.
    removed: Kept<String>,
    /// What is in use and was kept.
    kept: Kept<String>,
    #[serde(skip)]
    failed: Kept<String>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { removed: Kept::of(KEPT), kept: Kept::of(KEPT), failed: Kept::of(KEPT) }
    }
}

impl Outcome {
    fn text(&self) -> Text {
        let mut text = Text::default();
        self.removed.iter().for_each(|what| text.line(&format!("removed {what}")));
        self.kept.iter().for_each(|what| text.line(&format!("kept {what}")));
        if text.is_empty() && self.failed.is_empty() {
            text.line("nothing to remove");
        }
        text
    }
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
        output::emit(&Machine::document(&outcome)?)?;
    } else {
        output::print(&outcome.text())?;
    }
    if !outcome.failed.is_empty() {
        bail!("{}", outcome.failed.join("\n"));
    }
    Ok(Exit::Done)
}

async fn clean(backend: &Backend, progress: &Progress, outcome: &mut Outcome) -> Result<()> {
    if let Backend::Cluster(cluster) = backend {
        progress.phase("", "looking for remaining pods");
        let (removed, kept) = cluster.remove_stale().await?;
        outcome.removed.extend(removed);
        outcome.kept.extend(kept);
    }
    let (nodes, left_out) = backend.all_nodes(false).await?;
    if let Some(text) = left_out {
        progress.note(&format!("note: {text}"));
    }
    if nodes.is_empty() {
        return Ok(());
    }
    let mut fleet = backend.helpers(&nodes, Mode::Accelerate, progress).await?;
    let names: Vec<String> = fleet.members().iter().map(|m| m.name()).collect();
    progress.phase("", "cleaning nodes");
    fleet
        .ask_all(&Request::Cleanup, PATIENCE, |index, event| {
            let node = names.get(index).map_or("", String::as_str);
            match event {
                Event::Said(message) => match *message {
                    Message::Removed { what } => outcome.removed.extend([format!("{what} on {node}")]),
                    Message::Warning { text } => outcome.kept.extend([format!("{text} on {node}")]),
                    Message::Error { text, .. } => outcome.failed.extend([format!("{node}: {text}")]),
                    _ => {}
                },
                Event::Lost(e) => outcome.failed.extend([e.on(node)]),
                Event::Joined(_) | Event::Ended(_) | Event::Disconnected(_) | Event::Reconnected(_) => {}
            }
        })
        .await;
    Ok(())
}
