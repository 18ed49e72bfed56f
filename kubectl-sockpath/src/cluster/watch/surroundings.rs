//! What happens to nodes and namespaces while an acceleration runs: cordoned, drained, rebooted, not ready, deleted. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::ResourceExt;

use crate::cluster::api::follow::Change;
use crate::cluster::watch::news::{News, SeenPod};

/// What is known about nodes and namespaces.
#[derive(Debug, Default)]
pub struct Surroundings {
    nodes: BTreeMap<String, State>,
    /// Nodes whose drain was reported.
    drained: BTreeSet<String>,
    /// Namespaces whose deletion was reported.
    terminating: BTreeSet<String>,
    /// What else a change brought.
    more: VecDeque<News>,
}

/// What is kept of a node.
#[derive(Debug, Clone)]
pub struct SeenNode {
    name: String,
    state: State,
}

impl From<Node> for SeenNode {
    fn from(node: Node) -> Self {
        Self { name: node.name_any(), state: State::of(&node) }
    }
}

/// A node as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    cordoned: bool,
    /// Why it is not, where it is not.
    unready: Option<String>,
    boot: String,
}

impl State {
    fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let ready = status.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready"));
        Self {
            cordoned: node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or_default(),
            unready: ready.filter(|c| c.status != "True").map(|c| c.message.clone().or_else(|| c.reason.clone()).unwrap_or_default()),
            boot: status.and_then(|s| s.node_info.as_ref()).map(|info| info.boot_id.clone()).unwrap_or_default(),
        }
    }

    /// What has changed, as one sentence; a reboot is the cause of whatever came with it.
    fn changed_from(&self, before: &Self, name: &str) -> Option<String> {
        if self.boot != before.boot && !self.boot.is_empty() && !before.boot.is_empty() {
            return Some(format!("node {name} was rebooted"));
        }
        match (&before.unready, &self.unready) {
            (None, Some(why)) => return Some(format!("node {name} is not ready: {why}")),
            (Some(_), None) => return Some(format!("node {name} is ready again")),
            _ => {}
        }
        match (before.cordoned, self.cordoned) {
            (false, true) => Some(format!("node {name} was cordoned: no new pods are placed on it, connections there go on")),
            (true, false) => Some(format!("node {name} was uncordoned")),
            _ => None,
        }
    }
}

impl Surroundings {
    /// A further piece of news that a change brought.
    pub fn next(&mut self) -> Option<News> {
        self.more.pop_front()
    }

    /// Applies a change of nodes.
    pub fn node(&mut self, change: Change<SeenNode>) -> Option<News> {
        let objects = match change {
            Change::Listed { objects, .. } => {
                let listed: BTreeSet<String> = objects.iter().map(|node| node.name.clone()).collect();
                let gone: Vec<String> = self.nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.into_iter().for_each(|name| self.delete(&name));
                objects
            }
            Change::Applied(node) => vec![node],
            Change::Deleted(node) => {
                self.delete(&node.name);
                Vec::new()
            }
            // Without the right to watch nodes there is less to say.
            Change::Refused(_) => Vec::new(),
        };
        for SeenNode { name, state } in objects {
            if !state.cordoned {
                self.drained.remove(&name);
            }
            let before = self.nodes.insert(name.clone(), state.clone());
            if let Some(text) = before.and_then(|before| state.changed_from(&before, &name)) {
                self.more.push_back(News::Node { name, text });
            }
        }
        self.next()
    }

    fn delete(&mut self, name: &str) {
        if self.nodes.remove(name).is_some() {
            self.more.push_back(News::Node { name: name.to_owned(), text: format!("node {name} was deleted") });
        }
    }

    /// Applies a change of namespaces.
    pub fn namespace(&mut self, change: Change<Namespace>) -> Option<News> {
        let objects = match change {
            Change::Listed { objects, .. } => objects,
            Change::Applied(namespace) => vec![namespace],
            Change::Deleted(_) | Change::Refused(_) => Vec::new(),
        };
        for namespace in objects.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            let name = namespace.name_any();
            if self.terminating.insert(name.clone()) {
                self.more.push_back(News::Terminating(name));
            }
        }
        self.next()
    }

    /// The drain of a node, by the first pod on it that is evicted while the node is cordoned.
    pub fn eviction(&mut self, change: &Change<SeenPod>) -> Option<News> {
        let (Change::Applied(pod) | Change::Deleted(pod)) = change else { return None };
        let node = pod.evicted_from.as_ref()?;
        let cordoned = self.nodes.get(node).is_some_and(|state| state.cordoned);
        (cordoned && self.drained.insert(node.clone()))
            .then(|| News::Node { name: node.clone(), text: format!("node {node} is being drained: its pods are evicted") })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn node(cordoned: bool, ready: &str, boot: &str) -> SeenNode {
        let condition =
            json!({"type": "Ready", "status": ready, "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."});
        let info = json!({"bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
            "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
        let object = json!({"metadata": {"name": "n1"}, "spec": {"unschedulable": cordoned},
            "status": {"conditions": [condition], "nodeInfo": info}});
        serde_json::from_value::<Node>(object).unwrap().into()
    }

    fn texts(news: Option<News>) -> String {
        match news {
            Some(News::Node { text, .. }) => text,
            Some(News::Terminating(name)) => format!("terminating {name}"),
            Some(other) => panic!("{other:?}"),
            None => String::new(),
        }
    }

    #[test]
    fn each_change_of_a_node_is_one_sentence() {
        let list = |objects| Change::Listed { namespace: None, objects };
        for (after, words) in [
            (list(vec![node(false, "True", "b1")]), ""),
            (Change::Applied(node(true, "True", "b1")), "node n1 was cordoned"),
            (Change::Applied(node(false, "Unknown", "b1")), "node n1 is not ready: Kubelet stopped"),
            (Change::Applied(node(true, "False", "b2")), "node n1 was rebooted"),
            (Change::Deleted(node(false, "True", "b1")), "node n1 was deleted"),
            (list(Vec::new()), "node n1 was deleted"),
        ] {
            let mut known = Surroundings::default();
            assert_eq!(texts(known.node(list(vec![node(false, "True", "b1")]))), "", "the state at the start is not reported");
            let text = texts(known.node(after));
            assert!(text.starts_with(words) && text.is_empty() == words.is_empty(), "{text}");
            assert_eq!(known.next(), None);
        }
    }

    #[test]
    fn a_drain_is_reported_once_and_needs_a_cordoned_node() {
        let pod = |reason: &str| -> Change<SeenPod> {
            let conditions = json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
            let object: Value =
                json!({"metadata": {"name": "web"}, "spec": {"nodeName": "n1", "containers": []}, "status": {"conditions": conditions}});
            Change::Applied(serde_json::from_value::<Pod>(object).unwrap().into())
        };
        let mut known = Surroundings::default();
        known.node(Change::Applied(node(false, "True", "b1")));
        assert_eq!(texts(known.eviction(&pod("EvictionByEvictionAPI"))), "", "one pod is evicted, for whatever reason");
        known.node(Change::Applied(node(true, "True", "b1")));
        assert_eq!(texts(known.eviction(&pod("PreemptionByScheduler"))), "");
        assert!(texts(known.eviction(&pod("EvictionByEvictionAPI"))).contains("is being drained"));
        assert_eq!(texts(known.eviction(&pod("EvictionByEvictionAPI"))), "");
        assert!(texts(known.node(Change::Applied(node(false, "True", "b1")))).contains("uncordoned"));
    }

    #[test]
    fn a_namespace_is_reported_when_its_deletion_begins() {
        let namespace =
            |metadata: Value| -> Change<Namespace> { Change::Applied(serde_json::from_value(json!({"metadata": metadata})).unwrap()) };
        let mut known = Surroundings::default();
        assert_eq!(texts(known.namespace(namespace(json!({"name": "shop"})))), "");
        let deleted = || namespace(json!({"name": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(texts(known.namespace(deleted())), "terminating shop");
        assert_eq!(texts(known.namespace(deleted())), "");
    }
}
