//! What is going on, on stderr: a spinner on a terminal, silence elsewhere unless `-v` was given.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Handle to the progress display; clones share it.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    verbose: u8,
    phases: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Progress {
    /// A display that shows nothing until the first phase. indicatif hides it where stderr is no terminal.
    #[must_use]
    pub fn new(verbose: u8) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::default_spinner());
        bar.finish_and_clear();
        Self { bar, verbose, phases: Arc::default() }
    }

    /// Something (`who`: a node, or empty for the command itself) is now doing `what`.
    pub fn phase(&self, who: &str, what: &str) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if phases.insert(who.to_owned(), what.to_owned()).as_deref() == Some(what) {
            return;
        }
        let line: Vec<String> = phases.iter().map(|(k, v)| if k.is_empty() { v.clone() } else { format!("{k}: {v}") }).collect();
        drop(phases);
        if self.bar.is_finished() && !self.bar.is_hidden() {
            self.bar.reset();
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        self.bar.set_message(line.join(" | "));
        if self.bar.is_hidden() {
            let who = if who.is_empty() { String::new() } else { format!("{who}: ") };
            self.detail(&format!("{who}{what}"));
        }
    }

    /// The command has come to its main part: shown by the spinner, or as a line where there is none, so that scripts can wait for it.
    pub fn announce(&self, text: &str) {
        if self.bar.is_hidden() {
            self.note(text);
        } else {
            self.phase("", text);
        }
    }

    /// `who` has nothing more to wait for.
    pub fn done(&self, who: &str) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.remove(who);
        if phases.is_empty() {
            drop(phases);
            self.clear();
        }
    }

    /// Takes the spinner away.
    pub fn clear(&self) {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.bar.disable_steady_tick();
        self.bar.finish_and_clear();
    }

    /// A line for the user that stays on the screen.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| {
            // stderr may be a pipe whose reader went away; there is nobody left to tell.
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    /// A line for the user who asked for more (`-v`).
    pub fn detail(&self, text: &str) {
        if self.verbose > 0 {
            self.note(text);
        }
    }

    /// Whether there is a spinner to look at.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// How often `-v` was given.
    #[must_use]
    pub fn verbosity(&self) -> u8 {
        self.verbose
    }
}
