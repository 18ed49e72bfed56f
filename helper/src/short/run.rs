//! A session of the short path: one [`Path`] for each node, and the loop that drives them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use sockpath_protocol::accel::{AccelSummary, AccelerateRequest, ChoosePods, PodElsewhere, PodName, Reason};
use sockpath_protocol::message::EndReason;
use sockpath_protocol::request::{Node, Pod as Chosen};
use sockpath_protocol::{Message, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::devices::Pod;
use super::path::Path;
use super::report::snapshot;
use crate::node;
use crate::session::{Coded, Inbound, Session};
use crate::site::Site;

/// Time between two snapshots, and between two reviews of all connections.
const SNAPSHOT: Duration = Duration::from_secs(1);

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
    /// Starts on the nodes of these pods; what there is to warn of. On a dry run nothing is attached.
    ///
    /// # Errors
    /// When the kernel refuses the programs, connection tracking or netlink.
    pub fn start(site: &Site, request: &AccelerateRequest, lease: Duration, dry: bool) -> Result<(Self, Vec<String>)> {
        let (nodes, pods, elsewhere) = (&request.nodes, &request.pods, &request.elsewhere);
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
        let mut short = Self { site: site.clone(), nodes: nodes.clone(), paths: Vec::new(), events, began: Instant::now() };
        let (mut by_node, warnings) = find(site, pods);
        for (name, found) in by_node.drain() {
            let node =
                short.nodes.iter().find(|n| n.name == name).cloned().unwrap_or(Node { name: name.clone(), ips: Vec::new(), netns: None });
            let far = far_pods(pods, elsewhere, &name);
            let path = Path::start(node::node_netns(site, &node)?, found, far, lease, dry).with_context(|| format!("node {name}"))?;
            for fd in path.fds() {
                short.events.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).context("cannot wait for events")?;
            }
            short.paths.push((name, path));
        }
        Ok((short, warnings))
    }

    /// A descriptor that is readable when [`ShortPath::look`] has something to do.
    ///
    /// # Errors
    /// When it cannot be duplicated.
    pub fn fd(&self) -> Result<OwnedFd> {
        self.events.0.as_fd().try_clone_to_owned().context("cannot wait for events")
    }

    /// Takes in what has happened.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn look(&mut self) -> Result<()> {
        self.paths.iter_mut().try_for_each(|(_, p)| p.look())
    }

    /// Looks after all connections.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn review(&mut self) -> Result<()> {
        self.paths.iter_mut().try_for_each(|(_, p)| p.review())
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// When the clock cannot be read.
    pub fn renew(&self, lease: Duration) -> Result<()> {
        self.paths.iter().try_for_each(|(_, p)| p.renew(lease))
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

    /// All connections.
    #[must_use]
    pub fn snapshot(&self) -> sockpath_protocol::accel::PairsSnapshot {
        snapshot(self.paths.iter().map(|(_, p)| p))
    }

    /// Ends every redirect; what it achieved.
    ///
    /// # Errors
    /// When a program cannot be detached. Its filter passes everything.
    pub fn stop(&mut self) -> Result<AccelSummary> {
        let totals = self.snapshot().totals;
        let stopped = self.paths.iter_mut().map(|(_, p)| p.stop()).fold(Ok(()), Result::and);
        let ran_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        stopped.map(|()| AccelSummary { totals, ran_ms, left_enrolled: 0, detached: false, stopped_by: None })
    }
}

/// The pods as this machine has them, by node.
fn find(site: &Site, pods: &[Chosen]) -> (HashMap<String, Vec<Pod>>, Vec<String>) {
    let mut found: HashMap<String, Vec<Pod>> = HashMap::new();
    let mut warnings = Vec::new();
    for pod in pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if pod.host_network {
            warnings.push(format!("pod {name} uses the node's network namespace and is left alone"));
            continue;
        }
        match node::find(site, pod) {
            Ok(there) => {
                let ips = pod.ips.iter().map(IpAddr::to_canonical).collect();
                found.entry(pod.node.clone()).or_default().push(Pod { name, ips, netns: there.netns });
            }
            Err(e) => warnings.push(format!("pod {name} is left alone: {e:#}")),
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

/// Serves a request by the short path until the session has to end.
pub async fn run(session: &mut Session, request: AccelerateRequest) -> Result<EndReason> {
    let lease = Duration::from_millis(request.lease_ms);
    if request.detach {
        return Err(Coded::new("detach", "the short path ends with its session: start it without --detach"));
    }
    let dry = request.dry_run_ms.map(Duration::from_millis);
    let (mut short, warnings) = ShortPath::start(session.site(), &request, lease, dry.is_some())?;
    for text in warnings {
        session.warn(text)?;
    }
    if short.paths.is_empty() {
        return Err(Coded::new("no-pods", "none of the chosen pods runs on this node"));
    }
    let reason = serve(session, &mut short, lease, dry).await;
    session.send(&Message::Summary(short.stop()?))?;
    reason
}

async fn serve(session: &mut Session, short: &mut ShortPath, lease: Duration, dry: Option<Duration>) -> Result<EndReason> {
    let end = tokio::time::sleep(dry.unwrap_or_default());
    tokio::pin!(end);
    // SAFETY: an OwnedFd is one descriptor from its creation to its end.
    let events = unsafe { AsyncFd::register_with_interest(short.fd()?, Interest::READABLE) }.context("cannot wait for events")?;
    let mut snapshots = tokio::time::interval(SNAPSHOT);
    let mut renewals = tokio::time::interval(SNAPSHOT.min(lease / 3).max(Duration::from_millis(10)));
    loop {
        tokio::select! {
            inbound = session.next() => match inbound {
                Inbound::Request(Request::Finish) => return Ok(EndReason::Finished),
                Inbound::Request(Request::Pause(p)) => short.pause(&p.pods, Some(Reason::NetworkPolicy))?,
                Inbound::Request(Request::Resume(r)) => short.pause(&r.pods, None)?,
                Inbound::Request(Request::Choose(c)) => for text in short.choose(&c)? {
                    session.warn(text)?;
                },
                Inbound::Request(_) => {}
                Inbound::Stop(reason) => return Ok(reason),
            },
            () = &mut end, if dry.is_some() => {
                session.send(&Message::Pairs(short.snapshot()))?;
                return Ok(EndReason::Done);
            }
            _ = renewals.tick() => short.renew(lease)?,
            ready = events.readable() => {
                ready.context("cannot wait for events")?.clear_ready();
                short.look()?;
            }
            _ = snapshots.tick() => {
                short.review()?;
                session.send(&Message::Pairs(short.snapshot()))?;
            }
        }
    }
}
