//! The lab as `lab status -o json` describes it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::pod::{Container, Locate, Node, Pod};
use crate::request::{Frontend, Service};

/// The whole lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabStatus {
    /// Whether it is up.
    pub up: bool,
    /// How packets cross between the nodes.
    pub overlay: Overlay,
    /// The nodes.
    pub nodes: Vec<LabNode>,
    /// The pods.
    pub pods: Vec<LabPod>,
    /// The Services.
    pub services: Vec<LabService>,
}

/// How packets cross between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// Host routes.
    #[default]
    None,
    /// VXLAN.
    Vxlan,
}

/// A node of the lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabNode {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace file.
    pub netns: String,
    /// Its pod subnets.
    pub pod_cidrs: Vec<String>,
}

/// A pod of the lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabPod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its made-up UID, stable while the lab is up.
    pub uid: String,
    /// Node it runs on.
    pub node: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace file.
    pub netns: String,
    /// Its cgroup directory (v2).
    pub cgroup: String,
    /// Its containers with the process id of each.
    pub containers: Vec<LabContainer>,
}

/// A container of a lab pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabContainer {
    /// Its name.
    pub name: String,
    /// Its made-up runtime id (64 hexadecimal digits); names its cgroup below the pod's.
    pub id: String,
    /// Its first process.
    pub pid: u32,
    /// The TCP and UDP port its built-in server listens on.
    pub port: u16,
}

/// A Service of the lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabService {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<LabServicePort>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabServicePort {
    /// Port clients dial.
    pub port: u16,
    /// Port the pods listen on.
    pub target_port: u16,
    /// Names of the pods behind it.
    pub backends: Vec<String>,
}

impl From<&LabNode> for Node {
    fn from(n: &LabNode) -> Self {
        Self { name: n.name.clone(), ips: n.ips.clone(), netns: Some(n.netns.clone()) }
    }
}

impl From<&LabPod> for Pod {
    fn from(p: &LabPod) -> Self {
        Self {
            namespace: p.namespace.clone(),
            name: p.name.clone(),
            uid: p.uid.clone(),
            node: p.node.clone(),
            ips: p.ips.clone(),
            host_network: false,
            containers: p.containers.iter().map(|c| Container { name: c.name.clone(), id: c.id.clone() }).collect(),
            locate: Locate::Path { netns: p.netns.clone(), cgroup: p.cgroup.clone() },
        }
    }
}

impl LabStatus {
    /// A Service of the lab in the form that requests carry.
    #[must_use]
    pub fn service(&self, s: &LabService) -> Service {
        use crate::request::Protocol;
        use std::net::SocketAddr;
        let mut frontends = Vec::new();
        let mut backends = Vec::new();
        for port in &s.ports {
            for ip in &s.cluster_ips {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    frontends.push(Frontend { addr: SocketAddr::new(*ip, port.port), protocol });
                }
            }
            for pod in self.pods.iter().filter(|p| port.backends.contains(&p.name)) {
                backends.extend(pod.ips.iter().map(|ip| SocketAddr::new(*ip, port.target_port)));
            }
        }
        Service { namespace: s.namespace.clone(), name: s.name.clone(), frontends, backends }
    }
}
