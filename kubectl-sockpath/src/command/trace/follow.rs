//! `trace --follow`: when the traced pods go, the trace continues with those that take their place.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, anyhow};
use sockpath_protocol::text::first_line;
use tokio::time::{Instant, sleep};

use super::ends::Ends;
use crate::backend::Backend;
use crate::cli::{self, Global};
use crate::duration::human;
use crate::exit::{Exit, Interrupted, UsageError};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::target::Plan;

/// How long a successor may take to run: its image may have to be pulled on another node.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time between two looks for it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How a trace, or a part of one that follows its pods, ended.
#[derive(Debug)]
pub struct Leg {
    /// The exit code, where it was the last.
    pub exit: Exit,
    /// The pods can no longer be observed.
    pub lost: bool,
    /// Request packets that were delivered.
    pub delivered: u64,
    /// The pods that are gone, by UID.
    pub gone: BTreeSet<String>,
}

/// The parts of a trace that follows, each with the pods of its time.
#[derive(Debug)]
pub struct Following<'a> {
    args: &'a cli::Trace,
    /// The number of the part that is traced; the first is 1.
    part: u32,
    /// Pods that can no longer be traced, by UID.
    gone: BTreeSet<String>,
    /// When the whole ends; known once the first part has begun.
    end: Option<Instant>,
    delivered: u64,
    saw: bool,
}

impl<'a> Following<'a> {
    /// Nothing was traced yet.
    pub fn new(args: &'a cli::Trace) -> Self {
        Self { args, part: 1, gone: BTreeSet::new(), end: None, delivered: 0, saw: false }
    }

    /// The number of the part that is traced; the first is 1.
    pub fn part(&self) -> u32 {
        self.part
    }

    /// What is left of a number of packets, and of a time that begins with the first part.
    pub fn left(&mut self, count: Option<u64>, duration: Duration) -> (Option<u64>, Duration) {
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + duration);
        (count.map(|n| n.saturating_sub(self.delivered)), end.saturating_duration_since(now))
    }

    /// Takes in how a part ended; gives the exit code where it was the last.
    pub fn take(&mut self, leg: Leg) -> Option<Exit> {
        self.delivered += leg.delivered;
        self.saw |= leg.exit == Exit::Done;
        let enough = self.args.count.is_some_and(|n| self.delivered >= n) || self.end.is_some_and(|end| Instant::now() >= end);
        self.gone.extend(leg.gone);
        if self.args.follow && leg.lost && !enough {
            self.part += 1;
            return None;
        }
        Some(if self.saw && leg.exit == Exit::Nothing { Exit::Done } else { leg.exit })
    }

    /// Waits for the pods that take the place of those that are gone; `None`, and why in a note, where none come in time.
    ///
    /// # Errors
    /// On Ctrl-C, and where nothing was seen and nothing comes.
    pub async fn successor(&self, global: &Global, interrupt: &Interrupt, progress: &Progress) -> Result<Option<(Backend, Plan)>> {
        let patience = self.end.map_or(PATIENCE, |end| end.saturating_duration_since(Instant::now())).min(PATIENCE);
        let give_up_at = Instant::now() + patience;
        progress.phase("", "waiting for a successor");
        loop {
            let looking = self.look(global);
            let why = tokio::select! {
                biased;
                () = interrupt.wait() => return Err(Interrupted.into()),
                found = looking => match found {
                    Ok((backend, plan)) => {
                        progress.clear();
                        progress.note(&announcement(&plan));
                        return Ok(Some((backend, plan)));
                    }
                    Err(e) if e.is::<UsageError>() => return Err(e),
                    Err(e) => e,
                },
            };
            if Instant::now() >= give_up_at {
                let text = format!("no successor of the traced pods ran within {}: {why:#}", human(patience));
                if !self.saw {
                    return Err(anyhow!(text));
                }
                progress.clear();
                progress.note(&text);
                return Ok(None);
            }
            progress.phase("", &format!("waiting for a successor ({})", first_line(&why.to_string())));
            tokio::select! {
                biased;
                () = interrupt.wait() => return Err(Interrupted.into()),
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// The same names again; what is known about nodes may have changed with the pods.
    async fn look(&self, global: &Global) -> Result<(Backend, Plan)> {
        let ends = Ends::of(self.args)?;
        let backend = Backend::connect(global, true).await?;
        let plan = ends.look_up(&backend).await?;
        let request = &plan.request;
        match std::iter::once(&request.source).chain(&request.targets).find(|pod| self.gone.contains(&pod.uid)) {
            Some(pod) => Err(anyhow!("pod {}/{} is still there", pod.namespace, pod.name)),
            None => Ok((backend, plan)),
        }
    }
}

fn announcement(plan: &Plan) -> String {
    let place = |pod: &sockpath_protocol::pod::Pod| format!("{} on {}", pod.name, pod.node);
    let request = &plan.request;
    let to = match &request.targets[..] {
        [] => plan.target.clone(),
        [pod] => place(pod),
        several => format!("{} pods of {}", several.len(), plan.target),
    };
    format!("the trace continues: {} to {to}", place(&request.source))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn args(words: &[&str]) -> cli::Trace {
        let cli::Command::Trace(args) = cli::Cli::parse_from(["sockpath", "trace", "a", "b"].iter().chain(words)).command else { panic!() };
        *args
    }

    fn leg(exit: Exit, lost: bool, delivered: u64) -> Leg {
        Leg { exit, lost, delivered, gone: BTreeSet::from(["uid-1".to_owned()]) }
    }

    #[tokio::test]
    async fn a_trace_goes_on_while_pods_go_and_something_is_left_to_see() {
        let plain = args(&[]);
        assert_eq!(Following::new(&plain).take(leg(Exit::Nothing, true, 0)), Some(Exit::Nothing), "without --follow it ends");
        let counted = args(&["--follow", "--count", "10"]);
        let mut following = Following::new(&counted);
        assert_eq!(following.left(Some(10), Duration::from_secs(60)).0, Some(10));
        assert_eq!(following.take(leg(Exit::Done, true, 4)), None);
        assert_eq!(following.part(), 2);
        let (count, time) = following.left(Some(10), Duration::from_secs(60));
        assert!(count == Some(6) && time <= Duration::from_secs(60), "{count:?} {time:?}");
        assert!(following.gone.contains("uid-1"));
        assert_eq!(following.take(leg(Exit::Nothing, false, 0)), Some(Exit::Done), "the first part saw something");
        assert_eq!(Following::new(&counted).take(leg(Exit::Done, true, 10)), Some(Exit::Done), "enough was seen");
        assert_eq!(Following::new(&counted).take(leg(Exit::Interrupted, false, 0)), Some(Exit::Interrupted));
    }
}
