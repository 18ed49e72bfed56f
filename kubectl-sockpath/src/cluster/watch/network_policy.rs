//! Which pods a NetworkPolicy is about. Pure: objects in, names out. Where that cannot be known (labels of namespaces), the
//! answer is yes: a pair that goes by TCP for nothing costs some speed, one that bypasses a policy costs what the policy is for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sockpath_protocol::accel::PodName;

/// What of a pod policies go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    labels: BTreeMap<String, String>,
    ips: Vec<IpAddr>,
}

impl Subject {
    /// Reads it from the object.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let ips = status.iter().flat_map(|s| s.pod_ips.iter().flatten()).filter_map(|ip| ip.ip.parse().ok()).collect();
        Self { labels: pod.metadata.labels.clone().unwrap_or_default(), ips }
    }

    /// Whether both carry the same labels.
    #[must_use]
    pub fn has_labels_of(&self, other: &Self) -> bool {
        self.labels == other.labels
    }
}

/// The pods there are.
pub type Subjects = BTreeMap<PodName, Subject>;

/// The pods a policy selects, or names as peers of those it selects.
#[must_use]
pub fn touched(policy: &NetworkPolicy, pods: &Subjects) -> BTreeSet<PodName> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &policy.spec else {
        // No spec means the empty selector: all pods of the namespace.
        return pods.keys().filter(|p| p.namespace == namespace).cloned().collect();
    };
    let peers: Vec<&NetworkPolicyPeer> = peers(spec).collect();
    let about = |(name, pod): &(&PodName, &Subject)| {
        (name.namespace == namespace && spec.pod_selector.as_ref().is_none_or(|s| matches(s, &pod.labels)))
            || peers.iter().any(|peer| is_peer(peer, namespace, name, pod))
    };
    pods.iter().filter(about).map(|(name, _)| name.clone()).collect()
}

/// The pods whose traffic a policy restricts, and which of it: `ingress`, `egress`.
#[must_use]
pub fn restricted(policy: &NetworkPolicy, pods: &Subjects) -> (Vec<PodName>, Vec<&'static str>) {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let spec = policy.spec.clone().unwrap_or_default();
    let is_selected = |pod: &Subject| spec.pod_selector.as_ref().is_none_or(|s| matches(s, &pod.labels));
    let selected = pods.iter().filter(|(name, pod)| name.namespace == namespace && is_selected(pod)).map(|(name, _)| name.clone());
    let named = |kind: &str| spec.policy_types.iter().flatten().any(|t| t == kind);
    // Without types it is about what comes in, and about what goes out if there are rules for that.
    let untyped = spec.policy_types.as_ref().is_none_or(Vec::is_empty);
    let directions = [("ingress", untyped || named("Ingress")), ("egress", named("Egress") || (untyped && spec.egress.is_some()))];
    (selected.collect(), directions.into_iter().filter(|(_, is)| *is).map(|(direction, _)| direction).collect())
}

fn peers(spec: &NetworkPolicySpec) -> impl Iterator<Item = &NetworkPolicyPeer> {
    let from = spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
    let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
    from.chain(to)
}

fn is_peer(peer: &NetworkPolicyPeer, namespace: &str, name: &PodName, pod: &Subject) -> bool {
    if let Some(block) = &peer.ip_block {
        // Exceptions are left aside: what they are taken out of is named all the same.
        return pod.ips.iter().any(|ip| contains(&block.cidr, *ip));
    }
    // Labels of namespaces are not read, so every namespace may be meant.
    let in_reach = peer.namespace_selector.is_some() || name.namespace == namespace;
    in_reach && peer.pod_selector.as_ref().is_none_or(|s| matches(s, &pod.labels))
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = |value: &String| e.values.iter().flatten().any(|v| v == value);
            match e.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                // An operator of a later Kubernetes.
                _ => true,
            }
        })
}

/// Whether an address lies in `ADDRESS/PREFIX`; yes for what cannot be read.
fn contains(cidr: &str, ip: IpAddr) -> bool {
    let Some((network, prefix)) = cidr.split_once('/') else { return true };
    let (Ok(network), Ok(prefix)) = (network.parse::<IpAddr>(), prefix.parse::<u32>()) else { return true };
    let (network, ip, width) = match (network, ip) {
        (IpAddr::V4(n), IpAddr::V4(i)) => (u128::from(n.to_bits()), u128::from(i.to_bits()), 32),
        (IpAddr::V6(n), IpAddr::V6(i)) => (n.to_bits(), i.to_bits(), 128),
        _ => return false,
    };
    let host_bits = u32::saturating_sub(width, prefix);
    network.checked_shr(host_bits).unwrap_or(0) == ip.checked_shr(host_bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pods() -> Subjects {
        let pod = |labels: Value, ip: &str| {
            Subject::of(&serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"podIPs": [{"ip": ip}]}})).unwrap())
        };
        let name = |namespace: &str, name: &str| PodName { namespace: namespace.into(), name: name.into() };
        BTreeMap::from([
            (name("shop", "web"), pod(json!({"app": "web", "tier": "front"}), "10.0.0.1")),
            (name("shop", "db"), pod(json!({"app": "db"}), "10.0.0.2")),
            (name("ops", "probe"), pod(json!({"app": "probe"}), "10.0.1.1")),
        ])
    }

    #[track_caller]
    fn assert_touched(spec: Value, expected: &[&str]) {
        let policy = serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})).unwrap();
        let names: Vec<String> = touched(&policy, &pods()).iter().map(PodName::to_string).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn pods_are_selected_as_the_api_says() {
        assert_touched(json!({"podSelector": {}}), &["shop/db", "shop/web"]);
        assert_touched(json!({"podSelector": {"matchLabels": {"app": "db"}}}), &["shop/db"]);
        assert_touched(json!({"podSelector": {"matchLabels": {"app": "none"}}}), &[]);
        let expression = |operator: &str, values: Value| json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]}});
        assert_touched(expression("In", json!(["front", "back"])), &["shop/web"]);
        assert_touched(expression("NotIn", json!(["front"])), &["shop/db"]);
        assert_touched(expression("Exists", json!(null)), &["shop/web"]);
        assert_touched(expression("DoesNotExist", json!(null)), &["shop/db"]);
        assert_touched(expression("LikeMaybe", json!(null)), &["shop/db", "shop/web"]);
    }

    #[test]
    fn peers_count_and_unknown_namespaces_do_too() {
        let from = |peer: Value| json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [peer]}]});
        assert_touched(from(json!({"podSelector": {"matchLabels": {"app": "web"}}})), &["shop/db", "shop/web"]);
        assert_touched(from(json!({"podSelector": {"matchLabels": {"app": "probe"}}})), &["shop/db"]);
        assert_touched(
            from(json!({"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchLabels": {"app": "probe"}}})),
            &["ops/probe", "shop/db"],
        );
        assert_touched(from(json!({"ipBlock": {"cidr": "10.0.1.0/24"}})), &["ops/probe", "shop/db"]);
        assert_touched(from(json!({"ipBlock": {"cidr": "fd00::/8"}})), &["shop/db"]);
        assert_touched(from(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})), &["ops/probe", "shop/db", "shop/web"]);
        let to = json!({"podSelector": {"matchLabels": {"app": "none"}}, "egress": [{"to": [{"podSelector": {}}]}]});
        assert_touched(to, &["shop/db", "shop/web"]);
    }

    #[test]
    fn a_policy_without_a_spec_is_about_its_whole_namespace() {
        let policy = serde_json::from_value(json!({"metadata": {"namespace": "ops"}})).unwrap();
        assert_eq!(touched(&policy, &pods()).len(), 1);
    }
}
