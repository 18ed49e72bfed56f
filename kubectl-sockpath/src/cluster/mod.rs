//! A cluster: names through the API server, helpers as pods.

pub(crate) mod api;
mod helper;
mod lookup;
mod preflight;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use sockpath_protocol::bypass::Bypassed;
use sockpath_protocol::message::{Check, CheckState};
use sockpath_protocol::pod::{Node, Pod};

use crate::cli::{Global, Seccomp};
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};
use crate::mode::Mode;
use crate::output::Machine;
use crate::progress::Progress;
use crate::session::Fleet;

pub use api::client::Api;
pub use api::options::ConnectOptions;
pub use api::problem::{Kind as ProblemKind, Problem};
pub use helper::pod::{DEFAULT_IMAGE, HelperSpec};
pub use watch::pod_watch::{PodNews, PodWatch};
pub use watch::{News, Watch};

use api::{options, rate_limit};
use helper::{advice, board, garbage, owner, pod, start};
use watch::bypassed;

/// The kubelet ends a helper after this time even if plugin, API server and helper all fail: as long as the longest lease.
const DEADLINE_SECONDS: i64 = 24 * 3600;
/// A helper that stays has this long on top of its lease to start and to drain.
const MARGIN_SECONDS: i64 = 120;

/// Access to a cluster.
#[derive(Debug)]
pub struct Cluster {
    lookup: lookup::Lookup,
    settings: Settings,
    owner: owner::Owner,
    pending: garbage::PendingDeletions,
    /// Pods that are created at one time.
    creation_slots: Arc<tokio::sync::Semaphore>,
    /// And how often.
    creations: Arc<Mutex<rate_limit::Bucket>>,
    /// What is known about the pods of this run.
    board: board::Board,
}

/// What the flags say about helper pods.
#[derive(Debug, Clone)]
struct Settings {
    namespace: String,
    image: String,
    seccomp: Seccomp,
    wait_nodes: Option<Duration>,
}

impl Settings {
    fn of(global: &Global) -> Self {
        Self {
            namespace: global.helper_namespace.clone(),
            image: global.helper_image.clone().unwrap_or_else(|| DEFAULT_IMAGE.to_owned()),
            seccomp: global.seccomp,
            wait_nodes: global.wait_nodes,
        }
    }

    fn spec(&self, mode: Mode, node: &str, owner: &owner::Owner) -> HelperSpec {
        HelperSpec {
            mode,
            node: node.to_owned(),
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            deadline_seconds: DEADLINE_SECONDS,
            stays: None,
            seccomp: self.seccomp,
            owner: owner.clone(),
        }
    }
}

impl From<&Global> for ConnectOptions {
    fn from(global: &Global) -> Self {
        Self {
            kubeconfig: global.kubeconfig.clone(),
            context: global.context.clone(),
            cluster: global.cluster.clone(),
            user: global.user.clone(),
            namespace: global.namespace.clone(),
            as_user: global.as_user.clone(),
            as_group: global.as_group.clone(),
            as_uid: global.as_uid.clone(),
            overrides: options::Overrides {
                server: global.server.clone(),
                token: global.token.clone(),
                tls_server_name: global.tls_server_name.clone(),
                insecure_skip_tls_verify: global.insecure_skip_tls_verify,
                certificate_authority: global.certificate_authority.clone(),
                client_certificate: global.client_certificate.clone(),
                client_key: global.client_key.clone(),
            },
            request_timeout: global.request_timeout,
        }
    }
}

impl Cluster {
    /// Gets access to the cluster that flags and kubeconfig name. Sends no request yet.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn connect(global: &Global) -> Result<Self> {
        let api = Api::connect(&ConnectOptions::from(global)).await?;
        let settings = Settings::of(global);
        let pending = garbage::PendingDeletions::new(api.clone(), &settings.namespace);
        let creation_slots = Arc::new(tokio::sync::Semaphore::new(start::CREATED_AT_ONCE));
        let creations = Arc::new(Mutex::new(rate_limit::Bucket::full(start::CREATIONS)));
        let owner = owner::Owner::this_process();
        let board = board::Board::new(api.clone(), &settings.namespace, &owner.session);
        Ok(Self { lookup: lookup::Lookup::new(api), settings, owner, pending, creation_slots, creations, board })
    }

    /// Has a helper pod started on each node, each of which joins the fleet after its `hello`. Stale pods of earlier runs are removed
    /// meanwhile.
    pub fn helpers(&self, fleet: &mut Fleet, nodes: &[Node], mode: Mode, progress: &Progress) {
        let (api, namespace, progress) = (self.lookup.api().clone(), self.settings.namespace.clone(), progress.clone());
        let reporter = progress.clone();
        tokio::spawn(async move {
            for what in garbage::collect(api, namespace).await {
                reporter.detail(&format!("removed {what}, which remained from an earlier command"));
            }
        });
        self.recruits(fleet, nodes, mode, &progress);
    }

    /// As [`Self::helpers`], for nodes that come later.
    pub fn recruits(&self, fleet: &mut Fleet, nodes: &[Node], mode: Mode, progress: &Progress) {
        self.start(fleet, nodes.iter().map(|n| self.settings.spec(mode, &n.name, &self.owner)), progress);
    }

    /// As [`Self::helpers`], for helpers that go on for up to `lease` after their session.
    pub fn helpers_that_stay(&self, fleet: &mut Fleet, nodes: &[Node], lease: Duration, progress: &Progress) {
        let seconds = i64::try_from(lease.as_secs()).unwrap_or(DEADLINE_SECONDS);
        let deadline_seconds = (seconds + MARGIN_SECONDS).min(DEADLINE_SECONDS);
        let spec =
            |n: &Node| HelperSpec { deadline_seconds, stays: Some(lease), ..self.settings.spec(Mode::Accelerate, &n.name, &self.owner) };
        self.start(fleet, nodes.iter().map(spec), progress);
    }

    fn start(&self, fleet: &mut Fleet, specs: impl ExactSizeIterator<Item = HelperSpec>, progress: &Progress) {
        let starter = start::Starter {
            api: self.lookup.api().clone(),
            pending: self.pending.clone(),
            progress: progress.clone(),
            patience: start::Patience::of(self.settings.wait_nodes),
            creation_slots: self.creation_slots.clone(),
            creations: self.creations.clone(),
            board: self.board.clone(),
            crowd: start::Crowd(specs.len()),
        };
        for spec in specs {
            let (node, starter) = (spec.node.clone(), starter.clone());
            let unready = self.lookup.unready(&node);
            let phase = {
                let (progress, node) = (progress.clone(), node.clone());
                Box::new(move || progress.phase_of(&node))
            };
            fleet.expect(vec![node], phase, |mailbox| async move { starter.start(spec, unready, mailbox).await });
        }
    }

    /// Watches what may change while these pods' connections are accelerated: pods in the scope, where `open` says that all of it is
    /// meant, and NetworkPolicies.
    #[must_use]
    pub fn watch(&self, scope: &Scope, pods: &[Pod], open: bool) -> Watch {
        let mut namespaces: BTreeSet<String> = pods.iter().map(|p| p.namespace.clone()).collect();
        match &scope.namespace {
            Some(namespace) if open => drop(namespaces.insert(namespace.clone())),
            Some(_) => {}
            // Named pods lie where they lie; otherwise all namespaces are meant.
            None if open => namespaces.clear(),
            None => {}
        }
        let selector = scope.selector.as_deref().filter(|_| open);
        Watch::start(self.lookup.api(), &namespaces, selector)
    }

    /// Watches what happens to these pods.
    #[must_use]
    pub fn watch_pods(&self, pods: &[Pod]) -> PodWatch {
        PodWatch::start(self.lookup.api(), pods)
    }

    /// NetworkPolicies and bandwidth limits of these pods, and what may not be read.
    pub async fn bypassed(&self, pods: &[Pod]) -> (Vec<Bypassed>, Option<String>) {
        match bypassed::find(self.lookup.api(), pods).await {
            Ok(found) => (found, None),
            Err(p) => (Vec::new(), Some(format!("cannot list NetworkPolicies and bandwidth limits that would be bypassed: {p}"))),
        }
    }

    /// Removes helper pods that were left running on these nodes; tells which.
    ///
    /// # Errors
    /// When pods cannot be listed or deleted.
    pub async fn remove_detached(&self, nodes: &[String]) -> Result<Vec<String>> {
        Ok(garbage::remove_detached(self.lookup.api(), &self.settings.namespace, nodes).await?)
    }

    /// Deletes the pods of a start that was cancelled.
    pub async fn delete_helpers(&self) {
        self.pending.delete_all().await;
    }

    /// What `doctor` can say without a helper, each row with what it is about.
    pub async fn preflight(&self) -> Vec<(String, Check)> {
        let api = self.lookup.api();
        let mut rows = preflight::check(api, &self.settings.namespace).await;
        if rows.iter().any(|(_, check)| check.state == CheckState::Failed) {
            return rows;
        }
        let cluster = |check| ("cluster".to_owned(), check);
        match self.lookup.all_facts().await {
            Ok(facts) => {
                if let Some(usable) = facts.iter().find(|f| f.unusable.is_none()) {
                    let spec = self.settings.spec(Mode::Trace, &usable.node.name, &self.owner);
                    let admission = preflight::admission(api, &spec).await;
                    let admitted = admission.state == CheckState::Ok;
                    rows.push(cluster(admission));
                    if admitted {
                        rows.extend(preflight::policy(api, &spec).await.map(cluster));
                    }
                }
                rows.extend(facts.into_iter().filter_map(|f| {
                    let check = Check { name: "node".to_owned(), state: CheckState::Degraded, found: f.unusable?, remedy: None };
                    Some((format!("node {}", f.node.name), check))
                }));
            }
            Err(p) => rows.push(cluster(Check {
                name: "nodes".to_owned(),
                state: CheckState::Degraded,
                found: p.to_string(),
                remedy: Some(advice::binding(p.user(), None, "--clusterrole=sockpath-nodes")),
            })),
        }
        rows
    }

    /// Removes unused helper pods; returns the removed and the kept ones, with their users.
    ///
    /// # Errors
    /// When pods cannot be listed or deleted.
    pub async fn remove_stale(&self) -> Result<(Vec<String>, Vec<String>)> {
        Ok(garbage::clean(self.lookup.api(), &self.settings.namespace).await?)
    }

    /// All nodes where helpers can run. Who may not list nodes gets those on which helpers run that accelerate, with `pods_too`
    /// those of the namespace's pods, and what that leaves out.
    ///
    /// # Errors
    /// When they cannot be listed for another reason.
    pub async fn all_nodes(&self, pods_too: bool) -> Result<(Vec<Node>, Option<String>)> {
        let refused = match self.lookup.usable_nodes().await {
            Ok(nodes) => return Ok((nodes, None)),
            Err(p) if p.kind == ProblemKind::Forbidden => p,
            Err(p) => return Err(p.into()),
        };
        let mut names = garbage::nodes_with_accelerators(self.lookup.api(), &self.settings.namespace).await?;
        if pods_too {
            let scope = Scope { namespace: Some(self.lookup.namespace().to_owned()), selector: None };
            let pods = self.lookup.pods(&scope).await.unwrap_or_default();
            names.extend(pods.into_iter().map(|p| p.pod.node).filter(|node| !node.is_empty()));
        }
        let nodes = names.into_iter().map(|name| Node { name, ips: Vec::new(), netns: None }).collect();
        Ok((nodes, Some(advice::without_nodes(&refused, pods_too))))
    }
}

/// The helper pod as it would be created, for `--dry-run=client`.
///
/// # Errors
/// When the pod cannot be represented, which its types rule out.
pub fn helper_pod_manifest(global: &Global, mode: Mode, json: bool) -> Result<Machine> {
    // Which node it is depends on where the pods are, and a dry run of the client asks no server.
    let pod = Settings::of(global).spec(mode, "node", &owner::Owner::this_process()).build();
    if json { Machine::document(&pod) } else { Ok(Machine::of(&pod::to_yaml(&pod)?)) }
}

impl Inventory for Cluster {
    fn namespace(&self) -> &str {
        self.lookup.namespace()
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>> {
        self.lookup.pod(namespace, name).await
    }

    async fn pods(&self, scope: &Scope) -> Result<Vec<PodInfo>> {
        self.lookup.pods(scope).await
    }

    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        self.lookup.pods_at(ip).await
    }

    async fn workload(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Vec<PodInfo>>> {
        self.lookup.workload(kind, namespace, name).await
    }

    async fn node(&self, name: &str) -> Result<Option<PodInfo>> {
        self.lookup.node(name).await
    }

    async fn node_at(&self, ip: IpAddr) -> Result<Option<PodInfo>> {
        self.lookup.node_at(ip).await
    }

    async fn service(&self, namespace: &str, name: &str) -> Result<Option<ServiceInfo>> {
        self.lookup.service(namespace, name).await
    }

    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        self.lookup.services_with(addresses).await
    }

    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        self.lookup.nodes(names).await
    }

    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        self.lookup.names(kind, namespace).await
    }
}
