//! From a helper pod's description to its open stream: create, wait with its phases named, attach.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::cluster::api::client::Api;
use crate::cluster::api::problem::{Kind, Problem, QUOTA_UNCOUNTED};
use crate::cluster::api::rate_limit::{Bucket, RateLimit};
use crate::cluster::helper::admitted;
use crate::cluster::helper::advice;
use crate::cluster::helper::board::Board;
use crate::cluster::helper::garbage::{DeletionMode, PendingDeletions};
use crate::cluster::helper::pod::HelperSpec;
use crate::cluster::helper::startup::node_trouble;
use crate::duration::human;
use crate::progress::Progress;
use crate::session::{Mailbox, Ready, Transport};

/// How long an attached helper may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// A helper that does not run by then is given up.
const LIMIT: Duration = Duration::from_secs(120);
/// The same without any progress: a runtime that hangs says nothing.
const STALL: Duration = Duration::from_secs(20);
/// How often events and node are looked at while the pod's status says nothing new.
pub const TICK: Duration = Duration::from_secs(2);
/// How long controllers may take to complete a new namespace, before which no pod is admitted.
const NEW_NAMESPACE_PATIENCE: Duration = Duration::from_secs(10);
/// How long nodes are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a helper to run, from the request on.
    pub limit: Duration,
    /// For the next sign of progress; a pull of an image is one as long as it lasts.
    pub stall: Duration,
    /// Nodes that are not ready are waited for, too.
    pub unready: bool,
}

impl Patience {
    /// What `--wait-nodes` says, or the default.
    #[must_use]
    pub fn of(wait: Option<Duration>) -> Self {
        match wait {
            Some(limit) => Self { limit, stall: limit, unready: true },
            None => Self { limit: LIMIT, stall: STALL, unready: false },
        }
    }
}

/// What starts helpers, on any number of nodes at once.
#[derive(Debug, Clone)]
pub struct Starter {
    /// The connection.
    pub api: Api,
    /// The pods that have to be deleted.
    pub pending: PendingDeletions,
    /// Where phases are shown.
    pub progress: Progress,
    /// How long nodes are waited for.
    pub patience: Patience,
    /// Pods that are created at one time.
    pub creation_slots: Arc<Semaphore>,
    /// How often.
    pub creations: Arc<Mutex<Bucket>>,
    /// What is known about the pods.
    pub board: Board,
    /// How many start together.
    pub crowd: Crowd,
}

/// Helper pods that are being created at one time, and how often: an API server of a large cluster has more to do, and its nodes pull the
/// helper's image from one registry.
pub const CREATED_AT_ONCE: usize = 16;
/// See [`CREATED_AT_ONCE`].
pub const CREATIONS: RateLimit = RateLimit { per_second: 20, burst: 20 };

/// How many helpers start together: requests that are affordable for a few are too many for hundreds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd(pub usize);

impl Crowd {
    /// Helpers for which attaching is tried before the pod's status says that they run.
    const FEW: usize = 8;

    /// Whether the pods' status is waited for.
    #[must_use]
    pub fn is_large(self) -> bool {
        self.0 > Self::FEW
    }

    /// How often events and node of each are looked at: all together some four times a second.
    #[must_use]
    pub fn tick(self) -> Duration {
        TICK.max(Duration::from_millis(250) * u32::try_from(self.0).unwrap_or(u32::MAX))
    }
}

impl Starter {
    /// Starts one helper, attaches to it and waits for its hello. `unready` is why its node starts no pods, where that is known.
    ///
    /// # Errors
    /// What is wrong and what to do; the pod is deleted first.
    pub async fn start(self, spec: HelperSpec, unready: Option<String>, mailbox: Mailbox) -> anyhow::Result<Ready> {
        let deadline = Instant::now() + self.patience.limit;
        if let Some(text) = unready {
            self.wait_for_node(&spec.node, text, deadline).await?;
        }
        let transport = self.attached(&spec, deadline).await?;
        let nodes = transport.nodes.clone();
        let ready = Ready::handshake(transport, HELLO_PATIENCE, mailbox).await?;
        self.progress.done(&spec.node);
        if let Some(text) = ready.other_release(&nodes) {
            self.progress.warn_once(&format!("release {}", ready.hello().version), &text);
        }
        if let Some(text) = ready.built_for_tests(&nodes) {
            self.progress.warn(&text);
        }
        Ok(ready)
    }

    /// Waits until a node is ready, where that is wanted.
    async fn wait_for_node(&self, node: &str, mut text: String, deadline: Instant) -> Result<(), Problem> {
        while self.patience.unready && Instant::now() < deadline {
            self.progress.phase(node, "waiting for the node to be ready");
            sleep(TICK).await;
            match look_at_node(&self.api, node).await {
                Ok(()) => return Ok(()),
                Err(p) if p.kind == Kind::NotReady => text = p.to_string(),
                Err(p) => return Err(p),
            }
        }
        let hint = if self.patience.unready { "" } else { "; use --wait-nodes to wait for it" };
        Err(Problem::new(Kind::NotReady, format!("{text}{hint}")))
    }

    /// Creates the pod and attaches to it; deletes it where that fails.
    async fn attached(&self, spec: &HelperSpec, deadline: Instant) -> Result<Transport, Problem> {
        let pod = spec.build();
        let name = pod.metadata.name.clone().unwrap_or_default();
        self.progress.phase(&spec.node, "creating the helper pod");
        let permit = self.creation_slots.acquire().await;
        let turn = self.creations.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        sleep_until(turn).await;
        self.pending.add(&name);
        let admitted = match create(&self.api, &spec.namespace, &pod).await {
            Ok(admitted) => admitted,
            Err(p) => {
                // Refused is not created; a lost answer may be.
                if !matches!(p.kind, Kind::Unreachable | Kind::Timeout) {
                    self.pending.forget(&name);
                }
                // A random name carries no information, and one cause on several nodes would be reported several times.
                return Err(advice::for_create(p.without(&format!("pods \"{name}\" is ")), &spec.namespace));
            }
        };
        drop(permit);
        let changes = admitted::changes(&pod, &admitted);
        let outcome = match strayed(&admitted, spec) {
            Some(p) => Err(p),
            None => match timeout_at(deadline, self.run(spec, &name, admitted.clone())).await {
                Ok(outcome) => outcome,
                Err(_) => Err(self.too_late(spec, &name, self.patience.limit)),
            },
        };
        match outcome {
            Ok(transport) => {
                self.pending.in_use(&name);
                if let Some(text) = admitted::describe(&admitted::of_rights(changes), &spec.namespace) {
                    self.progress.warn_once(&text, &text);
                }
                Ok(transport)
            }
            Err(p) => {
                let _ = self.pending.delete(&name, DeletionMode::Ended).await;
                Err(match admitted::describe(&changes, &spec.namespace) {
                    Some(text) => p.with_advice(&text),
                    None => p,
                })
            }
        }
    }

    /// A helper that does not run after this time, with what it waits for.
    pub(super) fn too_late(&self, spec: &HelperSpec, name: &str, after: Duration) -> Problem {
        let (node, namespace) = (&spec.node, &spec.namespace);
        let phase = self.progress.phase_of(node).unwrap_or_else(|| "phase unknown".to_owned());
        let text = format!(
            "the helper pod {namespace}/{name} on node {node} does not run after {}: {phase}\n\
             --wait-nodes waits longer; kubectl describe node {node} and kubectl get pods -A --field-selector spec.nodeName={node} show how the node is",
            human(after)
        );
        Problem::new(Kind::Timeout, text)
    }
}

/// A pod that the cluster will not run on the node it is for.
fn strayed(admitted: &Pod, spec: &HelperSpec) -> Option<Problem> {
    let meant = admitted.spec.as_ref().and_then(|s| s.node_name.as_deref());
    (meant != Some(spec.node.as_str())).then(|| {
        let where_to =
            meant.map_or_else(|| "without a node name, so the scheduler may place it on any".to_owned(), |node| format!("for node {node}"));
        Problem::new(Kind::Other, format!("the helper pod for node {} was admitted, but {where_to}", spec.node))
    })
}

async fn create(api: &Api, namespace: &str, pod: &Pod) -> Result<Pod, Problem> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let what = format!("create the helper pod in namespace {namespace}");
    let deadline = Instant::now() + NEW_NAMESPACE_PATIENCE;
    loop {
        match api.ask(&what, pods.create(&PostParams::default(), pod)).await {
            Err(p) if is_of_new_namespace(&p) && Instant::now() < deadline => {
                sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}

/// A refusal that ends by itself: controllers have not yet made the namespace's service account, or not yet counted for its quota.
fn is_of_new_namespace(problem: &Problem) -> bool {
    let text = problem.to_string();
    text.contains("serviceaccount \"default\" not found") || text.contains(QUOTA_UNCOUNTED)
}

/// Whether a node is well, as far as may be asked.
///
/// # Errors
/// [`Kind::NotReady`] where it starts no pods; [`Kind::NotFound`].
pub async fn look_at_node(api: &Api, node: &str) -> Result<(), Problem> {
    let nodes: kube::Api<Node> = kube::Api::all(api.client());
    match api.ask_opt(&format!("read node {node}"), nodes.get(node)).await {
        Ok(Some(object)) => node_trouble(&object).map_or(Ok(()), |text| Err(Problem::new(Kind::NotReady, text))),
        Ok(None) => Err(Problem::new(Kind::NotFound, format!("node {node} no longer exists\nkubectl get nodes lists the existing ones"))),
        // Without the right to read nodes there is just less to say.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
