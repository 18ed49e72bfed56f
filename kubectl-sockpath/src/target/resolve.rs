//! From names to what helpers need: pods, Services, nodes, and the scenario between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sockpath_protocol::pod::Pod;
use sockpath_protocol::request::{ProbeRequest, Protocol, TraceRequest};

use crate::exit::UsageError;
use crate::inventory::{Inventory, PodInfo, Scope};
use crate::invocation::invocation;
use crate::target::find::{
    Found, Place, find_labelled, find_pod, find_service, find_source, find_target, find_workload, those_that_run, usable,
};
use crate::target::name::{Endpoint, Name};
use crate::target::ports::resolve;
use crate::target::suggest::missing_namespace;

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
    /// The target is not a pod.
    External,
}

/// What a trace is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The request to helpers; each gets those of `nodes` that it serves.
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
    let port = resolve(to.port.as_ref(), container, &found)?;
    let protocol = protocol.or(port.and_then(|p| p.protocol));
    let port = port.map(|p| p.number);
    let mut found = found;
    if same_pod && matches!(to.name, Name::Pod { .. } | Name::Workload { .. } | Name::Labels { .. }) {
        // Containers of one pod dial each other on loopback; the pod's own address leads there, too.
        found.addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if same_pod && port.is_none() {
        let example = source_pod.containers.iter().flat_map(|c| &c.ports).next_back().map_or(8080, |p| p.number);
        return Err(UsageError::new(format!(
            "SOURCE and TARGET are the same pod, {}: use another pod, or name a port inside it: `{} trace {source} :{example}`",
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
    let scenario = scenario(&source_pod.pod, &targets, same_pod);
    let names: Vec<String> =
        std::iter::once(&source_pod.pod).chain(&targets).map(|p| p.node.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let nodes = inventory.nodes(&names).await?;
    if let Some(missing) = names.iter().find(|n| !nodes.iter().any(|node| node.name == **n)) {
        bail!("node {missing} no longer exists");
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
/// that of the port, as the Service or the container declares it; without a port, their first.
fn probe(protocol: Option<Protocol>, port: Option<u16>, found: &Found, targets: &[Pod], source: &PodInfo) -> Option<ProbeRequest> {
    let reachable =
        |ip: &IpAddr| ip.is_loopback() || source.pod.ips.is_empty() || source.pod.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    let mut of_port = None;
    let first = match &found.service {
        Some(service) => service.ports.first(),
        None => found.pods.iter().flat_map(PodInfo::ports).next(),
    };
    let preferred = protocol.or(first.filter(|_| port.is_none()).map(|p| p.protocol)).unwrap_or(Protocol::Tcp);
    let to = if let Some(service) = &found.service {
        let typed = |ip: IpAddr| found.dialled.is_none_or(|dialled| dialled == ip);
        let frontends = || {
            let those = service.service.frontends.iter().filter(|f| typed(f.addr.ip()) && reachable(&f.addr.ip()));
            those.filter(|f| port.is_none_or(|p| p == f.addr.port()))
        };
        let first = || frontends().find(|f| first.is_some_and(|p| p.number == f.addr.port() && p.protocol == f.protocol));
        let of_preferred = || frontends().find(|f| f.protocol == preferred || preferred == Protocol::Icmp);
        let wanted = first().filter(|f| f.protocol == preferred).or_else(of_preferred).or_else(|| frontends().next());
        of_port = wanted.map(|f| f.protocol);
        // A headless Service is dialled at its pods.
        wanted.map(|f| f.addr).or_else(|| {
            let backends = || service.service.backends.iter().filter(|b| reachable(&b.ip()));
            backends().find(|b| port.is_none_or(|p| p == b.port())).or_else(|| backends().next()).copied()
        })
    } else {
        let ip = found.addresses.iter().chain(targets.iter().flat_map(|p| &p.ips)).copied().find(|ip| reachable(ip));
        let declared = || found.pods.iter().flat_map(PodInfo::ports).find(|p| p.protocol == preferred || preferred == Protocol::Icmp);
        let port = port.or_else(|| declared().or(first).map(|p| p.number)).or((preferred == Protocol::Icmp).then_some(0));
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
            bail!("there is no pod {which}: use -n for another namespace, -A for all");
        }
        return Ok(pods);
    }
    if scope.selector.is_some() {
        return Err(UsageError::new("use either pod names or a selector"));
    }
    let mut pods: Vec<PodInfo> = Vec::new();
    for text in names {
        let endpoint = Endpoint::parse(text)?;
        if endpoint.port.is_some() {
            return Err(UsageError::new(format!("`{text}`: accelerate needs pods, not ports")));
        }
        let found = match &endpoint.name {
            Name::Pod { namespace, name } => match find_pod(inventory, namespace.as_deref(), name).await? {
                Place::Pod(pod) => {
                    usable(&pod, "accelerated")?;
                    vec![pod]
                }
                Place::Service(service) => those_that_run(&format!("of Service {name}"), service.backends)?,
                Place::Address(_) => return Err(UsageError::new(format!("`{text}`: accelerate needs pods, not addresses"))),
            },
            Name::Workload { kind, namespace, name } => {
                let pods = find_workload(inventory, *kind, namespace.as_deref(), name, None).await?;
                those_that_run(&format!("of {} {name}", kind.word()), pods)?
            }
            Name::Labels { namespace, selector } => {
                those_that_run(&format!("that matches `{selector}`"), find_labelled(inventory, namespace.as_deref(), selector).await?)?
            }
            Name::Node(name) => {
                return Err(UsageError::new(format!(
                    "`node/{name}`: accelerate needs pods, not nodes; use -A for the pods of all namespaces"
                )));
            }
            Name::Service { namespace, name } => {
                those_that_run(&format!("of Service {name}"), find_service(inventory, namespace.as_deref(), name, None).await?.backends)?
            }
            Name::Ip(_) | Name::Same => return Err(UsageError::new(format!("`{text}`: accelerate needs pods, not addresses"))),
        };
        for pod in found {
            if !pods.iter().any(|p| p.pod.uid == pod.pod.uid) {
                pods.push(pod);
            }
        }
    }
    if pods.is_empty() {
        bail!("none of the names has a running pod");
    }
    Ok(pods)
}

#[cfg(test)]
mod tests;
