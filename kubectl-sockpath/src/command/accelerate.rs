//! `accelerate`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, Canary, PairState, PairsSnapshot};
use sockpath_protocol::request::Pod;
use sockpath_protocol::{Message, Request};
use tokio::time::{Instant, sleep_until};

use super::print;
use crate::backend::{Backend, Mode};
use crate::cli::{self, Global, ObjectOutput};
use crate::cluster;
use crate::duration::human;
use crate::exit::{Exit, Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::inventory::{Inventory, Scope};
use crate::progress::Progress;
use crate::render::json;
use crate::render::pairs::{self, Changes, NodePairs};
use crate::session::{Event, Fleet};
use crate::target::select_pods;
use crate::terminal::Style;

/// The lease while a session renews it: how long connections stay accelerated after everything of ours was killed.
const FOREGROUND_LEASE: Duration = Duration::from_secs(5);

/// The lease of `--detach` when none is given.
const DETACHED_LEASE: Duration = Duration::from_secs(3600);

/// Shortest and longest time that can be asked for.
const LEASES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// How long a dry run watches.
const DRY_RUN: Duration = Duration::from_secs(3);

/// How long helpers may take to drain and end.
const ENDING: Duration = Duration::from_secs(10);

/// How long the start may take on every node.
const STARTING: Duration = Duration::from_secs(30);

/// The whole as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    detached: bool,
    totals: sockpath_protocol::accel::Totals,
    ran_ms: u64,
    left_enrolled: u64,
    nodes: &'a [NodePairs],
    canaries: &'a [Canary],
    warnings: &'a [String],
}

/// Runs it.
pub async fn run(args: &cli::Accelerate, global: &Global, progress: &Progress) -> Result<Exit> {
    let style = Style::of_stdout(global.color);
    if args.dry_run.as_deref() == Some("client") {
        print(&cluster::helper_pod_manifest(global, Mode::Accelerate, args.output == Some(ObjectOutput::Json))?)?;
        return Ok(Exit::Done);
    }
    let dry_run = args.dry_run.as_deref() == Some("watch");
    check(args, dry_run)?;
    let interrupt = Interrupt::watch()?;
    let started = tokio::select! {
        biased;
        () = interrupt.wait() => return Err(Interrupted.into()),
        started = start(args, global, progress) => started?,
    };
    let (fleet, pods) = started;
    let mut session = Session { args, fleet, heard: Heard::default(), interrupt, progress, style, drawn: 0, changes: Changes::default() };
    session.heard.nodes =
        session.fleet.members().iter().map(|m| NodePairs { node: m.name(), snapshot: PairsSnapshot::default() }).collect();
    session.run(&pods, dry_run).await
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
    if dry_run && args.detach {
        return Err(UsageError::new("--dry-run watches and returns, there is nothing to detach"));
    }
    Ok(())
}

async fn start(args: &cli::Accelerate, global: &Global, progress: &Progress) -> Result<(Fleet, Vec<Pod>)> {
    progress.phase("", "looking up pods");
    let backend = Backend::connect(global, true).await?;
    let namespace = (!args.all_namespaces).then(|| backend.namespace().to_owned());
    let scope = Scope { namespace, selector: args.selector.clone() };
    let pods: Vec<Pod> = select_pods(&backend, &args.pods, &scope).await?.into_iter().map(|p| p.pod).collect();
    let mut names: Vec<String> = pods.iter().map(|p| p.node.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let nodes = backend.nodes(&names).await?;
    let fleet = backend.helpers(&nodes, &pods, Mode::Accelerate, progress).await?;
    Ok((fleet, pods))
}

/// What helpers have said.
#[derive(Debug, Default)]
struct Heard {
    nodes: Vec<NodePairs>,
    summaries: Vec<AccelSummary>,
    canaries: Vec<Canary>,
    warnings: Vec<String>,
    error: Option<String>,
    /// Helpers that sent a snapshot: they have started.
    started: Vec<usize>,
}

impl Heard {
    fn take(&mut self, helper: usize, name: &str, event: Event) {
        match event {
            Event::Said(message) => match *message {
                Message::Pairs(snapshot) => {
                    if let Some(node) = self.nodes.get_mut(helper) {
                        node.snapshot = snapshot;
                    }
                    if !self.started.contains(&helper) {
                        self.started.push(helper);
                    }
                }
                Message::Summary(summary) => self.summaries.push(summary),
                Message::Canary(canary) => self.canaries.push(canary),
                Message::Warning { text } if !self.warnings.contains(&text) => self.warnings.push(text),
                Message::Error { text, .. } => {
                    self.error.get_or_insert(format!("{name}: {text}"));
                }
                _ => {}
            },
            Event::Ended(_) => {}
            Event::Lost(error) => {
                self.error.get_or_insert(format!("the helper on {name}: {error}; connections fall back to TCP by themselves"));
            }
        }
    }
}

struct Session<'a> {
    args: &'a cli::Accelerate,
    fleet: Fleet,
    heard: Heard,
    interrupt: Interrupt,
    progress: &'a Progress,
    style: Style,
    /// Lines of the live table on the screen.
    drawn: usize,
    changes: Changes,
}

impl Session<'_> {
    async fn run(mut self, pods: &[Pod], dry_run: bool) -> Result<Exit> {
        let lease = if self.args.detach { self.args.lease.unwrap_or(DETACHED_LEASE) } else { FOREGROUND_LEASE };
        self.progress.phase("", if dry_run { "watching connections" } else { "pairing connections" });
        for (index, member) in self.fleet.members().iter().enumerate() {
            let request = AccelerateRequest {
                pods: pods.iter().filter(|p| member.nodes.contains(&p.node)).cloned().collect(),
                lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
                detach: self.args.detach,
                dry_run_ms: dry_run.then(|| u64::try_from(DRY_RUN.as_millis()).unwrap_or(u64::MAX)),
                owner: owner(),
                leave_blocking_readers: !self.args.blocking_readers,
            };
            self.fleet.send(index, Request::Accelerate(Box::new(request))).await;
        }
        let interrupted = self.attend(dry_run).await?;
        self.progress.clear();
        let names: Vec<String> = self.fleet.members().iter().map(|m| m.name()).collect();
        let heard = &mut self.heard;
        self.fleet.finish(ENDING, |helper, event| heard.take(helper, names.get(helper).map_or("?", String::as_str), event)).await;
        self.conclude(dry_run, interrupted)
    }

    /// Shows pairs until there is a reason to end; whether that was Ctrl-C.
    async fn attend(&mut self, dry_run: bool) -> Result<bool> {
        let begun = Instant::now();
        let never = begun + Duration::from_secs(365 * 86_400);
        let end = match (dry_run, self.args.detach, self.args.lease) {
            (true, ..) => begun + DRY_RUN + Duration::from_millis(500),
            (false, true, _) => begun + STARTING,
            (false, false, Some(d)) => begun + d,
            (false, false, None) => never,
        };
        let live = self.args.output.is_none() && !self.args.detach && !dry_run;
        loop {
            if self.heard.error.is_some() {
                return Ok(false);
            }
            // Detached, the work is done as soon as every node has begun.
            if self.args.detach && self.heard.started.len() == self.fleet.members().len() {
                return Ok(false);
            }
            tokio::select! {
                biased;
                () = self.interrupt.wait() => return Ok(true),
                () = sleep_until(end) => {
                    if self.args.detach {
                        bail!("not every node began within {}: run `{} stop`, then `{} doctor`", human(STARTING), super::invocation(), super::invocation());
                    }
                    return Ok(false);
                }
                event = self.fleet.next() => match event {
                    Some((helper, event)) => {
                        let snapshot = matches!(&event, Event::Said(m) if matches!(**m, Message::Pairs(_)));
                        let warned = self.heard.warnings.len();
                        let name = self.fleet.members().get(helper).map_or_else(String::new, crate::session::Member::name);
                        self.heard.take(helper, &name, event);
                        if let Some(text) = self.heard.warnings.get(warned).cloned() {
                            self.erase()?;
                            self.progress.note(&format!("warning: {text}"));
                        }
                        if snapshot && live {
                            self.progress.clear();
                            self.draw()?;
                        }
                    }
                    None => return Ok(false),
                },
            }
        }
    }

    /// Redraws the table on a terminal, appends what changed elsewhere.
    fn draw(&mut self) -> Result<()> {
        if !std::io::stdout().is_terminal() {
            return print(&self.changes.lines(&self.heard.nodes));
        }
        let rows = terminal_size::terminal_size().map_or(20, |(_, h)| usize::from(h.0).saturating_sub(4));
        self.style = Style {
            width: terminal_size::terminal_size().map_or(self.style.width, |(w, _)| usize::from(w.0).max(crate::terminal::MIN_WIDTH)),
            ..self.style
        };
        let text = format!("{}Ctrl-C puts everything back\n", pairs::table(&self.heard.nodes, &self.style, rows));
        self.erase()?;
        self.drawn = text.lines().count();
        print(&text)
    }

    /// Takes the live table off the screen.
    fn erase(&mut self) -> Result<()> {
        if self.drawn > 0 {
            let mut out = std::io::stdout().lock();
            write!(out, "\x1b[{}A\x1b[J", self.drawn)?;
            out.flush()?;
            self.drawn = 0;
        }
        Ok(())
    }

    fn conclude(mut self, dry_run: bool, interrupted: bool) -> Result<Exit> {
        self.erase()?;
        let pairs: usize = self.heard.nodes.iter().map(|n| n.snapshot.pairs.len()).sum();
        if self.args.output == Some(ObjectOutput::Json) {
            let document = Document {
                dry_run,
                detached: self.args.detach,
                totals: if self.heard.summaries.is_empty() {
                    pairs::totals(self.heard.nodes.iter().map(|n| &n.snapshot.totals))
                } else {
                    pairs::totals(self.heard.summaries.iter().map(|s| &s.totals))
                },
                ran_ms: self.heard.summaries.iter().map(|s| s.ran_ms).max().unwrap_or(0),
                left_enrolled: self.heard.summaries.iter().map(|s| s.left_enrolled).sum(),
                nodes: &self.heard.nodes,
                canaries: &self.heard.canaries,
                warnings: &self.heard.warnings,
            };
            print(&json::document(&document)?)?;
        } else if self.heard.error.is_none() || !self.heard.summaries.is_empty() {
            if dry_run || pairs > 0 {
                print(&pairs::table(&self.heard.nodes, &self.style, usize::MAX))?;
            }
            if !dry_run && !self.heard.summaries.is_empty() {
                print(&pairs::summary(&self.heard.summaries, &self.style))?;
            }
        }
        for canary in self.heard.canaries.iter().filter(|c| !c.passed) {
            let _ = writeln!(std::io::stderr(), "warning: this kernel fails the check `{}`: {}", canary.name, canary.detail);
        }
        if let Some(error) = self.heard.error {
            bail!("{error}");
        }
        if dry_run && interrupted {
            return Ok(Exit::Interrupted);
        }
        let eligible = self.heard.nodes.iter().flat_map(|n| &n.snapshot.pairs).any(|p| p.state != PairState::LeftAlone);
        if dry_run && !eligible {
            let what = if pairs == 0 { "no connection between the chosen pods was seen" } else { "no connection could be accelerated" };
            let _ = writeln!(std::io::stderr(), "{what}");
            return Ok(Exit::Nothing);
        }
        Ok(Exit::Done)
    }
}

/// What `trace --compare` asks: accelerate these pods while the session lasts.
pub fn foreground_request(pods: Vec<Pod>) -> AccelerateRequest {
    let lease_ms = u64::try_from(FOREGROUND_LEASE.as_millis()).unwrap_or(u64::MAX);
    AccelerateRequest { pods, lease_ms, detach: false, dry_run_ms: None, owner: owner(), leave_blocking_readers: true }
}

/// Who asks, for a second user to be told.
fn owner() -> String {
    let user = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let at = if host.is_empty() { String::new() } else { format!("@{host}") };
    format!("{user}{at} (process {})", std::process::id())
}
