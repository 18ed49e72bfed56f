//! Objects of one kind as they change, through whatever the API server does meanwhile: kube's watcher lists, watches and goes on
//! where it stood; here are the pauses between attempts, and what ends it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{Config, Error, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::cluster::api::client::{Api, PAGE};
use crate::cluster::api::lean::Lean;
use crate::cluster::api::problem::{Kind, Problem};

/// Pauses between attempts while the API server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// HTTP status: the API server no longer knows what came after the version that the watch stands at.
const GONE: u16 = 410;

/// What became known.
#[derive(Debug)]
pub enum Change<K> {
    /// All objects there are, at the start and whenever changes may have been missed.
    Listed {
        /// Of this namespace; of all when absent.
        namespace: Option<String>,
        /// The objects.
        objects: Vec<K>,
    },
    /// One is new or has changed.
    Applied(K),
    /// One is gone.
    Deleted(K),
    /// The API server does not let us: nothing more will come.
    Refused(Problem),
}

/// Which objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Namespace; all when absent.
    pub namespace: Option<String>,
    /// The one of this name; all when absent.
    pub name: Option<String>,
    /// Label selector.
    pub selector: Option<String>,
}

/// Follows objects of namespaces until the receiver is dropped; `T` is what is kept of each. `what` completes "cannot ...", e.g. `watch the pods of namespace shop`.
pub async fn follow<K, T>(api: Api, which: Which, what: String, sink: mpsc::Sender<Change<T>>)
where
    T: From<K> + Debug,
    K: Lean<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let objects: kube::Api<K> = match &which.namespace {
        Some(namespace) => kube::Api::namespaced(api.client(), namespace),
        None => kube::Api::all(api.client()),
    };
    follow_all(objects, api.server(), which, what, sink).await;
}

/// The same for objects of the cluster: nodes, namespaces.
pub async fn follow_in_cluster<K, T>(api: Api, which: Which, what: String, sink: mpsc::Sender<Change<T>>)
where
    T: From<K> + Debug,
    K: Lean<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow_all(kube::Api::all(api.client()), api.server(), which, what, sink).await;
}

async fn follow_all<K, T>(objects: kube::Api<K>, server: &str, which: Which, what: String, sink: mpsc::Sender<Change<T>>)
where
    T: From<K> + Debug,
    K: Lean<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let field_selector = which.name.as_ref().map(|name| format!("metadata.name={name}"));
    let config = Config { label_selector: which.selector.clone(), field_selector, page_size: Some(PAGE), ..Config::default() };
    let mut events = pin!(watcher(objects.clone(), config.clone()));
    let mut listed: Vec<T> = Vec::new();
    let mut pause = FIRST_PAUSE;
    loop {
        let event = tokio::select! {
            () = sink.closed() => return,
            event = events.next() => event,
        };
        let change = match event {
            None => return,
            Some(Ok(Event::Init)) => {
                listed.clear();
                continue;
            }
            Some(Ok(Event::InitApply(object))) => {
                listed.push(object.lean().into());
                continue;
            }
            Some(Ok(Event::InitDone)) => Change::Listed { namespace: which.namespace.clone(), objects: std::mem::take(&mut listed) },
            Some(Ok(Event::Apply(object))) => Change::Applied(object.lean().into()),
            Some(Ok(Event::Delete(object))) => Change::Deleted(object.into()),
            Some(Err(error)) => {
                match setback(&what, &error, server) {
                    Setback::Refused(p) => {
                        let _ = sink.send(Change::Refused(p)).await;
                        return;
                    }
                    // The watcher handles this answer within a watch only, and would request the same version without end.
                    Setback::Outdated => events.set(watcher(objects.clone(), config.clone())),
                    Setback::Passing => {}
                }
                // The watcher asks again as soon as it is polled.
                tokio::select! {
                    () = sink.closed() => return,
                    () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
                continue;
            }
        };
        pause = FIRST_PAUSE;
        if sink.send(change).await.is_err() {
            return;
        }
    }
}

/// What an error of the watcher means for us.
enum Setback {
    /// It lists again or goes on where it stood.
    Passing,
    /// A watch cannot be begun where it stood.
    Outdated,
    /// It is not for us to see.
    Refused(Problem),
}

fn setback(what: &str, error: &Error, server: &str) -> Setback {
    let (Error::InitialListFailed(cause) | Error::WatchStartFailed(cause) | Error::WatchFailed(cause)) = error else {
        return Setback::Passing;
    };
    if let (Error::WatchStartFailed(_), kube::Error::Api(status)) = (error, cause)
        && status.code == GONE
    {
        return Setback::Outdated;
    }
    let problem = Problem::from_kube(what, cause, server);
    match problem.kind {
        Kind::Forbidden | Kind::Unauthorized | Kind::NotFound => Setback::Refused(problem),
        _ => Setback::Passing,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::cluster::api::mock::Mock;

    fn line(kind: &str, name: &str, version: &str) -> String {
        format!(
            "{}\n",
            json!({"type": kind, "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "resourceVersion": version}}})
        )
    }

    fn list(names: &[&str]) -> serde_json::Value {
        let items: Vec<_> = names.iter().map(|n| json!({"metadata": {"name": n}})).collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": items})
    }

    fn start(mock: &Mock) -> mpsc::Receiver<Change<Pod>> {
        let (sink, changes) = mpsc::channel(16);
        let which = Which { namespace: Some("shop".into()), name: None, selector: Some("app=web".into()) };
        tokio::spawn(follow::<Pod, Pod>(mock.api("shop"), which, "watch the pods of namespace shop".into(), sink));
        changes
    }

    async fn next(changes: &mut mpsc::Receiver<Change<Pod>>) -> String {
        let name = |p: &Pod| p.metadata.name.clone().unwrap_or_default();
        match tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.expect("something comes") {
            Some(Change::Listed { objects, .. }) => format!("listed {}", objects.iter().map(name).collect::<Vec<_>>().join(",")),
            Some(Change::Applied(pod)) => format!("applied {}", name(&pod)),
            Some(Change::Deleted(pod)) => format!("deleted {}", name(&pod)),
            Some(Change::Refused(p)) => format!("refused {:?}", p.kind),
            None => "over".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_list_then_changes_then_a_fresh_list_when_some_were_missed() {
        let gone = format!(
            "{}\n",
            json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410}})
        );
        let path = "GET /api/v1/namespaces/shop/pods";
        let mock = Mock::default()
            .on(path, 200, list(&["a"]))
            .on(path, 200, json!(line("ADDED", "b", "6") + &line("DELETED", "a", "7")))
            .on(path, 200, json!(gone))
            .on(path, 200, list(&["b", "c"]))
            .silent(path);
        let mut changes = start(&mock);
        let mut received = Vec::new();
        for _ in 0..4 {
            received.push(next(&mut changes).await);
        }
        assert_eq!(received, ["listed a", "applied b", "deleted a", "listed b,c"]);
        let asked = mock.asked();
        assert!(
            asked[1].contains("watch=true") && asked[1].contains("resourceVersion=5") && asked[1].contains("labelSelector=app"),
            "{asked:?}"
        );
        assert!(asked[2].contains("resourceVersion=7"), "a watch goes on where it stood: {asked:?}");
    }

    #[tokio::test]
    async fn a_watch_that_breaks_goes_on_where_it_stood() {
        let path = "GET /api/v1/namespaces/shop/pods";
        let cut = line("ADDED", "b", "6") + r#"{"type": "ADDED", "object": {"#;
        let mock = Mock::default()
            .on(path, 200, list(&["a"]))
            .on(path, 200, json!(cut))
            .on(path, 503, json!("starting"))
            .on(path, 200, json!(line("MODIFIED", "b", "8")))
            .silent(path);
        let mut changes = start(&mock);
        let received = [next(&mut changes).await, next(&mut changes).await, next(&mut changes).await];
        assert_eq!(received, ["listed a", "applied b", "applied b"]);
        let asked = mock.asked();
        assert!(asked[2].contains("resourceVersion=6") && asked[3].contains("resourceVersion=6"), "{asked:?}");
        assert_eq!(asked.iter().filter(|a| !a.contains("watch=true")).count(), 1, "nothing was missed, so it is listed once: {asked:?}");
    }

    #[tokio::test]
    async fn a_watch_that_cannot_be_begun_where_it_stood_lists_again() {
        let path = "GET /api/v1/namespaces/shop/pods";
        let gone =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
        let mock = Mock::default()
            .on(path, 200, list(&["a"]))
            .on(path, 200, json!(line("ADDED", "b", "6")))
            .on(path, 410, gone)
            .on(path, 200, list(&["c"]))
            .silent(path);
        let mut changes = start(&mock);
        let received = [next(&mut changes).await, next(&mut changes).await, next(&mut changes).await];
        assert_eq!(received, ["listed a", "applied b", "listed c"]);
    }

    #[tokio::test]
    async fn long_lists_come_in_pieces_and_are_reported_together() {
        let path = "GET /api/v1/namespaces/shop/pods";
        let mut first = list(&["a"]);
        first["metadata"]["continue"] = "more".into();
        let mock = Mock::default().on(path, 200, first).on(path, 200, list(&["b"])).silent(path);
        assert_eq!(next(&mut start(&mock)).await, "listed a,b");
        assert!(mock.asked()[1].contains("continue=more"), "{:?}", mock.asked());
    }

    #[tokio::test]
    async fn an_unreachable_server_is_retried_and_a_refusal_is_reported_once() {
        let path = "GET /api/v1/namespaces/shop/pods";
        let mock = Mock::default().on(path, 503, json!("down")).on(path, 200, list(&["a"])).on(path, 200, json!(line("ADDED", "b", "6")));
        let mock = mock.forbid(path);
        let mut changes = start(&mock);
        let received = [next(&mut changes).await, next(&mut changes).await, next(&mut changes).await, next(&mut changes).await];
        assert_eq!(received, ["listed a", "applied b", "refused Forbidden", "over"]);
    }
}
