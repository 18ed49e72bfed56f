//! The helper pods of this run as they change, from one watch for all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};

use crate::cluster::api::client::Api;
use crate::cluster::api::follow::{Change, Which, follow};
use crate::cluster::helper::pod::LABEL_SESSION;

/// Changes that wait for us before the follower has to.
const CHANGES_AHEAD: usize = 256;

/// What is known about a helper pod.
#[derive(Debug, Clone, Default)]
pub enum Posted {
    /// Nothing yet.
    #[default]
    Nothing,
    /// Its state.
    Pod(Box<Pod>),
    /// It was deleted.
    Deleted,
    /// Pods may not be watched: it has to be read again and again.
    Unwatched,
}

/// The board; clones share it. Begins to watch with the first pod.
#[derive(Debug, Clone)]
pub struct Board {
    api: Api,
    namespace: String,
    session: String,
    pods: Arc<Mutex<BTreeMap<String, watch::Sender<Posted>>>>,
}

impl Board {
    /// That of the helper pods of one run.
    #[must_use]
    pub fn new(api: Api, namespace: &str, session: &str) -> Self {
        Self { api, namespace: namespace.to_owned(), session: session.to_owned(), pods: Arc::default() }
    }

    /// What is known about a pod, and becomes so until the receiver is dropped. Needs an event loop.
    #[must_use]
    pub fn of(&self, name: &str) -> watch::Receiver<Posted> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.is_empty() {
            tokio::spawn(self.clone().fill());
        }
        pods.entry(name.to_owned()).or_default().subscribe()
    }

    /// Keeps it up to date for as long as it has readers.
    async fn fill(self) {
        let (sink, mut changes) = mpsc::channel(CHANGES_AHEAD);
        let selector = Some(format!("{LABEL_SESSION}={}", self.session));
        let which = Which { namespace: Some(self.namespace.clone()), name: None, selector };
        tokio::spawn(follow::<Pod, Pod>(self.api.clone(), which, "watch the helper pods".to_owned(), sink));
        while let Some(change) = changes.recv().await {
            if !self.post(change) {
                return;
            }
        }
    }

    /// Applies a change; `false` once it has no readers, and is empty.
    fn post(&self, change: Change<Pod>) -> bool {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, sender| sender.receiver_count() > 0);
        if pods.is_empty() {
            return false;
        }
        let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
        match change {
            Change::Listed { objects, .. } => {
                // One that is not listed may be created after the list was made; one that was there is gone.
                let listed: BTreeMap<String, Pod> = objects.into_iter().map(|pod| (name(&pod), pod)).collect();
                for (name, sender) in pods.iter() {
                    match listed.get(name) {
                        Some(pod) => drop(sender.send_replace(Posted::Pod(Box::new(pod.clone())))),
                        None => drop(sender.send_if_modified(|posted| {
                            let was_there = matches!(posted, Posted::Pod(_));
                            if was_there {
                                *posted = Posted::Deleted;
                            }
                            was_there
                        })),
                    }
                }
            }
            Change::Applied(pod) => {
                if let Some(sender) = pods.get(&name(&pod)) {
                    sender.send_replace(Posted::Pod(Box::new(pod)));
                }
            }
            Change::Deleted(pod) => {
                if let Some(sender) = pods.get(&name(&pod)) {
                    sender.send_replace(Posted::Deleted);
                }
            }
            Change::Refused(_) => pods.values().for_each(|sender| drop(sender.send_replace(Posted::Unwatched))),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::api::mock::Mock;

    #[tokio::test]
    async fn one_watch_serves_all_pods_of_a_run() {
        let pod = |name: &str, phase: &str| json!({"metadata": {"name": name, "resourceVersion": "2"}, "status": {"phase": phase}});
        let path = "GET /api/v1/namespaces/sockpath/pods";
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [pod("a", "Pending")]});
        let event = |kind: &str, name: &str| json!({"type": kind, "object": pod(name, "Running")}).to_string() + "\n";
        let events = event("MODIFIED", "a") + &event("ADDED", "b") + &event("DELETED", "a");
        let mock = Mock::default().on(path, 200, list).on(path, 200, json!(events)).silent(path);
        let board = Board::new(mock.api("sockpath"), "sockpath", "s1");
        let (mut a, mut b) = (board.of("a"), board.of("b"));
        assert!(matches!(*b.borrow(), Posted::Nothing));
        b.wait_for(|posted| matches!(posted, Posted::Pod(_))).await.unwrap();
        a.wait_for(|posted| matches!(posted, Posted::Deleted)).await.unwrap();
        let asked = mock.asked();
        assert!(asked.len() <= 3 && asked[0].contains("labelSelector=sockpath%2Fsession%3Ds1"), "{asked:?}");
    }

    #[tokio::test]
    async fn without_the_right_to_watch_each_pod_is_read() {
        let mock = Mock::default().forbid("GET /api/v1/namespaces/sockpath/pods");
        let mut pod = Board::new(mock.api("sockpath"), "sockpath", "s1").of("a");
        pod.wait_for(|posted| matches!(posted, Posted::Unwatched)).await.unwrap();
    }
}
