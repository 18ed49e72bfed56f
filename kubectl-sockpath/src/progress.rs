//! What is going on, on stderr: a spinner for each node on a terminal, silence elsewhere unless `-v` was given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{self, Text};

/// Time between two frames of a spinner.
const FRAME: Duration = Duration::from_millis(100);

/// Handle to the progress display; clones share it.
#[derive(Debug, Clone)]
pub struct Progress {
    display: MultiProgress,
    verbose: u8,
    /// A spinner for each node and, under the empty name, for the command itself; in the order of their names from top to bottom.
    phases: Arc<Mutex<BTreeMap<String, Phase>>>,
    /// What each node is, or was, waiting for, spinner or not.
    last: Arc<Mutex<BTreeMap<String, String>>>,
    /// What has been warned of once.
    warned: Arc<Mutex<BTreeSet<String>>>,
}

/// What a node or the command is doing now.
#[derive(Debug)]
struct Phase {
    what: String,
    spinner: ProgressBar,
}

impl Progress {
    /// A display that shows nothing until the first phase. indicatif hides it if stderr is not a terminal.
    #[must_use]
    pub fn new(verbose: u8) -> Self {
        Self::on(output::spinners(), verbose)
    }

    fn on(target: ProgressDrawTarget, verbose: u8) -> Self {
        Self {
            display: MultiProgress::with_draw_target(target),
            verbose,
            phases: Arc::default(),
            last: Arc::default(),
            warned: Arc::default(),
        }
    }

    /// Something (`who`: a node, or empty for the command itself) is now doing `what`. What the command itself did is over once
    /// nodes are at work.
    pub fn phase(&self, who: &str, what: &str) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.get(who).is_some_and(|phase| phase.what == what) {
            return;
        }
        if !who.is_empty()
            && let Some(own) = phases.remove("")
        {
            self.take_away(&own);
        }
        let line = if who.is_empty() { what.to_owned() } else { format!("{who}: {what}") };
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(who.to_owned(), what.to_owned());
        if self.is_live() {
            let place = phases.keys().take_while(|other| other.as_str() < who).count();
            let phase = phases.entry(who.to_owned()).or_insert_with(|| {
                let spinner = self.display.insert(place, ProgressBar::new_spinner().with_style(style()));
                spinner.enable_steady_tick(FRAME);
                Phase { what: String::new(), spinner }
            });
            phase.what = what.to_owned();
            let mut shown = Text::default();
            shown.push(&line);
            phase.spinner.set_message(shown.to_string());
        } else {
            phases.insert(who.to_owned(), Phase { what: what.to_owned(), spinner: ProgressBar::hidden() });
            drop(phases);
            self.detail(&line);
        }
    }

    fn take_away(&self, phase: &Phase) {
        phase.spinner.disable_steady_tick();
        phase.spinner.finish_and_clear();
        self.display.remove(&phase.spinner);
    }

    /// The command has come to its main part: shown by the spinner, or as a line where there is none, so that scripts can wait for it.
    pub fn announce(&self, text: &str) {
        if self.is_live() {
            self.phase("", text);
        } else {
            self.note(text);
        }
    }

    /// `who` has nothing more to wait for.
    pub fn done(&self, who: &str) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(who);
        if let Some(phase) = self.phases.lock().unwrap_or_else(PoisonError::into_inner).remove(who) {
            self.take_away(&phase);
        }
    }

    /// Takes all spinners away.
    pub fn clear(&self) {
        for phase in std::mem::take(&mut *self.phases.lock().unwrap_or_else(PoisonError::into_inner)).values() {
            self.take_away(phase);
        }
    }

    /// A line for the user that stays on the screen.
    pub fn note(&self, text: &str) {
        self.display.suspend(|| output::say(text));
    }

    /// Runs something that writes to the terminal, with the spinners hidden.
    pub fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        self.display.suspend(write)
    }

    /// A line for the user who asked for more (`-v`).
    pub fn detail(&self, text: &str) {
        if self.verbose > 0 {
            self.note(text);
        }
    }

    /// As [`Self::note`], for what may be wrong.
    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// As [`Self::warn`], once for each key: several nodes may have the same to say.
    pub fn warn_once(&self, key: &str, text: &str) {
        if self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned()) {
            self.warn(text);
        }
    }

    /// What `who` was doing last, unless it is done.
    #[must_use]
    pub fn phase_of(&self, who: &str) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(who).cloned()
    }

    /// Whether there is a spinner to look at.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.display.is_hidden()
    }

    /// How often `-v` was given.
    #[must_use]
    pub fn verbosity(&self) -> u8 {
        self.verbose
    }
}

/// One line, cut where the terminal ends: a second one would not be taken away.
fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
