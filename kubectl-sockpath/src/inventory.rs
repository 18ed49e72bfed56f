//! What the plugin needs to know about pods, Services and nodes, wherever that comes from.

use std::net::IpAddr;

use anyhow::Result;
use sockpath_protocol::request::{Node, Pod, Service};

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

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its name.
    pub name: String,
    /// TCP ports it declares (or, in the lab, listens on).
    pub ports: Vec<u16>,
}

/// A Service that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceInfo {
    /// As helpers need it; without frontends when headless.
    pub service: Service,
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
            Self::Namespace => None,
        }
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
    /// The pods of a Deployment.
    fn deployment(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<Vec<PodInfo>>>>;
    /// One Service by name.
    fn service(&self, namespace: &str, name: &str) -> impl Future<Output = Result<Option<ServiceInfo>>>;
    /// Every Service that has this address as a frontend, or a backend at one of the pod's addresses.
    fn services_with(&self, addresses: &[IpAddr]) -> impl Future<Output = Result<Vec<ServiceInfo>>>;
    /// Nodes by name.
    fn nodes(&self, names: &[String]) -> impl Future<Output = Result<Vec<Node>>>;
    /// Names there are, for suggestions and completion. `namespace` is ignored for namespaces.
    fn names(&self, kind: Kind, namespace: &str) -> impl Future<Output = Result<Vec<String>>>;
}
