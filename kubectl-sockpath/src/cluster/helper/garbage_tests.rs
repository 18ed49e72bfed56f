use serde_json::{Value, json};

use super::*;
use crate::cluster::api::mock::Mock;

fn pod(name: &str, annotations: BTreeMap<String, String>, status: Value) -> Value {
    json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"containers": []}, "status": status})
}

fn ended(at: &str) -> Value {
    json!({"phase": "Succeeded", "containerStatuses": [{"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": {"exitCode": 0, "finishedAt": at}}}]})
}

fn me() -> BTreeMap<String, String> {
    Owner::this_process().annotations()
}

/// A process of this machine that is gone: no process has this id and start time.
fn gone() -> BTreeMap<String, String> {
    Owner { process: "4194999-1".into(), ..Owner::this_process() }.annotations()
}

fn elsewhere() -> BTreeMap<String, String> {
    Owner { client: "elsewhere".into(), ..Owner::this_process() }.annotations()
}

const PODS: &str = "/api/v1/namespaces/sockpath/pods";

#[tokio::test]
async fn only_unused_pods_are_stale() {
    let now = Timestamp::now().to_string();
    let running = json!({"phase": "Running"});
    let mock = Mock::default().list(
        PODS,
        json!([
            pod("mine", me(), running.clone()),
            pod("orphan", gone(), running.clone()),
            pod("foreign", elsewhere(), running),
            pod("foreign-ended-now", elsewhere(), ended(&now)),
            pod("foreign-ended-long-ago", elsewhere(), ended("2020-01-01T00:00:00Z")),
            pod("orphan-ended-now", gone(), ended(&now)),
        ]),
    );
    let found = stale_pods(&mock.api("default"), "sockpath").await.unwrap();
    let shown: Vec<_> = found.iter().map(|l| (l.name.as_str(), l.mode)).collect();
    assert_eq!(
        shown,
        [("orphan", DeletionMode::Running), ("foreign-ended-long-ago", DeletionMode::Ended), ("orphan-ended-now", DeletionMode::Ended)]
    );
    assert!(mock.asked()[0].contains("labelSelector=app.kubernetes.io%2Fname%3Dsockpath-helper"), "{:?}", mock.asked());
}

#[tokio::test]
async fn a_deleted_pod_is_fine_and_a_refusal_is_an_error() {
    assert!(delete(&Mock::default().api("x"), "sockpath", "p", DeletionMode::Ended).await.is_ok());
    let forbidden = Mock::default().forbid(&format!("DELETE {PODS}/p"));
    assert_eq!(delete(&forbidden.api("x"), "sockpath", "p", DeletionMode::Ended).await.unwrap_err().kind, Kind::Forbidden);
}

#[tokio::test]
async fn an_api_server_that_restarts_is_waited_for() {
    let mock = Mock::default().on(&format!("DELETE {PODS}/p"), 503, json!("starting")).on(
        &format!("DELETE {PODS}/p"),
        200,
        json!({"metadata": {"name": "p"}, "kind": "Pod"}),
    );
    let pending = PendingDeletions::new(mock.api("x"), "sockpath");
    pending.add("p");
    pending.delete("p", DeletionMode::Running).await.unwrap();
    assert_eq!(mock.asked().len(), 2);
    drop(pending);
    assert_eq!(mock.asked().len(), 2, "nothing is owed any more");
}

#[tokio::test]
async fn what_is_owed_when_the_command_is_cancelled_is_deleted() {
    let mock = Mock::default().on(&format!("DELETE {PODS}/p"), 200, json!({"metadata": {"name": "p"}, "kind": "Pod"}));
    let pending = PendingDeletions::new(mock.api("x"), "sockpath");
    pending.add("p");
    pending.add("never-created");
    pending.forget("never-created");
    drop(pending.clone());
    assert_eq!(mock.asked().len(), 0, "a handle is left");
    drop(pending);
    assert_eq!(mock.asked(), [format!("DELETE {PODS}/p?")]);
}

#[tokio::test]
async fn one_that_is_being_deleted_is_nobodys() {
    let mut going = pod("going", elsewhere(), json!({"phase": "Running"}));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mock = Mock::default().list(PODS, json!([going, pod("used", elsewhere(), json!({"phase": "Running"}))]));
    let (removed, kept) = clean(&mock.api("default"), "sockpath").await.unwrap();
    assert!(removed.is_empty(), "{removed:?}");
    assert!(kept[0].contains("sockpath/going: it is being deleted") && kept[1].contains("in use by "), "{kept:?}");
}
