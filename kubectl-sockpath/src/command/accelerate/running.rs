//! An acceleration while it runs: pairs are shown, pods that come are taken in, changed policies obeyed.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::accel::{AccelerateRequest, PodName, Via};
use sockpath_protocol::bypass::{Bypassed, gather};
use sockpath_protocol::pod::{Node, Pod};
use sockpath_protocol::{Message, Request};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::by_node::{self, ByNode};
use super::request::{DETACHED_LEASE, FOREGROUND_LEASE, UNWATCHED, owner};
use super::results::{Form, Results};
use crate::backend::Backend;
use crate::cli::{self, ObjectOutput};
use crate::cluster::{News, Watch};
use crate::duration::human;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::inventory::{PodInfo, Scope};
use crate::output::{self, Screen};
use crate::progress::Progress;
use crate::render::bypassed;
use crate::render::pairs::{self, Changes, NodePairs};
use crate::session::{Event, Fleet, Member, Patience};
use crate::terminal::Style;

mod following;

/// How long a dry run watches.
const DRY_RUN: Duration = Duration::from_secs(3);

/// How long helpers that drain and end are waited for without a sign of life, and at most.
const ENDING: Patience = Patience { silence: Duration::from_secs(10), longest: Duration::from_secs(45), hurry: None };

/// How long a helper that has started may take to try out the kernel and pair the connections.
const STARTING: Duration = Duration::from_secs(30);

/// Every run has an end: that of the longest lease, before the kubelet ends the helpers.
const LONGEST: Duration = Duration::from_secs(86_400 - 300);

/// Changes of pods are gathered for this long before pods are chosen again.
const GATHER: Duration = Duration::from_millis(400);

/// Time between two drawings of the table: hundreds of nodes send hundreds of snapshots a second.
const BETWEEN_DRAWINGS: Duration = Duration::from_millis(250);

/// A task that runs beside the loop.
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
    Bypassed((Vec<Bypassed>, Option<String>)),
    News(News),
    ChooseAgain,
    Chosen(Result<Vec<PodInfo>>),
    Located(Vec<String>, Result<Vec<Node>>),
    LookAround,
}

/// Why an acceleration ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Ctrl-C.
    Interrupted,
    /// It has lasted as long as it was to.
    TimeIsUp(Duration),
    /// It has ended on every node, or a node failed.
    Over,
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
    pods: Arc<Vec<Pod>>,
    nodes: Vec<Node>,
    watch: Watch,
    interrupt: Interrupt,
    results: Results,
    /// When each helper that has begun sent its last message.
    last_message: BTreeMap<usize, Instant>,
    /// Pods whose pairs a changed policy keeps on TCP.
    paused: BTreeSet<PodName>,
    /// Namespaces that are being deleted.
    terminating: BTreeSet<String>,
    /// Nodes where a helper went away or could not be started: not tried again.
    given_up: BTreeSet<String>,
    choose_at: Option<Instant>,
    /// What the API server knows that would be bypassed, while it is looked up.
    looking: Task<'a, (Vec<Bypassed>, Option<String>)>,
    choosing: Task<'a, Result<Vec<PodInfo>>>,
    /// Nodes that have chosen pods for the first time, while they are looked up.
    locating: Task<'a, (Vec<String>, Result<Vec<Node>>)>,
    dry_run: bool,
    /// What is bypassed was shown.
    bypassed_reported: bool,
    style: Style,
    /// The live table.
    screen: Screen,
    changes: Changes,
    /// When it was drawn last, and whether there is something newer.
    drawn: Option<Instant>,
    outdated: bool,
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
            pods: Arc::new(pods),
            nodes,
            watch,
            interrupt,
            results: Results::of(args.all_namespaces && args.selector.is_none()),
            last_message: BTreeMap::new(),
            paused: BTreeSet::new(),
            terminating: BTreeSet::new(),
            given_up: BTreeSet::new(),
            choose_at: None,
            looking: None,
            choosing: None,
            locating: None,
            dry_run,
            bypassed_reported: false,
            style,
            screen: Screen::default(),
            changes: Changes::default(),
            drawn: None,
            outdated: false,
            fleet,
        }
    }

    /// Runs it to its end.
    pub async fn run(mut self) -> Result<Exit> {
        self.progress.phase("", if self.dry_run { "watching connections" } else { "pairing connections" });
        self.make_room();
        let (backend, pods) = (self.backend, Arc::clone(&self.pods));
        self.looking = Some(Box::pin(async move { backend.bypassed(&pods).await }));
        if self.args.detach && matches!(self.backend, Backend::Cluster(_)) {
            self.progress.note(&format!("note: {UNWATCHED}"));
        }
        let end = self.run_until_end().await?;
        let interrupted = matches!(end, End::Interrupted);
        if self.looking.is_some() {
            let interrupt = self.interrupt.clone();
            tokio::select! {
                biased;
                () = interrupt.wait() => {}
                found = done(&mut self.looking) => self.take_bypassed(found)?,
            }
        }
        self.progress.clear();
        self.screen.erase()?;
        let names: Vec<String> = self.fleet.members().iter().map(Member::name).collect();
        let (results, progress) = (&mut self.results, self.progress);
        let tell = |helper: usize, event| {
            if let Some(text) = results.take(helper, names.get(helper).map_or("?", String::as_str), event) {
                progress.warn(&text);
            }
        };
        self.fleet.finish(&ENDING, tell).await;
        let json = self.args.output == Some(ObjectOutput::Json);
        let why = self.why_it_ended(end);
        let wide = self.args.output == Some(ObjectOutput::Wide);
        let sockets = self.args.via == cli::Via::Socket;
        let form = Form { json, wide, dry_run: self.dry_run, detached: self.args.detach, interrupted, sockets, style: self.style };
        let exit = self.results.conclude(&form)?;
        if let Some(text) = why {
            self.progress.note(&text);
        }
        Ok(exit)
    }

    /// Why a run in the foreground ended, where it was not Ctrl-C and no error says it.
    fn why_it_ended(&self, end: End) -> Option<String> {
        if self.dry_run || self.args.detach {
            return None;
        }
        let stopped: Vec<String> = self.results.stopped.iter().map(|(node, by)| format!("on {node} by `stop` of {by}")).collect();
        match (end, stopped.is_empty()) {
            (End::TimeIsUp(after), _) => Some(format!("ended after the {} of --for", human(after))),
            (End::Interrupted, _) | (End::Over, true) => None,
            (End::Over, false) => Some(format!("ended {}", stopped.join(", "))),
        }
    }

    /// Makes room for what helpers will say.
    fn make_room(&mut self) {
        let known = self.results.nodes.len();
        let fresh = self.fleet.members().iter().skip(known).map(|m| NodePairs { node: m.name(), ..NodePairs::default() });
        self.results.nodes.extend(fresh);
    }

    /// Asks one helper, which has just started, to begin.
    async fn begin(&mut self, index: usize) {
        let Some(member) = self.fleet.members().get(index).filter(|m| !m.is_over()) else { return };
        let lease = if self.args.detach { self.args.lease.unwrap_or(DETACHED_LEASE) } else { FOREGROUND_LEASE };
        if !self.pods.iter().any(|p| member.nodes.contains(&p.node)) {
            // They have gone since the helper was asked for; it begins when others come.
            return;
        }
        self.last_message.insert(index, Instant::now());
        let request = AccelerateRequest {
            pods: Vec::new(),
            elsewhere: Vec::new(),
            nodes: self.nodes.iter().filter(|n| member.nodes.contains(&n.name)).cloned().collect(),
            lease_ms: millis(lease),
            detach: self.args.detach,
            dry_run_ms: self.dry_run.then(|| millis(DRY_RUN)),
            stay: matches!(self.backend, Backend::Cluster(_)),
            owner: owner(),
            leave_blocking_readers: !self.args.blocking_readers,
            socket_programs: self.args.socket_programs.clone(),
            via: match self.args.via {
                cli::Via::Auto => Via::Auto,
                cli::Via::Socket => Via::Socket,
                cli::Via::Short => Via::Short,
            },
        };
        let (pods, nodes) = (Arc::clone(&self.pods), member.nodes.clone());
        let build = move || {
            let ByNode { here: pods, elsewhere } = by_node::at(&pods, &nodes);
            Request::Accelerate(Box::new(AccelerateRequest { pods, elsewhere, ..request }))
        };
        self.fleet.send_large(index, build).await;
        self.pause(Some(index), self.paused.iter().cloned().collect()).await;
    }

    /// Takes in what the API server knows that would be bypassed.
    fn take_bypassed(&mut self, (bypassed, warning): (Vec<Bypassed>, Option<String>)) -> Result<()> {
        self.results.bypassed.extend(bypassed);
        if let Some(text) = warning {
            self.results.warnings.push(text.clone());
            self.warn(&text)?;
        }
        self.report_bypassed()
    }

    /// Runs the event loop until there is a reason to end.
    async fn run_until_end(&mut self) -> Result<End> {
        let begun = Instant::now();
        let never = begun + Duration::from_secs(365 * 86_400);
        let end = match (self.dry_run, self.args.detach, self.args.lease) {
            // Each helper ends by itself; nodes that start later have as much time.
            (true, ..) | (false, true, _) => never,
            (false, false, d) => begun + d.unwrap_or(LONGEST),
        };
        let mut looks = interval(Duration::from_secs(1));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_over() {
                return Ok(End::Over);
            }
            let step = {
                let Self { interrupt, fleet, watch, looking, choosing, locating, choose_at, .. } = self;
                let (due, idle) = (choose_at.unwrap_or(never), choosing.is_none() && locating.is_none());
                tokio::select! {
                    biased;
                    () = interrupt.wait() => Step::Interrupted,
                    () = sleep_until(end) => Step::TimeIsUp,
                    news = watch.next() => Step::News(news),
                    found = done(looking) => Step::Bypassed(found),
                    event = fleet.next() => Step::Helper(event),
                    found = done(choosing) => Step::Chosen(found),
                    (names, nodes) = done(locating) => Step::Located(names, nodes),
                    () = sleep_until(due), if choose_at.is_some() && idle => Step::ChooseAgain,
                    _ = looks.tick() => Step::LookAround,
                }
            };
            match step {
                Step::Interrupted => return Ok(End::Interrupted),
                Step::TimeIsUp => return Ok(End::TimeIsUp(self.args.lease.unwrap_or(LONGEST))),
                Step::Helper(None) => return Ok(End::Over),
                Step::Helper(Some((helper, event))) => {
                    if matches!(event, Event::Joined(_)) {
                        self.begin(helper).await;
                    }
                    if matches!(event, Event::Reconnected(_)) {
                        self.catch_up(helper).await;
                    }
                    self.hear(helper, event)?;
                }
                Step::Bypassed(found) => self.take_bypassed(found)?,
                Step::News(news) => self.react(news).await?,
                Step::ChooseAgain => self.choose_again(),
                Step::Chosen(found) => self.choose(found).await?,
                Step::Located(names, nodes) => self.recruit_on(names, nodes)?,
                Step::LookAround => {
                    self.give_up_the_silent();
                    if self.outdated {
                        self.draw()?;
                    }
                }
            }
        }
    }

    /// Whether the event loop has nothing left to do.
    fn is_over(&self) -> bool {
        let members = self.fleet.members().len();
        let over = self.results.over.len() >= members && self.locating.is_none();
        // Detached, the work is done as soon as every node has begun, or cannot.
        let settled = |index: usize| self.results.started.contains(&index) || self.results.over.contains(&index);
        let detached = self.args.detach && (0..members).all(settled);
        self.results.error.is_some() || over || detached
    }

    fn hear(&mut self, helper: usize, event: Event) -> Result<()> {
        let snapshot = matches!(&event, Event::Said(m) if matches!(**m, Message::Pairs(_)));
        let name = self.fleet.name(helper);
        if let Some(at) = self.last_message.get_mut(&helper) {
            *at = Instant::now();
        }
        if snapshot {
            self.fleet.works(helper);
        }
        if let Some(text) = self.results.take(helper, &name, event) {
            self.warn(&text)?;
        }
        if self.results.over.contains(&helper) {
            self.given_up.insert(name);
        }
        self.report_bypassed()?;
        if snapshot && matches!(self.args.output, None | Some(ObjectOutput::Wide)) && !self.args.detach && !self.dry_run {
            self.outdated = true;
            if self.drawn.is_none_or(|at| at.elapsed() >= BETWEEN_DRAWINGS) {
                self.draw()?;
            }
        }
        Ok(())
    }

    /// Shows once, in a line, what accelerated connections bypass, when every helper that has begun has reported its part. A dry run lists it.
    fn report_bypassed(&mut self) -> Result<()> {
        let has_reported = |helper: &usize| self.results.reported_bypassed.contains(helper) || self.results.over.contains(helper);
        if self.dry_run
            || self.bypassed_reported
            || self.looking.is_some()
            || self.last_message.is_empty()
            || !self.last_message.keys().all(has_reported)
        {
            return Ok(());
        }
        self.bypassed_reported = true;
        let text = bypassed::brief(&gather(self.results.bypassed.iter().cloned()));
        self.note(&text)
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

    /// Ends sessions that do not begin. Silence of helpers that have begun is a broken connection, which the fleet restores.
    fn give_up_the_silent(&mut self) {
        for (index, at) in &self.last_message {
            let begins = !self.results.started.contains(index) && !self.results.over.contains(index);
            if begins && at.elapsed() > STARTING {
                let why = format!("no message from it for {}: its node or kubelet is cut off", human(STARTING));
                self.fleet.give_up(*index, why);
            }
        }
    }

    /// Redraws the table on a terminal, appends what changed elsewhere.
    fn draw(&mut self) -> Result<()> {
        (self.drawn, self.outdated) = (Some(Instant::now()), false);
        self.progress.clear();
        self.results.join_halves(false);
        if !output::is_terminal() {
            return output::print(&self.changes.lines(&self.results.nodes));
        }
        let rows = terminal_size::terminal_size().map_or(20, |(_, h)| usize::from(h.0).saturating_sub(4));
        self.style = Style {
            width: terminal_size::terminal_size().map_or(self.style.width, |(w, _)| usize::from(w.0).max(crate::terminal::MIN_WIDTH)),
            ..self.style
        };
        let mut text = pairs::table(&self.results.nodes, &self.style, rows);
        text.line("Ctrl-C puts everything back");
        self.screen.draw(&text)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
