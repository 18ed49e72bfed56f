//! What a trace watches: the namespaces of the pair on this node, its addresses, its devices.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_kernel::netns::inside;
use sockpath_kernel::{address, route};
use sockpath_protocol::pod::Pod;
use sockpath_protocol::request::TraceRequest;

use super::assemble::conversation::Pair;
use super::devices::{self, Link, Links};
use super::places::{Places, ReadDevices, TracedDevice, TracedNetns};
use super::throttle::Throttles;
use crate::coded::Coded;
use crate::node::{self, FoundPod, Netns, Process};
use crate::site::Site;

/// An address of the pair as the programs compare it; port 0 is any port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
}

/// What a trace watches on this node.
#[derive(Debug)]
pub struct Environment {
    /// The namespaces, held open, with what each is.
    pub netns: Vec<(Netns, TracedNetns)>,
    /// Namespaces that are a node's.
    pub nodes: Vec<u32>,
    /// The source's namespace, when it is on this node.
    pub source: Option<File>,
    /// Addresses of the source.
    pub sources: Vec<Endpoint>,
    /// Addresses of the targets and of the Services before them.
    pub targets: Vec<Endpoint>,
    /// Devices at which packets of the pair come in from elsewhere: namespace and index.
    pub uplinks: Vec<(u32, u32)>,
    links: Links,
    /// Processes of the pods, by namespace.
    processes: Vec<(u32, Vec<Process>)>,
    /// Control groups that the pods' sockets belong to, by namespace.
    pub groups: Vec<(u32, PathBuf)>,
}

impl Environment {
    /// Finds everything that the request names and that is on this node.
    pub fn find(site: &Site, request: &TraceRequest) -> Result<Self> {
        let mut environment = Self {
            netns: Vec::new(),
            nodes: Vec::new(),
            source: None,
            sources: Vec::new(),
            targets: Vec::new(),
            uplinks: Vec::new(),
            links: Links::new(),
            processes: Vec::new(),
            groups: Vec::new(),
        };
        for node in &request.nodes {
            let netns = node::node_netns(site, node).with_context(|| format!("node {}", node.name))?;
            environment.nodes.push(netns.inode);
            environment.add(netns, &node.name, None, false, false);
        }
        let here = |pod: &Pod| request.nodes.iter().any(|n| n.name == pod.node);
        if here(&request.source) {
            environment.source = Some(environment.add_pod(site, &request.source, true)?);
        }
        for pod in request.targets.iter().filter(|p| here(p)) {
            environment.add_pod(site, pod, false)?;
        }
        environment.mark_own_addresses(request);
        if environment.netns.iter().all(|(_, t)| !t.source && !t.target) {
            return Err(Coded::new("not-here", "neither the source nor a target of this trace is on this node"));
        }
        environment.collect_addresses(request);
        environment.add_addresses_of_node(request)?;
        environment.collect_links()?;
        let elsewhere = !here(&request.source) || request.targets.is_empty() || request.targets.iter().any(|p| !here(p));
        if elsewhere {
            for node in &environment.nodes {
                let links = environment.links.get(node).map(Vec::as_slice).unwrap_or_default();
                environment.uplinks.extend(devices::uplinks(links).into_iter().map(|index| (*node, index)));
            }
        }
        Ok(environment)
    }

    /// A node that has the target's address is the target: packets end at a socket there, as those to a hostNetwork pod do.
    fn mark_own_addresses(&mut self, request: &TraceRequest) {
        let mut sought = request.addresses.clone();
        if request.targets.is_empty() {
            sought.extend(request.services.iter().flat_map(|s| s.backends.iter().map(|b| b.ip())));
        }
        for (netns, traced) in self.netns.iter_mut().filter(|(n, _)| self.nodes.contains(&n.inode)) {
            // A node that cannot be asked is passed, as any other.
            let own = inside(&netns.file, || Ok(address::list(&mut Socket::open(NETLINK_ROUTE)?)?)).unwrap_or_default();
            traced.target |= own.iter().any(|(_, ip)| sought.contains(ip));
        }
    }

    fn add_pod(&mut self, site: &Site, pod: &Pod, source: bool) -> Result<File> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let found = node::find(site, pod).with_context(|| format!("pod {name}"))?;
        let group = found.group_of_sockets();
        let FoundPod { netns, processes, .. } = found;
        self.groups.extend(group.map(|group| (netns.inode, group)));
        self.processes.push((netns.inode, processes));
        let file = netns.file.try_clone().context("cannot keep a namespace open")?;
        let pod_name = (!pod.host_network).then_some(name);
        self.add(netns, &pod.node, pod_name, source, !source);
        Ok(file)
    }

    fn add(&mut self, netns: Netns, node: &str, pod: Option<String>, source: bool, target: bool) {
        if let Some((_, t)) = self.netns.iter_mut().find(|(n, _)| n.inode == netns.inode) {
            t.source |= source;
            t.target |= target;
            return;
        }
        let traced = TracedNetns { netns: netns.inode, node: node.to_owned(), pod, source, target };
        self.netns.push((netns, traced));
    }

    /// Whether source and target share a namespace.
    fn is_in_pod(&self) -> bool {
        self.netns.iter().any(|(_, t)| t.source && t.target)
    }

    fn collect_addresses(&mut self, request: &TraceRequest) {
        let any = |ip: &IpAddr| Endpoint { ip: ip.to_canonical(), port: 0 };
        let port = request.port.unwrap_or(0);
        self.sources = request.source.ips.iter().map(any).collect();
        let pods = request.targets.iter().flat_map(|p| &p.ips);
        self.targets = pods.chain(&request.addresses).map(|ip| Endpoint { port, ..any(ip) }).collect();
        if self.is_in_pod() {
            for lo in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                self.sources.push(Endpoint { ip: lo, port: 0 });
                self.targets.push(Endpoint { ip: lo, port });
            }
        }
        for service in &request.services {
            self.targets.extend(service.frontends.iter().map(|f| Endpoint { ip: f.addr.ip().to_canonical(), port: f.addr.port() }));
        }
        self.targets.sort_by_key(|e| (e.ip, e.port));
        self.targets.dedup();
    }

    /// A node has an address for each of its links; routing decides which one a pod sees.
    fn add_addresses_of_node(&mut self, request: &TraceRequest) -> Result<()> {
        let Some(netns) = self.source.as_ref().filter(|_| request.source.host_network) else { return Ok(()) };
        let targets: BTreeSet<IpAddr> = self.targets.iter().map(|e| e.ip).collect();
        let found = inside(netns, || {
            let mut socket = Socket::open(NETLINK_ROUTE).context("cannot open a netlink socket")?;
            // What cannot be reached is what a trace may be about.
            Ok(targets.into_iter().filter_map(|ip| route::output(&mut socket, ip).ok()?.source).collect::<BTreeSet<IpAddr>>())
        })?;
        let known: Vec<IpAddr> = self.sources.iter().map(|e| e.ip).collect();
        self.sources.extend(found.into_iter().filter(|ip| !known.contains(ip)).map(|ip| Endpoint { ip, port: 0 }));
        Ok(())
    }

    fn collect_links(&mut self) -> Result<()> {
        let all: Vec<&Netns> = self.netns.iter().map(|(n, _)| n).collect();
        for netns in &all {
            self.links.insert(netns.inode, devices::dump(netns, &all)?);
        }
        Ok(())
    }

    /// The devices of a namespace.
    #[must_use]
    pub fn links_of(&self, netns: u32) -> &[Link] {
        self.links.get(&netns).map_or(&[], Vec::as_slice)
    }

    /// The control group that the source's sockets belong to.
    #[must_use]
    pub fn group_of_source(&self) -> Option<PathBuf> {
        // The source was looked for first, and shares its namespace with others only where it has the node's.
        let (_, traced) = self.netns.iter().find(|(_, t)| t.source)?;
        self.groups.iter().find(|(netns, _)| *netns == traced.netns).map(|(_, group)| group.clone())
    }

    /// The CPU limits of the pods.
    #[must_use]
    pub fn throttles(&self) -> Throttles {
        let mut throttles = Throttles::default();
        for (netns, processes) in &self.processes {
            throttles.watch(*netns, processes);
        }
        throttles
    }

    /// The two ends, for the assembler.
    #[must_use]
    pub fn pair(&self, request: &TraceRequest) -> Pair {
        Pair {
            sources: self.sources.iter().map(|e| e.ip).collect(),
            targets: self.targets.iter().map(|e| e.ip).collect(),
            port: request.port,
            services: request.services.clone(),
        }
    }

    /// The places, for the assembler.
    pub fn places(&self) -> Result<Places> {
        let owners: HashMap<u32, String> =
            self.netns.iter().map(|(n, t)| (n.inode, t.pod.clone().unwrap_or_else(|| t.node.clone()))).collect();
        let held: Vec<Netns> = self
            .netns
            .iter()
            .map(|(n, _)| Ok(Netns { file: n.file.try_clone()?, inode: n.inode, path: n.path.clone() }))
            .collect::<std::io::Result<_>>()
            .context("cannot keep a namespace open")?;
        let mut places = Places::new(self.netns.iter().map(|(_, t)| t.clone()), read_again(held, self.links.clone(), owners.clone()));
        for (netns, _) in &self.netns {
            places.learn(netns.inode, devices::describe(netns.inode, &self.links, |n| owners.get(&n).cloned()));
        }
        Ok(places)
    }
}

/// Devices may appear while a trace runs.
fn read_again(held: Vec<Netns>, mut links: Links, owners: HashMap<u32, String>) -> ReadDevices {
    Box::new(move |inode| -> Vec<TracedDevice> {
        let all: Vec<&Netns> = held.iter().collect();
        let Some(netns) = held.iter().find(|n| n.inode == inode) else { return Vec::new() };
        // A namespace that cannot be asked any more leaves its devices without a name; the trace goes on.
        if let Ok(fresh) = devices::dump(netns, &all) {
            links.insert(inode, fresh);
        }
        devices::describe(inode, &links, |n| owners.get(&n).cloned())
    })
}
