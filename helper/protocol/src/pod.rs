//! Pods and nodes as the helper needs them: names for people, identifiers to find them on the node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A pod as the helper needs it: names for people, identifiers to find it on the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod object; names its cgroup on the node.
    pub uid: String,
    /// Name of the node it runs on.
    pub node: String,
    /// Its addresses, both families.
    pub ips: Vec<IpAddr>,
    /// Whether it shares the node's network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// Runtime ids of its running containers, without the `containerd://` prefix.
    #[serde(default)]
    pub containers: Vec<Container>,
    /// Where to find it.
    pub locate: Locate,
}

/// One running container of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Name in the pod's spec.
    pub name: String,
    /// Runtime id, without the `containerd://` or `cri-o://` prefix.
    pub id: String,
}

/// How the helper finds a pod's namespace and cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Locate {
    /// By its UID under the known kubelet cgroup roots.
    Uid,
    /// It is the node itself: its network namespace, and no cgroup of its own.
    Node {
        /// Network namespace file in the lab; absent on a real node, where it is that of process 1.
        #[serde(default)]
        netns: Option<String>,
    },
    /// By paths the lab gave.
    Path {
        /// Network namespace file.
        netns: String,
        /// Directory of the pod in the cgroup v2 hierarchy.
        cgroup: String,
    },
}

/// A node as the helper needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Namespace file in the lab; absent on a real node, where it is that of process 1.
    #[serde(default)]
    pub netns: Option<String>,
}
