use serde_json::{Value, json};

use super::*;
use crate::cli::Seccomp;
use crate::cluster::api::mock::Mock;
use crate::cluster::helper::owner::Owner;
use crate::mode::Mode;
use crate::session::Fleet;

const PODS: &str = "/api/v1/namespaces/sockpath/pods";

fn spec(node: &str) -> HelperSpec {
    HelperSpec {
        mode: Mode::Trace,
        node: node.to_owned(),
        namespace: "sockpath".to_owned(),
        image: "r.test/helper:1".to_owned(),
        deadline_seconds: 60,
        seccomp: Seccomp::RuntimeDefault,
        stays: None,
        owner: Owner::this_process(),
    }
}

fn starter(mock: &Mock, wait: Option<Duration>) -> Starter {
    let api = mock.api("default");
    Starter {
        pending: PendingDeletions::new(api.clone(), "sockpath"),
        api,
        progress: Progress::new(0),
        patience: Patience::of(wait),
        creation_slots: Arc::new(Semaphore::new(CREATED_AT_ONCE)),
        creations: Arc::new(Mutex::new(Bucket::full(CREATIONS))),
        board: Board::new(mock.api("default"), "sockpath", "s1"),
        crowd: Crowd(1),
    }
}

/// A pod on node n1 that the API server has, in this state.
fn pod(status: Value) -> Value {
    json!({"metadata": {"name": "x", "namespace": "sockpath", "resourceVersion": "1"}, "spec": spec("n1").build().spec, "status": status})
}

fn creating() -> Value {
    pod(json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [
        {"name": "helper", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"waiting": {"reason": "ContainerCreating"}}}]}))
}

fn node(ready: &str) -> Value {
    let condition =
        json!({"type": "Ready", "status": ready, "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."});
    json!({"metadata": {"name": "n1"}, "status": {"conditions": [condition]}})
}

/// An API server whose node n1 accepts a pod and then gets no further. A watch ends at once, so the pod is read again and again.
fn stuck(events: Value) -> Mock {
    Mock::default()
        .on(&format!("POST {PODS}"), 201, creating())
        .on(&format!("GET {PODS}*"), 200, creating())
        .on(&format!("DELETE {PODS}*"), 200, creating())
        .list("/api/v1/namespaces/sockpath/events", events)
        .on("GET /api/v1/nodes/n1", 200, node("True"))
}

async fn error_of(starter: Starter, unready: Option<String>) -> String {
    let mut fleet = Fleet::default();
    fleet.expect(vec!["n1".to_owned()], Box::new(|| None), |mailbox| async move { starter.start(spec("n1"), unready, mailbox).await });
    fleet.first().await.unwrap_err().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_ready_is_left_out_at_once_and_without_a_pod() {
    let mock = Mock::default();
    let began = Instant::now();
    let text = error_of(starter(&mock, None), Some("node n1 is not ready (X): y".to_owned())).await;
    assert!(text.starts_with("node n1 is not ready") && text.contains("use --wait-nodes to wait for it"), "{text}");
    assert_eq!((began.elapsed(), mock.asked().len()), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn with_wait_nodes_a_node_is_waited_for_until_it_is_ready_or_the_time_is_over() {
    let mock = stuck(json!([]));
    let began = Instant::now();
    let text = error_of(
        starter(&Mock::default().on("GET /api/v1/nodes/n1", 200, node("Unknown")), Some(Duration::from_secs(30))),
        Some("node n1 is not ready".to_owned()),
    )
    .await;
    assert!(began.elapsed() >= Duration::from_secs(30) && began.elapsed() < Duration::from_secs(34), "{:?}", began.elapsed());
    assert!(text.contains("Kubelet stopped posting") && !text.contains("--wait-nodes"), "{text}");
    // One that gets ready gets its pod.
    let text = error_of(starter(&mock, Some(Duration::from_secs(30))), Some("node n1 is not ready".to_owned())).await;
    assert!(text.contains("does not run after 30s"), "{text}");
    assert!(mock.asked().iter().any(|a| a.starts_with("POST ")), "{:?}", mock.asked());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_hangs_is_given_up_with_its_phase_and_its_pod_is_deleted() {
    let mock = stuck(json!([]));
    let began = Instant::now();
    let text = error_of(starter(&mock, None), None).await;
    assert!(began.elapsed() >= STALL && began.elapsed() < STALL * 2, "{:?}", began.elapsed());
    assert!(text.contains("on node n1 does not run after 20s: creating the helper's container"), "{text}");
    assert!(text.contains("--wait-nodes waits longer"), "{text}");
    assert!(mock.asked().last().unwrap().starts_with("DELETE "), "{:?}", mock.asked().last());
}

#[tokio::test(start_paused = true)]
async fn a_pull_takes_as_long_as_the_registry_needs_within_the_limit() {
    let pulling = json!([{"metadata": {"name": "e"}, "involvedObject": {}, "type": "Normal", "reason": "Pulling"}]);
    let began = Instant::now();
    let text = error_of(starter(&stuck(pulling), None), None).await;
    assert!(began.elapsed() >= LIMIT && began.elapsed() < LIMIT + Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(text.contains("does not run after 2m: pulling the image"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_to_be_ready_is_named_after_some_seconds() {
    let silent = Mock::default()
        .on(&format!("POST {PODS}"), 201, pod(json!({})))
        .on(&format!("GET {PODS}*"), 200, pod(json!({})))
        .on(&format!("DELETE {PODS}*"), 200, pod(json!({})))
        .list("/api/v1/namespaces/sockpath/events", json!([]))
        .on("GET /api/v1/nodes/n1", 200, node("Unknown"));
    let began = Instant::now();
    let text = error_of(starter(&silent, None), None).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(text.contains("node n1 is not ready (NodeStatusUnknown)"), "{text}");
}

#[tokio::test]
async fn a_namespace_that_controllers_have_not_completed_is_waited_for() {
    let refusal = |message: &str| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message});
    let post = format!("POST {PODS}");
    let uncounted = "pods \"x\" is forbidden: status unknown for quota: helpers, resources: count/pods,pods";
    let no_account = "pods \"x\" is forbidden: error looking up service account sockpath/default: serviceaccount \"default\" not found";
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}});
    let mock = Mock::default().on(&post, 403, refusal(no_account)).on(&post, 403, refusal(uncounted)).on(&post, 201, pod);
    let created = create(&mock.api("shop"), "sockpath", &Pod::default()).await.unwrap();
    assert_eq!(created.metadata.name.as_deref(), Some("x"));
    // A quota that is used up is not.
    let full = "pods \"x\" is forbidden: exceeded quota: helpers, requested: pods=1, used: pods=500, limited: pods=500";
    let mock = Mock::default().on(&post, 403, refusal(full));
    assert_eq!(create(&mock.api("shop"), "sockpath", &Pod::default()).await.unwrap_err().kind, Kind::Quota);
    assert_eq!(mock.asked().len(), 1);
}

#[test]
fn what_is_asked_for_each_of_many_helpers_is_asked_less_often() {
    assert_eq!((Crowd(1).tick(), Crowd(8).tick(), Crowd(8).is_large()), (TICK, TICK, false));
    assert_eq!((Crowd(300).tick(), Crowd(300).is_large()), (Duration::from_secs(75), true));
}
