//! The thread that reads and evaluates rules, and looks up what else explains a drop.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use sockpath_ruleset::{Baseline, Namespace};

use super::question::{Before, Found, Question, What};
use super::read::rules_of;
use crate::trace::environment::Environment;
use crate::trace::settings::{self, KernelDrop};
use crate::trace::subsystems::Subsystems;

/// How long rules that were read are good for.
const FRESH: Duration = Duration::from_secs(5);

/// Answers kept for packets like those that were asked about.
const MOST_ANSWERS: usize = 4096;

/// With more rules than this only those of one namespace are kept in memory.
const MANY_RULES: usize = 10_000;

/// Where numbered questions go, and where their answers come from.
type Ends = (Sender<(u64, Question)>, Receiver<(u64, Found)>);

/// Asks the thread, and takes its answers.
#[derive(Debug, Default)]
pub struct Rules {
    thread: Option<Ends>,
    asked: u64,
    answered: u64,
}

impl Rules {
    /// Begins to read the rules of the environment's namespaces, if they are `readable`. Where they cannot be read, they stay unknown.
    ///
    /// # Errors
    /// When a namespace or the thread cannot be had.
    pub fn of(environment: &Environment, readable: bool) -> Result<Self> {
        let files: HashMap<u32, File> =
            environment.netns.iter().map(|(n, _)| Ok((n.inode, n.file.try_clone()?))).collect::<std::io::Result<_>>()?;
        // Most rules are a node's, so its counters are read first.
        let mut order = environment.nodes.clone();
        order.extend(files.keys().filter(|n| !environment.nodes.contains(n)));
        let groups = environment.groups.iter().rev().cloned().collect();
        Self::answered_by(move || {
            let mut worker = Worker::begin(files, groups, if readable { &order } else { &[] }, readable);
            move |question: &Question| worker.answer(question)
        })
    }

    /// Answered by what `begin` gives, on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn answered_by<A: FnMut(&Question) -> Found>(begin: impl FnOnce() -> A + Send + 'static) -> Result<Self> {
        let (questions, asked) = channel::<(u64, Question)>();
        let (answers, taken) = channel();
        let work = move || {
            let mut answer = begin();
            while let Ok((number, question)) = asked.recv() {
                if answers.send((number, answer(&question))).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("rules".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Self { thread: Some((questions, taken)), asked: 0, answered: 0 })
    }

    /// Asks. Returns the number that the answer will have; `None` when no answer is possible.
    pub fn ask(&mut self, question: Question) -> Option<u64> {
        let (questions, _) = self.thread.as_ref()?;
        let number = self.asked + 1;
        questions.send((number, question)).ok()?;
        self.asked = number;
        Some(number)
    }

    /// The answers that have come.
    pub fn answers(&mut self) -> Vec<(u64, Found)> {
        let Some((_, answers)) = &self.thread else { return Vec::new() };
        let come: Vec<_> = answers.try_iter().collect();
        self.answered += come.len() as u64;
        come
    }

    /// The answers that come until everything is answered, or `patience` is over.
    pub fn last_answers(&mut self, patience: Duration) -> Vec<(u64, Found)> {
        let Some((_, answers)) = &self.thread else { return Vec::new() };
        let deadline = Instant::now() + patience;
        let mut come = Vec::new();
        while self.answered < self.asked {
            let Ok(answer) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { break };
            self.answered += 1;
            come.push(answer);
        }
        come
    }
}

/// What the thread knows.
struct Worker {
    files: HashMap<u32, File>,
    /// Control groups of the pods' sockets, by namespace.
    groups: HashMap<u32, PathBuf>,
    /// Whether rules may be read.
    readable: bool,
    /// Counters as the trace began, and when they had been read.
    before: HashMap<u32, (u64, Before)>,
    /// Rules, and when reading them began.
    known: HashMap<u32, (u64, Option<Namespace>)>,
    /// Answers to questions of one kind: when, and what.
    answers: HashMap<Question, (u64, Found)>,
    /// Names of their drop reasons.
    subsystems: Subsystems,
}

fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
}

impl Worker {
    fn begin(files: HashMap<u32, File>, groups: HashMap<u32, PathBuf>, order: &[u32], readable: bool) -> Self {
        let (before, known, answers) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut worker = Self { files, groups, readable, before, known, answers, subsystems: Subsystems::default() };
        for netns in order {
            let began = now();
            if let Some(namespace) = worker.files.get(netns).and_then(|f| rules_of(f).ok()) {
                let before = Before { rules: Baseline::of(&namespace.rules), conntrack: namespace.conntrack };
                worker.before.insert(*netns, (now(), before));
                worker.keep(*netns, began, Some(namespace));
            }
        }
        worker
    }

    fn keep(&mut self, netns: u32, began: u64, namespace: Option<Namespace>) {
        let rules = |n: &Option<Namespace>| n.as_ref().map_or(0, |n| n.rules.len());
        if self.known.values().map(|(_, n)| rules(n)).sum::<usize>() + rules(&namespace) > MANY_RULES {
            self.known.clear();
        }
        self.known.insert(netns, (began, namespace));
    }

    fn answer(&mut self, question: &Question) -> Found {
        let alike = question.alike();
        let fresh = u64::try_from(FRESH.as_nanos()).unwrap_or(u64::MAX);
        let recent = |at: u64| question.at.saturating_sub(at) < fresh;
        if let Some((_, found)) = self.answers.get(&alike).filter(|(at, _)| recent(*at)) {
            return found.clone();
        }
        let found = self.look(question, fresh);
        if self.answers.len() >= MOST_ANSWERS {
            self.answers.clear();
        }
        self.answers.insert(alike, (question.at, found.clone()));
        found
    }

    fn look(&mut self, question: &Question, fresh: u64) -> Found {
        let netns = question.netns;
        if let What::Kernel(drop) = &question.what {
            return self.without_rules(netns, drop);
        }
        if !self.readable {
            return Found::default();
        }
        // Counters have to be those of after the drop.
        let good = |began: u64| match question.what {
            What::Drop(_) | What::Elsewhere(_) => began > question.at,
            What::Translation(_) | What::Kernel(_) => began.saturating_add(fresh) > question.at,
        };
        if !self.known.get(&netns).is_some_and(|(began, _)| good(*began)) {
            let began = now();
            let read = self.files.get(&netns).and_then(|f| rules_of(f).ok());
            self.keep(netns, began, read);
        }
        let Some((_, Some(namespace))) = self.known.get(&netns) else { return Found::default() };
        let before = self.before.get(&netns).filter(|(read, _)| *read < question.at).map(|(_, before)| before);
        match &question.what {
            What::Drop(drop) => drop.ask(namespace, before),
            What::Elsewhere(drop) => drop.ask(namespace, before),
            What::Translation(translation) => translation.ask(namespace),
            What::Kernel(_) => Found::default(),
        }
    }

    fn without_rules(&mut self, netns: u32, drop: &KernelDrop) -> Found {
        let group = self.groups.get(&netns).map(PathBuf::as_path);
        let found = self.files.get(&netns).and_then(|file| settings::look(file, group, drop));
        let (detail, cause) = found.unzip();
        Found { rule: None, cause, detail, reason: drop.unnamed.and_then(|number| self.subsystems.name(number)) }
    }
}
