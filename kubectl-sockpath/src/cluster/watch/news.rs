//! What is kept of pods, and what an acceleration learns of changes.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use sockpath_protocol::accel::PodName;

use crate::cluster::watch::network_policy::Subject;

/// What an acceleration has to react to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Pods came, went or changed.
    Pods,
    /// A pod was deleted.
    Gone(PodName),
    /// Something happened to a node.
    Node {
        /// The node.
        name: String,
        /// What happened, as a sentence.
        text: String,
    },
    /// A namespace is being deleted.
    Terminating(String),
    /// NetworkPolicies changed.
    Policies {
        /// What changed, in words.
        what: String,
        /// Pods whose pairs have to go by TCP from now on.
        pause: Vec<PodName>,
        /// Pods whose policies are again what they were at the start.
        resume: Vec<PodName>,
    },
    /// Something cannot be watched: what that means, and what to do.
    Unwatched(String),
}

/// What is kept of a pod: a large cluster has many.
#[derive(Debug, Clone)]
pub struct SeenPod {
    pub(super) name: PodName,
    pub(super) subject: Subject,
    /// Where it runs, if it is being evicted from there.
    pub evicted_from: Option<String>,
}

impl From<Pod> for SeenPod {
    fn from(pod: Pod) -> Self {
        let name = PodName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() };
        Self { name, subject: Subject::of(&pod), evicted_from: evicted_from(&pod) }
    }
}

fn evicted_from(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let reason = conditions.iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True")?.reason.as_deref();
    pod.spec.as_ref()?.node_name.clone().filter(|_| reason == Some("EvictionByEvictionAPI"))
}
