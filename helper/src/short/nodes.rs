//! The short paths of the nodes of a request: one [`Path`] for each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, ChoosePods, PairsSnapshot, PodElsewhere, PodName, Reason};
use sockpath_protocol::pod::{Node, Pod as Chosen};

use super::devices::Pod;
use super::path::Path;
use super::pins;
use super::programs::nanos;
use super::report::snapshot;
use crate::node::{self, NetnsRef};
use crate::pins::Pins;
use crate::site::Site;

/// The short paths of the nodes of a request. Dropping it ends every redirect.
#[derive(Debug)]
pub struct ShortPath {
    nodes: Vec<Node>,
    site: Site,
    paths: Vec<(String, Path)>,
    events: Epoll,
    began: Instant,
}

impl ShortPath {
    /// Starts on the nodes of these pods; what there is to warn of. On a dry run nothing is attached or pinned. Nothing is redirected
    /// before the first renewal of the lease.
    ///
    /// # Errors
    /// When the kernel refuses the programs, connection tracking or netlink.
    pub fn start(site: &Site, request: &AccelerateRequest) -> Result<(Self, Vec<String>)> {
        let (nodes, pods, elsewhere) = (&request.nodes, &request.pods, &request.elsewhere);
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
        let mut short = Self { site: site.clone(), nodes: nodes.clone(), paths: Vec::new(), events, began: Instant::now() };
        let dry = request.dry_run_ms.is_some();
        let (mut by_node, warnings) = find(site, pods);
        for (name, found) in by_node.drain() {
            let node =
                short.nodes.iter().find(|n| n.name == name).cloned().unwrap_or(Node { name: name.clone(), ips: Vec::new(), netns: None });
            let far = far_pods(pods, elsewhere, &name);
            let mut path = Path::start(node::node_netns(site, &node)?, found, far, dry).with_context(|| format!("node {name}"))?;
            if !dry {
                describe(&path, request);
                pins::pin(&Pins::of(site), short.paths.len(), path.programs_mut())?;
            }
            path.fds().into_iter().try_for_each(|fd| short.wait_for(fd))?;
            short.paths.push((name, path));
        }
        Ok((short, warnings))
    }

    /// Has [`ShortPath::wait`] return when this is readable, too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_for(&self, fd: impl AsFd) -> Result<()> {
        self.events.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).context("cannot wait for events")
    }

    /// Waits until [`ShortPath::look`] has something to do, or for that long.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, at_most: Duration) -> Result<()> {
        let timeout = EpollTimeout::try_from(at_most).unwrap_or(EpollTimeout::ZERO);
        match self.events.wait(&mut [EpollEvent::empty(); 8], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("cannot wait for events"),
        }
    }

    /// Whether none of the chosen pods is on a node of this machine.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Takes in what has happened; whether approvals have changed.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn look(&mut self) -> Result<bool> {
        self.paths.iter_mut().try_fold(false, |news, (_, path)| Ok(path.look()? || news))
    }

    /// Looks after all connections.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn review(&mut self) -> Result<()> {
        self.paths.iter_mut().try_for_each(|(_, p)| p.review())
    }

    /// Lets packets be redirected for that long from now.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        self.paths.iter().try_for_each(|(_, p)| p.control().renew(lease))
    }

    /// The owner and who ends it, when another session does.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        let controls = self.paths.iter().map(|(_, p)| p.control());
        controls.filter(|c| c.stopped.load(Ordering::Acquire) != 0).map(|c| c.owner()).next()
    }

    /// Makes these the chosen pods; what there is to warn of.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn choose(&mut self, request: &ChoosePods) -> Result<Vec<String>> {
        let (mut by_node, warnings) = find(&self.site, &request.pods);
        for (name, path) in &mut self.paths {
            let far = far_pods(&request.pods, &request.elsewhere, name);
            path.choose(by_node.remove(name).unwrap_or_default(), far)?;
        }
        Ok(warnings)
    }

    /// Has the connections of these pods take the stack, or no longer.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn pause(&mut self, pods: &[PodName], why: Option<Reason>) -> Result<()> {
        self.paths.iter_mut().try_for_each(|(_, p)| p.pause(pods.iter().map(PodName::to_string), why))
    }

    /// Names of chosen pods whose packets a limit or filter at their device has to see.
    #[must_use]
    pub fn limited(&self) -> Vec<String> {
        self.paths.iter().flat_map(|(_, p)| p.limited()).map(str::to_owned).collect()
    }

    /// All connections.
    #[must_use]
    pub fn snapshot(&self) -> PairsSnapshot {
        snapshot(self.paths.iter().map(|(_, p)| p))
    }

    /// What it achieved so far.
    #[must_use]
    pub fn summary(&self) -> AccelSummary {
        let ran_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        AccelSummary { totals: self.snapshot().totals, ran_ms, ..AccelSummary::default() }
    }

    /// Ends every redirect; what it achieved.
    ///
    /// # Errors
    /// When a program cannot be detached. It passes everything.
    pub fn stop(&mut self) -> Result<AccelSummary> {
        let summary = self.summary();
        let stopped = self.paths.iter_mut().map(|(_, p)| p.stop()).fold(Ok(()), Result::and);
        stopped.map(|()| summary)
    }
}

/// Notes for other processes whose it is, and how long it lasts.
fn describe(path: &Path, request: &AccelerateRequest) {
    let control = path.control();
    let started = control.started_ns.load(Ordering::Relaxed);
    control.set_owner(&request.owner);
    control.detached.store(request.detach.into(), Ordering::Relaxed);
    control.ends_ns.store(started.saturating_add(nanos(Duration::from_millis(request.lease_ms))), Ordering::Relaxed);
}

/// The pods as this machine has them, by node.
fn find(site: &Site, pods: &[Chosen]) -> (HashMap<String, Vec<Pod>>, Vec<String>) {
    let mut found: HashMap<String, Vec<Pod>> = HashMap::new();
    let mut warnings = Vec::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if pod.host_network {
            warnings.push(format!("pod {name} uses the node's network namespace and is excluded"));
            continue;
        }
        match node::find(site, pod) {
            Ok(there) => {
                let ips = pod.ips.iter().map(IpAddr::to_canonical).collect();
                found.entry(pod.node.clone()).or_default().push(Pod { name, ips, netns: NetnsRef::from(&there.netns) });
            }
            Err(e) => warnings.push(format!("pod {name} is excluded: {e:#}")),
        }
    }
    (found, warnings)
}

/// Chosen pods that are not on this node, by address.
fn far_pods(pods: &[Chosen], elsewhere: &[PodElsewhere], node: &str) -> HashMap<IpAddr, String> {
    let others = pods.iter().filter(|p| p.node != node).map(PodElsewhere::from);
    let all = others.chain(elsewhere.iter().cloned());
    all.flat_map(|p| p.ips.iter().map(|ip| (ip.to_canonical(), p.pod.to_string())).collect::<Vec<_>>()).collect()
}
