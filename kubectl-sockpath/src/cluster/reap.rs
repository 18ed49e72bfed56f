//! Deleting helper pods: our own on every way out, and leftovers of runs that could not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use tokio::time::{Instant, sleep, timeout};

use super::client::Api;
use super::helper_pod::{LABEL_MODE, SELECTOR};
use super::owner::{self, Owner};
use super::privilege;
use super::problem::{Kind, Problem};
use crate::backend::Mode;
use crate::output;

/// How long a deletion is tried again while the API server cannot be reached (it may just be restarting).
const PATIENCE: Duration = Duration::from_secs(20);
/// One attempt; a connection that died silently must not eat all the time.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// A finished pod of somebody else is left this long, so that its own plugin can still ask what became of it.
const FINISHED_FOR_SECONDS: i64 = 60;

/// How a pod is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Its process has ended: the object goes at once.
    Ended,
    /// Its process may still run: SIGTERM first, so that it can put the kernel back in order.
    Running,
}

/// Pods that were created and not yet deleted. Whatever is left when the last handle goes is deleted then, from a thread of
/// its own: the event loop may already be gone (a panic, a cancelled command).
#[derive(Debug, Clone)]
pub struct Debts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Api,
    namespace: String,
    pods: Mutex<BTreeMap<String, Manner>>,
}

impl Debts {
    /// No pods yet.
    #[must_use]
    pub fn new(api: Api, namespace: &str) -> Self {
        Self(Arc::new(Inner { api, namespace: namespace.to_owned(), pods: Mutex::default() }))
    }

    /// To be called before the pod is created: once the request is out, the pod may come to be whatever happens here. Nothing has
    /// been asked of its process yet, so it may go at once: on a node that hangs it would stay for ever otherwise.
    pub fn owe(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Manner::Ended);
    }

    /// Its process works for us from now on.
    pub fn in_use(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Manner::Running);
    }

    /// The pod was never created.
    pub fn forget(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Deletes all that are owed. A request to create one may still be on its way and overtake the first deletion, so pods
    /// that were not there are asked for once more.
    pub async fn settle_all(&self) {
        let pods: Vec<(String, Manner)> =
            self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(name, manner)| (name.clone(), *manner)).collect();
        if pods.is_empty() {
            return;
        }
        for pause in [Duration::ZERO, PAUSE] {
            sleep(pause).await;
            let deletions = pods.iter().map(|(name, manner)| delete(&self.0.api, &self.0.namespace, name, *manner));
            for ((name, _), outcome) in pods.iter().zip(futures_util::future::join_all(deletions).await) {
                match outcome {
                    Ok(()) => self.forget(name),
                    Err(p) => output::say(&format!("warning: {p}")),
                }
            }
        }
    }

    /// Deletes one pod.
    ///
    /// # Errors
    /// When it could not be deleted; it then stays owed.
    pub async fn settle(&self, name: &str, manner: Manner) -> Result<(), Problem> {
        delete(&self.0.api, &self.0.namespace, name, manner).await?;
        self.forget(name);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pods = std::mem::take(self.pods.get_mut().unwrap_or_else(PoisonError::into_inner));
        if pods.is_empty() {
            return;
        }
        let (api, namespace) = (self.api.clone(), self.namespace.clone());
        let worker = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                // The client's connections belong to the event loop that is ending, so this one makes its own.
                let Ok(api) = api.reconnected() else { return };
                for (name, manner) in pods {
                    if let Err(p) = delete(&api, &namespace, &name, manner).await {
                        output::say(&format!("warning: {p}\npod {namespace}/{name} remains; delete it with kubectl sockpath cleanup"));
                    }
                }
            });
        });
        let _ = worker.join();
    }
}

/// Deletes a pod; one that is gone already is fine. Tries again while the API server cannot be reached.
///
/// # Errors
/// When the API server refuses, or stays away for long.
pub async fn delete(api: &Api, namespace: &str, name: &str, manner: Manner) -> Result<(), Problem> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let params = match manner {
        Manner::Ended => DeleteParams::default().grace_period(0),
        Manner::Running => DeleteParams::default(),
    };
    let what = format!("delete the helper pod {namespace}/{name}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempt = timeout(ATTEMPT, api.ask_opt(&what, pods.delete(name, &params))).await;
        let problem = match attempt {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(p)) if !matches!(p.kind, Kind::Unreachable | Kind::Timeout) => return Err(p),
            Ok(Err(p)) => p,
            Err(_) => Problem::timeout(&what, api.server(), ATTEMPT.as_secs_f64()),
        };
        if Instant::now() + PAUSE > deadline {
            return Err(problem);
        }
        sleep(PAUSE).await;
    }
}

/// A helper pod that nobody uses any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name.
    pub name: String,
    /// How to delete it.
    pub manner: Manner,
    /// Why it is a leftover.
    pub why: &'static str,
}

/// Finds leftovers: helper pods that have ended, and those whose plugin ran on this machine and is gone. The session of
/// somebody else that still runs is none.
///
/// # Errors
/// When the pods cannot be listed.
pub async fn leftovers(api: &Api, namespace: &str) -> Result<Vec<Leftover>, Problem> {
    Ok(helper_pods(api, namespace).await?.iter().filter_map(|pod| judge(pod, Timestamp::now())).collect())
}

async fn helper_pods(api: &Api, namespace: &str) -> Result<Vec<Pod>, Problem> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let what = format!("list remaining helper pods in namespace {namespace}");
    let list = match api.ask_opt(&what, pods.list(&ListParams::default().labels(SELECTOR))).await {
        Err(p) if p.kind == Kind::NoNamespace => None,
        other => other?,
    };
    Ok(list.map(|l| l.items).unwrap_or_default())
}

/// Nodes on which helpers run that accelerate, whoever started them, with or without a plugin.
///
/// # Errors
/// When the pods cannot be listed.
pub async fn nodes_with_accelerators(api: &Api, namespace: &str) -> Result<BTreeSet<String>, Problem> {
    let accelerates = |pod: &Pod| {
        let mode = pod.metadata.labels.as_ref().and_then(|l| l.get(LABEL_MODE));
        let over = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        mode.is_some_and(|m| m == privilege::mode_name(Mode::Accelerate)) && !over
    };
    let pods = helper_pods(api, namespace).await?;
    Ok(pods.iter().filter(|pod| accelerates(pod)).filter_map(node_of).map(str::to_owned).collect())
}

/// Removes helpers that were left running on these nodes and are no longer wanted; tells which.
///
/// # Errors
/// When pods cannot be listed or deleted.
pub async fn remove_those_that_stayed(api: &Api, namespace: &str, nodes: &[String]) -> Result<Vec<String>, Problem> {
    let mut removed = Vec::new();
    for pod in helper_pods(api, namespace).await? {
        let here = node_of(&pod).is_some_and(|node| nodes.iter().any(|n| n == node));
        if let (true, Some(name)) = (here && stays(&pod), pod.metadata.name) {
            delete(api, namespace, &name, Manner::Running).await?;
            removed.push(format!("pod {namespace}/{name}"));
        }
    }
    Ok(removed)
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(owner::stays)
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Removes leftovers quietly, as each command does at its start; what cannot be removed is left to `cleanup` to complain about.
pub async fn reap_leftovers(api: Api, namespace: String) -> Vec<String> {
    let mut removed = Vec::new();
    for leftover in leftovers(&api, &namespace).await.unwrap_or_default() {
        if delete(&api, &namespace, &leftover.name, leftover.manner).await.is_ok() {
            removed.push(format!("pod {namespace}/{} ({})", leftover.name, leftover.why));
        }
    }
    removed
}

/// Removes leftovers thoroughly: those that have ended just now, too. Returns what was removed, and what is kept because
/// its plugin may still run, with whose it is.
///
/// # Errors
/// When pods cannot be listed or deleted.
pub async fn clean(api: &Api, namespace: &str) -> Result<(Vec<String>, Vec<String>), Problem> {
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    for pod in helper_pods(api, namespace).await? {
        let Some(name) = pod.metadata.name.clone() else { continue };
        let ended = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let leftover = judge(&pod, Timestamp::now())
            .or_else(|| ended.then(|| Leftover { name: name.clone(), manner: Manner::Ended, why: "it has ended" }));
        match leftover {
            Some(leftover) => {
                delete(api, namespace, &name, leftover.manner).await?;
                removed.push(format!("pod {namespace}/{name} ({})", leftover.why));
            }
            None if pod.metadata.deletion_timestamp.is_some() => {
                kept.push(format!("pod {namespace}/{name}: it is being deleted, and disappears when its process ends"));
            }
            None => {
                let user = pod.metadata.annotations.as_ref().and_then(Owner::user_of).unwrap_or("somebody");
                kept.push(format!("pod {namespace}/{name}: in use by {user}"));
            }
        }
    }
    Ok((removed, kept))
}

fn judge(pod: &Pod, now: Timestamp) -> Option<Leftover> {
    // Somebody is at it already.
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.clone()?;
    // One that was left running on purpose ends with its lease, or is stopped.
    let orphaned = pod.metadata.annotations.as_ref().is_some_and(Owner::has_ended);
    let status = pod.status.as_ref();
    if matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")) {
        let ended = status
            .iter()
            .flat_map(|s| s.container_statuses.iter().flatten())
            .filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        let recently = ended.map(|t| now.as_second() - t.0.as_second()).any(|ago| ago < FINISHED_FOR_SECONDS);
        return (orphaned || !recently).then_some(Leftover { name, manner: Manner::Ended, why: "it has ended" });
    }
    (orphaned && !stays(pod)).then_some(Leftover { name, manner: Manner::Running, why: "the plugin that started it is gone" })
}

#[cfg(test)]
#[path = "reap_tests.rs"]
mod tests;
