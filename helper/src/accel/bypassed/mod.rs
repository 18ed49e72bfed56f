//! What redirected bytes of the chosen pods would bypass: read from the kernel, nothing is touched.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use sockpath_protocol::accel::AccelerateRequest;
use sockpath_protocol::bypass::{BypassKind, Bypassed, gather};

use super::chosen::Chosen;
use crate::node::programs::Programs;
use crate::node::{self, FoundPod, Netns, Placement};
use crate::trace::devices::{self, Link};
use crate::trace::{rules, tc};

/// A chosen pod that was found.
struct Subject<'a> {
    name: &'a str,
    found: &'a FoundPod,
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Findings {
    /// What would be bypassed.
    pub bypassed: Vec<Bypassed>,
    /// What is not known.
    pub unknown: Vec<String>,
}

impl Findings {
    fn take<T>(&mut self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        result.map_err(|e| self.unknown.push(format!("what would be bypassed is not known in full: {what}: {e:#}"))).ok()
    }

    fn add(&mut self, kind: BypassKind, what: String, place: String, pods: Vec<String>) {
        self.bypassed.push(Bypassed { kind, what, place, pods });
    }
}

/// Looks at the chosen pods: their devices and the other ends of these, the rules of their namespaces and nodes, the programs of
/// their control groups. Called before any program of sockpath is attached.
pub fn find(chosen: &Chosen, request: &AccelerateRequest) -> Findings {
    let mut findings = Findings::default();
    let names = chosen.names();
    let subjects: Vec<Subject<'_>> =
        chosen.pods().iter().filter_map(|found| Some(Subject { name: names.here.get(&found.netns.inode)?, found })).collect();
    let opened = request.nodes.iter().map(|n| (&n.name, node::node_netns(chosen.site(), n))).collect::<Vec<_>>();
    let nodes: Vec<(&String, Netns)> = opened.into_iter().filter_map(|(name, n)| Some((name, findings.take(name, n)?))).collect();
    let programs = findings.take("BPF programs", Programs::loaded()).unwrap_or_default();

    let node_spaces: Vec<&Netns> = nodes.iter().map(|(_, n)| n).collect();
    let node_links: HashMap<u32, Vec<Link>> =
        nodes.iter().filter_map(|(name, n)| Some((n.inode, findings.take(name, devices::dump(n, &[]))?))).collect();
    // The devices at the nodes' ends, and whose they are.
    let mut at_nodes: HashMap<u32, Vec<(u32, String, &str)>> = HashMap::new();
    for pod in &subjects {
        let Some(links) = findings.take(pod.name, devices::dump(&pod.found.netns, &node_spaces)) else { continue };
        for (inode, index) in links.iter().filter_map(|l| l.peer).filter_map(|(inode, index)| Some((inode?, index))) {
            if let Some(link) = node_links.get(&inode).and_then(|all| all.iter().find(|l| l.ifindex == index)) {
                at_nodes.entry(inode).or_default().push((index, link.name.clone(), pod.name));
            }
        }
        let here: Vec<(u32, String)> = links.iter().map(|l| (l.ifindex, l.name.clone())).collect();
        if let Some(found) = findings.take(pod.name, tc::on_devices(&pod.found.netns.file, &here, &programs)) {
            for (device, kind, what) in found {
                findings.add(kind, what, format!("{device} in the pod"), vec![pod.name.to_owned()]);
            }
        }
    }
    for (name, netns) in &nodes {
        let Some(devices) = at_nodes.get(&netns.inode) else { continue };
        let here: Vec<(u32, String)> = devices.iter().map(|(index, device, _)| (*index, device.clone())).collect();
        if let Some(found) = findings.take(name, tc::on_devices(&netns.file, &here, &programs)) {
            for (device, kind, what) in found {
                let pods = devices.iter().filter(|(_, d, _)| *d == device).map(|(.., pod)| (*pod).to_owned()).collect();
                findings.add(kind, what, format!("{device} on {name}"), pods);
            }
        }
    }
    rules_of(&mut findings, &subjects, &nodes, request);
    for pod in &subjects {
        let (Placement::Own(cgroup) | Placement::Root(cgroup)) = &pod.found.cgroup else { continue };
        if let Some(found) = findings.take(pod.name, programs.of_cgroup(&cgroup.dir)) {
            for what in found {
                findings.add(BypassKind::CgroupProgram, what, "the pod's control group, or above".into(), vec![pod.name.to_owned()]);
            }
        }
    }
    for what in programs.of_sockmaps() {
        findings.add(BypassKind::SockmapProgram, what, "a sockmap on this machine".into(), Vec::new());
    }
    findings.bypassed = gather(findings.bypassed);
    findings
}

/// Rules of the nodes and of the pods' own namespaces.
fn rules_of(findings: &mut Findings, subjects: &[Subject<'_>], nodes: &[(&String, Netns)], request: &AccelerateRequest) {
    let named = |name: &str| request.pods.iter().find(|p| name.split_once('/') == Some((&p.namespace, &p.name)));
    let addresses: HashMap<IpAddr, &str> =
        subjects.iter().flat_map(|s| named(s.name).into_iter().flat_map(|p| p.ips.iter().map(|ip| (ip.to_canonical(), s.name)))).collect();
    let ips: HashSet<IpAddr> = addresses.keys().copied().collect();
    let spaces = nodes.iter().map(|(name, n)| (format!("on {name}"), n, Vec::new()));
    let own = subjects.iter().map(|s| ("in the pod".to_owned(), &s.found.netns, vec![s.name.to_owned()]));
    for (place, netns, whose) in spaces.chain(own).collect::<Vec<_>>() {
        if let Some(tables) = findings.take(&place, rules::legacy_tables(&netns.file)).filter(|t| !t.is_empty()) {
            findings.unknown.push(format!(
                "what would be bypassed is not known in full: {place} there are {}, which are not read; `iptables-legacy-save` and \
                 `ip6tables-legacy-save` there list them",
                tables.join(", ")
            ));
        }
        let Some(traversed) = findings.take(&place, rules::traversed(&netns.file, &ips)) else { continue };
        for rule in traversed {
            let mut pods: Vec<String> = rule.ips.iter().filter_map(|ip| addresses.get(ip)).map(|name| (*name).to_owned()).collect();
            if pods.is_empty() {
                pods.clone_from(&whose);
            }
            findings.add(BypassKind::NetfilterRule, rule.what, format!("{} {place}", rule.chain), pods);
        }
    }
}
