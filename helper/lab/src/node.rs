//! Builds the network of a node and its pods as kubelet, a bridge CNI plugin and flannel configure it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVxlan};
use sockpath_protocol::lab::Overlay;

use super::links::{Links, Peer};
use super::netns::Netns;
use super::netns_names::{self, Named};
use super::plan::{self, Instance, NODES, Node, PODS, Pod};

/// MTU of the underlay, in bytes.
const UNDERLAY_MTU: u32 = 1500;
/// The gateway of the underlay, which no device has: nodes have a default route, or no Service address could be dialled from
/// them, but it leads nowhere.
const DEAD_END_V4: Ipv4Addr = Ipv4Addr::new(10, 199, 0, 254);
/// The same, IPv6.
const DEAD_END_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x199, 0, 0, 0, 0, 0xfe);
/// flannel's names and numbers.
const VXLAN_DEVICE: &str = "flannel.1";
const VXLAN_ID: u32 = 1;
const VXLAN_PORT: u16 = 8472;

/// Devices that a node has to have up.
#[must_use]
pub fn devices(node: &Node, instance: &Instance, overlay: Overlay) -> Vec<String> {
    let mut names = vec!["eth0".to_owned(), "cni0".to_owned()];
    if overlay == Overlay::Vxlan {
        names.push(VXLAN_DEVICE.to_owned());
    }
    names.extend(PODS.iter().filter(|p| p.node.number == node.number).map(|p| p.host_device(instance)));
    names
}

/// An entity of the lab with its namespace and netlink socket.
#[derive(Debug)]
pub struct Place {
    /// Its namespace.
    pub netns: Netns,
    links: Links,
}

impl Place {
    /// Makes and names the namespace of a node or pod, with the sysctls it needs before the first device appears.
    pub async fn create(instance: &Instance, entity: &str, sysctls: &[(&str, &str)]) -> Result<Self> {
        let netns = Netns::create().with_context(|| format!("cannot make {entity}"))?;
        let links = Links::connect(&netns)?;
        let lo = LinkUnspec::new_with_name("lo").alias(instance.mark()).up().build();
        links.set("lo", lo).await?;
        netns.run(|| set_sysctls(sysctls)).with_context(|| format!("cannot set up {entity}"))?;
        netns_names::publish(&netns, &instance.netns_path(entity))?;
        Ok(Self { netns, links })
    }
}

/// What every namespace of the lab needs: addresses usable at once (no duplicate address detection), no router discovery.
const COMMON: [(&str, &str); 4] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];

/// What kubelet and kube-proxy set on a node, and what node images commonly do about reverse path filtering.
const NODE: [(&str, &str); 8] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("bridge/bridge-nf-call-iptables", "1"),
    ("bridge/bridge-nf-call-ip6tables", "1"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

/// Makes a node's namespace.
pub async fn create_node(instance: &Instance, node: &Node) -> Result<Place> {
    let sysctls: Vec<_> = COMMON.into_iter().chain(NODE).collect();
    Place::create(instance, node.name, &sysctls).await
}

/// Makes a pod's namespace.
pub async fn create_pod(instance: &Instance, pod: &Pod) -> Result<Place> {
    Place::create(instance, pod.name, &COMMON).await
}

/// Loads `br_netfilter` where it is a module: unlike the other parts of the network stack that the lab needs, the kernel does
/// not load it by itself. That it is not there is noticed when its sysctls are set.
pub fn load_bridge_netfilter() {
    if !Path::new("/proc/sys/net/bridge").exists() {
        let mut modprobe = Command::new("/sbin/modprobe");
        modprobe.args(["-q", "br_netfilter"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = modprobe.status();
    }
}

/// Writes sysctls of the namespace this thread is in.
fn set_sysctls(sysctls: &[(&str, &str)]) -> Result<()> {
    for (name, value) in sysctls {
        let path = format!("/proc/sys/net/{name}");
        match fs::write(&path, value) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.starts_with("bridge/") => {
                bail!("this kernel does not pass bridged packets to netfilter: load the module `br_netfilter` (`modprobe br_netfilter`)")
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && name.starts_with("ipv6/") => {
                bail!("this kernel runs without IPv6, which the lab needs: was it booted with ipv6.disable=1?")
            }
            Err(e) => return Err(e).with_context(|| format!("cannot set net.{}", name.replace('/', "."))),
        }
    }
    Ok(())
}

/// The wire: a veth pair between the two nodes. Nothing else is on it, and nothing of it is in the machine's own namespace.
pub async fn join_nodes(places: &[Place; NODES.len()]) -> Result<()> {
    let [near, far] = places;
    near.links.add_veth("eth0", UNDERLAY_MTU, Peer { name: "eth0", netns: far.netns.file() }).await.context("cannot join the nodes")?;
    for (place, node) in places.iter().zip(NODES) {
        let eth0 = place.links.index("eth0").await?;
        place.links.up("eth0", eth0).await?;
        place.links.address(eth0, node.ipv4(), 24).await?;
        place.links.address(eth0, node.ipv6(), 64).await?;
        place.links.route((Ipv4Addr::UNSPECIFIED, 0), DEAD_END_V4, eth0, false).await?;
        place.links.route((Ipv6Addr::UNSPECIFIED, 0), DEAD_END_V6, eth0, false).await?;
    }
    Ok(())
}

/// The bridge of a node and its routes to the other's pods.
pub async fn equip_node(place: &Place, node: &Node, overlay: Overlay) -> Result<()> {
    let links = &place.links;
    let mtu = plan::pod_mtu(overlay);
    let bridge = LinkBridge::new("cni0").address(node.bridge_mac().to_vec()).mtu(mtu).up().build();
    let cni0 = links.add("cni0", "bridge", bridge).await?;
    links.address(cni0, node.pod_ipv4(1), 24).await?;
    links.address(cni0, node.pod_ipv6(1), 64).await?;

    let peer = node.peer();
    let eth0 = links.index("eth0").await?;
    match overlay {
        Overlay::None => {
            links.route((peer.pod_ipv4(0), 24), peer.ipv4(), eth0, false).await?;
            links.route((peer.pod_ipv6(0), 64), peer.ipv6(), eth0, false).await
        }
        Overlay::Vxlan => {
            let device = LinkVxlan::new(VXLAN_DEVICE, VXLAN_ID)
                .dev(eth0)
                .local(node.ipv4())
                .port(VXLAN_PORT)
                .learning(false)
                .address(node.vxlan_mac().to_vec())
                .mtu(mtu)
                .up()
                .build();
            let vxlan = links.add(VXLAN_DEVICE, "vxlan", device).await?;
            links.address(vxlan, node.pod_ipv4(0), 32).await?;
            links.address(vxlan, node.pod_ipv6(0), 128).await?;
            links.neighbour(vxlan, peer.pod_ipv4(0), peer.vxlan_mac()).await?;
            links.neighbour(vxlan, peer.pod_ipv6(0), peer.vxlan_mac()).await?;
            links.vxlan_peer(vxlan, peer.vxlan_mac(), peer.ipv4()).await?;
            links.route((peer.pod_ipv4(0), 24), peer.pod_ipv4(0), vxlan, true).await?;
            links.route((peer.pod_ipv6(0), 64), peer.pod_ipv6(0), vxlan, true).await
        }
    }
}

/// Plugs a pod into its node's bridge.
pub async fn plug_pod(node: &Place, place: &Place, pod: &Pod, instance: &Instance, overlay: Overlay) -> Result<()> {
    let mtu = plan::pod_mtu(overlay);
    let name = pod.host_device(instance);
    let veth = node.links.add_veth(&name, mtu, Peer { name: "eth0", netns: place.netns.file() }).await?;
    let cni0 = node.links.index("cni0").await?;
    node.links.set(&name, LinkUnspec::new_with_index(veth).controller(cni0).up().build()).await?;
    node.links.hairpin(&name, veth).await?;

    let links = &place.links;
    let eth0 = links.index("eth0").await?;
    links.up("eth0", eth0).await?;
    links.address(eth0, pod.ipv4(), 24).await?;
    links.address(eth0, pod.ipv6(), 64).await?;
    links.route((Ipv4Addr::UNSPECIFIED, 0), pod.node.pod_ipv4(1), eth0, false).await?;
    links.route((Ipv6Addr::UNSPECIFIED, 0), pod.node.pod_ipv6(1), eth0, false).await
}

/// What is missing in a node's or pod's network, if anything is. `devices` must be there and up.
pub async fn check(instance: &Instance, entity: &str, devices: &[String]) -> Result<Option<String>> {
    let path = instance.netns_path(entity);
    let netns = match netns_names::look_up(&path, &instance.mark()).await? {
        Named::Ours(n) => n,
        _ => return Ok(Some(format!("the network namespace of {entity} is gone"))),
    };
    let links = Links::connect(&netns)?;
    for device in devices {
        if !links.is_up(device).await? {
            return Ok(Some(format!("device {device} of {entity} is gone or down")));
        }
    }
    Ok(None)
}
