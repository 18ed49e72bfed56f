//! A pod of the API as helpers need it, and whether anything can be done with it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Container as SpecContainer, ContainerPort, ContainerStatus, Node as ApiNode, Pod as ApiPod, PodSpec, PodStatus,
};
use sockpath_protocol::pod::{Container, Locate, Node, Pod};

use crate::cluster::helper::startup::node_trouble;
use crate::cluster::lookup::service_info;
use crate::inventory::{ContainerInfo, PodInfo, Port};

/// What matters about a node besides its name.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts {
    /// As helpers need it.
    pub node: Node,
    /// Why no helper can run there (another operating system, no kubelet of its own), if so.
    pub unusable: Option<String>,
    /// Why it starts no pods now (its kubelet is silent, its runtime or network is down), if so.
    pub unready: Option<String>,
}

impl NodeFacts {
    /// Reads them from the object.
    #[must_use]
    pub fn of(node: &ApiNode) -> Self {
        let name = node.metadata.name.clone().unwrap_or_default();
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let ips = addresses.filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP").filter_map(|a| a.address.parse().ok()).collect();
        let unusable = node_unusable(node, &name);
        Self { node: Node { name, ips, netns: None }, unusable, unready: node_trouble(node) }
    }
}

/// Virtual nodes (virtual-kubelet, Fargate) have no kernel that pods share, so a helper there would see nothing.
fn node_unusable(node: &ApiNode, name: &str) -> Option<String> {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key)).map(String::as_str);
    let reported = node.status.as_ref().and_then(|s| s.node_info.as_ref()).map(|i| i.operating_system.as_str()).filter(|os| !os.is_empty());
    let os = reported.or_else(|| label("kubernetes.io/os")).unwrap_or("linux");
    if os != "linux" {
        return Some(format!("node {name} runs {os}, and sockpath needs Linux"));
    }
    let virtual_kubelet = label("type") == Some("virtual-kubelet")
        || node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == "virtual-kubelet.io/provider");
    if virtual_kubelet {
        return Some(format!("node {name} is virtual (virtual-kubelet): its pods run elsewhere, and no helper can run with them"));
    }
    if label("eks.amazonaws.com/compute-type") == Some("fargate") {
        return Some(format!("node {name} is a Fargate micro VM for this one pod: it admits neither other pods nor privileges"));
    }
    None
}

/// Reads a pod. `node` is what is known about its node.
#[must_use]
pub fn pod_info(pod: &ApiPod, node: Option<&NodeFacts>) -> PodInfo {
    let spec = pod.spec.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let running: Vec<&ContainerStatus> = all_statuses(&status).filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())).collect();
    let containers: Vec<Container> = running
        .iter()
        .filter_map(|c| Some(Container { name: c.name.clone(), id: runtime_id(c.container_id.as_deref()?)?.to_owned() }))
        .collect();
    PodInfo {
        unusable: unusable(pod, &spec, &status, &containers, node),
        containers: running.iter().map(|c| ContainerInfo { name: c.name.clone(), ports: declared_ports(&spec, &c.name) }).collect(),
        pod: Pod {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: cgroup_uid(pod),
            node: spec.node_name.clone().unwrap_or_default(),
            ips: pod_ips(&status),
            host_network: spec.host_network.unwrap_or(false),
            containers,
            locate: Locate::Uid,
        },
    }
}

/// Addresses of the node as the pod's status has them, for users who may not read nodes.
#[must_use]
pub fn host_ips(pod: &ApiPod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.host_ips.iter().flatten().map(|h| h.ip.as_str());
    let mut ips: Vec<IpAddr> = listed.chain(status.host_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    ips.dedup();
    ips
}

/// The status of each container, sidecar (init container that goes on) and ephemeral container.
pub fn all_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flat_map(|s| s.iter().flatten())
}

/// The UID in the names of its control groups. That of a static pod is the kubelet's own, which the mirror pod in the API carries in an
/// annotation.
#[must_use]
pub fn cgroup_uid(pod: &ApiPod) -> String {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.hash"));
    annotation.or(pod.metadata.uid.as_ref()).cloned().unwrap_or_default()
}

/// `containerd://ID` and its relatives without the runtime.
fn runtime_id(id: &str) -> Option<&str> {
    id.split_once("://").map(|(_, id)| id).filter(|id| !id.is_empty())
}

/// The pod's addresses, both families.
#[must_use]
pub fn pod_ips(status: &PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten().map(|p| p.ip.as_str());
    let mut ips: Vec<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if let Some(ip) = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok())
        && !ips.contains(&ip)
    {
        ips.insert(0, ip);
    }
    ips
}

fn declared_ports(spec: &PodSpec, container: &str) -> Vec<Port> {
    let port = |p: &ContainerPort| {
        let protocol = service_info::protocol_of(p.protocol.as_deref())?;
        Some(Port { name: p.name.clone(), number: u16::try_from(p.container_port).ok()?, protocol })
    };
    let ports = |c: &SpecContainer| -> Vec<Port> { c.ports.iter().flatten().filter_map(port).collect() };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == container).map(ports).unwrap_or_default()
}

fn unusable(pod: &ApiPod, spec: &PodSpec, status: &PodStatus, containers: &[Container], node: Option<&NodeFacts>) -> Option<String> {
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    if os.is_some_and(|os| os != "linux") {
        return Some("it runs on Windows, and sockpath needs Linux".to_owned());
    }
    if let Some(why) = node.and_then(|n| n.unusable.clone()) {
        return Some(why);
    }
    match status.phase.as_deref() {
        Some("Succeeded") => return Some("it has completed".to_owned()),
        Some("Failed") => {
            let why = status.reason.as_deref().or(status.message.as_deref());
            return Some(why.map_or_else(|| "it has failed".to_owned(), |why| format!("it has failed ({why})")));
        }
        _ => {}
    }
    if spec.node_name.is_none() {
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let why = condition.and_then(|c| c.message.clone());
        return Some(why.map_or_else(|| "it is not scheduled yet".to_owned(), |why| format!("it is not scheduled yet: {why}")));
    }
    if containers.is_empty() {
        return Some(not_running_text(status));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    None
}

/// Names the container that holds the pod up and what it waits for.
fn not_running_text(status: &PodStatus) -> String {
    let waits = all_statuses(status).find_map(|c| {
        let state = c.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            // While init containers run, all others wait with this reason; the init container says more.
            return (reason != "PodInitializing").then(|| format!("container {} is waiting ({reason})", c.name));
        }
        let ended = state.terminated.as_ref()?;
        Some(format!("container {} has ended with exit code {}", c.name, ended.exit_code))
    });
    let phase = status.phase.as_deref().unwrap_or("Unknown");
    waits.map_or_else(|| format!("it is {phase}, no container runs yet"), |why| format!("it is {phase}: {why}"))
}

#[cfg(test)]
#[path = "pod_info_tests.rs"]
mod tests;
