//! Where the plugin works: the lab on this machine, or a cluster.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::bypass::Bypassed;
use sockpath_protocol::message::Check;
use sockpath_protocol::pod::{Node, Pod};

use crate::cli::Global;
use crate::cluster::{Cluster, PodWatch, Watch};
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};
use crate::lab::Lab;
use crate::mode::Mode;
use crate::progress::Progress;
use crate::session::Fleet;

/// Where the plugin works.
#[derive(Debug)]
pub enum Backend {
    /// The lab.
    Lab(Lab),
    /// A cluster.
    Cluster(Box<Cluster>),
}

impl Backend {
    /// Gets access to what the flags name. `need_up`: an absent lab is an error (it is not for `status`, `stop`, `doctor` and `cleanup`).
    ///
    /// # Errors
    /// When the lab is not up, or the cluster cannot be reached.
    pub async fn connect(global: &Global, need_up: bool) -> Result<Self> {
        if global.lab {
            Ok(Self::Lab(Lab::connect(global, need_up).await?))
        } else {
            Ok(Self::Cluster(Box::new(Cluster::connect(global).await?)))
        }
    }

    /// Has helpers started on these nodes (the lab needs one for all): each joins after its `hello`, without waiting for the
    /// slowest. A started helper ends with the fleet, at the latest with the backend.
    ///
    /// # Errors
    /// When the lab's cannot be started; what keeps a node of a cluster from taking part, the fleet tells.
    pub fn expect(&self, nodes: &[Node], mode: Mode, progress: &Progress) -> Result<Fleet> {
        let mut fleet = Fleet::default();
        match self {
            Self::Lab(lab) => lab.helpers(&mut fleet, nodes, progress)?,
            Self::Cluster(cluster) => cluster.helpers(&mut fleet, nodes, mode, progress),
        }
        Ok(fleet)
    }

    /// As [`Self::expect`], once the first helper has joined.
    ///
    /// # Errors
    /// When none can be started.
    pub async fn helpers(&self, nodes: &[Node], mode: Mode, progress: &Progress) -> Result<Fleet> {
        let mut fleet = self.expect(nodes, mode, progress)?;
        fleet.first().await?;
        Ok(fleet)
    }

    /// As [`Self::helpers`], for helpers that go on for up to this time after their session.
    ///
    /// # Errors
    /// When none can be started.
    pub async fn helpers_that_stay(&self, nodes: &[Node], lease: Duration, progress: &Progress) -> Result<Fleet> {
        let mut fleet = Fleet::default();
        match self {
            Self::Lab(lab) => lab.helpers(&mut fleet, nodes, progress)?,
            Self::Cluster(cluster) => cluster.helpers_that_stay(&mut fleet, nodes, lease, progress),
        }
        fleet.first().await?;
        Ok(fleet)
    }

    /// Has helpers started on more nodes, to join those there are.
    pub fn recruit(&self, fleet: &mut Fleet, nodes: &[Node], mode: Mode, progress: &Progress) {
        match self {
            // One helper serves the whole lab.
            Self::Lab(_) => {}
            Self::Cluster(cluster) => cluster.recruits(fleet, nodes, mode, progress),
        }
    }

    /// Watches what may change while these pods' connections are accelerated: pods in the scope, where `open` says that all of it is
    /// meant, and NetworkPolicies.
    #[must_use]
    pub fn watch(&self, scope: &Scope, pods: &[Pod], open: bool) -> Watch {
        match self {
            // The lab's pods stay as they are, and it has no policies.
            Self::Lab(_) => Watch::nothing(),
            Self::Cluster(cluster) => cluster.watch(scope, pods, open),
        }
    }

    /// Watches what happens to these pods.
    #[must_use]
    pub fn watch_pods(&self, pods: &[Pod]) -> PodWatch {
        match self {
            // The lab's pods stay as they are.
            Self::Lab(_) => PodWatch::nothing(),
            Self::Cluster(cluster) => cluster.watch_pods(pods),
        }
    }

    /// What the API server knows that would be bypassed, and what it could not be asked.
    pub async fn bypassed(&self, pods: &[Pod]) -> (Vec<Bypassed>, Option<String>) {
        match self {
            Self::Lab(_) => (Vec::new(), None),
            Self::Cluster(cluster) => cluster.bypassed(pods).await,
        }
    }

    /// Removes helper pods that were left running on these nodes; tells which.
    ///
    /// # Errors
    /// When pods cannot be listed or deleted.
    pub async fn remove_detached(&self, nodes: &[String]) -> Result<Vec<String>> {
        match self {
            Self::Lab(_) => Ok(Vec::new()),
            Self::Cluster(cluster) => cluster.remove_detached(nodes).await,
        }
    }

    /// What `doctor` can say without a helper: each row with what it is about.
    pub async fn preflight(&self) -> Vec<(String, Check)> {
        match self {
            Self::Lab(_) => Vec::new(),
            Self::Cluster(cluster) => cluster.preflight().await,
        }
    }

    /// All nodes where helpers can run; for a user who may not list nodes, those known otherwise (`pods_too`: the
    /// nodes of the namespace's pods), with a warning about the others.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn all_nodes(&self, pods_too: bool) -> Result<(Vec<Node>, Option<String>)> {
        match self {
            Self::Lab(lab) => Ok((lab.all_nodes(), None)),
            Self::Cluster(cluster) => cluster.all_nodes(pods_too).await,
        }
    }
}

macro_rules! either {
    ($self:ident, $x:ident => $call:expr) => {
        match $self {
            Backend::Lab($x) => $call,
            Backend::Cluster($x) => $call,
        }
    };
}

impl Inventory for Backend {
    fn namespace(&self) -> &str {
        either!(self, x => x.namespace())
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>> {
        either!(self, x => x.pod(namespace, name).await)
    }

    async fn pods(&self, scope: &Scope) -> Result<Vec<PodInfo>> {
        either!(self, x => x.pods(scope).await)
    }

    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        either!(self, x => x.pods_at(ip).await)
    }

    async fn workload(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Vec<PodInfo>>> {
        either!(self, x => x.workload(kind, namespace, name).await)
    }

    async fn node(&self, name: &str) -> Result<Option<PodInfo>> {
        either!(self, x => x.node(name).await)
    }

    async fn node_at(&self, ip: IpAddr) -> Result<Option<PodInfo>> {
        either!(self, x => x.node_at(ip).await)
    }

    async fn service(&self, namespace: &str, name: &str) -> Result<Option<ServiceInfo>> {
        either!(self, x => x.service(namespace, name).await)
    }

    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        either!(self, x => x.services_with(addresses).await)
    }

    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        either!(self, x => x.nodes(names).await)
    }

    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        either!(self, x => x.names(kind, namespace).await)
    }
}
