//! What the API server knows of the chosen pods' network path: NetworkPolicies that select them, and limits in their annotations.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::ListParams;
use sockpath_protocol::accel::PodName;
use sockpath_protocol::bypass::{BypassKind, Bypassed, gather};
use sockpath_protocol::pod::Pod;

use crate::cluster::api::client::Api;
use crate::cluster::api::problem::Problem;
use crate::cluster::watch::network_policy::{Subject, Subjects, restricted};

/// Annotations that the bandwidth plugin of CNI goes by.
const LIMITS: [&str; 2] = ["kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"];

/// Asks for the pods and policies of the namespaces of these pods.
pub async fn find(api: &Api, chosen: &[Pod]) -> Result<Vec<Bypassed>, Problem> {
    let names: BTreeSet<PodName> = chosen.iter().map(|p| PodName { namespace: p.namespace.clone(), name: p.name.clone() }).collect();
    let namespaces: BTreeSet<&str> = chosen.iter().map(|p| p.namespace.as_str()).collect();
    let mut found = Vec::new();
    for namespace in namespaces {
        let pods: kube::Api<ApiPod> = kube::Api::namespaced(api.client(), namespace);
        let policies: kube::Api<NetworkPolicy> = kube::Api::namespaced(api.client(), namespace);
        let all = ListParams::default;
        let pods = api.list(&format!("list the pods of namespace {namespace}"), &pods, all()).await?;
        let what = format!("list the NetworkPolicies of namespace {namespace}");
        let policies = api.list(&what, &policies, all()).await?;
        let pods: Vec<(PodName, ApiPod)> = pods
            .into_iter()
            .map(|p| (PodName { namespace: p.namespace().unwrap_or_default(), name: p.name_any() }, p))
            .filter(|(name, _)| names.contains(name))
            .collect();
        found.extend(limits(&pods));
        found.extend(restrictions(&pods, &policies));
    }
    Ok(gather(found))
}

fn limits(pods: &[(PodName, ApiPod)]) -> Vec<Bypassed> {
    let of = |name: &PodName, pod: &ApiPod| -> Vec<Bypassed> {
        let value = |limit: &&str| pod.annotations().get(*limit).map(|value| format!("{limit}: {value}"));
        let limit =
            |what| Bypassed { kind: BypassKind::Bandwidth, what, place: "the pod's annotations".to_owned(), pods: vec![name.to_string()] };
        LIMITS.iter().filter_map(value).map(limit).collect()
    };
    pods.iter().flat_map(|(name, pod)| of(name, pod)).collect()
}

fn restrictions(pods: &[(PodName, ApiPod)], policies: &[NetworkPolicy]) -> Vec<Bypassed> {
    let subjects: Subjects = pods.iter().map(|(name, pod)| (name.clone(), Subject::of(pod))).collect::<BTreeMap<_, _>>();
    let of = |policy: &NetworkPolicy| {
        let (selected, directions) = restricted(policy, &subjects);
        (!selected.is_empty()).then(|| Bypassed {
            kind: BypassKind::NetworkPolicy,
            what: format!("{} ({})", policy.name_any(), directions.join(", ")),
            place: format!("namespace {}", policy.namespace().unwrap_or_default()),
            pods: selected.iter().map(PodName::to_string).collect(),
        })
    };
    policies.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sockpath_protocol::pod::Locate;

    use super::*;
    use crate::cluster::api::mock::Mock;

    fn chosen(name: &str) -> Pod {
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
            node: "n1".into(),
            ips: Vec::new(),
            host_network: false,
            containers: Vec::new(),
            locate: Locate::Uid,
        }
    }

    #[tokio::test]
    async fn policies_and_limits_of_chosen_pods_are_named() {
        let pod = |name: &str, annotations| json!({"metadata": {"namespace": "shop", "name": name, "labels": {"app": name}, "annotations": annotations}});
        let policy = |name: &str, spec| json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        let slow = json!({"kubernetes.io/egress-bandwidth": "10M", "else": "x"});
        let select = |app: &str| json!({"matchLabels": {"app": app}});
        let mock = Mock::default()
            .list("/api/v1/namespaces/shop/pods", json!([pod("web", slow.clone()), pod("db", json!({})), pod("other", slow)]))
            .list(
                "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies",
                json!([
                    policy("all", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
                    policy("db", json!({"podSelector": select("db"), "ingress": []})),
                    policy("other", json!({"podSelector": select("other")})),
                ]),
            );
        let found = find(&mock.api("shop"), &[chosen("web"), chosen("db")]).await.unwrap();
        let listed: Vec<String> = found.iter().map(|b| format!("{} {} {}", b.kind.text(), b.what, b.pods.join(","))).collect();
        assert_eq!(
            listed,
            [
                "NetworkPolicy all (ingress, egress) shop/db,shop/web",
                "NetworkPolicy db (ingress) shop/db",
                "bandwidth limit kubernetes.io/egress-bandwidth: 10M shop/web",
            ]
        );
        let forbidden = Mock::default().forbid("GET /api/v1/namespaces/shop/pods");
        assert!(find(&forbidden.api("shop"), &[chosen("web")]).await.is_err());
    }
}
