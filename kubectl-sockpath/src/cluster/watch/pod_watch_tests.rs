use serde_json::{Value, json};
use sockpath_protocol::pod::Locate;

use super::*;
use crate::cluster::api::mock::Mock;

fn planned() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: "uid-1".to_owned(),
        node: "n1".to_owned(),
        ips: vec!["10.42.1.3".parse().unwrap()],
        host_network: false,
        containers: Vec::new(),
        locate: Locate::Uid,
    }
}

fn name() -> PodName {
    PodName { namespace: "shop".to_owned(), name: "web".to_owned() }
}

fn object(metadata: Value, status: Value) -> ApiPod {
    let mut merged = json!({"namespace": "shop", "name": "web", "uid": "uid-1"});
    merged.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": merged, "spec": {"nodeName": "n2", "containers": []}, "status": status})).unwrap()
}

fn status(ready: &str, restarts: i32, container: Value) -> Value {
    let mut app = json!({"name": "app", "ready": true, "restartCount": restarts, "image": "", "imageID": ""});
    app.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    json!({"phase": "Running", "podIP": "10.42.1.3", "containerStatuses": [app],
        "conditions": [{"type": "Ready", "status": ready, "message": "containers with unready status: [app]"}]})
}

fn well() -> ApiPod {
    object(json!({}), status("True", 0, json!({})))
}

/// The news of a change to a healthy pod, and whether the pod is gone.
fn news_of(change: Change<ApiPod>) -> (String, bool) {
    let mut seen = Seen::planned(&planned());
    assert_eq!(seen.learn(&name(), Change::Listed { namespace: None, objects: vec![well()] }), [], "as it was planned with");
    let news = seen.learn(&name(), change);
    (news.iter().map(|n| n.text.as_str()).collect::<Vec<_>>().join("; "), news.iter().any(|n| n.gone))
}

#[test]
fn everything_that_happens_to_a_pod_is_a_sentence() {
    let applied = |metadata, status| Change::Applied(object(metadata, status));
    let crashed = json!({"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
    let waiting = json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    let mut moved = status("True", 0, json!({}));
    moved["podIP"] = json!("10.42.1.9");
    for (change, words, gone) in [
        (Change::Applied(well()), "", false),
        (Change::Deleted(well()), "pod shop/web was deleted", true),
        (applied(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({"phase": "Failed"})), "pod shop/web was deleted", true),
        (Change::Listed { namespace: None, objects: Vec::new() }, "pod shop/web was deleted", true),
        (applied(json!({"uid": "uid-2"}), json!({})), "was replaced by another one of that name (on n2)", true),
        (applied(json!({}), json!({"phase": "Succeeded"})), "has completed", true),
        (applied(json!({}), json!({"phase": "Failed", "reason": "Evicted"})), "has failed (Evicted)", true),
        (
            applied(json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}), status("False", 0, json!({}))),
            "is being deleted: its processes have 30 s to end",
            false,
        ),
        (
            applied(json!({}), status("True", 1, crashed)),
            "container app of pod shop/web was restarted: it had ended with exit code 137 (OOMKilled)",
            false,
        ),
        (applied(json!({}), status("True", 0, waiting)), "crashes repeatedly", false),
        (applied(json!({}), moved), "now has the address 10.42.1.9, but the trace observes 10.42.1.3", false),
        (applied(json!({}), status("False", 0, json!({}))), "is no longer ready: containers with unready status: [app]", false),
    ] {
        let (text, is_gone) = news_of(change);
        assert!(text.contains(words) && is_gone == gone && text.is_empty() == words.is_empty(), "{words}: {text}");
    }
}

#[test]
fn a_deleted_pod_is_reported_once_and_so_is_a_recovery() {
    let mut seen = Seen::planned(&planned());
    let unready = || Change::Applied(object(json!({}), status("False", 0, json!({}))));
    assert!(seen.learn(&name(), Change::Applied(well())).is_empty());
    assert_eq!(seen.learn(&name(), unready()).len(), 1);
    assert!(seen.learn(&name(), unready()).is_empty(), "reported already");
    assert_eq!(seen.learn(&name(), Change::Applied(well()))[0].text, "pod shop/web is ready again");
    assert!(seen.learn(&name(), Change::Deleted(well()))[0].gone);
    assert!(seen.learn(&name(), Change::Applied(well())).is_empty());
}

#[tokio::test]
async fn only_the_pods_of_the_trace_are_watched() {
    let mut gone = well();
    gone.metadata.resource_version = Some("2".to_owned());
    let line = json!({"type": "DELETED", "object": gone}).to_string() + "\n";
    let mut list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [well()]});
    list["items"][0]["metadata"]["resourceVersion"] = json!("1");
    let path = "GET /api/v1/namespaces/shop/pods";
    let mock = Mock::default().on(path, 200, list).on(path, 200, json!(line)).silent(path);
    let mut watch = PodWatch::start(&mock.api("shop"), &[planned()]);
    let news = tokio::time::timeout(std::time::Duration::from_secs(5), watch.next()).await.expect("news");
    assert_eq!((news.uid.as_str(), news.text.as_str(), news.gone), ("uid-1", "pod shop/web was deleted", true));
    assert!(mock.asked().iter().all(|a| a.contains("fieldSelector=metadata.name%3Dweb")), "{:?}", mock.asked());
}
