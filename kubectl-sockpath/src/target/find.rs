//! What was named, found: the pods, Services, nodes and addresses that names stand for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

use super::name::{Dns, Endpoint, Name, PortName};
use super::suggest::not_found;
use crate::exit::UsageError;
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};

/// What the target turned out to be.
#[derive(Default)]
pub(super) struct Found {
    pub pods: Vec<PodInfo>,
    pub addresses: Vec<IpAddr>,
    pub service: Option<ServiceInfo>,
    /// The address of the Service, when that was typed instead of its name.
    pub dialled: Option<IpAddr>,
    /// Loopback inside the source.
    pub same: bool,
}

impl Found {
    /// What it is, for messages.
    pub(super) fn what(&self) -> String {
        match (&self.service, &self.pods[..]) {
            (Some(service), _) => format!("Service {}", service.service.name),
            (None, [pod]) => format!("pod {}", pod.pod.name),
            (None, _) => "the target".to_owned(),
        }
    }

    fn of_service(service: ServiceInfo) -> Self {
        Self { pods: service.backends.clone(), service: Some(service), ..Self::default() }
    }
}

/// What a name without a kind stands for.
pub(super) enum Place {
    Pod(PodInfo),
    Service(ServiceInfo),
    Address(IpAddr),
}

/// Finds who sends.
pub(super) async fn find_source(inventory: &impl Inventory, name: &Name) -> Result<PodInfo> {
    let no_sender = || UsageError::new("SOURCE must be a pod, a workload or a node: a Service sends no packets");
    match name {
        Name::Pod { namespace, name } => match find_pod(inventory, namespace.as_deref(), name).await? {
            Place::Pod(pod) => Ok(pod),
            Place::Service(_) => Err(no_sender()),
            Place::Address(ip) => source_at(inventory, ip).await,
        },
        Name::Workload { kind, namespace, name } => {
            let pods = find_workload(inventory, *kind, namespace.as_deref(), name, None).await?;
            pods.into_iter()
                .min_by_key(|p| p.unusable.is_some())
                .ok_or_else(|| anyhow::anyhow!("{} {name} has no pods: scale it up first", kind.word()))
        }
        Name::Labels { namespace, selector } => {
            let pods = find_labelled(inventory, namespace.as_deref(), selector).await?;
            pods.into_iter().min_by_key(|p| p.unusable.is_some()).ok_or_else(|| {
                anyhow::anyhow!("no pod matches `{selector}` in namespace {}", namespace.as_deref().unwrap_or(inventory.namespace()))
            })
        }
        Name::Node(name) => find_node(inventory, name).await,
        Name::Ip(ip) => source_at(inventory, *ip).await,
        Name::Service { .. } => Err(no_sender()),
        Name::Same => Err(UsageError::new("SOURCE must be a pod, a workload or a node; :PORT is for TARGET")),
    }
}

/// The one that has this address: a pod of its own, or the node, whose address pods with hostNetwork share.
async fn source_at(inventory: &impl Inventory, ip: IpAddr) -> Result<PodInfo> {
    let mut pods = inventory.pods_at(ip).await?;
    if pods.iter().all(|p| p.pod.host_network)
        && let Some(node) = inventory.node_at(ip).await?
    {
        return Ok(node);
    }
    match pods.len() {
        0 => bail!("neither a pod nor a node has the address {ip}, and SOURCE must be one"),
        1 => Ok(pods.remove(0)),
        several => bail!("{ip} belongs to {several} pods that share the node's address: use the name of one of them"),
    }
}

/// Finds who answers.
pub(super) async fn find_target(inventory: &impl Inventory, to: &Endpoint, source: &PodInfo, source_name: &Name) -> Result<Found> {
    // The source's namespace when it was written out: a pod's plain name is looked for there, other kinds are pointed out there.
    let beside = source_name.namespace();
    let others = |which: String, mut pods: Vec<PodInfo>| {
        pods.retain(|p| p.pod.uid != source.pod.uid);
        let pods = those_that_run(&which, pods)?;
        if pods.is_empty() {
            bail!("there is no running pod {which} except the source");
        }
        Ok(Found { pods, ..Found::default() })
    };
    match &to.name {
        Name::Pod { namespace, name } => match find_pod(inventory, namespace.as_deref().or(beside), name).await? {
            Place::Pod(pod) => Ok(Found { pods: vec![pod], ..Found::default() }),
            Place::Service(service) => Ok(Found::of_service(service)),
            Place::Address(ip) => find_address(inventory, ip, to.port.as_ref()).await,
        },
        Name::Workload { kind, namespace, name } => {
            let pods = find_workload(inventory, *kind, namespace.as_deref(), name, beside).await?;
            others(format!("of {} {name}", kind.word()), pods)
        }
        Name::Labels { namespace, selector } => {
            let pods = find_labelled(inventory, namespace.as_deref().or(beside), selector).await?;
            others(format!("that matches `{selector}`"), pods)
        }
        Name::Service { namespace, name } => Ok(Found::of_service(find_service(inventory, namespace.as_deref(), name, beside).await?)),
        Name::Same => {
            let loopback = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            Ok(Found { pods: vec![source.clone()], addresses: loopback, same: true, ..Found::default() })
        }
        Name::Node(name) => {
            let node = find_node(inventory, name).await?;
            let Some(ip) = node.pod.ips.first().copied() else { bail!("the API server lists no address of node {name}") };
            at_node(inventory, ip, Some(node), to.port.as_ref()).await
        }
        Name::Ip(ip) if ip.is_loopback() => Ok(Found { pods: vec![source.clone()], addresses: vec![*ip], same: true, ..Found::default() }),
        Name::Ip(ip) => find_address(inventory, *ip, to.port.as_ref()).await,
    }
}

/// What has this address: a pod, a node, a Service (cluster, external or load balancer's address), or nothing of the cluster.
async fn find_address(inventory: &impl Inventory, ip: IpAddr, port: Option<&PortName>) -> Result<Found> {
    let pods = inventory.pods_at(ip).await?;
    if pods.iter().any(|p| !p.pod.host_network) {
        return Ok(Found { pods, addresses: vec![ip], ..Found::default() });
    }
    let node = inventory.node_at(ip).await?;
    if node.is_some() || !pods.is_empty() {
        return at_node(inventory, ip, node, port).await;
    }
    match service_at(inventory, ip, port).await? {
        Some(service) => Ok(Found { dialled: Some(ip), ..Found::of_service(service) }),
        None => Ok(Found { addresses: vec![ip], ..Found::default() }),
    }
}

/// What is reached at a node's address: by its port a Service's node port or a pod with hostNetwork that declares it, otherwise the
/// node itself. Who may not read nodes gets the pods that have the address.
async fn at_node(inventory: &impl Inventory, ip: IpAddr, node: Option<PodInfo>, port: Option<&PortName>) -> Result<Found> {
    if port.is_some()
        && let Some(service) = service_at(inventory, ip, port).await?
    {
        return Ok(Found { dialled: Some(ip), ..Found::of_service(service) });
    }
    let mut pods = inventory.pods_at(ip).await?;
    pods.retain(|p| p.pod.host_network);
    let declares = |p: &PodInfo| match port {
        Some(PortName::Number(number)) => p.ports().any(|port| port.number == *number),
        Some(PortName::Named(name)) => p.ports().any(|port| port.name.as_ref() == Some(name)),
        None => false,
    };
    if let Some(pod) = pods.iter().find(|p| declares(p)) {
        return Ok(Found { pods: vec![pod.clone()], addresses: vec![ip], ..Found::default() });
    }
    Ok(Found { pods: node.map_or(pods, |node| vec![node]), addresses: vec![ip], ..Found::default() })
}

/// The Service that is dialled at this address and port.
async fn service_at(inventory: &impl Inventory, ip: IpAddr, port: Option<&PortName>) -> Result<Option<ServiceInfo>> {
    let is_port = |s: &ServiceInfo, number: u16| match port {
        Some(PortName::Number(p)) => *p == number,
        Some(PortName::Named(name)) => s.ports.iter().any(|p| p.name.as_ref() == Some(name) && p.number == number),
        None => true,
    };
    let dialled = |s: &ServiceInfo| s.service.frontends.iter().any(|f| f.addr.ip() == ip && is_port(s, f.addr.port()));
    Ok(inventory.services_with(&[ip]).await?.into_iter().find(dialled))
}

/// A pod by its name or, where none has it, what the name means in DNS.
pub(super) async fn find_pod(inventory: &impl Inventory, namespace: Option<&str>, name: &str) -> Result<Place> {
    let typed = namespace;
    let namespace = namespace.unwrap_or(inventory.namespace());
    let dns = Dns::of(name);
    // `web.shop.svc` could be a pod's name, but that is very unlikely.
    if !matches!(dns, Some(Dns::Host { .. } | Dns::Address(_)))
        && let Some(pod) = inventory.pod(namespace, name).await?
    {
        return Ok(Place::Pod(pod));
    }
    let found = match dns {
        Some(Dns::Service { service, namespace }) => inventory.service(namespace, service).await?.map(Place::Service),
        Some(Dns::Host { host, namespace, .. }) => inventory.pod(namespace, host).await?.map(Place::Pod),
        Some(Dns::Address(ip)) => Some(Place::Address(ip)),
        None => None,
    };
    match (found, dns) {
        (Some(place), _) => Ok(place),
        (None, Some(Dns::Host { host, namespace, .. })) => Err(not_found(inventory, Kind::Pod, namespace, host, None).await),
        (None, _) => Err(not_found(inventory, Kind::Pod, namespace, name, typed).await),
    }
}

/// The pods of a workload.
pub(super) async fn find_workload(
    inventory: &impl Inventory,
    kind: Kind,
    namespace: Option<&str>,
    name: &str,
    beside: Option<&str>,
) -> Result<Vec<PodInfo>> {
    let namespace = namespace.unwrap_or(inventory.namespace());
    match inventory.workload(kind, namespace, name).await? {
        Some(pods) => Ok(pods),
        None => Err(not_found(inventory, kind, namespace, name, beside).await),
    }
}

/// Pods by their labels.
pub(super) async fn find_labelled(inventory: &impl Inventory, namespace: Option<&str>, selector: &str) -> Result<Vec<PodInfo>> {
    let namespace = namespace.unwrap_or(inventory.namespace());
    let scope = Scope { namespace: Some(namespace.to_owned()), selector: Some(selector.to_owned()) };
    let pods = inventory.pods(&scope).await?;
    if pods.is_empty() {
        bail!("no pod matches `{selector}` in namespace {namespace}: kubectl get pods -n {namespace} --show-labels");
    }
    Ok(pods)
}

async fn find_node(inventory: &impl Inventory, name: &str) -> Result<PodInfo> {
    match inventory.node(name).await? {
        Some(node) => Ok(node),
        None => Err(not_found(inventory, Kind::Node, "", name, None).await),
    }
}

/// A Service by its name; `NAME.NAMESPACE`, as DNS has it, too.
pub(super) async fn find_service(
    inventory: &impl Inventory,
    namespace: Option<&str>,
    name: &str,
    beside: Option<&str>,
) -> Result<ServiceInfo> {
    let own = namespace.unwrap_or(inventory.namespace());
    if let (None, Some(Dns::Service { service, namespace })) = (namespace, Dns::of(name)) {
        if let Some(service) = inventory.service(namespace, service).await? {
            return Ok(service);
        }
    } else if let Some(service) = inventory.service(own, name).await? {
        return Ok(service);
    }
    Err(not_found(inventory, Kind::Service, own, name, beside).await)
}

/// What is `done` to a pod completes the sentence: traced, accelerated.
pub(super) fn usable(pod: &PodInfo, done: &str) -> Result<()> {
    match &pod.unusable {
        None => Ok(()),
        Some(why) => bail!("pod {}/{} cannot be {done}: {why}", pod.pod.namespace, pod.pod.name),
    }
}

/// Those of many pods that run: some come and go at any time. `which` completes "no pod ... runs".
///
/// # Errors
/// When there are pods, but none that runs; with what holds up the first.
pub(super) fn those_that_run(which: &str, pods: Vec<PodInfo>) -> Result<Vec<PodInfo>> {
    let (running, held_up): (Vec<PodInfo>, Vec<PodInfo>) = pods.into_iter().partition(|p| p.unusable.is_none());
    match (running.is_empty(), held_up.first()) {
        (true, Some(PodInfo { pod, unusable: Some(why), .. })) => {
            let more = if held_up.len() > 1 { format!(" (and {} more)", held_up.len() - 1) } else { String::new() };
            bail!("no pod {which} runs: {}/{}: {why}{more}", pod.namespace, pod.name)
        }
        _ => Ok(running),
    }
}
