//! An acceleration while it runs: pairs are shown, pods that come are taken in, changed policies obeyed.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Result, bail};
use sockpath_protocol::accel::{AccelerateRequest, PodName, Via};
use sockpath_protocol::request::{Node, Pod};
use sockpath_protocol::{HEARTBEAT_TIMEOUT_MS, Message, Request};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::heard::{Form, Heard};
use super::{DETACHED_LEASE, FOREGROUND_LEASE, UNWATCHED, owner, parted};
use crate::backend::Backend;
use crate::cli::{self, ObjectOutput};
use crate::cluster::{News, Watch};
use crate::duration::human;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::inventory::{PodInfo, Scope};
use crate::output::{self, Screen};
use crate::progress::Progress;
use crate::render::pairs::{self, Changes, NodePairs};
use crate::session::{Event, Fleet, Member, Ready};
use crate::terminal::Style;

mod following;

/// How long a dry run watches.
const DRY_RUN: Duration = Duration::from_secs(3);

/// How long helpers may take to drain and end.
const ENDING: Duration = Duration::from_secs(10);

/// How long the start may take on every node.
const STARTING: Duration = Duration::from_secs(30);

/// Changes of pods are gathered for this long before pods are chosen again.
const GATHER: Duration = Duration::from_millis(400);

/// A helper sends a snapshot every second. One that was silent for longer than it may be without us has ended.
const SILENCE: Duration = Duration::from_millis(HEARTBEAT_TIMEOUT_MS + 2_000);

/// Something that is under way beside the loop.
type Task<'a, T> = Option<Pin<Box<dyn Future<Output = T> + 'a>>>;

/// Waits for a task; never, when there is none. Cancel-safe.
async fn done<T>(task: &mut Task<'_, T>) -> T {
    match task {
        Some(running) => {
            let outcome = running.await;
            *task = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

/// What the loop has to deal with next.
enum Step {
    Interrupted,
    TimeIsUp,
    Helper(Option<(usize, Event)>),
    News(News),
    ChooseAgain,
    Chosen(Result<Vec<PodInfo>>),
    Recruited(Vec<String>, Result<Vec<Ready>>),
    LookAround,
}

/// What an acceleration begins with.
pub struct Started {
    /// Which pods are meant.
    pub scope: Scope,
    /// Those that were found.
    pub pods: Vec<Pod>,
    /// Their nodes.
    pub nodes: Vec<Node>,
    /// The helpers.
    pub fleet: Fleet,
}

/// An acceleration.
pub struct Session<'a> {
    args: &'a cli::Accelerate,
    backend: &'a Backend,
    progress: &'a Progress,
    scope: Scope,
    fleet: Fleet,
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    watch: Watch,
    interrupt: Interrupt,
    heard: Heard,
    /// When each helper was heard last.
    heard_at: Vec<Instant>,
    /// Pods whose pairs a changed policy keeps on TCP.
    paused: BTreeSet<PodName>,
    /// Nodes where a helper went away or could not be started: not tried again.
    given_up: BTreeSet<String>,
    choose_at: Option<Instant>,
    choosing: Task<'a, Result<Vec<PodInfo>>>,
    recruiting: Task<'a, (Vec<String>, Result<Vec<Ready>>)>,
    dry_run: bool,
    style: Style,
    /// The live table.
    screen: Screen,
    changes: Changes,
}

impl<'a> Session<'a> {
    /// One with these helpers and pods, not yet begun.
    pub fn new(
        (args, backend, progress): (&'a cli::Accelerate, &'a Backend, &'a Progress),
        Started { scope, pods, nodes, fleet }: Started,
        interrupt: Interrupt,
        style: Style,
    ) -> Self {
        let dry_run = args.dry_run.as_deref() == Some("watch");
        let watch = if args.detach || dry_run { Watch::nothing() } else { backend.watch(&scope, &pods, args.pods.is_empty()) };
        Self {
            args,
            backend,
            progress,
            scope,
            pods,
            nodes,
            watch,
            interrupt,
            heard: Heard::default(),
            heard_at: Vec::new(),
            paused: BTreeSet::new(),
            given_up: BTreeSet::new(),
            choose_at: None,
            choosing: None,
            recruiting: None,
            dry_run,
            style,
            screen: Screen::default(),
            changes: Changes::default(),
            fleet,
        }
    }

    /// Runs it to its end.
    pub async fn run(mut self) -> Result<Exit> {
        self.progress.phase("", if self.dry_run { "watching connections" } else { "pairing connections" });
        for index in 0..self.fleet.members().len() {
            self.begin(index).await;
        }
        if self.dry_run {
            let (bypassed, warning) = self.backend.bypassed(&self.pods).await;
            self.heard.bypassed.extend(bypassed);
            if let Some(text) = warning {
                self.heard.warnings.push(text.clone());
                self.warn(&text)?;
            }
        }
        if self.args.detach && matches!(self.backend, Backend::Cluster(_)) {
            self.progress.note(&format!("note: {UNWATCHED}"));
        }
        let interrupted = self.attend().await?;
        self.progress.clear();
        self.screen.erase()?;
        let names: Vec<String> = self.fleet.members().iter().map(Member::name).collect();
        let (heard, progress) = (&mut self.heard, self.progress);
        let tell = |helper: usize, event| {
            if let Some(text) = heard.take(helper, names.get(helper).map_or("?", String::as_str), event) {
                progress.warn(&text);
            }
        };
        self.fleet.finish(ENDING, tell).await;
        let json = self.args.output == Some(ObjectOutput::Json);
        self.heard.conclude(&Form { json, dry_run: self.dry_run, detached: self.args.detach, interrupted, style: self.style })
    }

    /// Asks one helper to begin.
    async fn begin(&mut self, index: usize) {
        let Some(member) = self.fleet.members().get(index) else { return };
        self.heard.nodes.push(NodePairs { node: member.name(), ..NodePairs::default() });
        self.heard_at.push(Instant::now());
        let lease = if self.args.detach { self.args.lease.unwrap_or(DETACHED_LEASE) } else { FOREGROUND_LEASE };
        let parted::Parted { here: pods, elsewhere } = parted::at(&self.pods, &member.nodes);
        let request = AccelerateRequest {
            pods,
            elsewhere,
            nodes: self.nodes.iter().filter(|n| member.nodes.contains(&n.name)).cloned().collect(),
            lease_ms: millis(lease),
            detach: self.args.detach,
            dry_run_ms: self.dry_run.then(|| millis(DRY_RUN)),
            stay: matches!(self.backend, Backend::Cluster(_)),
            owner: owner(),
            leave_blocking_readers: !self.args.blocking_readers,
            via: match self.args.via {
                cli::Via::Socket => Via::Socket,
                cli::Via::Short => Via::Short,
            },
        };
        self.fleet.send(index, Request::Accelerate(Box::new(request))).await;
        self.pause(Some(index), self.paused.iter().cloned().collect()).await;
    }

    /// Goes on until there is a reason to end; whether that was Ctrl-C.
    async fn attend(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let never = begun + Duration::from_secs(365 * 86_400);
        let end = match (self.dry_run, self.args.detach, self.args.lease) {
            (true, ..) => begun + DRY_RUN + Duration::from_millis(500),
            (false, true, _) => begun + STARTING,
            (false, false, Some(d)) => begun + d,
            (false, false, None) => never,
        };
        let mut looks = interval(Duration::from_secs(1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_over() {
                return Ok(false);
            }
            let step = {
                let Self { interrupt, fleet, watch, choosing, recruiting, choose_at, .. } = self;
                let (due, idle) = (choose_at.unwrap_or(never), choosing.is_none() && recruiting.is_none());
                tokio::select! {
                    biased;
                    () = interrupt.wait() => Step::Interrupted,
                    () = sleep_until(end) => Step::TimeIsUp,
                    news = watch.next() => Step::News(news),
                    event = fleet.next() => Step::Helper(event),
                    found = done(choosing) => Step::Chosen(found),
                    (nodes, ready) = done(recruiting) => Step::Recruited(nodes, ready),
                    () = sleep_until(due), if choose_at.is_some() && idle => Step::ChooseAgain,
                    _ = looks.tick() => Step::LookAround,
                }
            };
            match step {
                Step::Interrupted => return Ok(true),
                Step::TimeIsUp if self.args.detach => {
                    let us = super::super::invocation();
                    bail!("not every node began within {}: run `{us} stop`, then `{us} doctor`", human(STARTING));
                }
                Step::TimeIsUp | Step::Helper(None) => return Ok(false),
                Step::Helper(Some((helper, event))) => self.hear(helper, event)?,
                Step::News(news) => self.react(news).await?,
                Step::ChooseAgain => self.choose_again(),
                Step::Chosen(found) => self.choose(found).await?,
                Step::Recruited(nodes, ready) => self.take_in(nodes, ready).await?,
                Step::LookAround => self.give_up_the_silent().await?,
            }
        }
    }

    /// Whether nothing is left to attend to.
    fn is_over(&self) -> bool {
        let members = self.fleet.members().len();
        let over = self.heard.over.len() >= members && self.recruiting.is_none();
        // Detached, the work is done as soon as every node has begun; one that cannot ends the command.
        let detached = self.args.detach && (self.heard.started.len() == members || !self.heard.lost.is_empty());
        self.heard.error.is_some() || over || detached
    }

    fn hear(&mut self, helper: usize, event: Event) -> Result<()> {
        let snapshot = matches!(&event, Event::Said(m) if matches!(**m, Message::Pairs(_)));
        let name = self.fleet.members().get(helper).map_or_else(String::new, Member::name);
        if let Some(at) = self.heard_at.get_mut(helper) {
            *at = Instant::now();
        }
        if let Some(text) = self.heard.take(helper, &name, event) {
            self.warn(&text)?;
        }
        if self.heard.over.contains(&helper) {
            self.given_up.insert(name);
        }
        if snapshot && self.args.output.is_none() && !self.args.detach && !self.dry_run {
            self.progress.clear();
            self.draw()?;
        }
        Ok(())
    }

    fn warn(&mut self, text: &str) -> Result<()> {
        self.screen.erase()?;
        self.progress.warn(text);
        Ok(())
    }

    fn note(&mut self, text: &str) -> Result<()> {
        self.screen.erase()?;
        self.progress.note(text);
        Ok(())
    }

    /// Ends sessions that say nothing any more: a node that is cut off breaks no connection.
    async fn give_up_the_silent(&mut self) -> Result<()> {
        for index in 0..self.fleet.members().len() {
            let silent = self.heard_at.get(index).is_some_and(|at| at.elapsed() > SILENCE) && self.heard.started.contains(&index);
            if silent && !self.fleet.members()[index].is_over() {
                let why = format!("nothing was heard from it for {}: its node or kubelet is cut off", human(SILENCE));
                if let Some(event) = self.fleet.give_up(index, why).await {
                    self.hear(index, event)?;
                }
            }
        }
        Ok(())
    }

    /// Redraws the table on a terminal, appends what changed elsewhere.
    fn draw(&mut self) -> Result<()> {
        if !output::is_terminal() {
            return output::print(&self.changes.lines(&self.heard.nodes));
        }
        let rows = terminal_size::terminal_size().map_or(20, |(_, h)| usize::from(h.0).saturating_sub(4));
        self.style = Style {
            width: terminal_size::terminal_size().map_or(self.style.width, |(w, _)| usize::from(w.0).max(crate::terminal::MIN_WIDTH)),
            ..self.style
        };
        let mut text = pairs::table(&self.heard.nodes, &self.style, rows);
        text.line("Ctrl-C puts everything back");
        self.screen.draw(&text)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
