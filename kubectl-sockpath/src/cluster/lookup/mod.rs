//! Names looked up through the API server: what the resolution of SOURCE and TARGET asks for.

pub mod pod_info;
mod service_info;
mod workload;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node as ApiNode, Pod as ApiPod, ReplicationController, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::core::Selector;
use sockpath_protocol::pod::Node;

use crate::cluster::api::client::{Api, PAGE};
use crate::cluster::api::lean::Lean;
use crate::cluster::api::problem::{Kind as ProblemKind, Problem};
use crate::cluster::helper::advice;
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};
use pod_info::{NodeFacts, pod_info};

/// Access to the objects of a cluster. Facts about nodes are cached for the rest of the command.
#[derive(Debug)]
pub struct Lookup {
    api: Api,
    nodes: Mutex<BTreeMap<String, NodeFacts>>,
    /// All nodes are among them.
    all_known: AtomicBool,
    /// Namespaces of the pods that were handed out, by address: Services of a pod lie in its namespace.
    seen: Mutex<HashMap<IpAddr, BTreeSet<String>>>,
}

impl Lookup {
    /// Access through this connection.
    #[must_use]
    pub fn new(api: Api) -> Self {
        Self { api, nodes: Mutex::default(), all_known: AtomicBool::new(false), seen: Mutex::default() }
    }

    /// The connection.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Nodes where helpers can run.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn usable_nodes(&self) -> Result<Vec<Node>, Problem> {
        Ok(self.all_facts().await?.into_iter().filter(|f| f.unusable.is_none()).map(|f| f.node).collect())
    }

    /// All nodes, those where no helper can run with the reason.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn all_facts(&self) -> Result<Vec<NodeFacts>, Problem> {
        let api: kube::Api<ApiNode> = kube::Api::all(self.api.client());
        let facts: Vec<NodeFacts> = self.list("list the nodes", &api, ListParams::default()).await?.iter().map(NodeFacts::of).collect();
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(facts.iter().map(|f| (f.node.name.clone(), f.clone())));
        self.all_known.store(true, Ordering::Relaxed);
        Ok(facts)
    }

    /// The addresses of all nodes, as they were when they were listed first; none for users who may not read nodes.
    async fn node_addresses(&self) -> Result<Vec<(IpAddr, String)>, Problem> {
        if !self.all_known.load(Ordering::Relaxed) {
            match self.all_facts().await {
                Err(p) if p.kind == ProblemKind::Forbidden => return Ok(Vec::new()),
                listed => drop(listed?),
            }
        }
        let known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(known.values().flat_map(|f| f.node.ips.iter().map(|ip| (*ip, f.node.name.clone()))).collect())
    }

    /// What is known about a node; `None` for users who may not read nodes, who then get on with what pods say about it.
    async fn facts(&self, name: &str) -> Result<Option<NodeFacts>, Problem> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(known) = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(Some(known.clone()));
        }
        let api: kube::Api<ApiNode> = kube::Api::all(self.api.client());
        let facts = match self.api.ask_opt(&format!("read node {name}"), api.get(name)).await {
            Ok(node) => node.as_ref().map(NodeFacts::of),
            Err(p) if p.kind == ProblemKind::Forbidden => None,
            Err(p) => return Err(p),
        };
        if let Some(facts) = &facts {
            self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), facts.clone());
        }
        Ok(facts)
    }

    /// Why a node starts no pods, as it was when it was read last.
    #[must_use]
    pub fn unready(&self, name: &str) -> Option<String> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.unready.clone()
    }

    /// All pages of a list.
    async fn list<K>(&self, what: &str, api: &kube::Api<K>, params: ListParams) -> Result<Vec<K>, Problem>
    where
        K: Lean + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        self.api.list(what, api, params).await
    }

    async fn infos(&self, pods: Vec<ApiPod>) -> Result<Vec<PodInfo>, Problem> {
        let names: BTreeSet<&str> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.as_deref()).collect();
        // One list instead of a request for each of many nodes.
        if names.len() > 3 && !self.all_known.load(Ordering::Relaxed) {
            match self.all_facts().await {
                Err(p) if p.kind != ProblemKind::Forbidden => return Err(p),
                _ => {}
            }
        }
        let mut infos = Vec::with_capacity(pods.len());
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
            let facts = self.facts(&node).await?;
            if facts.is_none() && !node.is_empty() {
                let node = Node { name: node.clone(), ips: pod_info::host_ips(&pod), netns: None };
                let facts = NodeFacts { node, unusable: None, unready: None };
                self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(facts.node.name.clone(), facts);
            }
            let info = pod_info(&pod, facts.as_ref());
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for ip in &info.pod.ips {
                seen.entry(*ip).or_default().insert(info.pod.namespace.clone());
            }
            drop(seen);
            infos.push(info);
        }
        Ok(infos)
    }

    fn pods_api(&self, namespace: Option<&str>) -> kube::Api<ApiPod> {
        match namespace {
            Some(ns) => kube::Api::namespaced(self.api.client(), ns),
            None => kube::Api::all(self.api.client()),
        }
    }

    async fn pods_with(&self, namespace: Option<&str>, params: ListParams) -> Result<Vec<PodInfo>, Problem> {
        let what = namespace.map_or_else(|| "list the pods of all namespaces".to_owned(), |ns| format!("list the pods of namespace {ns}"));
        let (api, mut next, mut infos) = (self.pods_api(namespace), Some(params), Vec::new());
        while let Some(params) = next {
            let page;
            (page, next) = self.api.page(&what, &api, params).await.map_err(|p| advice::for_lookup(p, namespace))?;
            infos.extend(self.infos(page).await?);
        }
        infos.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
        Ok(infos)
    }

    async fn service_info(&self, object: &ApiService, slices: &[EndpointSlice]) -> Result<ServiceInfo, Problem> {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let endpoints = service_info::endpoints(slices);
        let node_ips = if service_info::has_node_port(object) { self.node_ips().await? } else { Vec::new() };
        let mut backends = Vec::new();
        let selector = object.spec.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        if !endpoints.pods.is_empty() && !selector.is_empty() {
            let params = ListParams::default().labels_from(&Selector::from_iter(selector));
            backends = self.pods_with(Some(&namespace), params).await?;
            backends.retain(|p| endpoints.pods.contains(&p.pod.name));
        } else {
            for name in &endpoints.pods {
                backends.extend(self.pod_by_name(&namespace, name).await?);
            }
        }
        let ports = service_info::ports(object, &endpoints);
        Ok(ServiceInfo { service: service_info::service(object, &endpoints, &node_ips), ports, backends })
    }

    /// Addresses of all nodes; none for users who may not read nodes: they can still trace through cluster addresses.
    async fn node_ips(&self) -> Result<Vec<IpAddr>, Problem> {
        Ok(self.node_addresses().await?.into_iter().map(|(ip, _)| ip).collect())
    }

    async fn pod_by_name(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>, Problem> {
        let what = format!("read pod {namespace}/{name}");
        let pod = self.api.ask_opt(&what, self.pods_api(Some(namespace)).get(name)).await;
        match pod.map_err(|p| advice::for_lookup(p, Some(namespace)))? {
            Some(pod) => Ok(self.infos(vec![pod]).await?.pop()),
            None => Ok(None),
        }
    }

    async fn slices(&self, namespace: &str, service: Option<&str>) -> Result<Vec<EndpointSlice>, Problem> {
        let api: kube::Api<EndpointSlice> = kube::Api::namespaced(self.api.client(), namespace);
        let params = match service {
            Some(name) => ListParams::default().labels(&format!("kubernetes.io/service-name={name}")),
            None => ListParams::default(),
        };
        self.list(&format!("list the EndpointSlices of namespace {namespace}"), &api, params).await
    }

    async fn services_in(&self, namespace: &str, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>, Problem> {
        let slices = self.slices(namespace, None).await?;
        let mut by_service: BTreeMap<&str, Vec<EndpointSlice>> = BTreeMap::new();
        for slice in &slices {
            if let Some(name) = service_info::service_of(slice) {
                by_service.entry(name).or_default().push(slice.clone());
            }
        }
        let api: kube::Api<ApiService> = kube::Api::namespaced(self.api.client(), namespace);
        let mut found = Vec::new();
        for (name, slices) in by_service {
            if !service_info::endpoints(&slices).addresses.iter().any(|a| addresses.contains(&a.ip())) {
                continue;
            }
            if let Some(object) = self.api.ask_opt(&format!("read Service {namespace}/{name}"), api.get(name)).await? {
                found.push(self.service_info(&object, &slices).await?);
            }
        }
        Ok(found)
    }

    /// Services in all namespaces or, for users who may not see those, in their own.
    async fn services_matching(&self, params: ListParams) -> Result<Vec<ApiService>, Problem> {
        let all: kube::Api<ApiService> = kube::Api::all(self.api.client());
        match self.list("list the Services of all namespaces", &all, params.clone()).await {
            Err(p) if p.kind == ProblemKind::Forbidden => {
                let own: kube::Api<ApiService> = kube::Api::namespaced(self.api.client(), self.api.namespace());
                self.list("list the Services", &own, params).await
            }
            other => other,
        }
    }

    /// Services with this very address, as far as the user may see them: their cluster address, by which the API server finds them,
    /// or else a second one, an external one or a load balancer's, which a list of all shows.
    async fn services_dialled_at(&self, ip: IpAddr) -> Result<Vec<ServiceInfo>, Problem> {
        let params = ListParams::default().fields(&format!("spec.clusterIP={ip}"));
        let mut objects = self.services_matching(params).await?;
        if objects.is_empty() {
            let has_it = |o: &ApiService| service_info::dialled(o).contains(&ip);
            objects = self.services_matching(ListParams::default()).await?.into_iter().filter(has_it).collect();
        }
        let mut found = Vec::new();
        for object in objects {
            let (namespace, name) =
                (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default());
            let slices = self.slices(&namespace, Some(&name)).await?;
            found.push(self.service_info(&object, &slices).await?);
        }
        Ok(found)
    }

    /// Services that can be dialled at every node, as far as the user may see them.
    async fn services_with_node_ports(&self) -> Result<Vec<ServiceInfo>, Problem> {
        let mut found = Vec::new();
        for kind in ["NodePort", "LoadBalancer"] {
            let params = ListParams::default().fields(&format!("spec.type={kind}"));
            let objects = self.services_matching(params).await?;
            for object in objects.iter().filter(|o| service_info::has_node_port(o)) {
                let (namespace, name) =
                    (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default());
                let slices = self.slices(&namespace, Some(&name)).await?;
                found.push(self.service_info(object, &slices).await?);
            }
        }
        Ok(found)
    }

    async fn names_of<K>(&self, kind: Kind, api: &kube::Api<K>) -> Result<Vec<String>, Problem>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let (what, mut params, mut names) = (format!("list names of {}s", kind.word()), ListParams::default().limit(PAGE), Vec::new());
        loop {
            let page = self.api.ask(&what, api.list_metadata(&params)).await?;
            names.extend(page.items.into_iter().filter_map(|o| o.metadata.name));
            // Suggestions and completion do with the first page; only of namespaces it is concluded that one is not there.
            match page.metadata.continue_.filter(|token| !token.is_empty() && kind == Kind::Namespace) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(names),
            }
        }
    }
}

impl Inventory for Lookup {
    fn namespace(&self) -> &str {
        self.api.namespace()
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>> {
        Ok(self.pod_by_name(namespace, name).await?)
    }

    async fn pods(&self, scope: &Scope) -> Result<Vec<PodInfo>> {
        let params = match &scope.selector {
            Some(selector) => ListParams::default().labels(selector),
            None => ListParams::default(),
        };
        Ok(self.pods_with(scope.namespace.as_deref(), params).await?)
    }

    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        let params = ListParams::default().fields(&format!("status.podIP={ip}"));
        let found = match self.pods_with(None, params.clone()).await {
            Err(p) if p.kind == ProblemKind::Forbidden => self.pods_with(Some(self.api.namespace()), params).await?,
            other => other?,
        };
        Ok(found)
    }

    async fn workload(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Vec<PodInfo>>> {
        let Some(selector) = self.selector_of(kind, namespace, name).await? else { return Ok(None) };
        Ok(Some(self.pods_with(Some(namespace), ListParams::default().labels_from(&selector)).await?))
    }

    async fn node(&self, name: &str) -> Result<Option<PodInfo>> {
        let api: kube::Api<ApiNode> = kube::Api::all(self.api.client());
        let node = self.api.ask_opt(&format!("read node {name}"), api.get(name)).await.map_err(advice::for_node)?;
        Ok(node.as_ref().map(NodeFacts::of).map(|f| PodInfo { unusable: f.unusable, ..PodInfo::of_node(&f.node) }))
    }

    async fn node_at(&self, ip: IpAddr) -> Result<Option<PodInfo>> {
        let Some((_, name)) = self.node_addresses().await?.into_iter().find(|(known, _)| *known == ip) else { return Ok(None) };
        let facts = self.facts(&name).await?;
        Ok(facts.map(|f| PodInfo { unusable: f.unusable, ..PodInfo::of_node(&f.node) }))
    }

    async fn service(&self, namespace: &str, name: &str) -> Result<Option<ServiceInfo>> {
        let api: kube::Api<ApiService> = kube::Api::namespaced(self.api.client(), namespace);
        let found = self.api.ask_opt(&format!("read Service {namespace}/{name}"), api.get(name)).await;
        let Some(object) = found.map_err(|p| advice::for_lookup(p, Some(namespace)))? else { return Ok(None) };
        if let Some(alias) = service_info::alias(&object) {
            let text = format!(
                "Service {namespace}/{name} is of type ExternalName, an alias in DNS for {alias} without addresses of its own: \
                 trace an address of that host, IP:PORT"
            );
            return Err(Problem::new(ProblemKind::Other, text).into());
        }
        let slices = self.slices(namespace, Some(name)).await.map_err(|p| advice::for_lookup(p, Some(namespace)))?;
        Ok(Some(self.service_info(&object, &slices).await?))
    }

    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        let (mut namespaces, mut strangers) = (BTreeSet::new(), Vec::new());
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for ip in addresses {
                match seen.get(ip) {
                    Some(known) => namespaces.extend(known.iter().cloned()),
                    None => strangers.push(*ip),
                }
            }
        }
        let mut found = Vec::new();
        for namespace in namespaces {
            match self.services_in(&namespace, addresses).await {
                Ok(services) => found.extend(services),
                // What Services a pod stands behind is an extra: without the right to read them, its own address is traced.
                Err(p) if p.kind == ProblemKind::Forbidden => {}
                Err(p) => return Err(p.into()),
            }
        }
        let of_nodes = if strangers.is_empty() { Vec::new() } else { self.node_ips().await? };
        for ip in strangers.iter().filter(|ip| !of_nodes.contains(ip)) {
            found.extend(self.services_dialled_at(*ip).await?);
        }
        // A node's address is dialled with a node port. hostNetwork pods have it, too, so it need not be a stranger.
        let of_known_node =
            |known: &BTreeMap<String, NodeFacts>| known.values().any(|f| addresses.iter().any(|ip| f.node.ips.contains(ip)));
        let mut of_node = of_known_node(&self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
        of_node |= of_nodes.iter().any(|ip| addresses.contains(ip));
        if of_node {
            found.extend(self.services_with_node_ports().await?);
        }
        Ok(found)
    }

    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        let mut found = Vec::new();
        for name in names {
            found.extend(self.facts(name).await?.map(|f| f.node));
        }
        Ok(found)
    }

    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        let client = self.api.client();
        Ok(match kind {
            Kind::Pod => self.names_of(kind, &kube::Api::<ApiPod>::namespaced(client, namespace)).await?,
            Kind::Service => self.names_of(kind, &kube::Api::<ApiService>::namespaced(client, namespace)).await?,
            Kind::Deployment => self.names_of(kind, &kube::Api::<Deployment>::namespaced(client, namespace)).await?,
            Kind::StatefulSet => self.names_of(kind, &kube::Api::<StatefulSet>::namespaced(client, namespace)).await?,
            Kind::DaemonSet => self.names_of(kind, &kube::Api::<DaemonSet>::namespaced(client, namespace)).await?,
            Kind::ReplicaSet => self.names_of(kind, &kube::Api::<ReplicaSet>::namespaced(client, namespace)).await?,
            Kind::Job => self.names_of(kind, &kube::Api::<Job>::namespaced(client, namespace)).await?,
            Kind::ReplicationController => self.names_of(kind, &kube::Api::<ReplicationController>::namespaced(client, namespace)).await?,
            Kind::Node => self.names_of(kind, &kube::Api::<ApiNode>::all(client)).await?,
            Kind::Namespace => self.names_of(kind, &kube::Api::<Namespace>::all(client)).await?,
        })
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
