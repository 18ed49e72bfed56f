//! The pods whose connections are taken: those that were named at the start, and those that came or went since.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use anyhow::Result;
use sockpath_protocol::accel::PodElsewhere;
use sockpath_protocol::pod::Pod;

use super::instance::Instance;
use super::report::PodNames;
use super::tracking;
use crate::node::{self, FoundPod, Netns, Placement};
use crate::site::Site;

/// The chosen pods as this node has them.
#[derive(Debug)]
pub struct Chosen {
    /// Where they are looked for.
    site: Site,
    /// By UID, in the order of `found`.
    uids: Vec<String>,
    found: Vec<FoundPod>,
    names: PodNames,
    /// The node of each pod, by the inode of its network namespace: in the lab one helper serves several.
    nodes: HashMap<u32, String>,
    /// Namespaces of pods that were let go while they run: held, so that the numbers of their inodes are not given to others.
    let_go: Vec<Netns>,
}

/// What a change brought.
#[derive(Debug, Default)]
pub struct Change {
    /// Network namespaces of pods that run but are no longer chosen, by inode.
    pub let_go: Vec<u32>,
    /// Those of pods that are chosen now.
    pub joined: Vec<u32>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Chosen {
    /// Finds pods on this node; what there is to warn of.
    pub fn find(site: &Site, pods: &[Pod], elsewhere: &[PodElsewhere]) -> (Self, Vec<String>) {
        let mut chosen = Self::none(site);
        let warnings = pods.iter().filter_map(|pod| chosen.add(pod)).collect();
        chosen.note_elsewhere(elsewhere);
        (chosen, warnings)
    }

    /// No pods.
    pub fn none(site: &Site) -> Self {
        let (uids, found, let_go) = (Vec::new(), Vec::new(), Vec::new());
        Self { site: site.clone(), uids, found, names: PodNames::default(), nodes: HashMap::new(), let_go }
    }

    /// Where they were looked for.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Whether a chosen pod of another node has this address.
    pub fn is_elsewhere(&self, ip: IpAddr) -> bool {
        self.names.elsewhere.contains_key(&ip)
    }

    /// Notes where the other chosen pods are. A pod that is found here is not elsewhere.
    fn note_elsewhere(&mut self, pods: &[PodElsewhere]) {
        let here: HashSet<&String> = self.names.here.values().collect();
        let addresses = pods.iter().map(|p| (p.pod.to_string(), &p.ips)).filter(|(name, _)| !here.contains(name));
        self.names.elsewhere = addresses.flat_map(|(name, ips)| ips.iter().map(move |ip| (ip.to_canonical(), name.clone()))).collect();
    }

    /// The pods.
    pub fn pods(&self) -> &[FoundPod] {
        &self.found
    }

    /// Their names.
    pub fn names(&self) -> &PodNames {
        &self.names
    }

    /// Whether two of them are on different nodes.
    pub fn are_apart(&self, netns: [u32; 2]) -> bool {
        let [a, b] = netns.map(|n| self.nodes.get(&n));
        a.is_some() && b.is_some() && a != b
    }

    /// The network namespaces of those of these pods that are chosen.
    pub fn netns_of(&self, pods: impl IntoIterator<Item = String>) -> Vec<u32> {
        let wanted: HashSet<String> = pods.into_iter().collect();
        self.names.here.iter().filter(|(_, name)| wanted.contains(*name)).map(|(netns, _)| *netns).collect()
    }

    /// Makes these the chosen ones: tracks the sockets of those that are new, and lets the others go.
    ///
    /// # Errors
    /// When the kernel refuses; what was changed by then stays so.
    pub fn change(&mut self, instance: &Instance, pods: &[Pod], elsewhere: &[PodElsewhere]) -> Result<Change> {
        let mut change = Change::default();
        let wanted: HashSet<&str> = pods.iter().map(|p| p.uid.as_str()).collect();
        for i in (0..self.uids.len()).rev().filter(|&i| !wanted.contains(self.uids[i].as_str())).collect::<Vec<_>>() {
            let gone = self.remove(i);
            tracking::detach(instance, &gone)?;
            if gone.is_there() {
                change.let_go.push(gone.netns.inode);
                self.let_go.push(gone.netns);
            }
        }
        for pod in pods.iter().filter(|p| !self.uids.contains(&p.uid)).collect::<Vec<_>>() {
            change.warnings.extend(self.add(pod));
            if self.uids.last() != Some(&pod.uid) {
                continue;
            }
            let Some(found) = self.found.last() else { continue };
            tracking::attach(instance, std::slice::from_ref(found))?;
            instance.track_live(found)?;
            change.joined.push(found.netns.inode);
            self.let_go.retain(|netns| netns.inode != found.netns.inode);
        }
        self.note_elsewhere(elsewhere);
        Ok(change)
    }

    /// Releases the pods that are gone, and their network namespaces: one that is held keeps its devices and addresses. Without a control group
    /// of its own, a pod whose containers start again would pass for gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release_gone(&mut self, instance: &Instance) -> Result<()> {
        let is_gone = |pod: &FoundPod| matches!(pod.cgroup, Placement::Own(_)) && !pod.is_there();
        for i in (0..self.found.len()).rev().filter(|&i| is_gone(&self.found[i])).collect::<Vec<_>>() {
            let gone = self.remove(i);
            tracking::detach(instance, &gone)?;
        }
        Ok(())
    }

    fn remove(&mut self, at: usize) -> FoundPod {
        self.uids.remove(at);
        let gone = self.found.remove(at);
        self.names.here.remove(&gone.netns.inode);
        gone
    }

    /// Adds one pod; gives a warning where it cannot be taken as asked.
    fn add(&mut self, pod: &Pod) -> Option<String> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if pod.host_network {
            return Some(format!("pod {name} uses the node's network namespace and is excluded"));
        }
        match node::find(&self.site, pod) {
            Ok(found) => {
                let warning = (found.cgroup == Placement::Nowhere).then(|| {
                    format!(
                        "pod {name} is in no cgroup v2, which is not mounted on this node: only connections that are open now are accelerated; \
                         mount -t cgroup2 none /sys/fs/cgroup/unified there for those to come"
                    )
                });
                self.names.here.insert(found.netns.inode, name);
                self.nodes.insert(found.netns.inode, pod.node.clone());
                self.uids.push(pod.uid.clone());
                self.found.push(found);
                warning
            }
            Err(e) => Some(format!("pod {name} is excluded: {e:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::accel::PodName;

    use super::*;

    #[test]
    fn pods_of_other_nodes_are_known_by_their_addresses() {
        let pod = |name: &str, ips: &[&str]| PodElsewhere {
            pod: PodName { namespace: "shop".into(), name: name.into() },
            ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        };
        let mut chosen = Chosen::none(&Site::Node);
        chosen.names.here.insert(7, "shop/web".into());
        chosen.note_elsewhere(&[pod("web", &["10.42.1.2"]), pod("db", &["::ffff:10.42.2.3", "fd00::3"])]);
        let elsewhere = |ip: &str| chosen.is_elsewhere(ip.parse().expect("an address"));
        assert!(elsewhere("10.42.2.3") && elsewhere("fd00::3"));
        assert!(!elsewhere("10.42.1.2"), "it is here");
        assert!(!elsewhere("10.42.2.4"));
        chosen.note_elsewhere(&[]);
        assert!(!chosen.is_elsewhere("10.42.2.3".parse().expect("an address")), "it is no longer chosen");
    }
}
