//! The acceleration of a node as any process finds it by its pins: that of another session, or what one has left.

use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::accel::{AccelStatus, AccelSummary, PairsSnapshot};

use super::merge;
use crate::accel::instance::Instance;
use crate::accel::report::{PodNames, Snapshot};
use crate::accel::stop::{self, LOOK_AGAIN};
use crate::accel::tracked::tracked;
use crate::lease::{RENEWED_WITHIN, left_until, millis_up};
use crate::node::Netns;
use crate::pins::Pins;
use crate::short::pins::{self as short, Pinned};

/// How long the process of a short path may take to detach its programs.
const RELEASE: Duration = Duration::from_secs(2);

/// What is pinned.
#[derive(Debug)]
pub struct Existing {
    pins: Pins,
    instance: Option<Instance>,
    short: Vec<Pinned>,
}

impl Existing {
    /// Opens it. There may be pins and nothing that can be opened: of a start that was interrupted.
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self { pins: pins.clone(), instance: Instance::open(pins)?, short: Pinned::all(pins)? })
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.instance.is_none() && self.short.is_empty()
    }

    /// Who started it.
    pub fn owner(&self) -> String {
        let of_short = || self.short.first().map(Pinned::owner);
        self.instance.as_ref().map(|i| i.control().owner()).or_else(of_short).unwrap_or_default()
    }

    /// Whether no process renews the lease of any part any more.
    pub fn is_helper_gone(&self) -> Result<bool> {
        let socket = self.instance.as_ref().map_or(Ok(true), |i| i.control().is_helper_gone())?;
        self.short.iter().map(Pinned::is_helper_gone).try_fold(socket, |all, gone| Ok(all && gone?))
    }

    /// How long it lasts if nothing else happens.
    pub fn time_left(&self) -> Result<Duration> {
        let socket = self.instance.as_ref().map_or(Ok(Duration::ZERO), |i| i.control().time_left())?;
        self.short.iter().map(Pinned::time_left).try_fold(socket, |longest, left| Ok(longest.max(left?)))
    }

    fn is_detached(&self) -> bool {
        self.instance.as_ref().is_some_and(|i| i.control().is_detached()) || self.short.iter().any(Pinned::is_detached)
    }

    /// Whether it carries packets in another network namespace than that of this machine's process 1: a lab's.
    pub fn is_in_other_namespaces(&self) -> Result<bool> {
        let own = Netns::open("/proc/1/ns/net")?.inode;
        Ok(self.short.iter().any(|node| node.netns() != own))
    }

    /// When the lease ends (CLOCK_MONOTONIC, nanoseconds), the later one of both paths.
    fn deadline_ns(&self) -> u64 {
        let socket = self.instance.as_ref().map_or(0, |i| i.control().deadline_ns.get());
        self.short.iter().map(Pinned::deadline_ns).fold(socket, u64::max)
    }

    /// Who accelerates on this node, if the lease is renewed.
    pub async fn user(&self) -> Result<Option<String>> {
        let (before, until) = (self.deadline_ns(), Instant::now() + RENEWED_WITHIN);
        let is_stopped = || self.instance.as_ref().is_none_or(Instance::is_stopped) && self.short.iter().all(Pinned::is_released);
        while !is_stopped() && !self.lease_left()?.is_zero() {
            if self.deadline_ns() > before {
                return Ok(Some(self.owner()));
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(None)
    }

    fn lease_left(&self) -> Result<Duration> {
        left_until(self.deadline_ns())
    }

    /// The answer to `status`.
    pub fn status(&self) -> Result<AccelStatus> {
        if self.is_empty() {
            return Ok(AccelStatus { active: self.pins.exist(), ..AccelStatus::default() });
        }
        Ok(AccelStatus {
            active: true,
            owner: Some(self.owner()),
            lease_left_ms: millis_up(self.time_left()?),
            detached: self.is_detached(),
            helper_gone: self.is_helper_gone()?,
            pairs: self.pairs()?,
        })
    }

    /// All connections, without the names of pods.
    fn pairs(&self) -> Result<PairsSnapshot> {
        let socket = self
            .instance
            .as_ref()
            .map(|instance| Snapshot { instance, all: &tracked(instance), pods: &PodNames::default(), dry: false }.collect());
        match (socket, self.short.is_empty()) {
            (Some(socket), true) => Ok(socket),
            (Some(socket), false) => Ok(merge::snapshots(socket, short::snapshot(&self.short)?)),
            (None, _) => short::snapshot(&self.short),
        }
    }

    /// Ends it: every redirect of the short path at once, the socket path when nothing can be lost. The process that serves it learns who
    /// ends it. What it achieved.
    pub async fn stop(&self, by: &str, drain: Duration) -> Result<AccelSummary> {
        let mut waited_for = Vec::new();
        for node in &self.short {
            if !node.is_helper_gone()? && !node.is_released() {
                waited_for.push(node);
            }
        }
        let short = short::snapshot(&self.short)?.totals;
        self.short.iter().for_each(|node| node.stop(by));
        if let Some(instance) = &self.instance {
            instance.control().note_who_stops(by);
            instance.control().pause();
        }
        let until = Instant::now() + RELEASE;
        while Instant::now() < until && !waited_for.iter().all(|node| node.is_released()) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.short.iter().filter(|node| !node.is_released()).try_for_each(Pinned::remove_filters)?;
        let ran = self.short.iter().map(Pinned::ran).try_fold(Duration::ZERO, |longest, ran| anyhow::Ok(longest.max(ran?)))?;
        let mut summary = match &self.instance {
            Some(instance) => stop::dismantle(instance, &[], drain).await?,
            None => AccelSummary { ran_ms: u64::try_from(ran.as_millis()).unwrap_or(u64::MAX), ..AccelSummary::default() },
        };
        merge::add_path(&mut summary.totals, &short);
        Ok(summary)
    }
}
