//! A cluster: names through the API server, helpers as pods.

use std::net::IpAddr;

use anyhow::{Result, bail};
use sockpath_protocol::request::{Node, Pod};

use crate::backend::Mode;
use crate::cli::Global;
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};
use crate::progress::Progress;
use crate::session::Fleet;

/// Access to a cluster.
#[derive(Debug)]
pub struct Cluster {
    namespace: String,
}

impl Cluster {
    /// Gets access to the cluster the flags and the kubeconfig name.
    ///
    /// # Errors
    /// When there is no such cluster or it cannot be reached.
    pub async fn connect(_global: &Global) -> Result<Self> {
        bail!("this build has no cluster access yet: use --lab")
    }

    /// Starts a helper pod on each node and waits for its hello.
    ///
    /// # Errors
    /// When one cannot be started; all pods are deleted first.
    pub async fn helpers(&self, _nodes: &[Node], _pods: &[Pod], _mode: Mode, _progress: &Progress) -> Result<Fleet> {
        bail!("this build has no cluster access yet: use --lab")
    }

    /// All Linux nodes.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn all_nodes(&self) -> Result<Vec<Node>> {
        bail!("this build has no cluster access yet: use --lab")
    }
}

/// The helper pod as it would be created, for `--dry-run=client`.
///
/// # Errors
/// When the flags contradict each other.
pub fn helper_pod_manifest(_global: &Global, _mode: Mode, _json: bool) -> Result<String> {
    bail!("this build has no cluster access yet: use --lab")
}

impl Inventory for Cluster {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    async fn pod(&self, _namespace: &str, _name: &str) -> Result<Option<PodInfo>> {
        Ok(None)
    }

    async fn pods(&self, _scope: &Scope) -> Result<Vec<PodInfo>> {
        Ok(Vec::new())
    }

    async fn pods_at(&self, _ip: IpAddr) -> Result<Vec<PodInfo>> {
        Ok(Vec::new())
    }

    async fn deployment(&self, _namespace: &str, _name: &str) -> Result<Option<Vec<PodInfo>>> {
        Ok(None)
    }

    async fn service(&self, _namespace: &str, _name: &str) -> Result<Option<ServiceInfo>> {
        Ok(None)
    }

    async fn services_with(&self, _addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        Ok(Vec::new())
    }

    async fn nodes(&self, _names: &[String]) -> Result<Vec<Node>> {
        Ok(Vec::new())
    }

    async fn names(&self, _kind: Kind, _namespace: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
