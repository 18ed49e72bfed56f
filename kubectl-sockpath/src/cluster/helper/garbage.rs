//! Deletes helper pods: those of this run on every exit path, and stale ones of earlier runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams};
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::api::client::Api;
use crate::cluster::api::problem::{Kind, Problem};
use crate::cluster::helper::owner::{self, Owner};
use crate::cluster::helper::pod::{LABEL_MODE, SELECTOR};
use crate::cluster::helper::privilege;
use crate::mode::Mode;
use crate::output;

/// How long a deletion is tried again while the API server cannot be reached (it may just be restarting).
const PATIENCE: Duration = Duration::from_secs(20);
/// One attempt; a connection that died silently must not eat all the time.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pods that are deleted at one time.
const DELETED_AT_ONCE: usize = 64;
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// A finished pod of another run is kept this long, so that its plugin can still read its status.
const FINISHED_FOR_SECONDS: i64 = 60;

/// How a pod is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletionMode {
    /// Its process has ended: the object goes at once.
    Ended,
    /// Its process may still run: SIGTERM first, so that it can put the kernel back in order.
    Running,
}

/// Pods that were created and not yet deleted. Whatever is left when the last handle goes is deleted then, from a thread of
/// its own: the event loop may already be gone (a panic, a cancelled command).
#[derive(Debug, Clone)]
pub struct PendingDeletions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Api,
    namespace: String,
    pods: Mutex<BTreeMap<String, DeletionMode>>,
}

impl PendingDeletions {
    /// No pods yet.
    #[must_use]
    pub fn new(api: Api, namespace: &str) -> Self {
        Self(Arc::new(Inner { api, namespace: namespace.to_owned(), pods: Mutex::default() }))
    }

    /// To be called before the pod is created: once the request is sent, the pod may be created whatever happens here. Its process
    /// has no request yet, so it is deleted without grace period: on a node that hangs it would otherwise never disappear.
    pub fn add(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), DeletionMode::Ended);
    }

    /// Its process works for us from now on.
    pub fn in_use(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), DeletionMode::Running);
    }

    /// The pod was never created.
    pub fn forget(&self, name: &str) {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Deletes all, and reports what remains. A request to create one may still be in flight and overtake the first deletion, so pods
    /// that did not exist are deleted a second time.
    pub async fn delete_all(&self) {
        // They stay pending until this is over: where it is cancelled, `Drop` deletes them.
        let pods = self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if pods.is_empty() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        delete_together(&self.0.api, &self.0.namespace, &pods, deadline).await;
        sleep(PAUSE).await;
        report_remaining(&self.0.namespace, &delete_together(&self.0.api, &self.0.namespace, &pods, deadline).await);
        pods.keys().for_each(|name| self.forget(name));
    }

    /// Deletes one pod.
    ///
    /// # Errors
    /// When it could not be deleted; it then stays pending.
    pub async fn delete(&self, name: &str, mode: DeletionMode) -> Result<(), Problem> {
        delete(&self.0.api, &self.0.namespace, name, mode).await?;
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
                // The client's connections belong to the event loop that is ending, so this one opens its own.
                let Ok(api) = api.reconnected() else { return };
                report_remaining(&namespace, &delete_together(&api, &namespace, &pods, Instant::now() + PATIENCE).await);
            });
        });
        let _ = worker.join();
    }
}

/// Deletes pods, some at one time; returns why each that remains does. The deadline is that of all.
async fn delete_together(
    api: &Api,
    namespace: &str,
    pods: &BTreeMap<String, DeletionMode>,
    deadline: Instant,
) -> BTreeMap<String, Problem> {
    let deletions = pods.iter().map(|(name, mode)| async move {
        delete_until(api, namespace, name, *mode, deadline).await.err().map(|problem| (name.clone(), problem))
    });
    futures_util::stream::iter(deletions).buffer_unordered(DELETED_AT_ONCE).filter_map(std::future::ready).collect().await
}

/// Says which pods remain and why: on many nodes, mostly for one reason.
fn report_remaining(namespace: &str, remaining: &BTreeMap<String, Problem>) {
    let mut by_problem: BTreeMap<String, Vec<(&str, &Problem)>> = BTreeMap::new();
    for (name, problem) in remaining {
        by_problem.entry(problem.to_string().replace(name.as_str(), "...")).or_default().push((name, problem));
    }
    for (common, pods) in by_problem {
        let (problem, what) = match pods.as_slice() {
            [(name, problem)] => (problem.to_string(), format!("pod {namespace}/{name} remains; delete it")),
            some => (common, format!("{} helper pods remain in namespace {namespace}; delete them", some.len())),
        };
        output::say(&format!("warning: {problem}\n{what} with kubectl sockpath cleanup"));
    }
}

/// Deletes a pod; one that is gone already is fine. Tries again while the API server cannot be reached.
///
/// # Errors
/// When the API server refuses, or stays away for long.
pub async fn delete(api: &Api, namespace: &str, name: &str, mode: DeletionMode) -> Result<(), Problem> {
    delete_until(api, namespace, name, mode, Instant::now() + PATIENCE).await
}

/// The same until a deadline, at least once.
async fn delete_until(api: &Api, namespace: &str, name: &str, mode: DeletionMode, deadline: Instant) -> Result<(), Problem> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let params = match mode {
        DeletionMode::Ended => DeleteParams::default().grace_period(0),
        DeletionMode::Running => DeleteParams::default(),
    };
    let what = format!("delete the helper pod {namespace}/{name}");
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

/// A helper pod that is no longer in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// Its name.
    pub name: String,
    /// How to delete it.
    pub mode: DeletionMode,
    /// Why it is stale.
    pub why: &'static str,
}

/// Finds stale helper pods: those that have ended, and those whose plugin ran on this machine and is gone. Running sessions
/// of other users are not stale.
///
/// # Errors
/// When the pods cannot be listed.
pub async fn stale_pods(api: &Api, namespace: &str) -> Result<Vec<Stale>, Problem> {
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

/// Nodes on which helpers accelerate, of any user, with or without a plugin.
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

/// Removes detached helpers on these nodes that are no longer needed; returns their names.
///
/// # Errors
/// When pods cannot be listed or deleted.
pub async fn remove_detached(api: &Api, namespace: &str, nodes: &[String]) -> Result<Vec<String>, Problem> {
    let mut removed = Vec::new();
    for pod in helper_pods(api, namespace).await? {
        let here = node_of(&pod).is_some_and(|node| nodes.iter().any(|n| n == node));
        if let (true, Some(name)) = (here && stays(&pod), pod.metadata.name) {
            delete(api, namespace, &name, DeletionMode::Running).await?;
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

/// Removes stale pods quietly, as each command does at its start; `cleanup` reports those that cannot be removed.
pub async fn collect(api: Api, namespace: String) -> Vec<String> {
    let mut removed = Vec::new();
    for stale in stale_pods(&api, &namespace).await.unwrap_or_default() {
        if delete(&api, &namespace, &stale.name, stale.mode).await.is_ok() {
            removed.push(format!("pod {namespace}/{} ({})", stale.name, stale.why));
        }
    }
    removed
}

/// Removes stale pods thoroughly: also those that have just ended. Returns the removed pods, and those kept because
/// their plugin may still run, with their user.
///
/// # Errors
/// When pods cannot be listed or deleted.
pub async fn clean(api: &Api, namespace: &str) -> Result<(Vec<String>, Vec<String>), Problem> {
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    for pod in helper_pods(api, namespace).await? {
        let Some(name) = pod.metadata.name.clone() else { continue };
        let ended = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let stale = judge(&pod, Timestamp::now())
            .or_else(|| ended.then(|| Stale { name: name.clone(), mode: DeletionMode::Ended, why: "it has ended" }));
        match stale {
            Some(stale) => {
                delete(api, namespace, &name, stale.mode).await?;
                removed.push(format!("pod {namespace}/{name} ({})", stale.why));
            }
            None if pod.metadata.deletion_timestamp.is_some() => {
                kept.push(format!("pod {namespace}/{name}: it is being deleted, and disappears when its process ends"));
            }
            None => {
                let user = pod.metadata.annotations.as_ref().and_then(Owner::user_of).unwrap_or("an unknown user");
                kept.push(format!("pod {namespace}/{name}: in use by {user}"));
            }
        }
    }
    Ok((removed, kept))
}

fn judge(pod: &Pod, now: Timestamp) -> Option<Stale> {
    // It is being deleted already.
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
        return (orphaned || !recently).then_some(Stale { name, mode: DeletionMode::Ended, why: "it has ended" });
    }
    (orphaned && !stays(pod)).then_some(Stale { name, mode: DeletionMode::Running, why: "the plugin that started it is gone" })
}

#[cfg(test)]
#[path = "garbage_tests.rs"]
mod tests;
