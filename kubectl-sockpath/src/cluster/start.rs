//! From a helper pod's description to its open stream: create, wait with its phases named, attach.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::admitted;
use super::attach::attach;
use super::client::Api;
use super::helper_pod::HelperSpec;
use super::problem::{Kind, Problem, QUOTA_UNCOUNTED};
use super::reap::{Debts, Manner};
use super::remedy;
use super::startup::{REPORT, SILENCE, Stage, assess, deleted, node_trouble};
use crate::progress::Progress;
use crate::session::Transport;

/// A pod that does not run by then is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often events and node are looked at while the pod's status says nothing new.
const TICK: Duration = Duration::from_secs(2);
/// How long controllers may take to complete a new namespace, before which no pod is admitted.
const NEW_NAMESPACE_PATIENCE: Duration = Duration::from_secs(10);
/// The kubelet knows a container runs up to a second before its report arrives here, so attaching is tried meanwhile.
const ATTACH_EVERY: Duration = Duration::from_millis(120);

/// Starts one helper and attaches to it.
///
/// # Errors
/// A [`Problem`] that ends in what to do; the pod is deleted first.
async fn start(api: Api, spec: HelperSpec, debts: Debts, progress: Progress) -> Result<Started, Problem> {
    let pod = spec.build();
    let name = pod.metadata.name.clone().unwrap_or_default();
    progress.phase(&spec.node, "creating the helper pod");
    debts.owe(&name);
    let admitted = match create(&api, &spec.namespace, &pod).await {
        Ok(admitted) => admitted,
        Err(p) => {
            // Refused is not created; a lost answer may be.
            if !matches!(p.kind, Kind::Unreachable | Kind::Timeout) {
                debts.forget(&name);
            }
            // A random name says nothing, and would keep one cause on several nodes from being told once.
            return Err(remedy::for_create(p.without(&format!("pods \"{name}\" is ")), &spec.namespace));
        }
    };
    let changes = admitted::changes(&pod, &admitted);
    let outcome = match strayed(&admitted, &spec) {
        Some(p) => Err(p),
        None => run(&api, &spec, &name, &debts, &progress).await,
    };
    match outcome {
        Ok(transport) => {
            progress.done(&spec.node);
            Ok(Started { transport, rights: admitted::of_rights(changes) })
        }
        Err(p) => {
            let _ = debts.settle(&name, Manner::Running).await;
            Err(match admitted::told(&changes, &spec.namespace) {
                Some(told) => p.with_remedy(&told),
                None => p,
            })
        }
    }
}

/// A helper that was attached to, and what the cluster changed of the rights it asked for.
struct Started {
    transport: Transport,
    rights: Vec<String>,
}

/// A pod that the cluster will not run on the node it is for.
fn strayed(admitted: &Pod, spec: &HelperSpec) -> Option<Problem> {
    let meant = admitted.spec.as_ref().and_then(|s| s.node_name.as_deref());
    (meant != Some(spec.node.as_str())).then(|| {
        let where_to = meant.map_or_else(|| "left to the scheduler, which may put it on any".to_owned(), |node| format!("for node {node}"));
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

/// Waits until the pod can be attached to: whichever comes first, its status or a successful attempt.
async fn run(api: &Api, spec: &HelperSpec, name: &str, debts: &Debts, progress: &Progress) -> Result<Transport, Problem> {
    let (namespace, node) = (spec.namespace.as_str(), spec.node.as_str());
    let runs = AtomicBool::new(false);
    let mut attached = pin!(attached(api, spec, name, debts, progress, &runs));
    tokio::select! {
        settled = &mut attached => return settled,
        outcome = wait_running(api, namespace, name, node, progress) => outcome?,
    }
    // An attempt that is on its way is not given up: the end of the first stream is the end of the helper's stdin.
    runs.store(true, Ordering::Relaxed);
    progress.phase(node, "attaching");
    let refused = tokio::select! {
        biased;
        settled = &mut attached => match settled {
            Err(p) if p.kind != Kind::Forbidden => p,
            settled => return settled,
        },
        text = ended(api, namespace, name) => return Err(Problem::new(Kind::Other, text)),
    };
    // It ran a moment ago: if it does not now, why is what has to be told.
    Err(match timeout(REPORT, ended(api, namespace, name)).await {
        Ok(text) => Problem::new(Kind::Other, text),
        Err(_) => refused,
    })
}

/// Attaches again and again; until the pod `runs` a failure means that it is not there yet, and why, its status will say.
async fn attached(
    api: &Api,
    spec: &HelperSpec,
    name: &str,
    debts: &Debts,
    progress: &Progress,
    runs: &AtomicBool,
) -> Result<Transport, Problem> {
    let mut attempts = interval(ATTACH_EVERY);
    attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        attempts.tick().await;
        let counts = runs.load(Ordering::Relaxed);
        match attach(api, &spec.namespace, name, &spec.node, debts, progress.verbosity() > 0).await {
            Err(p) if p.kind != Kind::Forbidden && !counts => {}
            settled => return settled,
        }
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

/// Follows the pod's status until it runs.
async fn wait_running(api: &Api, namespace: &str, name: &str, node: &str, progress: &Progress) -> Result<(), Problem> {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), namespace);
    let began = Instant::now();
    let field = format!("metadata.name={name}");
    let mut ticks = interval(TICK);
    let mut events = Vec::new();
    // A watch ends for many reasons (server timeout, restart, no right to watch); it is begun again, at worst as polling.
    loop {
        let Some(mut pod) = api.ask_opt(&format!("read the helper pod {namespace}/{name}"), pods.get(name)).await? else {
            return Err(Problem::new(Kind::Other, deleted(namespace, name, node)));
        };
        let version = pod.metadata.resource_version.clone().unwrap_or_default();
        let mut stream = match pods.watch(&WatchParams::default().fields(&field).timeout(60), &version).await {
            Ok(stream) => Some(stream.boxed()),
            Err(_) => None,
        };
        loop {
            match assess(&pod, &events, began.elapsed()) {
                Stage::Running => return Ok(()),
                Stage::Waiting(phase) => progress.phase(node, &phase),
                Stage::Failed(text) => return Err(Problem::new(Kind::Other, text)),
            }
            if began.elapsed() > PATIENCE {
                let text = format!(
                    "the helper pod {namespace}/{name} does not run after {} s and nobody says why: kubectl describe pod -n {namespace} {name} on a new try",
                    PATIENCE.as_secs()
                );
                return Err(Problem::new(Kind::Timeout, text));
            }
            let next = async {
                match &mut stream {
                    Some(stream) => stream.next().await,
                    None => {
                        sleep(Duration::from_millis(300)).await;
                        None
                    }
                }
            };
            tokio::select! {
                event = next => match event {
                    Some(Ok(WatchEvent::Added(p) | WatchEvent::Modified(p))) => pod = p,
                    Some(Ok(WatchEvent::Deleted(_))) => {
                        return Err(Problem::new(Kind::Other, deleted(namespace, name, node)));
                    }
                    Some(Ok(WatchEvent::Bookmark(_))) => {}
                    Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => break,
                },
                _ = ticks.tick() => {
                    events = read_events(api, namespace, name).await;
                    if began.elapsed() > SILENCE && !has_reacted(&pod) {
                        look_at_node(api, node).await?;
                    }
                }
            }
        }
    }
}

/// Whether the node's kubelet has said anything about the pod.
fn has_reacted(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| s.container_statuses.as_ref().is_some_and(|c| !c.is_empty()) || s.start_time.is_some())
}

async fn look_at_node(api: &Api, node: &str) -> Result<(), Problem> {
    let nodes: kube::Api<Node> = kube::Api::all(api.client());
    match api.ask_opt(&format!("read node {node}"), nodes.get(node)).await {
        Ok(Some(object)) => node_trouble(&object).map_or(Ok(()), |text| Err(Problem::new(Kind::Other, text))),
        Ok(None) => Err(Problem::new(Kind::NotFound, format!("node {node} is not there any more\nkubectl get nodes lists those that are"))),
        // Without the right to read nodes there is just less to say.
        Err(_) => Ok(()),
    }
}

/// What the kubelet reported about the pod, oldest first; empty for users who may not read events.
async fn read_events(api: &Api, namespace: &str, name: &str) -> Vec<Event> {
    let events: kube::Api<Event> = kube::Api::namespaced(api.client(), namespace);
    let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
    let mut list = api.ask("read events", events.list(&params)).await.map(|l| l.items).unwrap_or_default();
    list.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0).or_else(|| e.event_time.as_ref().map(|t| t.0)));
    list
}

/// Starts helpers on several nodes at once.
///
/// # Errors
/// All that went wrong, one paragraph for each cause with its nodes; helpers that did start are ended by the caller's debts.
pub async fn start_all(api: &Api, specs: Vec<HelperSpec>, debts: &Debts, progress: &Progress) -> Result<Vec<Transport>, Problem> {
    let mut tasks = tokio::task::JoinSet::new();
    let namespace = specs.first().map(|s| s.namespace.clone()).unwrap_or_default();
    for (index, spec) in specs.into_iter().enumerate() {
        let (api, debts, progress) = (api.clone(), debts.clone(), progress.clone());
        let node = spec.node.clone();
        tasks.spawn(async move { (index, node, start(api, spec, debts, progress).await) });
    }
    let (mut started, mut failed) = (BTreeMap::new(), BTreeMap::<String, (Kind, Vec<String>)>::new());
    let mut rights = BTreeSet::new();
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok((index, _, Ok(one))) => {
                rights.extend(one.rights);
                started.insert(index, one.transport);
            }
            Ok((_, node, Err(p))) => failed.entry(p.to_string()).or_insert_with(|| (p.kind, Vec::new())).1.push(node),
            Err(e) => drop(failed.entry(format!("a helper could not be started: {e}")).or_insert((Kind::Other, Vec::new()))),
        }
    }
    if failed.is_empty() {
        if let Some(told) = admitted::told(&rights.into_iter().collect::<Vec<_>>(), &namespace) {
            progress.warn(&told);
        }
        return Ok(started.into_values().collect());
    }
    let endings = started.into_values().map(|t| tokio::spawn(t.keeper.end(crate::session::Ending::Kill))).collect::<Vec<_>>();
    for ending in endings {
        let _ = ending.await;
    }
    let kind = failed.values().next().map_or(Kind::Other, |(kind, _)| *kind);
    Err(Problem::new(kind, failed.into_keys().collect::<Vec<_>>().join("\n")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::mock::Mock;
    use super::*;

    const PODS: &str = "POST /api/v1/namespaces/sockpath/pods";

    fn refusal(message: &str) -> serde_json::Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message})
    }

    #[tokio::test]
    async fn a_namespace_that_controllers_have_not_completed_is_waited_for() {
        let uncounted = "pods \"x\" is forbidden: status unknown for quota: helpers, resources: count/pods,pods";
        let no_account = "pods \"x\" is forbidden: error looking up service account sockpath/default: serviceaccount \"default\" not found";
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}});
        let mock = Mock::default().on(PODS, 403, refusal(no_account)).on(PODS, 403, refusal(uncounted)).on(PODS, 201, pod);
        let created = create(&mock.api("shop"), "sockpath", &Pod::default()).await.unwrap();
        assert_eq!(created.metadata.name.as_deref(), Some("x"));
        // A quota that is used up is not.
        let full = "pods \"x\" is forbidden: exceeded quota: helpers, requested: pods=1, used: pods=500, limited: pods=500";
        let mock = Mock::default().on(PODS, 403, refusal(full));
        assert_eq!(create(&mock.api("shop"), "sockpath", &Pod::default()).await.unwrap_err().kind, Kind::Quota);
        assert_eq!(mock.asked().len(), 1);
    }
}
