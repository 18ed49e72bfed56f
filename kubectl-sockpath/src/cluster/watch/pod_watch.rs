//! What happens to the pods of a trace while it runs: deleted, replaced, ended, restarted, not ready, with other addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod as ApiPod};
use sockpath_protocol::accel::PodName;
use sockpath_protocol::pod::Pod;
use tokio::sync::mpsc;

use crate::cluster::api::client::Api;
use crate::cluster::api::follow::{Change, Which, follow};
use crate::cluster::lookup::pod_info::{all_statuses, cgroup_uid, pod_ips};

/// Changes that wait for us before the followers have to.
const CHANGES_AHEAD: usize = 64;
/// Pods beyond these are not watched: a Service may have thousands.
const WATCHED: usize = 32;

/// Something that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNews {
    /// Its UID, as helpers know it.
    pub uid: String,
    /// What happened, as a sentence.
    pub text: String,
    /// It is not there any more: nothing of it will be seen from now on.
    pub gone: bool,
    /// It has another address, and with it another network namespace.
    pub readdressed: bool,
}

/// Watches pods until it is dropped.
#[derive(Debug)]
pub struct PodWatch {
    changes: mpsc::Receiver<(PodName, Change<ApiPod>)>,
    known: BTreeMap<PodName, Seen>,
    pending: Vec<PodNews>,
}

impl PodWatch {
    /// Watches these pods, as far as the user may.
    #[must_use]
    pub fn start(api: &Api, pods: &[Pod]) -> Self {
        let (sink, changes) = mpsc::channel(CHANGES_AHEAD);
        let mut known = BTreeMap::new();
        // A node that is named like a pod is in no namespace.
        for pod in pods.iter().filter(|p| !p.namespace.is_empty()).take(WATCHED) {
            let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
            let which = Which { namespace: Some(pod.namespace.clone()), name: Some(pod.name.clone()), selector: None };
            let (own, mut theirs) = mpsc::channel(CHANGES_AHEAD);
            tokio::spawn(follow::<ApiPod, ApiPod>(api.clone(), which, format!("watch pod {name}"), own));
            let (sink, tag) = (sink.clone(), name.clone());
            tokio::spawn(async move {
                while let Some(change) = theirs.recv().await {
                    if sink.send((tag.clone(), change)).await.is_err() {
                        return;
                    }
                }
            });
            known.insert(name, Seen::planned(pod));
        }
        Self { changes, known, pending: Vec::new() }
    }

    /// Where nothing changes: the lab.
    #[must_use]
    pub fn nothing() -> Self {
        Self { changes: mpsc::channel(1).1, known: BTreeMap::new(), pending: Vec::new() }
    }

    /// What happens next; never, where nothing is watched. Cancel-safe.
    pub async fn next(&mut self) -> PodNews {
        loop {
            if !self.pending.is_empty() {
                return self.pending.remove(0);
            }
            let Some((name, change)) = self.changes.recv().await else { return std::future::pending().await };
            let Some(seen) = self.known.get_mut(&name) else { continue };
            self.pending = seen.learn(&name, change);
        }
    }
}

/// A pod as it was seen last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    uid: String,
    ips: Vec<IpAddr>,
    /// Absent until it was read first.
    ready: Option<bool>,
    /// By container.
    restarts: BTreeMap<String, i32>,
    crashing: bool,
    ending: bool,
    gone: bool,
}

impl Seen {
    /// As the trace was planned with it.
    fn planned(pod: &Pod) -> Self {
        Self { uid: pod.uid.clone(), ips: pod.ips.clone(), ..Self::default() }
    }

    /// Applies a change; returns the news to report.
    fn learn(&mut self, name: &PodName, change: Change<ApiPod>) -> Vec<PodNews> {
        if self.gone {
            return Vec::new();
        }
        let ips = self.ips.clone();
        let texts = match change {
            Change::Listed { objects, .. } => match objects.first() {
                Some(pod) => self.compare(name, pod),
                None => self.lose(format!("pod {name} was deleted")),
            },
            Change::Applied(pod) => self.compare(name, &pod),
            Change::Deleted(pod) if cgroup_uid(&pod) == self.uid => self.lose(format!("pod {name} was deleted")),
            // One of the same name that came and went; without the right to watch there is less to say.
            Change::Deleted(_) | Change::Refused(_) => Vec::new(),
        };
        let last = texts.len().saturating_sub(1);
        let readdressed = self.ips != ips;
        let news = |(i, text)| PodNews { uid: self.uid.clone(), text, gone: self.gone && i == last, readdressed: readdressed && i == last };
        texts.into_iter().enumerate().map(news).collect()
    }

    fn lose(&mut self, text: String) -> Vec<String> {
        self.gone = true;
        vec![text]
    }

    fn compare(&mut self, name: &PodName, pod: &ApiPod) -> Vec<String> {
        if cgroup_uid(pod) != self.uid {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("no node yet");
            return self.lose(format!("pod {name} was replaced by another one of that name (on {node})"));
        }
        let status = pod.status.clone().unwrap_or_default();
        let reason = || status.reason.clone().or_else(|| status.message.clone()).map(|r| format!(" ({r})")).unwrap_or_default();
        match status.phase.as_deref() {
            // How its processes ended follows from that.
            Some("Succeeded" | "Failed") if pod.metadata.deletion_timestamp.is_some() && status.reason.is_none() => {
                return self.lose(format!("pod {name} was deleted"));
            }
            Some("Succeeded") => return self.lose(format!("pod {name} has completed")),
            Some("Failed") => return self.lose(format!("pod {name} has failed{}", reason())),
            _ => {}
        }
        let mut texts = Vec::new();
        if !std::mem::replace(&mut self.ending, pod.metadata.deletion_timestamp.is_some()) && self.ending {
            let grace =
                pod.metadata.deletion_grace_period_seconds.map(|s| format!(": its processes have {s} s to end")).unwrap_or_default();
            texts.push(format!("pod {name} is being deleted{grace}"));
        }
        texts.extend(self.restarted(name, all_statuses(&status)));
        let ips = pod_ips(&status);
        if !ips.is_empty() && ips != self.ips {
            let list = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
            texts.push(format!("pod {name} now has the address {}, but the trace observes {}", list(&ips), list(&self.ips)));
            self.ips = ips;
        }
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        if let Some(condition) = condition {
            let ready = condition.status == "True";
            let why = condition.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            match self.ready.replace(ready) {
                Some(true) if !ready && !self.ending => {
                    texts.push(format!("pod {name} is no longer ready{why}; Services send it no connections until it is"));
                }
                Some(false) if ready => texts.push(format!("pod {name} is ready again")),
                _ => {}
            }
        }
        texts
    }

    /// Containers that were restarted, and those that crash again and again.
    fn restarted<'s>(&mut self, name: &PodName, statuses: impl Iterator<Item = &'s ContainerStatus>) -> Vec<String> {
        let (mut texts, mut crashing) = (Vec::new(), false);
        for container in statuses {
            let before = self.restarts.insert(container.name.clone(), container.restart_count);
            if before.is_some_and(|n| n < container.restart_count) {
                let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
                let why = last.map(|t| {
                    let reason = t.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
                    format!(": it had ended with exit code {}{reason}", t.exit_code)
                });
                texts.push(format!("container {} of pod {name} was restarted{}", container.name, why.unwrap_or_default()));
            }
            let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
            if waiting == Some("CrashLoopBackOff") {
                crashing = true;
                if !self.crashing {
                    texts.push(format!("container {} of pod {name} crashes repeatedly and waits before it is restarted", container.name));
                }
            }
        }
        self.crashing = crashing;
        texts
    }
}

#[cfg(test)]
#[path = "pod_watch_tests.rs"]
mod tests;
