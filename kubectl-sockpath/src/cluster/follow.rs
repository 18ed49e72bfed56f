//! Objects of one kind as they change: a list, then a watch, over and over, through whatever the API server does meanwhile.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::client::Api;
use super::problem::{Kind, Problem};

/// A large cluster answers lists in pieces of this many objects.
const PAGE: u32 = 500;
/// The API server ends a watch after this many seconds; it is begun again where it stood.
const WATCH_SECONDS: u32 = 290;
/// Pauses between attempts while the API server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    /// Label selector.
    pub selector: Option<String>,
}

/// Follows objects until the receiver is dropped. `what` completes "cannot ...", e.g. `watch the pods of namespace shop`.
pub async fn follow<K>(api: Api, which: Which, what: String, sink: mpsc::Sender<Change<K>>)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let objects: kube::Api<K> = match &which.namespace {
        Some(namespace) => kube::Api::namespaced(api.client(), namespace),
        None => kube::Api::all(api.client()),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        match once(&api, &objects, &which, &what, &sink).await {
            Ok(Next::Over) => return,
            Ok(Next::ListAgain) => pause = FIRST_PAUSE,
            Err(p) if matches!(p.kind, Kind::Forbidden | Kind::Unauthorized | Kind::NotFound) => {
                let _ = sink.send(Change::Refused(p)).await;
                return;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = sink.closed() => return,
            () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

enum Next {
    /// Nobody listens any more.
    Over,
    /// The watch can no longer be continued where it stood.
    ListAgain,
}

/// One list, and watches from there on for as long as they can be continued.
async fn once<K>(api: &Api, objects: &kube::Api<K>, which: &Which, what: &str, sink: &mpsc::Sender<Change<K>>) -> Result<Next, Problem>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector.clone_from(&which.selector);
    let mut items = Vec::new();
    let mut version = loop {
        let page = api.ask(what, objects.list(&params)).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|t| !t.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break page.metadata.resource_version.unwrap_or_default(),
        }
    };
    if sink.send(Change::Listed { namespace: which.namespace.clone(), objects: items }).await.is_err() {
        return Ok(Next::Over);
    }
    let mut params = WatchParams::default().timeout(WATCH_SECONDS);
    params.label_selector.clone_from(&which.selector);
    loop {
        let mut stream = api.ask(what, objects.watch(&params, &version)).await?.boxed();
        let mut came = false;
        loop {
            let event = tokio::select! {
                () = sink.closed() => return Ok(Next::Over),
                event = stream.next() => event,
            };
            let change = match event {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => Change::Applied(object),
                Some(Ok(WatchEvent::Deleted(object))) => Change::Deleted(object),
                Some(Ok(WatchEvent::Bookmark(mark))) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                // 410 Gone, or anything else that makes the version useless.
                Some(Ok(WatchEvent::Error(_))) => return Ok(Next::ListAgain),
                Some(Err(e)) => return Err(Problem::from_kube(what, &e, api.server())),
                None => break,
            };
            came = true;
            if let Change::Applied(object) | Change::Deleted(object) = &change
                && let Some(newer) = object.meta().resource_version.clone()
            {
                version = newer;
            }
            if sink.send(change).await.is_err() {
                return Ok(Next::Over);
            }
        }
        if !came {
            // A server that ends watches at once must not be asked in a tight loop.
            sleep(FIRST_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::super::mock::Mock;
    use super::*;

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
        let which = Which { namespace: Some("shop".into()), selector: Some("app=web".into()) };
        tokio::spawn(follow(mock.api("shop"), which, "watch the pods of namespace shop".into(), sink));
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
            .on(path, 200, json!(""));
        let mut changes = start(&mock);
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.push(next(&mut changes).await);
        }
        assert_eq!(heard, ["listed a", "applied b", "deleted a", "listed b,c"]);
        let asked = mock.asked();
        assert!(
            asked[1].contains("watch=true") && asked[1].contains("resourceVersion=5") && asked[1].contains("labelSelector=app"),
            "{asked:?}"
        );
        assert!(asked[2].contains("resourceVersion=7"), "a watch goes on where it stood: {asked:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_asked_again_and_a_refusal_is_told_once() {
        let path = "GET /api/v1/namespaces/shop/pods";
        let mock = Mock::default().on(path, 503, json!("down")).on(path, 200, list(&["a"])).on(path, 200, json!(line("ADDED", "b", "6")));
        let mock = mock.forbid(path);
        let mut changes = start(&mock);
        let heard = [next(&mut changes).await, next(&mut changes).await, next(&mut changes).await, next(&mut changes).await];
        assert_eq!(heard, ["listed a", "applied b", "refused Forbidden", "over"]);
    }
}
