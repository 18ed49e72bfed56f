use serde_json::{Value, json};

use super::*;
use crate::cluster::api::mock::Mock;

fn pod(namespace: &str, name: &str, node: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIPs": [{"ip": "192.0.2.1"}], "containerStatuses": [
            {"name": "app", "ready": true, "restartCount": 0, "image": "", "imageID": "", "containerID": "containerd://x", "state": {"running": {}}}]}
    })
}

fn node(name: &str, ip: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

fn slice(service: &str, pod: &str, ip: &str) -> Value {
    json!({"metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [ip], "targetRef": {"kind": "Pod", "name": pod}}]})
}

fn service(name: &str, extra: Value) -> Value {
    let mut port = json!({"port": 80});
    port.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"metadata": {"name": name, "namespace": "prod"}, "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}, "ports": [port]}})
}

const PODS: &str = "/api/v1/namespaces/prod/pods";

#[tokio::test]
async fn pods_whose_names_begin_alike_are_not_mixed_up() {
    let mock = Mock::default()
        .on("GET /api/v1/namespaces/prod/pods/web", 200, pod("prod", "web", "n1", "10.1.0.2"))
        .on("GET /api/v1/namespaces/prod/pods/web-1", 200, pod("prod", "web-1", "n1", "10.1.0.3"))
        .on("GET /api/v1/nodes/n1", 200, node("n1", "192.0.2.1"));
    let lookup = Lookup::new(mock.api("prod"));
    assert_eq!(lookup.pod("prod", "web").await.unwrap().unwrap().pod.uid, "uid-web");
    assert_eq!(lookup.pod("prod", "web-1").await.unwrap().unwrap().pod.uid, "uid-web-1");
    assert_eq!(lookup.pod("prod", "we").await.unwrap(), None);
    assert_eq!(mock.asked().iter().filter(|a| a.contains("/nodes/")).count(), 1, "a node is requested once");
}

#[tokio::test]
async fn without_the_right_to_read_nodes_the_pod_tells_the_nodes_address() {
    let mock = Mock::default().on(&format!("GET {PODS}/web"), 200, pod("prod", "web", "n1", "10.1.0.2")).forbid("GET /api/v1/nodes/n1");
    let lookup = Lookup::new(mock.api("prod"));
    assert_eq!(lookup.pod("prod", "web").await.unwrap().unwrap().unusable, None);
    let nodes = lookup.nodes(&["n1".into()]).await.unwrap();
    assert_eq!(nodes, [Node { name: "n1".into(), ips: vec!["192.0.2.1".parse().unwrap()], netns: None }]);
}

#[tokio::test]
async fn without_the_right_to_read_pods_the_error_names_it() {
    let mock = Mock::default().forbid(&format!("GET {PODS}/web"));
    let error = Lookup::new(mock.api("prod")).pod("prod", "web").await.unwrap_err();
    assert_eq!(error.downcast_ref::<Problem>().unwrap().kind, ProblemKind::Forbidden);
    assert!(error.to_string().contains("cannot read pod prod/web"), "{error}");
}

#[tokio::test]
async fn a_service_and_what_is_behind_it() {
    let mock = Mock::default()
        .on("GET /api/v1/namespaces/prod/services/web", 200, service("web", json!({"nodePort": 30080})))
        .list("/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices", json!([slice("web", "web-1", "10.1.0.3")]))
        .list("/api/v1/nodes", json!([node("n1", "192.0.2.1"), node("n2", "192.0.2.2")]))
        .list(PODS, json!([pod("prod", "web-1", "n1", "10.1.0.3"), pod("prod", "web-10", "n2", "10.1.0.4")]));
    let info = Lookup::new(mock.api("prod")).service("prod", "web").await.unwrap().unwrap();
    assert_eq!(info.backends.iter().map(|b| b.pod.name.as_str()).collect::<Vec<_>>(), ["web-1"], "only ready endpoints");
    let frontends: Vec<_> = info.service.frontends.iter().map(|f| f.addr.to_string()).collect();
    assert_eq!(frontends, ["10.96.0.9:80", "192.0.2.1:30080", "192.0.2.2:30080"]);
    assert!(mock.asked().iter().any(|a| a.contains("endpointslices") && a.contains("service-name")), "{:?}", mock.asked());
}

#[tokio::test]
async fn an_alias_in_dns_has_nothing_that_could_be_traced() {
    let object =
        json!({"metadata": {"name": "ext", "namespace": "prod"}, "spec": {"type": "ExternalName", "externalName": "db.example.com"}});
    let mock = Mock::default().on("GET /api/v1/namespaces/prod/services/ext", 200, object);
    let error = Lookup::new(mock.api("prod")).service("prod", "ext").await.unwrap_err().to_string();
    assert!(error.contains("an alias in DNS for db.example.com"), "{error}");
}

#[tokio::test]
async fn services_of_a_pod_are_looked_for_in_its_namespace_only() {
    let mock = Mock::default()
        .on(&format!("GET {PODS}/web-1"), 200, pod("prod", "web-1", "n1", "10.1.0.3"))
        .on("GET /api/v1/nodes/n1", 200, node("n1", "192.0.2.1"))
        .list(
            "/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices",
            json!([slice("web", "web-1", "10.1.0.3"), slice("other", "web-10", "10.1.0.30")]),
        )
        .on("GET /api/v1/namespaces/prod/services/web", 200, service("web", json!({})))
        .list(PODS, json!([pod("prod", "web-1", "n1", "10.1.0.3")]));
    let lookup = Lookup::new(mock.api("default"));
    let pod = lookup.pod("prod", "web-1").await.unwrap().unwrap();
    let services = lookup.services_with(&pod.pod.ips).await.unwrap();
    assert_eq!(services.iter().map(|s| s.service.name.as_str()).collect::<Vec<_>>(), ["web"]);
}

#[tokio::test]
async fn an_address_that_is_dialled_is_found_in_all_namespaces_or_in_ones_own() {
    let open = Mock::default()
        .list("/api/v1/services", json!([service("web", json!({}))]))
        .list("/api/v1/nodes", json!([node("n1", "192.0.2.1")]))
        .list("/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices", json!([slice("web", "web-1", "10.1.0.3")]))
        .list(PODS, json!([pod("prod", "web-1", "n1", "10.1.0.3")]));
    let found = Lookup::new(open.api("default")).services_with(&["10.96.0.9".parse().unwrap()]).await.unwrap();
    assert_eq!(found.iter().map(|s| s.service.name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert!(open.asked()[1].contains("spec.clusterIP%3D10.96.0.9"), "{:?}", open.asked());
    let closed =
        Mock::default().forbid("GET /api/v1/services").list("/api/v1/namespaces/default/services", json!([])).forbid("GET /api/v1/nodes");
    assert_eq!(Lookup::new(closed.api("default")).services_with(&["10.96.0.9".parse().unwrap()]).await.unwrap(), []);
}

#[tokio::test]
async fn a_nodes_address_is_dialled_with_the_node_port_of_a_service() {
    let mock = Mock::default()
        .list("/api/v1/services", json!([service("web", json!({"nodePort": 30080}))]))
        .list("/api/v1/nodes", json!([node("n1", "192.0.2.1")]))
        .list("/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices", json!([slice("web", "web-1", "10.1.0.3")]))
        .list(PODS, json!([pod("prod", "web-1", "n1", "10.1.0.3")]));
    let found = Lookup::new(mock.api("prod")).services_with(&["192.0.2.1".parse().unwrap()]).await.unwrap();
    assert!(found[0].service.frontends.iter().any(|f| f.addr.to_string() == "192.0.2.1:30080"), "{found:?}");
    assert!(mock.asked().iter().any(|a| a.contains("spec.type%3DNodePort")), "{:?}", mock.asked());
}

#[tokio::test]
async fn a_deployments_pods_are_those_its_selector_chooses() {
    let mock = Mock::default()
        .on(
            "GET /apis/apps/v1/namespaces/prod/deployments/web",
            200,
            json!({"metadata": {"name": "web", "namespace": "prod"}, "spec": {"template": {}, "selector": {
                "matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}}}),
        )
        .list(PODS, json!([pod("prod", "web-b", "n1", "10.1.0.3"), pod("prod", "web-a", "n1", "10.1.0.2")]))
        .on("GET /api/v1/nodes/n1", 200, node("n1", "192.0.2.1"));
    let lookup = Lookup::new(mock.api("prod"));
    let pods = lookup.workload(Kind::Deployment, "prod", "web").await.unwrap().unwrap();
    assert_eq!(pods.iter().map(|p| p.pod.name.as_str()).collect::<Vec<_>>(), ["web-a", "web-b"], "in a fixed order");
    let asked = mock.asked();
    assert!(asked.iter().any(|a| a.contains("labelSelector=app%3Dweb%2Ctier+in+%28a%2Cb%29")), "{asked:?}");
    assert_eq!(lookup.workload(Kind::Deployment, "prod", "none").await.unwrap(), None);
}

#[tokio::test]
async fn every_kind_of_workload_has_its_own_selector() {
    let labels = json!({"matchLabels": {"app": "web"}});
    for (kind, path, selector) in [
        (Kind::StatefulSet, "/apis/apps/v1/namespaces/prod/statefulsets/web", labels.clone()),
        (Kind::DaemonSet, "/apis/apps/v1/namespaces/prod/daemonsets/web", labels.clone()),
        (Kind::ReplicaSet, "/apis/apps/v1/namespaces/prod/replicasets/web", labels.clone()),
        (Kind::Job, "/apis/batch/v1/namespaces/prod/jobs/web", labels),
        (Kind::ReplicationController, "/api/v1/namespaces/prod/replicationcontrollers/web", json!({"app": "web"})),
    ] {
        let object = json!({"metadata": {"name": "web"}, "spec": {"selector": selector, "serviceName": "web", "template": {}}});
        let mock = Mock::default().on(&format!("GET {path}"), 200, object).list(PODS, json!([pod("prod", "web-a", "n1", "10.1.0.2")])).on(
            "GET /api/v1/nodes/n1",
            200,
            node("n1", "192.0.2.1"),
        );
        let lookup = Lookup::new(mock.api("prod"));
        let pods = lookup.workload(kind, "prod", "web").await.unwrap_or_else(|e| panic!("{kind:?}: {e:#}")).unwrap();
        assert_eq!(pods.len(), 1, "{kind:?}");
        assert!(mock.asked().iter().any(|a| a.contains("labelSelector=app%3Dweb")), "{:?}", mock.asked());
        assert_eq!(lookup.workload(kind, "prod", "none").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_workload_that_selects_all_is_refused() {
    let object = json!({"metadata": {"name": "web"}, "spec": {"template": {}}});
    let mock = Mock::default().on("GET /apis/batch/v1/namespaces/prod/jobs/web", 200, object);
    let error = Lookup::new(mock.api("prod")).workload(Kind::Job, "prod", "web").await.unwrap_err().to_string();
    assert!(error.contains("the selector of Job prod/web is empty"), "{error}");
}

#[tokio::test]
async fn an_external_address_is_that_of_its_service() {
    let mut balanced = service("web", json!({}));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}});
    let services = "GET /api/v1/services";
    let empty = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []});
    let mock = Mock::default()
        .on(services, 200, empty)
        .on(services, 200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": [service("other", json!({})), balanced]}))
        .list("/api/v1/nodes", json!([node("n1", "192.0.2.1")]))
        .list("/apis/discovery.k8s.io/v1/namespaces/prod/endpointslices", json!([slice("web", "web-1", "10.1.0.3")]))
        .list(PODS, json!([pod("prod", "web-1", "n1", "10.1.0.3")]));
    let found = Lookup::new(mock.api("prod")).services_with(&["198.51.100.7".parse().unwrap()]).await.unwrap();
    assert_eq!(found.iter().map(|s| s.service.name.as_str()).collect::<Vec<_>>(), ["web"]);
}

#[tokio::test]
async fn the_node_of_an_address_is_known_after_one_list() {
    let mock = Mock::default().list("/api/v1/nodes", json!([node("n1", "192.0.2.1"), node("n2", "192.0.2.2")]));
    let lookup = Lookup::new(mock.api("prod"));
    let at = |ip: &str| ip.parse::<IpAddr>().unwrap();
    assert_eq!(lookup.node_at(at("192.0.2.2")).await.unwrap().unwrap().pod.name, "n2");
    assert_eq!(lookup.node_at(at("10.1.0.3")).await.unwrap(), None);
    assert_eq!(mock.asked().len(), 1, "{:?}", mock.asked());
    let closed = Mock::default().forbid("GET /api/v1/nodes");
    assert_eq!(Lookup::new(closed.api("prod")).node_at(at("192.0.2.2")).await.unwrap(), None);
}

#[tokio::test]
async fn long_lists_are_read_to_the_end() {
    let page = |items: Value, token: &str| json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": token}, "items": items});
    let mock = Mock::default()
        .on("GET /api/v1/pods", 200, page(json!([pod("a", "p1", "n1", "10.1.0.2")]), "more"))
        .on("GET /api/v1/pods", 200, page(json!([pod("b", "p2", "n1", "10.1.0.3")]), ""))
        .on("GET /api/v1/nodes/n1", 200, node("n1", "192.0.2.1"));
    let lookup = Lookup::new(mock.api("prod"));
    let pods = lookup.pods(&Scope { namespace: None, selector: Some("app=web".into()) }).await.unwrap();
    assert_eq!(pods.len(), 2);
    assert!(mock.asked().iter().any(|a| a.contains("continue=more")), "{:?}", mock.asked());
}
