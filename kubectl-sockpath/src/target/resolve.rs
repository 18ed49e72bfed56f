//! From names to what helpers need: pods, Services, nodes, and the scenario between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sockpath_protocol::request::{Pod, ProbeRequest, Protocol, Service, TraceRequest};

use crate::command::invocation;
use crate::exit::UsageError;
use crate::inventory::{Inventory, Kind, PodInfo, Scope, ServiceInfo};
use crate::target::suggest::{missing_namespace, not_found};
use crate::target::{Endpoint, Name};

/// How source and target lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Two containers of one pod, over loopback.
    InPod,
    /// Two pods of one node.
    SameNode,
    /// Pods of two nodes.
    CrossNode,
    /// The target is no pod.
    External,
}

/// What a trace is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What helpers are asked; each gets those of `nodes` that it serves.
    pub request: TraceRequest,
    /// How source and target lie to each other, as far as is known before a packet was seen.
    pub scenario: Scenario,
    /// The target as typed.
    pub target: String,
    /// Name of the Service that was named, `namespace/name`.
    pub via_service: Option<String>,
    /// Where a probe can go, when a port is known.
    pub probe: Option<ProbeRequest>,
}

/// Time a probe gets, in milliseconds.
const PROBE_TIMEOUT_MS: u64 = 3_000;

/// What the target turned out to be.
struct Found {
    pods: Vec<PodInfo>,
    addresses: Vec<IpAddr>,
    service: Option<ServiceInfo>,
    /// The address of the Service, when that was typed instead of its name.
    dialled: Option<IpAddr>,
    /// Loopback inside the source.
    same: bool,
}

/// Finds everything a trace needs.
///
/// # Errors
/// Usage errors for what makes no sense, others for what is not there or cannot be traced.
pub async fn plan(
    inventory: &impl Inventory,
    source: &str,
    target: &str,
    container: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<Plan> {
    let (from, to) = (Endpoint::parse(source)?, Endpoint::parse(target)?);
    if from.port.is_some() {
        return Err(UsageError::new(format!("`{source}`: the port belongs to the target, not to the source")));
    }
    let source_pod = find_source(inventory, &from.name).await?;
    usable(&source_pod, "traced")?;
    let found = find_target(inventory, &to, &source_pod, &from.name).await?;
    let same_pod = found.same || (found.service.is_none() && found.pods.iter().any(|p| p.pod.uid == source_pod.pod.uid));
    let container_port = match container {
        Some(name) => Some(port_of_container(&found.pods, name)?),
        None => None,
    };
    let port = to.port.or(container_port.flatten());
    let mut found = found;
    if same_pod && matches!(to.name, Name::Pod { .. } | Name::Deployment { .. }) {
        // Containers of one pod dial each other on loopback; the pod's own address leads there, too.
        found.addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if same_pod && port.is_none() {
        let example = source_pod.containers.iter().flat_map(|c| &c.ports).next_back().copied().unwrap_or(8080);
        return Err(UsageError::new(format!(
            "SOURCE and TARGET are the same pod, {}: name another one, or say which port inside it answers: `{} trace {source} :{example}`",
            source_pod.pod.name,
            invocation()
        )));
    }
    for pod in &found.pods {
        if found.service.is_none() {
            usable(pod, "traced")?;
        }
    }
    let targets: Vec<Pod> = found.pods.iter().filter(|p| p.unusable.is_none()).map(|p| p.pod.clone()).collect();
    let services = match &found.service {
        Some(s) => vec![s.service.clone()],
        None if same_pod => Vec::new(),
        None => {
            let ips: Vec<IpAddr> = targets.iter().flat_map(|p| p.ips.iter().copied()).collect();
            if ips.is_empty() { Vec::new() } else { inventory.services_with(&ips).await?.into_iter().map(|s| s.service).collect() }
        }
    };
    if let (Some(service), Some(port)) = (&found.service, to.port) {
        check_service_port(&service.service, port)?;
    }
    let scenario = scenario(&source_pod.pod, &targets, same_pod);
    let names: Vec<String> =
        std::iter::once(&source_pod.pod).chain(&targets).map(|p| p.node.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let nodes = inventory.nodes(&names).await?;
    if let Some(missing) = names.iter().find(|n| !nodes.iter().any(|node| node.name == **n)) {
        bail!("node {missing} is not there any more");
    }
    let probe = probe(protocol, port, &found, &targets, &source_pod);
    let request = TraceRequest {
        source: source_pod.pod,
        targets,
        addresses: found.addresses,
        services,
        port,
        nodes,
        every_packet: false,
        no_rules: false,
        packets_per_second: 0,
        count: None,
    };
    let via_service = found.service.map(|s| format!("{}/{}", s.service.namespace, s.service.name));
    Ok(Plan { request, scenario, target: target.to_owned(), via_service, probe })
}

async fn find_source(inventory: &impl Inventory, name: &Name) -> Result<PodInfo> {
    match name {
        Name::Pod { namespace, name } => find_pod(inventory, namespace.as_deref(), name).await,
        Name::Deployment { namespace, name } => {
            let pods = find_deployment(inventory, namespace.as_deref(), name, None).await?;
            pods.into_iter()
                .min_by_key(|p| p.unusable.is_some())
                .ok_or_else(|| anyhow::anyhow!("Deployment {name} has no pods: scale it up first"))
        }
        Name::Ip(ip) => match &inventory.pods_at(*ip).await?[..] {
            [pod] => Ok(pod.clone()),
            [] => bail!("no pod has the address {ip}, and SOURCE has to be a pod"),
            several => bail!("{ip} belongs to {} pods that share the node's address: name one of them", several.len()),
        },
        Name::Service { .. } => Err(UsageError::new("SOURCE has to be a pod or a Deployment: a Service sends nothing")),
        Name::Same => Err(UsageError::new("SOURCE has to be a pod or a Deployment; :PORT is for the target")),
    }
}

async fn find_target(inventory: &impl Inventory, to: &Endpoint, source: &PodInfo, source_name: &Name) -> Result<Found> {
    let nothing = Found { pods: Vec::new(), addresses: Vec::new(), service: None, dialled: None, same: false };
    // The source's namespace when it was written out: a pod's plain name is looked for there, other kinds are pointed out there.
    let beside = match source_name {
        Name::Pod { namespace: Some(ns), .. } | Name::Deployment { namespace: Some(ns), .. } => Some(ns.as_str()),
        _ => None,
    };
    match &to.name {
        Name::Pod { namespace, name } => {
            let pod = find_pod(inventory, namespace.as_deref().or(beside), name).await?;
            Ok(Found { pods: vec![pod], ..nothing })
        }
        Name::Deployment { namespace, name } => {
            let mut pods = find_deployment(inventory, namespace.as_deref(), name, beside).await?;
            pods.retain(|p| p.pod.uid != source.pod.uid);
            let pods = those_that_run(&format!("of Deployment {name}"), pods)?;
            if pods.is_empty() {
                bail!("Deployment {name} has no running pod besides the source");
            }
            Ok(Found { pods, ..nothing })
        }
        Name::Service { namespace, name } => {
            let service = find_service(inventory, namespace.as_deref(), name, beside).await?;
            Ok(Found { pods: service.backends.clone(), service: Some(service), ..nothing })
        }
        Name::Same => {
            let loopback = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            Ok(Found { pods: vec![source.clone()], addresses: loopback, same: true, ..nothing })
        }
        Name::Ip(ip) if ip.is_loopback() => Ok(Found { pods: vec![source.clone()], addresses: vec![*ip], same: true, ..nothing }),
        Name::Ip(ip) => {
            let pods = inventory.pods_at(*ip).await?;
            // A node's address belongs to hostNetwork pods and, by its port, to Services with node ports; the port decides.
            let dialled =
                |s: &ServiceInfo| s.service.frontends.iter().any(|f| f.addr.ip() == *ip && to.port.is_none_or(|p| p == f.addr.port()));
            let service = if pods.is_empty() || (to.port.is_some() && pods.iter().any(|p| p.pod.host_network)) {
                inventory.services_with(&[*ip]).await?.into_iter().find(dialled)
            } else {
                None
            };
            if service.is_none() && !pods.is_empty() {
                return Ok(Found { pods, addresses: vec![*ip], ..nothing });
            }
            match service {
                Some(service) => Ok(Found { pods: service.backends.clone(), service: Some(service), dialled: Some(*ip), ..nothing }),
                None => Ok(Found { addresses: vec![*ip], ..nothing }),
            }
        }
    }
}

async fn find_pod(inventory: &impl Inventory, namespace: Option<&str>, name: &str) -> Result<PodInfo> {
    let namespace = namespace.unwrap_or(inventory.namespace());
    match inventory.pod(namespace, name).await? {
        Some(pod) => Ok(pod),
        None => Err(not_found(inventory, Kind::Pod, namespace, name, None).await),
    }
}

async fn find_deployment(inventory: &impl Inventory, namespace: Option<&str>, name: &str, beside: Option<&str>) -> Result<Vec<PodInfo>> {
    let namespace = namespace.unwrap_or(inventory.namespace());
    match inventory.deployment(namespace, name).await? {
        Some(pods) => Ok(pods),
        None => Err(not_found(inventory, Kind::Deployment, namespace, name, beside).await),
    }
}

async fn find_service(inventory: &impl Inventory, namespace: Option<&str>, name: &str, beside: Option<&str>) -> Result<ServiceInfo> {
    let namespace = namespace.unwrap_or(inventory.namespace());
    match inventory.service(namespace, name).await? {
        Some(service) => Ok(service),
        None => Err(not_found(inventory, Kind::Service, namespace, name, beside).await),
    }
}

/// What is `done` to a pod completes the sentence: traced, accelerated.
fn usable(pod: &PodInfo, done: &str) -> Result<()> {
    match &pod.unusable {
        None => Ok(()),
        Some(why) => bail!("pod {}/{} cannot be {done}: {why}", pod.pod.namespace, pod.pod.name),
    }
}

/// Those of many pods that run: some come and go at any time. `which` completes "no pod ... runs".
///
/// # Errors
/// When there are pods, but none that runs; with what holds up the first.
fn those_that_run(which: &str, pods: Vec<PodInfo>) -> Result<Vec<PodInfo>> {
    let (running, held_up): (Vec<PodInfo>, Vec<PodInfo>) = pods.into_iter().partition(|p| p.unusable.is_none());
    match (running.is_empty(), held_up.first()) {
        (true, Some(PodInfo { pod, unusable: Some(why), .. })) => {
            let more = if held_up.len() > 1 { format!(" (and {} more)", held_up.len() - 1) } else { String::new() };
            bail!("no pod {which} runs: {}/{}: {why}{more}", pod.namespace, pod.name)
        }
        _ => Ok(running),
    }
}

/// The port of a container; `None` inside when the container is there but declares none.
fn port_of_container(pods: &[PodInfo], name: &str) -> Result<Option<u16>> {
    let mut known = BTreeSet::new();
    for container in pods.iter().flat_map(|p| &p.containers) {
        if container.name == name {
            return Ok(container.ports.first().copied());
        }
        known.insert(container.name.as_str());
    }
    let known: Vec<&str> = known.into_iter().collect();
    bail!("the target has no container `{name}`; it has {}", if known.is_empty() { "none that run".to_owned() } else { known.join(", ") })
}

fn check_service_port(service: &Service, port: u16) -> Result<()> {
    let of_pods: BTreeSet<u16> = service.backends.iter().map(SocketAddr::port).collect();
    let of_service: BTreeSet<u16> = service.frontends.iter().map(|f| f.addr.port()).collect();
    // A headless Service is dialled at its pods.
    let ports = if of_service.is_empty() { &of_pods } else { &of_service };
    if ports.is_empty() || ports.contains(&port) {
        return Ok(());
    }
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let hint = if of_pods.contains(&port) { format!(" ({port} is the port of its pods: name one of them)") } else { String::new() };
    bail!("Service {} has no port {port}; it has {listed}{hint}", service.name)
}

fn scenario(source: &Pod, targets: &[Pod], same_pod: bool) -> Scenario {
    if same_pod {
        Scenario::InPod
    } else if targets.is_empty() {
        Scenario::External
    } else if targets.iter().all(|t| t.node == source.node) {
        Scenario::SameNode
    } else {
        Scenario::CrossNode
    }
}

/// Where a probe goes: the address a client of the source would dial, of the family the source has. Without a protocol it is
/// that of the Service's port, TCP where there is a choice.
fn probe(protocol: Option<Protocol>, port: Option<u16>, found: &Found, targets: &[Pod], source: &PodInfo) -> Option<ProbeRequest> {
    let reachable =
        |ip: &IpAddr| ip.is_loopback() || source.pod.ips.is_empty() || source.pod.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    let mut of_port = None;
    let preferred = protocol.unwrap_or(Protocol::Tcp);
    let to = if let Some(service) = &found.service {
        let typed = |ip: IpAddr| found.dialled.is_none_or(|dialled| dialled == ip);
        let frontends = || {
            let those = service.service.frontends.iter().filter(|f| typed(f.addr.ip()) && reachable(&f.addr.ip()));
            those.filter(|f| port.is_none_or(|p| p == f.addr.port()))
        };
        let wanted = frontends().find(|f| f.protocol == preferred || preferred == Protocol::Icmp).or_else(|| frontends().next());
        of_port = wanted.map(|f| f.protocol);
        // A headless Service is dialled at its pods.
        wanted.map(|f| f.addr).or_else(|| {
            let backends = || service.service.backends.iter().filter(|b| reachable(&b.ip()));
            backends().find(|b| port.is_none_or(|p| p == b.port())).or_else(|| backends().next()).copied()
        })
    } else {
        let ip = found.addresses.iter().chain(targets.iter().flat_map(|p| &p.ips)).copied().find(|ip| reachable(ip));
        let declared = || found.pods.iter().flat_map(|p| &p.containers).flat_map(|c| &c.ports).next().copied();
        let port = port.or_else(declared).or((preferred == Protocol::Icmp).then_some(0));
        ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port))
    };
    let protocol = protocol.or(of_port).unwrap_or(preferred);
    to.map(|to| ProbeRequest { protocol, to, timeout_ms: PROBE_TIMEOUT_MS, http: protocol == Protocol::Tcp, requests: 0 })
}

/// The pods an `accelerate` takes: those named, or all of a scope.
///
/// # Errors
/// When a name is wrong, is not there, or nothing is left.
pub async fn select_pods(inventory: &impl Inventory, names: &[String], scope: &Scope) -> Result<Vec<PodInfo>> {
    if names.is_empty() {
        let place = scope.namespace.as_ref().map_or_else(|| "in the cluster".to_owned(), |ns| format!("in namespace {ns}"));
        let which = scope.selector.as_ref().map_or_else(|| place.clone(), |s| format!("that matches `{s}` {place}"));
        let pods = those_that_run(&which, inventory.pods(scope).await?)?;
        if pods.is_empty() {
            if let Some(ns) = &scope.namespace
                && let Some(missing) = missing_namespace(inventory, ns).await
            {
                bail!("{missing}");
            }
            bail!("there is no pod {which}: -n names another namespace, -A takes all");
        }
        return Ok(pods);
    }
    if scope.selector.is_some() {
        return Err(UsageError::new("name pods or give a selector, not both"));
    }
    let mut pods: Vec<PodInfo> = Vec::new();
    for text in names {
        let endpoint = Endpoint::parse(text)?;
        if endpoint.port.is_some() {
            return Err(UsageError::new(format!("`{text}`: accelerate takes pods, not ports")));
        }
        let found = match &endpoint.name {
            Name::Pod { namespace, name } => {
                let pod = find_pod(inventory, namespace.as_deref(), name).await?;
                usable(&pod, "accelerated")?;
                vec![pod]
            }
            Name::Deployment { namespace, name } => {
                those_that_run(&format!("of Deployment {name}"), find_deployment(inventory, namespace.as_deref(), name, None).await?)?
            }
            Name::Service { namespace, name } => {
                those_that_run(&format!("of Service {name}"), find_service(inventory, namespace.as_deref(), name, None).await?.backends)?
            }
            Name::Ip(_) | Name::Same => return Err(UsageError::new(format!("`{text}`: accelerate takes pods, not addresses"))),
        };
        for pod in found {
            if !pods.iter().any(|p| p.pod.uid == pod.pod.uid) {
                pods.push(pod);
            }
        }
    }
    if pods.is_empty() {
        bail!("nothing that was named has a running pod");
    }
    Ok(pods)
}

#[cfg(test)]
mod tests;
