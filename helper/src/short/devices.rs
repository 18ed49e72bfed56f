//! What a node looks like: its devices, where the chosen pods are attached, and what else is attached there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use sockpath_kernel::link::Link;
use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_kernel::netns::inside;
use sockpath_kernel::{address, bridge, link, xfrm};
use sockpath_protocol::accel::Reason;
use sockpath_protocol::bypass::BypassKind;

use super::eligible::{Bridge, Port, Topology};
use crate::node::programs::Programs;
use crate::node::{Netns, NetnsRef, all_netns};
use crate::trace::tc::on_devices;

/// Kinds of devices by which a pod passes packets on to something of its own.
const RELAYS: [&str; 3] = ["bridge", "tun", "openvswitch"];

/// A chosen pod of the node.
#[derive(Debug)]
pub struct Pod {
    /// Namespace and name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace, which is not held: a pod that is deleted has to lose its devices.
    pub netns: NetnsRef,
}

/// The devices and addresses of a namespace.
struct Space {
    links: Vec<Link>,
    addresses: Vec<(u32, IpAddr)>,
}

fn look_into(netns: &Netns) -> Result<Space> {
    inside(&netns.file, || {
        let mut socket = Socket::open(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let links = link::list(&mut socket).context("cannot list the devices")?;
        Ok(Space { links, addresses: address::list(&mut socket).context("cannot list the addresses")? })
    })
    .with_context(|| format!("namespace {}", netns.path.display()))
}

/// Looks at the node and its pods. `ours` are the ids of our own programs.
pub fn discover(node: &Netns, pods: &[Pod], elsewhere: impl Iterator<Item = IpAddr>, ours: &[u32]) -> Result<Topology> {
    let space = look_into(node)?;
    let mut topology = Topology {
        elsewhere: elsewhere.collect(),
        own: space.addresses.iter().map(|(_, ip)| *ip).collect(),
        links: space.links.into_iter().map(|l| (l.index, l)).collect(),
        ipsec: inside(&node.file, || xfrm::has_policies().context("cannot ask for IPsec policies"))?,
        ..Topology::default()
    };
    let programs = Programs::loaded().unwrap_or_default();
    let refused = refusals(node, topology.links.values(), &programs, ours)?;
    let mut others = None;
    for pod in pods {
        topology.elsewhere.retain(|ip| !pod.ips.contains(ip));
        let open = pod.netns.open(|| others.get_or_insert_with(all_netns));
        // A pod that is ending may have lost its namespace, or the devices in it.
        let Some(inner) = open.and_then(|netns| look_into(&netns).ok()) else {
            // Another pod may have the address by now.
            for ip in &pod.ips {
                topology.ports.entry(ip.to_canonical()).or_insert_with(|| Port::refused(Reason::NoVeth));
            }
            continue;
        };
        for ip in &pod.ips {
            topology.ports.insert(ip.to_canonical(), port(&inner, ip.to_canonical(), &topology.links, &refused.0));
        }
    }
    topology.bridges = bridges(node)?.into_iter().collect();
    for (index, bridge) in &mut topology.bridges {
        bridge.refusal = refused.0.get(index).copied();
    }
    // What comes in by a device to other nodes passes only programs at its ingress.
    topology.refused_devices = refused.1;
    Ok(topology)
}

/// The bridges of a namespace, and whether they pass packets to netfilter: by an option of their own, or all by a sysctl, and neither without
/// the module that the sysctls come with.
fn bridges(node: &Netns) -> Result<Vec<(u32, Bridge)>> {
    let sysctl = |family: &str| fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{family}")).ok();
    inside(&node.file, || {
        let all = ["iptables", "ip6tables"].map(sysctl);
        let mut socket = Socket::open(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let found = bridge::netfilter_callers(&mut socket).context("cannot list the bridges")?;
        let calls = |own: [bool; 2]| [0, 1].map(|family| all[family].as_ref().is_some_and(|all| own[family] || all.trim() != "0"));
        Ok(found.into_iter().map(|(index, own)| (index, Bridge { refusal: None, calls_netfilter: calls(own) })).collect())
    })
}

/// Where an address of a pod is attached, and what is against that.
fn port(inner: &Space, ip: IpAddr, links: &HashMap<u32, Link>, refused: &HashMap<u32, Reason>) -> Port {
    let relays = inner.links.iter().any(|l| RELAYS.contains(&l.kind.as_str()));
    // The address of a pod that bridges its interface may be that of the bridge, or of what is behind it.
    let without = |reason| Port::refused(if relays { Reason::PodBridge } else { reason });
    let own = inner.addresses.iter().find(|(_, address)| *address == ip).and_then(|(i, _)| inner.links.iter().find(|l| l.index == *i));
    let Some(own) = own.filter(|l| l.kind == "veth" && l.ethernet) else { return without(Reason::NoVeth) };
    let outer = own.peer.and_then(|index| links.get(&index));
    let Some(outer) = outer.filter(|l| l.kind == "veth" && l.peer == Some(own.index) && l.up && own.up) else {
        return without(Reason::NoVeth);
    };
    let relays = relays || own.master.is_some();
    let bridge = outer.master.filter(|master| links.get(master).is_some_and(|l| l.kind == "bridge"));
    let has_xdp = (!own.xdp.is_empty()).then_some(Reason::ForeignProgram);
    let refusal = relays.then_some(Reason::PodBridge).or_else(|| refused.get(&outer.index).copied()).or(has_xdp);
    Port { device: outer.index, mtu: own.mtu.min(outer.mtu), bridge, refusal }
}

/// What is attached to devices of a namespace that redirected packets would miss: anything, and at ingress only.
type Refusals = (HashMap<u32, Reason>, HashMap<u32, Reason>);

fn refusals<'a>(netns: &Netns, links: impl Iterator<Item = &'a Link>, programs: &Programs, ours: &[u32]) -> Result<Refusals> {
    let devices: Vec<(u32, String)> = links.filter(|l| !l.loopback).map(|l| (l.index, l.name.clone())).collect();
    let by_name: HashMap<&str, u32> = devices.iter().map(|(index, name)| (name.as_str(), *index)).collect();
    let mut found = Refusals::default();
    for (device, kind, what) in on_devices(&netns.file, &devices, programs)? {
        let Some(index) = by_name.get(device.as_str()).copied() else { continue };
        if is_ours(&what, ours) {
            continue;
        }
        let reason = match kind {
            BypassKind::Qdisc => Reason::QueueDiscipline,
            BypassKind::TcFilter | BypassKind::Mirror => Reason::TcFilter,
            _ => Reason::ForeignProgram,
        };
        found.0.entry(index).or_insert(reason);
        if what.starts_with("ingress") {
            found.1.entry(index).or_insert(reason);
        }
    }
    Ok(found)
}

/// Whether this text is about one of our programs: it ends with its id.
fn is_ours(what: &str, ours: &[u32]) -> bool {
    let id = what.rsplit("id ").next().and_then(|rest| rest.trim_end_matches(')').parse::<u32>().ok());
    id.is_some_and(|id| ours.contains(&id))
}

/// Devices of the node that matter to connections: changes of other devices do not affect approvals.
pub fn is_of_interest(topology: &Topology, uplinks: &HashSet<u32>, device: u32) -> bool {
    uplinks.contains(&device) || topology.ports.values().any(|p| p.device == device || p.bridge == Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veth(index: u32, peer: u32, mtu: u32, master: Option<u32>) -> Link {
        let name = format!("veth{index}");
        Link { index, name, kind: "veth".into(), mtu, up: true, loopback: false, ethernet: true, master, peer: Some(peer), xdp: Vec::new() }
    }

    fn bridge(index: u32) -> Link {
        Link { kind: "bridge".into(), peer: None, ..veth(index, 0, 1500, None) }
    }

    #[test]
    fn a_pod_is_found_behind_its_veth_pair() {
        let ip = IpAddr::from([10, 42, 1, 2]);
        let inner = Space { links: vec![veth(2, 7, 1450, None)], addresses: vec![(2, ip)] };
        let links = HashMap::from([(7, veth(7, 2, 1500, Some(3))), (3, bridge(3))]);
        let none = HashMap::new();
        let found = port(&inner, ip, &links, &none);
        assert_eq!(found, Port { device: 7, mtu: 1450, bridge: Some(3), refusal: None });
        let refused = HashMap::from([(7, Reason::QueueDiscipline)]);
        assert_eq!(port(&inner, ip, &links, &refused).refusal, Some(Reason::QueueDiscipline));
        let mut with_xdp = Space { links: vec![veth(2, 7, 1450, None)], addresses: vec![(2, ip)] };
        with_xdp.links[0].xdp.push(77);
        assert_eq!(port(&with_xdp, ip, &links, &none).refusal, Some(Reason::ForeignProgram));
        // Another pair's end has the index by chance.
        let other = HashMap::from([(7, veth(7, 9, 1500, None))]);
        assert_eq!(port(&inner, ip, &other, &none).refusal, Some(Reason::NoVeth));
        let bridged = Space { links: vec![veth(2, 7, 1450, None), bridge(4)], addresses: vec![(2, ip)] };
        assert_eq!(port(&bridged, ip, &links, &none).refusal, Some(Reason::PodBridge));
        let moved = Space { links: vec![veth(2, 7, 1450, Some(4)), bridge(4)], addresses: vec![(4, ip)] };
        assert_eq!(port(&moved, ip, &links, &none).refusal, Some(Reason::PodBridge));
    }

    #[test]
    fn our_own_programs_are_recognised_by_their_ids() {
        assert!(is_ours("ingress tcx program short_from_pod (id 12)", &[12]));
        assert!(is_ours("ingress program id 12", &[12]));
        assert!(!is_ours("ingress tcx program cil_from_pod (id 112)", &[12]));
        assert!(!is_ours("tbf 8001:, 1 Mbit/s", &[12]));
    }
}
