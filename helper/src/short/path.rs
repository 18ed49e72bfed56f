//! The short path of one node: what the kernel says goes in, decisions come from `flow.rs`, and this is the one place that applies them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;
use sockpath_kernel::change::Watch;
use sockpath_kernel::clock::clock_ns;
use sockpath_kernel::conntrack::Tuple;
use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_kernel::netns::inside;
use sockpath_kernel::route::Route;
use sockpath_kernel::tc;
use sockpath_protocol::accel::Reason;

use super::attach::Attachments;
use super::connection::Connection;
use super::connections::Connections;
use super::devices::Pod;
use super::eligible::Topology;
use super::flow::State;
use super::outdated::Outdated;
use super::programs::{Control, Event, Programs, Slot};
use super::rules::PacketRules;
use super::table::Table;
use crate::node::Netns;

mod changes;
mod settling;
mod tracking;

/// Time between two looks at devices where nothing reports changes: inside the pods, and programs at tcx.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// Time between two lists of all entries where there are many connections: a little less than between two questions about one.
const LIST_EVERY: Duration = Duration::from_secs(9);

/// The short path of one node.
#[derive(Debug)]
pub struct Path {
    netns: Netns,
    programs: Programs,
    /// Ids of our programs.
    ours: Vec<u32>,
    pods: Vec<Pod>,
    elsewhere: HashMap<IpAddr, String>,
    /// Names of the chosen pods of all nodes, by address.
    names: HashMap<IpAddr, String>,
    topology: Topology,
    attachments: Attachments,
    table: Table,
    routes: Socket,
    known_routes: HashMap<(IpAddr, IpAddr, u32), Option<Route>>,
    watch: Watch,
    rules: PacketRules,
    connections: Connections,
    outdated: Outdated,
    /// When all entries were listed to look after the connections.
    listed: Instant,
    /// How often a connection was approved, or taken back to the stack although it goes on; and how often that was at the last look.
    approvals: u64,
    approvals_seen: u64,
    /// Nothing is attached and no connection is touched: only what would be done is found out.
    dry: bool,
    /// When devices were looked at.
    looked: Instant,
    /// Pods whose connections take the stack.
    paused: HashMap<String, Reason>,
}

impl Path {
    /// Loads the programs, attaches them, and takes what connection tracking has now.
    /// On a dry run nothing is attached.
    pub fn start(netns: Netns, pods: Vec<Pod>, elsewhere: HashMap<IpAddr, String>, dry: bool) -> Result<Self> {
        let programs = Programs::load()?;
        let control = programs.control();
        control.netns.store(netns.inode, Ordering::Relaxed);
        control.started_ns.store(clock_ns(ClockId::CLOCK_MONOTONIC)?, Ordering::Relaxed);
        let ids = [&programs.from_pod, &programs.from_node, &programs.delivered].map(|p| tc::program_id(std::os::fd::AsFd::as_fd(p)));
        let ours = ids.into_iter().collect::<Result<Vec<_>, _>>().context("cannot identify the programs of the short path")?;
        let table = Table::open(&netns, !programs.asks_conntrack)?;
        let (routes, watch) = inside(&netns.file, || {
            let routes = Socket::open(NETLINK_ROUTE).context("cannot reach the routing tables")?;
            Ok((routes, Watch::open().context("cannot follow changes of rules and routes")?))
        })?;
        let mut path = Self {
            netns,
            programs,
            ours,
            names: names(&pods, &elsewhere),
            pods,
            elsewhere,
            topology: Topology::default(),
            attachments: Attachments::new(),
            table,
            routes,
            known_routes: HashMap::new(),
            watch,
            rules: PacketRules::default(),
            connections: Connections::default(),
            outdated: Outdated::nothing(),
            listed: Instant::now(),
            approvals: 0,
            approvals_seen: 0,
            dry,
            looked: Instant::now(),
            paused: HashMap::new(),
        };
        path.look_around()?;
        path.rules.changed();
        path.rules.refresh(&path.netns)?;
        path.track_all(true)?;
        Ok(path)
    }

    /// Descriptors that are readable when there is something to do.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        // SAFETY: the ring buffer lives as long as `self`, and so does its descriptor.
        let events = unsafe { BorrowedFd::borrow_raw(self.programs.event_fd()) };
        std::iter::once(events).chain(self.watch.fds()).chain(self.table.fd()).collect()
    }

    /// The programs' variables.
    pub fn control(&self) -> &Control {
        self.programs.control()
    }

    /// The programs, whose maps can be pinned.
    pub fn programs_mut(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// Takes in what has happened; whether approvals have changed since the last look.
    pub fn look(&mut self) -> Result<bool> {
        let changes = self.watch.changes().context("cannot read changes of rules and routes")?;
        if !changes.is_empty() {
            self.take_in(&changes)?;
        }
        match self.table.gone()? {
            Some(entries) => entries.iter().for_each(|e| self.forget(e)),
            None => self.review()?,
        }
        if self.catch_up()? {
            self.review()?;
        }
        let mut unsettled = Vec::new();
        for event in self.programs.events()? {
            match event {
                Event::Candidate(tuple) => self.consider(&tuple)?,
                Event::Ready(slot) | Event::Over(slot) => unsettled.extend(self.connections.of_slot(slot)),
            }
        }
        self.settle(&unsettled, None)?;
        Ok(std::mem::replace(&mut self.approvals_seen, self.approvals) != self.approvals)
    }

    /// Looks after all connections; once a second is enough.
    pub fn review(&mut self) -> Result<()> {
        if self.looked.elapsed() >= LOOK_AROUND {
            self.connections.purge();
            let before = self.topology.clone();
            self.look_around()?;
            if self.topology != before {
                self.begin_epoch();
                self.plan_again()?;
            }
        }
        if self.rules.refresh(&self.netns)? {
            self.plan_again()?;
        }
        if self.dry {
            self.track_all(true)?;
        }
        self.table.refresh_settings();
        let is_due = self.table.is_list_worth_it(self.connections.len()) && self.listed.elapsed() >= LIST_EVERY;
        let listed = if is_due {
            self.listed = Instant::now();
            Some(self.list_by_tuple()?)
        } else {
            None
        };
        let unsettled = |c: &&Connection| listed.is_some() || !self.is_settled(c);
        let unsettled: Vec<Tuple> = self.connections.iter().filter(unsettled).map(Connection::original).collect();
        self.settle(&unsettled, listed.as_ref())
    }

    /// Whether nothing is attached.
    pub fn is_dry(&self) -> bool {
        self.dry
    }

    /// Makes these the chosen pods.
    pub fn choose(&mut self, pods: Vec<Pod>, elsewhere: HashMap<IpAddr, String>) -> Result<()> {
        self.names = names(&pods, &elsewhere);
        (self.pods, self.elsewhere) = (pods, elsewhere);
        self.begin_epoch();
        self.look_around()?;
        self.plan_again()?;
        self.track_all(true)
    }

    /// Has the connections of these pods take the stack, or no longer.
    pub fn pause(&mut self, pods: impl Iterator<Item = String>, why: Option<Reason>) -> Result<()> {
        for pod in pods {
            match why {
                Some(reason) => self.paused.insert(pod, reason),
                None => self.paused.remove(&pod),
            };
        }
        self.review()
    }

    /// Ends every redirect and detaches the programs.
    pub fn stop(&mut self) -> Result<()> {
        self.programs.end_lease();
        for tuple in self.connections.tuples() {
            self.drop_connection(&tuple);
        }
        let detached = self.attachments.detach_all(&self.netns, &self.programs);
        self.control().released.store(1, Ordering::Release);
        detached
    }

    /// The names of the pods at the two ends of a connection, client and server.
    pub fn pod_names(&self, connection: &Connection) -> [Option<&str>; 2] {
        [connection.original(), connection.reply()].map(|tuple| self.names.get(&tuple.source.ip()).map(String::as_str))
    }

    /// Chosen pods whose packets a limit or filter at their device, or a rule, has to see.
    pub fn limited(&self) -> impl Iterator<Item = &str> {
        let refusal = |ip: &IpAddr| self.topology.ports.get(ip).and_then(|port| port.refusal);
        let is_limited = move |pod: &&Pod| pod.ips.iter().filter_map(refusal).any(is_for_every_packet);
        let of_connections = self.connections().filter(|c| c.state == State::Refused(Reason::PacketRule)).flat_map(|c| self.pod_names(c));
        self.pods.iter().filter(is_limited).map(|pod| pod.name.as_str()).chain(of_connections.flatten())
    }

    /// Why a connection has to take the stack for the time being, if so.
    pub fn paused(&self, connection: &Connection) -> Option<Reason> {
        if self.paused.is_empty() {
            return None;
        }
        self.pod_names(connection).into_iter().flatten().find_map(|name| self.paused.get(name).copied())
    }

    /// The connections.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.connections.iter()
    }

    /// The state of a connection's directions, while the programs know it.
    pub fn slots(&self, connection: &Connection) -> Option<[&Slot; 2]> {
        let (slot, _) = connection.installed.as_ref()?;
        Some([self.programs.slot(*slot)?, self.programs.slot(slot + 1)?])
    }

    /// The current epoch.
    pub fn epoch(&self) -> u32 {
        self.programs.epoch()
    }
}

/// The names of pods by address; a pod of this node takes precedence.
fn names(pods: &[Pod], elsewhere: &HashMap<IpAddr, String>) -> HashMap<IpAddr, String> {
    let here = pods.iter().flat_map(|pod| pod.ips.iter().map(|ip| (*ip, pod.name.clone())));
    elsewhere.iter().map(|(ip, name)| (*ip, name.clone())).chain(here).collect()
}

/// Whether every packet has to be seen, whatever its connection is: the socket path may not bypass that by itself either.
fn is_for_every_packet(reason: Reason) -> bool {
    matches!(reason, Reason::QueueDiscipline | Reason::TcFilter)
}
