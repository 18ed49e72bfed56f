//! What the lab consists of: nodes, pods, Services, their names and addresses. Pure data, no system calls.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use sockpath_helper::site::{LabName, Site};
use sockpath_protocol::lab::Overlay;

/// Namespace of every pod and Service of the lab.
pub const NAMESPACE: &str = "default";
/// Environment variable that selects a private instance of the lab.
pub const INSTANCE_VAR: &str = "SOCKPATH_LAB";
/// Directory of everything the labs keep on this machine.
pub const RUN_DIR: &str = "/run/sockpath";
/// Where `ip netns` looks for named namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// All pods, as kube-proxy's `--cluster-cidr` (IPv4).
pub const CLUSTER_CIDR_V4: &str = "10.42.0.0/16";
/// All pods (IPv6).
pub const CLUSTER_CIDR_V6: &str = "fd00:10:42::/48";

/// One lab of possibly several on this machine; its name is in every name it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(LabName);

impl Instance {
    /// The instance that `SOCKPATH_LAB` selects; the default one when it is unset or empty.
    pub fn from_env() -> Result<Self> {
        match std::env::var(INSTANCE_VAR) {
            Ok(name) => Self::new(&name),
            Err(std::env::VarError::NotPresent) => Self::new(""),
            Err(e) => bail!("{INSTANCE_VAR}: {e}"),
        }
    }

    /// The instance of that name; empty is the default one.
    pub fn new(name: &str) -> Result<Self> {
        LabName::new(name).map(Self).with_context(|| format!("{INSTANCE_VAR}={name}"))
    }

    /// Where sessions of this instance work.
    #[must_use]
    pub fn site(&self) -> Site {
        Site::Lab(self.0.clone())
    }

    /// Its name; empty for the default one.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.as_str()
    }

    fn suffix(&self) -> String {
        if self.name().is_empty() { String::new() } else { format!("-{}", self.name()) }
    }

    /// Name of a node's or pod's network namespace, as `ip netns` shows it.
    #[must_use]
    pub fn netns_name(&self, entity: &str) -> String {
        format!("sockpath{}-{entity}", self.suffix())
    }

    /// File of a node's or pod's network namespace.
    #[must_use]
    pub fn netns_path(&self, entity: &str) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(self.netns_name(entity))
    }

    /// Directory of the instance's state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(RUN_DIR).join(format!("lab{}", self.suffix()))
    }

    /// Name of the instance's directory in the cgroup v2 hierarchy.
    #[must_use]
    pub fn cgroup_name(&self) -> String {
        format!("sockpath-lab{}", self.suffix())
    }

    /// What marks a network namespace as this instance's own: the alias of its loopback device. It is there before the
    /// namespace has a name, so a namespace with one of our names but no mark does not belong to the lab.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("sockpath-lab{}", self.suffix())
    }

    /// The prefix to type before a command of this instance, for messages that say what to do next.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        if self.name().is_empty() {
            format!("kubectl sockpath lab {command}")
        } else {
            format!("{INSTANCE_VAR}={} kubectl sockpath lab {command}", self.name())
        }
    }

    /// A number for that object that looks random and stays the same: the lab needs no random source and no memory.
    fn digest(&self, what: &str) -> [u8; 32] {
        Sha256::digest(format!("{}/{what}", self.mark())).into()
    }
}

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// The N in its addresses.
    pub number: u8,
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub name: &'static str,
    /// Port of its built-in server, TCP and UDP.
    pub port: u16,
}

/// A pod of the lab.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: &'static str,
    /// The node it runs on.
    pub node: &'static Node,
    /// Last part of its addresses.
    pub host: u8,
    /// Its containers, the main one first.
    pub containers: &'static [Container],
}

/// A Service of the lab: the same port by TCP and UDP.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Last part of its addresses.
    pub host: u8,
    /// Port that clients dial.
    pub port: u16,
    /// Port of the pods.
    pub target_port: u16,
    /// Names of the pods behind it.
    pub backends: &'static [&'static str],
}

static NODE_1: Node = Node { name: "node-1", number: 1 };
static NODE_2: Node = Node { name: "node-2", number: 2 };

/// The nodes.
pub static NODES: [&Node; 2] = [&NODE_1, &NODE_2];

/// The pods.
pub static PODS: [Pod; 3] = [
    Pod {
        name: "curl",
        node: &NODE_1,
        host: 2,
        containers: &[Container { name: "curl", port: 8080 }, Container { name: "sidecar", port: 8081 }],
    },
    Pod { name: "httpbin", node: &NODE_1, host: 3, containers: &[Container { name: "httpbin", port: 8080 }] },
    Pod { name: "httpbin-remote", node: &NODE_2, host: 2, containers: &[Container { name: "httpbin", port: 8080 }] },
];

/// The Services.
pub static SERVICES: [Service; 3] = [
    Service { name: "httpbin", host: 10, port: 80, target_port: 8080, backends: &["httpbin"] },
    Service { name: "httpbin-remote", host: 11, port: 80, target_port: 8080, backends: &["httpbin-remote"] },
    Service { name: "empty", host: 12, port: 80, target_port: 8080, backends: &[] },
];

/// Names of everything that has a network namespace.
pub fn entities() -> impl Iterator<Item = &'static str> {
    NODES.iter().map(|n| n.name).chain(PODS.iter().map(|p| p.name))
}

impl Node {
    /// Its address in the underlay.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 199, 0, self.number)
    }

    /// Its IPv6 address in the underlay.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x199, 0, 0, 0, 0, self.number.into())
    }

    /// Address number `host` of its pod subnet, 10.42.N.0/24.
    #[must_use]
    pub fn pod_ipv4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, self.number, host)
    }

    /// Address number `host` of its IPv6 pod subnet, fd00:10:42:N::/64.
    #[must_use]
    pub fn pod_ipv6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x42, self.number.into(), 0, 0, 0, host.into())
    }

    /// Its pod subnets.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<String> {
        vec![format!("{}/24", self.pod_ipv4(0)), format!("{}/64", self.pod_ipv6(0))]
    }

    /// The other node.
    #[must_use]
    pub fn peer(&self) -> &'static Node {
        if self.number == NODE_1.number { &NODE_2 } else { &NODE_1 }
    }

    /// Link address of its bridge. Set, because a bridge without one takes over its ports' and changes it with them.
    #[must_use]
    pub fn bridge_mac(&self) -> [u8; 6] {
        [0x02, 0x42, 10, 42, self.number, 1]
    }

    /// Link address of its VXLAN device, which the other node has to know beforehand.
    #[must_use]
    pub fn vxlan_mac(&self) -> [u8; 6] {
        [0x02, 0x42, 10, 42, self.number, 0]
    }
}

impl Pod {
    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.node.pod_ipv4(self.host)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.node.pod_ipv6(self.host)
    }

    /// Its UID: of the form of a version 4 UUID, and the same at every `up` of an instance.
    #[must_use]
    pub fn uid(&self, instance: &Instance) -> String {
        let d = instance.digest(self.name);
        let field = |bytes: &[u8]| hex(bytes);
        format!("{}-{}-4{}-8{}-{}", field(&d[0..4]), field(&d[4..6]), &field(&d[6..8])[1..], &field(&d[8..10])[1..], field(&d[10..16]))
    }

    /// A container's runtime id.
    #[must_use]
    pub fn container_id(&self, instance: &Instance, container: &Container) -> String {
        hex(&instance.digest(&format!("{}/{}", self.name, container.name)))
    }

    /// The pod's cgroup as kubelet's cgroupfs driver names it, below the lab's directory.
    #[must_use]
    pub fn cgroup(&self, instance: &Instance) -> PathBuf {
        PathBuf::from(self.node.name).join("kubepods/burstable").join(format!("pod{}", self.uid(instance)))
    }

    /// Name of the pod's veth end on its node: `veth` and eight digits, as the bridge CNI plugin names it.
    #[must_use]
    pub fn host_device(&self, instance: &Instance) -> String {
        format!("veth{}", hex(&instance.digest(&format!("{}/veth", self.name))[..4]))
    }
}

impl Service {
    /// Its ClusterIP.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, self.host)
    }

    /// Its IPv6 ClusterIP.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.host.into())
    }

    /// Its addresses.
    #[must_use]
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        vec![self.ipv4().into(), self.ipv6().into()]
    }

    /// The pods behind it.
    pub fn pods(&self) -> impl Iterator<Item = &'static Pod> {
        PODS.iter().filter(|p| self.backends.contains(&p.name))
    }
}

/// MTU of the pods' devices and of `cni0`, in bytes: VXLAN over IPv4 takes 50 from the underlay's 1500.
#[must_use]
pub fn pod_mtu(overlay: Overlay) -> u32 {
    match overlay {
        Overlay::None => 1500,
        Overlay::Vxlan => 1450,
    }
}

/// The overlay's name on the command line.
#[must_use]
pub fn overlay_name(overlay: Overlay) -> &'static str {
    match overlay {
        Overlay::None => "none",
        Overlay::Vxlan => "vxlan",
    }
}

/// What a name on the command line means.
#[derive(Debug, Clone, Copy)]
pub enum Entity {
    /// A node.
    Node(&'static Node),
    /// A pod.
    Pod(&'static Pod),
}

/// Finds a node, or a pod given as `NAME`, `pod/NAME` or `NAMESPACE/NAME`.
pub fn find(name: &str) -> Result<Entity> {
    if let Some(node) = NODES.iter().find(|n| n.name == name) {
        return Ok(Entity::Node(node));
    }
    if let Some(node) = name.strip_prefix("node/").and_then(|name| NODES.iter().find(|n| n.name == name)) {
        return Ok(Entity::Node(node));
    }
    let bare = ["pod/", "pods/", "po/"].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    let bare = bare.strip_prefix(NAMESPACE).and_then(|rest| rest.strip_prefix('/')).unwrap_or(bare);
    if let Some(pod) = PODS.iter().find(|p| p.name == bare) {
        return Ok(Entity::Pod(pod));
    }
    let known: Vec<_> = PODS.iter().map(|p| p.name).chain(NODES.iter().map(|n| n.name)).collect();
    bail!("no pod or node \"{name}\" in the lab; there are {}", known.join(", "))
}

/// A pod's container by name; the main one without.
pub fn find_container(pod: &'static Pod, name: Option<&str>) -> Result<&'static Container> {
    let found = match name {
        None => pod.containers.first(),
        Some(name) => pod.containers.iter().find(|c| c.name == name),
    };
    let known: Vec<_> = pod.containers.iter().map(|c| c.name).collect();
    found.with_context(|| format!("pod {} has no container \"{}\"; it has {}", pod.name, name.unwrap_or_default(), known.join(", ")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_instances_never_overlap() {
        let mut seen = std::collections::BTreeSet::new();
        for name in ["", "node", "a", "a-node", "httpbin", "curl"] {
            let instance = Instance::new(name).unwrap();
            for entity in entities() {
                assert!(seen.insert(instance.netns_name(entity)), "{name} {entity}");
            }
        }
        assert_eq!(Instance::new("").unwrap().netns_name("curl"), "sockpath-curl");
        assert_eq!(Instance::new("t1").unwrap().netns_name("node-1"), "sockpath-t1-node-1");
    }

    #[test]
    fn odd_instance_names_are_refused() {
        for name in ["../x", "A", "a b", "-a", "a-", &"a".repeat(33)] {
            assert!(Instance::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn pods_are_found_under_each_spelling() {
        for name in ["httpbin", "pod/httpbin", "default/httpbin", "pod/default/httpbin"] {
            assert!(matches!(find(name), Ok(Entity::Pod(p)) if p.name == "httpbin"), "{name}");
        }
        assert!(matches!(find("node-2"), Ok(Entity::Node(n)) if n.number == 2));
        for name in ["http", "prod/httpbin", "", "pod/node-1"] {
            assert!(find(name).is_err(), "{name}");
        }
    }

    #[test]
    fn uids_look_like_uuids_and_differ() {
        let a = PODS[0].uid(&Instance::new("").unwrap());
        assert_eq!(a.len(), 36);
        assert_eq!(a.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_ne!(a, PODS[0].uid(&Instance::new("x").unwrap()));
        assert_ne!(a, PODS[1].uid(&Instance::new("").unwrap()));
        assert!(PODS[0].host_device(&Instance::new("").unwrap()).len() < 16);
    }
}
