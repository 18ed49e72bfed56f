//! What happens in the cluster while an acceleration runs: pods come and go, NetworkPolicies change.

pub mod bypassed;
mod network_policy;
mod news;
pub mod pod_watch;
mod surroundings;

pub use news::News;
use news::SeenPod;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use sockpath_protocol::accel::PodName;
use tokio::sync::mpsc;

use crate::cluster::api::client::Api;
use crate::cluster::api::follow::{Change, Which, follow, follow_in_cluster};
use crate::cluster::api::problem::Kind;
use crate::cluster::watch::network_policy::{Subject, Subjects, touched};
use crate::cluster::watch::surroundings::{SeenNode, Surroundings};

/// Changes that wait for us before the followers have to.
const CHANGES_AHEAD: usize = 256;

/// Watches pods and NetworkPolicies until it is dropped.
#[derive(Debug)]
pub struct Watch {
    pods: mpsc::Receiver<Change<SeenPod>>,
    policies: mpsc::Receiver<Change<NetworkPolicy>>,
    nodes: mpsc::Receiver<Change<SeenNode>>,
    namespaces: mpsc::Receiver<Change<Namespace>>,
    known: Known,
    surroundings: Surroundings,
    /// What comes after what was returned last.
    pending: Option<News>,
    /// Begins to follow; absent where nothing changes.
    begin: Option<Begin>,
}

/// What is followed.
#[derive(Debug, Clone)]
struct Begin {
    api: Api,
    /// Namespaces; all where that is absent.
    places: Vec<Option<String>>,
    selector: Option<String>,
}

impl Watch {
    /// Watches the pods that match a selector, and all policies, of these namespaces; of all when there are none.
    #[must_use]
    pub fn start(api: &Api, namespaces: &BTreeSet<String>, selector: Option<&str>) -> Self {
        let places: Vec<Option<String>> = if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() };
        let begin = Begin { api: api.clone(), places, selector: selector.map(str::to_owned) };
        let mut watch = Self { begin: Some(begin), ..Self::nothing() };
        watch.renew();
        watch
    }

    /// Where nothing changes: the lab.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            pods: mpsc::channel(1).1,
            policies: mpsc::channel(1).1,
            nodes: mpsc::channel(1).1,
            namespaces: mpsc::channel(1).1,
            known: Known::default(),
            surroundings: Surroundings::default(),
            pending: None,
            begin: None,
        }
    }

    /// Lists everything again, after connections were interrupted: a watch whose connection broke silently brings nothing for minutes.
    pub fn renew(&mut self) {
        if let Some(begin) = &self.begin {
            (self.pods, self.policies) = begin.follow();
            (self.nodes, self.namespaces) = begin.follow_surroundings();
        }
    }

    /// What comes next; never, once nothing is watched any more. Cancel-safe.
    pub async fn next(&mut self) -> News {
        loop {
            if let Some(news) = self.pending.take().or_else(|| self.surroundings.next()) {
                return news;
            }
            let news = tokio::select! {
                // Policies first: what they pause must not be accelerated any longer than needed.
                biased;
                Some(change) = self.policies.recv() => self.known.policy(change),
                Some(change) = self.namespaces.recv() => self.surroundings.namespace(change),
                Some(change) = self.nodes.recv() => self.surroundings.node(change),
                Some(change) = self.pods.recv() => {
                    if let Some(news) = self.surroundings.eviction(&change) {
                        self.pending = self.known.pod(change);
                        return news;
                    }
                    self.known.pod(change)
                }
                else => std::future::pending().await,
            };
            if let Some(news) = news {
                return news;
            }
        }
    }
}

impl Begin {
    fn follow(&self) -> (mpsc::Receiver<Change<SeenPod>>, mpsc::Receiver<Change<NetworkPolicy>>) {
        let (pod_sink, pods) = mpsc::channel(CHANGES_AHEAD);
        let (policy_sink, policies) = mpsc::channel(CHANGES_AHEAD);
        for namespace in &self.places {
            let place = namespace.as_ref().map_or_else(|| "all namespaces".to_owned(), |ns| format!("namespace {ns}"));
            let which = Which { namespace: namespace.clone(), name: None, selector: self.selector.clone() };
            tokio::spawn(follow::<Pod, SeenPod>(self.api.clone(), which, format!("watch the pods of {place}"), pod_sink.clone()));
            let which = Which { namespace: namespace.clone(), name: None, selector: None };
            tokio::spawn(follow::<NetworkPolicy, NetworkPolicy>(
                self.api.clone(),
                which,
                format!("watch the NetworkPolicies of {place}"),
                policy_sink.clone(),
            ));
        }
        (pods, policies)
    }

    /// Nodes and namespaces, as far as the user may see them.
    fn follow_surroundings(&self) -> (mpsc::Receiver<Change<SeenNode>>, mpsc::Receiver<Change<Namespace>>) {
        let (node_sink, nodes) = mpsc::channel(CHANGES_AHEAD);
        let (namespace_sink, namespaces) = mpsc::channel(CHANGES_AHEAD);
        tokio::spawn(follow_in_cluster::<Node, SeenNode>(self.api.clone(), Which::default(), "watch the nodes".to_owned(), node_sink));
        for name in &self.places {
            let which = Which { namespace: None, name: name.clone(), selector: None };
            tokio::spawn(follow_in_cluster::<Namespace, Namespace>(
                self.api.clone(),
                which,
                "watch namespaces".to_owned(),
                namespace_sink.clone(),
            ));
        }
        (nodes, namespaces)
    }
}

/// A policy's namespace and name.
type Key = (String, String);

/// What is known about pods and policies, and what follows from it. Pure.
#[derive(Debug, Default)]
struct Known {
    subjects: Subjects,
    /// Policies as they were when they were first listed.
    before: BTreeMap<Key, NetworkPolicy>,
    now: BTreeMap<Key, NetworkPolicy>,
    /// Namespaces whose policies have been listed.
    listed: BTreeSet<Option<String>>,
    /// Pods whose labels changed while there were policies.
    relabelled: BTreeSet<PodName>,
    paused: BTreeSet<PodName>,
    refused: bool,
}

fn key(policy: &NetworkPolicy) -> Key {
    (policy.namespace().unwrap_or_default(), policy.name_any())
}

impl Known {
    fn pod(&mut self, change: Change<SeenPod>) -> Option<News> {
        let mut gone = None;
        match change {
            Change::Listed { namespace, objects } => {
                self.subjects.retain(|pod, _| namespace.as_ref().is_some_and(|ns| *ns != pod.namespace));
                self.subjects.extend(objects.into_iter().map(|pod| (pod.name, pod.subject)));
            }
            Change::Applied(pod) => {
                let SeenPod { name, subject, .. } = pod;
                let other_labels = |before: &Subject| !before.has_labels_of(&subject);
                if self.subjects.get(&name).is_some_and(other_labels) && !self.now.is_empty() {
                    self.relabelled.insert(name.clone());
                }
                self.subjects.insert(name, subject);
            }
            Change::Deleted(pod) => {
                self.subjects.remove(&pod.name);
                gone = Some(pod.name);
            }
            Change::Refused(p) => return Some(News::Unwatched(format!("new pods are not included: {p}"))),
        }
        // Pods that a changed policy selects may be new; the caller requests the pods then.
        Some(self.reconsider("the labels of a pod that NetworkPolicies may select").unwrap_or_else(|| gone.map_or(News::Pods, News::Gone)))
    }

    fn policy(&mut self, change: Change<NetworkPolicy>) -> Option<News> {
        let what = |how: &str, (namespace, name): &Key| format!("NetworkPolicy {namespace}/{name} {how}");
        match change {
            Change::Listed { namespace, objects } => {
                let fresh: BTreeMap<Key, NetworkPolicy> = objects.into_iter().map(|p| (key(&p), p)).collect();
                let here = |key: &Key| namespace.as_ref().is_none_or(|ns| *ns == key.0);
                self.now.retain(|key, _| !here(key));
                self.now.extend(fresh.clone());
                if self.listed.insert(namespace.clone()) {
                    self.before.extend(fresh);
                    return None;
                }
                self.reconsider("NetworkPolicies changed while the API server was unreachable")
            }
            Change::Applied(policy) => {
                let key = key(&policy);
                let how = if self.now.contains_key(&key) { "was changed" } else { "was added" };
                self.now.insert(key.clone(), policy);
                self.reconsider(&what(how, &key))
            }
            Change::Deleted(policy) => {
                let key = key(&policy);
                self.now.remove(&key);
                self.reconsider(&what("was deleted", &key))
            }
            Change::Refused(p) => {
                let first = !std::mem::replace(&mut self.refused, true);
                let advice = match p.kind {
                    Kind::Forbidden => "\nthe ClusterRole sockpath-lookup of manifests/rbac.yaml lets you watch them",
                    // Expired credentials, for instance.
                    _ => "",
                };
                first.then(|| {
                    News::Unwatched(format!(
                        "NetworkPolicies are not watched, so accelerated connections bypass changed policies: {p}{advice}"
                    ))
                })
            }
        }
    }

    /// What has to be paused is what policies touch that are not as they were at the start.
    fn reconsider(&mut self, what: &str) -> Option<News> {
        let spec = |policies: &BTreeMap<Key, NetworkPolicy>, key: &Key| policies.get(key).map(|p| p.spec.clone());
        let keys: BTreeSet<&Key> = self.before.keys().chain(self.now.keys()).collect();
        let changed = keys.into_iter().filter(|key| spec(&self.before, key) != spec(&self.now, key));
        let versions = changed.flat_map(|key| [self.before.get(key), self.now.get(key)].into_iter().flatten());
        let mut wanted: BTreeSet<PodName> = versions.flat_map(|policy| touched(policy, &self.subjects)).collect();
        wanted.extend(self.relabelled.iter().cloned());
        let pause: Vec<PodName> = wanted.difference(&self.paused).cloned().collect();
        let resume: Vec<PodName> = self.paused.difference(&wanted).cloned().collect();
        self.paused = wanted;
        let news = !(pause.is_empty() && resume.is_empty());
        news.then(|| News::Policies { what: what.to_owned(), pause, resume })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::api::mock::Mock;
    use crate::cluster::api::problem::Problem;

    fn object(name: &str, labels: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}})).unwrap()
    }

    fn pod(name: &str, labels: Value) -> SeenPod {
        object(name, labels).into()
    }

    fn policy(name: &str, app: &str) -> NetworkPolicy {
        let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]});
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})).unwrap()
    }

    fn listed<K>(objects: Vec<K>) -> Change<K> {
        Change::Listed { namespace: Some("shop".into()), objects }
    }

    fn known(policies: Vec<NetworkPolicy>) -> Known {
        let mut known = Known::default();
        known.pod(listed(vec![pod("web", json!({"app": "web"})), pod("db", json!({"app": "db"}))]));
        assert_eq!(known.policy(listed(policies)), None, "what was there before is part of how things were");
        known
    }

    /// What news say: paused and resumed names.
    fn said(news: Option<News>) -> String {
        let names = |pods: Vec<PodName>| pods.into_iter().map(|p| p.name).collect::<Vec<_>>().join(",");
        match news {
            Some(News::Policies { what, pause, resume }) => format!("{what}: -{} +{}", names(pause), names(resume)),
            Some(News::Pods) => "pods".to_owned(),
            Some(News::Gone(pod)) => format!("{pod} is gone"),
            Some(News::Node { text, .. } | News::Terminating(text)) => text,
            Some(News::Unwatched(text)) => text,
            None => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_policy_that_comes_pauses_what_it_selects_until_it_goes() {
        let mut known = known(vec![policy("old", "web")]);
        assert_eq!(said(known.policy(Change::Applied(policy("new", "db")))), "NetworkPolicy shop/new was added: -db +");
        assert_eq!(said(known.policy(Change::Applied(policy("new", "db")))), "nothing", "only its status changed");
        assert_eq!(said(known.policy(Change::Applied(policy("new", "web")))), "NetworkPolicy shop/new was changed: -web +db");
        assert_eq!(said(known.policy(Change::Deleted(policy("new", "web")))), "NetworkPolicy shop/new was deleted: - +web");
        assert_eq!(said(known.policy(Change::Deleted(policy("old", "web")))), "NetworkPolicy shop/old was deleted: -web +");
        assert_eq!(said(known.policy(Change::Applied(policy("old", "web")))), "NetworkPolicy shop/old was added: - +web");
    }

    #[test]
    fn a_changed_policy_touches_what_it_selected_before_and_selects_now() {
        let mut known = known(vec![policy("p", "web")]);
        assert_eq!(said(known.policy(Change::Applied(policy("p", "db")))), "NetworkPolicy shop/p was changed: -db,web +");
    }

    #[test]
    fn changes_that_were_missed_are_found_in_the_next_list() {
        let mut known = known(vec![policy("p", "web")]);
        assert_eq!(said(known.policy(listed(vec![policy("p", "web")]))), "nothing");
        let missed = said(known.policy(listed(vec![policy("q", "db")])));
        assert!(missed.ends_with("unreachable: -db,web +"), "{missed}");
    }

    #[test]
    fn pods_that_come_under_a_changed_policy_or_change_their_labels_are_paused() {
        let mut known = known(vec![policy("p", "web")]);
        assert_eq!(said(known.policy(Change::Applied(policy("new", "late")))), "nothing");
        assert!(said(known.pod(Change::Applied(pod("late", json!({"app": "late"}))))).ends_with("-late +"));
        assert_eq!(said(known.pod(Change::Applied(pod("late", json!({"app": "late"}))))), "pods");
        assert!(said(known.pod(Change::Applied(pod("db", json!({"app": "web"}))))).ends_with("-db +"));
        assert!(said(known.pod(Change::Deleted(pod("late", json!({}))))).ends_with("- +late"));
    }

    #[test]
    fn a_pod_that_is_deleted_is_named() {
        let mut known = known(Vec::new());
        assert_eq!(said(known.pod(Change::Deleted(pod("db", json!({}))))), "shop/db is gone");
    }

    #[test]
    fn without_the_right_to_watch_that_is_said_once() {
        let mut known = known(Vec::new());
        let refused = || Change::Refused(Problem::new(Kind::Forbidden, "cannot watch: no"));
        assert!(said(known.policy(refused())).contains("sockpath-lookup"));
        assert_eq!(said(known.policy(refused())), "nothing");
        // Rights do not help against credentials that have expired.
        let expired = Change::Refused(Problem::new(Kind::Unauthorized, "cannot watch: the API server does not accept the credentials"));
        let text = said(super::Known::default().policy(expired));
        assert!(text.contains("does not accept the credentials") && !text.contains("sockpath-lookup"), "{text}");
    }

    #[tokio::test]
    async fn several_namespaces_are_watched_through_the_api() {
        let mut new = policy("new", "web");
        new.metadata.resource_version = Some("2".to_owned());
        let line = json!({"type": "ADDED", "object": new}).to_string() + "\n";
        let list = |items: Value| json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
        let policies = "GET /apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
        let mock = Mock::default()
            .on(policies, 200, list(json!([])))
            .on(policies, 200, json!(line))
            .silent(policies)
            .on("GET /apis/networking.k8s.io/v1/namespaces/ops/networkpolicies", 200, list(json!([])))
            .silent("GET /apis/networking.k8s.io/v1/namespaces/ops/networkpolicies")
            .on("GET /api/v1/namespaces/shop/pods", 200, list(json!([object("web", json!({"app": "web"}))])))
            .silent("GET /api/v1/namespaces/shop/pods")
            .forbid("GET /api/v1/namespaces/ops/pods");
        let mut watch = Watch::start(&mock.api("shop"), &BTreeSet::from(["shop".to_owned(), "ops".to_owned()]), None);
        let mut received = BTreeSet::new();
        // Which of the two lists comes first, and with it whether pods alone are news, is left open.
        while !(received.contains("paused") && received.contains("unwatched")) {
            let news = tokio::time::timeout(std::time::Duration::from_secs(5), watch.next()).await.expect("news");
            received.insert(match news {
                News::Pods | News::Gone(_) => "pods",
                News::Node { .. } | News::Terminating(_) => "surroundings",
                News::Policies { pause, .. } if pause.len() == 1 => "paused",
                News::Policies { .. } => "else",
                News::Unwatched(_) => "unwatched",
            });
        }
        assert!(!received.contains("else"), "{received:?}");
    }
}
