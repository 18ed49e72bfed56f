//! A helper pod from creation to attachment, with named phases.

use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout};

use crate::cluster::api::client::Api;
use crate::cluster::api::problem::{Kind, Problem};
use crate::cluster::helper::attach::attach;
use crate::cluster::helper::board::Posted;
use crate::cluster::helper::pod::HelperSpec;
use crate::cluster::helper::start::{Starter, TICK, look_at_node};
use crate::cluster::helper::startup::{PULLING, REPORT, SILENCE, Stage, assess, deleted};
use crate::session::Transport;

/// The kubelet knows a container runs up to a second before its report arrives here, so attaching is tried meanwhile.
const ATTACH_EVERY: Duration = Duration::from_millis(120);

impl Starter {
    /// Waits until the pod can be attached to: whichever comes first, its status or a successful attempt.
    pub(super) async fn run(&self, spec: &HelperSpec, name: &str, created: Pod) -> Result<Transport, Problem> {
        let (api, progress) = (&self.api, &self.progress);
        let (namespace, node) = (spec.namespace.as_str(), spec.node.as_str());
        let (runs, running) = watch::channel(false);
        let mut attached = pin!(self.attach_again(spec, name, running));
        tokio::select! {
            settled = &mut attached => return settled,
            outcome = self.wait_running(spec, name, created) => outcome?,
        }
        // An attempt in progress is not given up: the end of the first stream is the end of the helper's stdin.
        runs.send_replace(true);
        progress.phase(node, "attaching");
        let refused = tokio::select! {
            biased;
            settled = &mut attached => match settled {
                Err(p) if p.kind != Kind::Forbidden => p,
                settled => return settled,
            },
            text = ended(api, namespace, name) => return Err(Problem::new(Kind::Other, text)),
        };
        // It ran a moment ago: if it does not now, the cause is the error.
        Err(match timeout(REPORT, ended(api, namespace, name)).await {
            Ok(text) => Problem::new(Kind::Other, text),
            Err(_) => refused,
        })
    }

    /// Attaches again and again; until the pod is `running` a failure means that it is not there yet, and why, its status will say.
    async fn attach_again(&self, spec: &HelperSpec, name: &str, mut running: watch::Receiver<bool>) -> Result<Transport, Problem> {
        let mut attempts = interval(ATTACH_EVERY);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // One that came too early is repeated at once when it no longer does.
            tokio::select! {
                biased;
                Ok(()) = running.changed() => {}
                _ = attempts.tick() => {}
            }
            let counts = *running.borrow();
            if self.crowd.is_large() && !counts {
                continue;
            }
            match attach(&self.api, &spec.namespace, name, &spec.node, &self.pending, self.progress.verbosity() > 0).await {
                Err(p) if p.kind != Kind::Forbidden && !counts => {}
                settled => return settled,
            }
        }
    }

    /// Follows the pod's status until it runs.
    async fn wait_running(&self, spec: &HelperSpec, name: &str, created: Pod) -> Result<(), Problem> {
        let (namespace, node) = (spec.namespace.as_str(), spec.node.as_str());
        let gone = || Problem::new(Kind::Other, deleted(namespace, name, node));
        let pods: kube::Api<Pod> = kube::Api::namespaced(self.api.client(), namespace);
        let mut posted = self.board.of(name);
        let mut stall = Stall::new();
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        let mut asked = Instant::now();
        let (mut events, mut pod) = (Vec::new(), created);
        loop {
            match assess(&pod, &events, stall.since_start()) {
                Stage::Running => return Ok(()),
                Stage::Waiting(phase) => {
                    self.progress.phase(node, &phase);
                    if stall.is_over(&phase, self.patience.stall) {
                        return Err(self.too_late(spec, name, self.patience.stall));
                    }
                }
                Stage::Failed(text) => return Err(Problem::new(Kind::Other, text)),
            }
            tokio::select! {
                Ok(()) = posted.changed() => match &*posted.borrow_and_update() {
                    Posted::Pod(new) => pod = (**new).clone(),
                    Posted::Deleted => return Err(gone()),
                    Posted::Nothing | Posted::Unwatched => {}
                },
                _ = ticks.tick() => {
                    if asked.elapsed() + TICK / 2 < self.crowd.tick() {
                        continue;
                    }
                    asked = Instant::now();
                    if !matches!(&*posted.borrow(), Posted::Pod(_)) {
                        let read = self.api.ask_opt(&format!("read the helper pod {namespace}/{name}"), pods.get(name)).await?;
                        pod = read.ok_or_else(gone)?;
                    }
                    events = read_events(&self.api, namespace, name).await;
                    if stall.since_start() > SILENCE && !has_reacted(&pod) && !self.patience.unready {
                        look_at_node(&self.api, node).await?;
                    }
                }
            }
        }
    }
}

/// How long a pod has been in one phase.
#[derive(Debug)]
struct Stall {
    began: Instant,
    phase: String,
    since: Instant,
}

impl Stall {
    fn new() -> Self {
        Self { began: Instant::now(), phase: String::new(), since: Instant::now() }
    }

    fn since_start(&self) -> Duration {
        self.began.elapsed()
    }

    /// Whether nothing has changed for longer than `limit`. A pull takes as long as the registry needs.
    fn is_over(&mut self, phase: &str, limit: Duration) -> bool {
        if self.phase != phase || phase.starts_with(PULLING) {
            phase.clone_into(&mut self.phase);
            self.since = Instant::now();
        }
        self.since.elapsed() >= limit
    }
}

/// Waits until the pod's status says that it ended; gives why.
async fn ended(api: &Api, namespace: &str, name: &str) -> String {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    loop {
        sleep(ATTACH_EVERY).await;
        if let Ok(pod) = api.ask(&format!("read the helper pod {namespace}/{name}"), pods.get(name)).await
            && let Stage::Failed(text) = assess(&pod, &[], Duration::ZERO)
        {
            return text;
        }
    }
}

/// Whether the node's kubelet has said anything about the pod.
fn has_reacted(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| s.container_statuses.as_ref().is_some_and(|c| !c.is_empty()) || s.start_time.is_some())
}

/// What the kubelet reported about the pod, oldest first; empty for users who may not read events.
async fn read_events(api: &Api, namespace: &str, name: &str) -> Vec<Event> {
    let events: kube::Api<Event> = kube::Api::namespaced(api.client(), namespace);
    let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
    let mut list = api.ask("read events", events.list(&params)).await.map(|l| l.items).unwrap_or_default();
    list.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0).or_else(|| e.event_time.as_ref().map(|t| t.0)));
    list
}
