//! What the plugin needs to know about pods, Services and nodes, wherever that comes from.

use std::net::IpAddr;

use anyhow::Result;
use sockpath_protocol::pod::{Locate, Node, Pod};
use sockpath_protocol::request::{Protocol, Service};

/// A pod that was found, and what resolution has to know about it besides what helpers need.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    /// As helpers need it.
    pub pod: Pod,
    /// Why it can be neither traced nor accelerated (`phase Pending`, `runs on a virtual node`), if so.
    pub unusable: Option<String>,
    /// Its containers.
    pub containers: Vec<ContainerInfo>,
}

impl PodInfo {
    /// A node, as a pod in its network namespace.
    #[must_use]
    pub fn of_node(node: &Node) -> Self {
        let pod = Pod {
            namespace: String::new(),
            name: node.name.clone(),
            uid: format!("node:{}", node.name),
            node: node.name.clone(),
            ips: node.ips.clone(),
            host_network: true,
            containers: Vec::new(),
            locate: Locate::Node { netns: node.netns.clone() },
        };
        Self { pod, unusable: None, containers: Vec::new() }
    }

    /// Its ports with the containers that declare them.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.containers.iter().flat_map(|c| &c.ports)
    }
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// Ports it declares (or, in the lab, listens on).
    pub ports: Vec<Port>,
}

/// A port of a container or of a Service, as its spec has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// Its number.
    pub number: u16,
    /// Its transport protocol.
    pub protocol: Protocol,
}

impl From<u16> for Port {
    /// One of TCP without a name.
    fn from(number: u16) -> Self {
        Self { name: None, number, protocol: Protocol::Tcp }
    }
}

/// A Service that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceInfo {
    /// As helpers need it; without frontends when headless.
    pub service: Service,
    /// Its ports as its clients name them, in the order of its spec; those of its pods when headless.
    pub ports: Vec<Port>,
    /// The pods behind it that are ready.
    pub backends: Vec<PodInfo>,
}

/// Which pods of many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Namespace; all when absent.
    pub namespace: Option<String>,
    /// Label selector.
    pub selector: Option<String>,
}

/// Kinds of things that have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pods.
    Pod,
    /// Services.
    Service,
    /// Deployments.
    Deployment,
    /// StatefulSets.
    StatefulSet,
    /// DaemonSets.
    DaemonSet,
    /// ReplicaSets.
    ReplicaSet,
    /// Jobs.
    Job,
    /// ReplicationControllers.
    ReplicationController,
    /// Nodes.
    Node,
    /// Namespaces.
    Namespace,
}

impl Kind {
    /// The word for one of it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::ReplicationController => "ReplicationController",
            Self::Node => "node",
            Self::Namespace => "namespace",
        }
    }

    /// What stands before the name of one, as in `svc/NAME`; nothing does before a namespace.
    #[must_use]
    pub fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Pod => Some("pod"),
            Self::Service => Some("svc"),
            Self::Deployment => Some("deploy"),
            Self::StatefulSet => Some("sts"),
            Self::DaemonSet => Some("ds"),
            Self::ReplicaSet => Some("rs"),
            Self::Job => Some("job"),
            Self::ReplicationController => Some("rc"),
            Self::Node => Some("node"),
            Self::Namespace => None,
        }
    }

    /// What kubectl calls one on its command line: singular, plural, short, and with the group.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Some(match word.strip_suffix(".apps").or_else(|| word.strip_suffix(".batch")).unwrap_or(word) {
            "pod" | "pods" | "po" => Self::Pod,
            "svc" | "service" | "services" => Self::Service,
            "deploy" | "deployment" | "deployments" => Self::Deployment,
            "sts" | "statefulset" | "statefulsets" => Self::StatefulSet,
            "ds" | "daemonset" | "daemonsets" => Self::DaemonSet,
            "rs" | "replicaset" | "replicasets" => Self::ReplicaSet,
            "job" | "jobs" => Self::Job,
            "rc" | "replicationcontroller" | "replicationcontrollers" => Self::ReplicationController,
            "no" | "node" | "nodes" => Self::Node,
            _ => return None,
        })
    }
}

/// Where names are looked up. "Not there" is `None` or empty, not an error.
pub trait Inventory {
    /// Namespace of names that carry none.
    fn namespace(&self) -> &str;
    /// One pod by name.
    fn pod(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<PodInfo>>>;
    /// Many pods.
    fn pods(&self, scope: &Scope) -> impl Future<Output = Result<Vec<PodInfo>>>;
    /// Pods that have this address (several with hostNetwork).
    fn pods_at(&self, ip: IpAddr) -> impl Future<Output = Result<Vec<PodInfo>>>;
    /// The pods of a Deployment or another kind that has pods.
    fn workload(&self, kind: Kind, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Vec<PodInfo>>>>;
    /// A node, as a pod in its network namespace.
    fn node(&self, name: &str) -> impl Future<Output = Result<Option<PodInfo>>>;
    /// The node that has this address, as a pod in its network namespace.
    fn node_at(&self, ip: IpAddr) -> impl Future<Output = Result<Option<PodInfo>>>;
    /// One Service by name.
    fn service(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<ServiceInfo>>>;
    /// Every Service that has this address as a frontend, or a backend at one of the pod's addresses.
    fn services_with(&self, addresses: &[IpAddr]) -> impl Future<Output = Result<Vec<ServiceInfo>>>;
    /// Nodes by name.
    fn nodes(&self, names: &[String]) -> impl Future<Output = Result<Vec<Node>>>;
    /// Names there are, for suggestions and completion. `namespace` is ignored for namespaces.
    fn names(&self, kind: Kind, namespace: &str) -> impl Future<Output = Result<Vec<String>>>;
}
