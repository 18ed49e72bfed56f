//! The short path of one node: what the kernel says goes in, decisions come from `flow.rs`, and this is the one place that applies them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;
use sockpath_kernel::change::{Changes, Watch};
use sockpath_kernel::clock::clock_ns;
use sockpath_kernel::conntrack::{Entry, Tuple, Update};
use sockpath_kernel::netlink::{NETLINK_ROUTE, Socket};
use sockpath_kernel::netns::inside;
use sockpath_kernel::route::{self, Route};
use sockpath_kernel::tc;
use sockpath_protocol::accel::Reason;

use super::attach::{Attachments, Role};
use super::connections::{Connection, Connections};
use super::devices::{self, Pod};
use super::eligible::{Leg, Target, Topology, directions, legs};
use super::flow::{Action, Snapshot, State, Tracking, decide};
use super::outdated::{Extent, Outdated};
use super::programs::{Control, Event, Programs, Slot};
use super::rules::PacketRules;
use super::table::{MAKE_LIBERAL, Table};
use crate::node::Netns;

/// Time between two looks at devices where nothing reports changes: inside the pods, and programs at tcx.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// Time between two lists of all entries where there are many connections: a little less than between two questions about one.
const LIST_EVERY: Duration = Duration::from_secs(9);

/// How long an answer of connection tracking is valid for an approval of a connection without translation: a new entry of its tuple would
/// translate nothing either, and the programs look up the entry when they redirect.
const ANSWER_HOLDS: Duration = Duration::from_secs(2);

/// A connection whose entry is to be changed before the rest is done.
struct Pending {
    connection: Connection,
    update: Update,
    rest: Vec<Action>,
}

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
        let unsettled: Vec<Tuple> = self.connections.iter().filter(unsettled).map(|c| c.original).collect();
        self.settle(&unsettled, listed.as_ref())
    }

    /// Whether nothing is to be done about a connection.
    fn is_settled(&self, connection: &Connection) -> bool {
        let snapshot = self.snapshot(connection, Tracking::NotAsked);
        self.note_pause(connection, snapshot.paused);
        let (state, actions) = decide(connection.state, &snapshot);
        state == connection.state && actions.is_empty()
    }

    /// The entries of our connections; of one that is absent here, the entry is gone, or was missed by the list.
    fn list_by_tuple(&mut self) -> Result<HashMap<Tuple, Entry>> {
        let listed = self.table.list(|entry| self.connections.get(&entry.original).is_some_and(|c| c.id == entry.id))?;
        Ok(listed.into_iter().map(|entry| (entry.original, entry)).collect())
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
        [connection.original.source.ip(), connection.reply.source.ip()].map(|ip| self.names.get(&ip).map(String::as_str))
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

    fn begin_epoch(&mut self) {
        self.programs.set_epoch(self.programs.epoch().wrapping_add(1));
        self.known_routes.clear();
    }

    /// Finds the node's devices and the pods', and attaches to the pods'.
    fn look_around(&mut self) -> Result<()> {
        self.looked = Instant::now();
        self.topology = devices::discover(&self.netns, &self.pods, self.elsewhere.keys().copied(), &self.ours)?;
        if self.dry {
            return Ok(());
        }
        let fit: HashSet<u32> = self.topology.ports.values().filter(|p| p.refusal.is_none()).map(|p| p.device).collect();
        self.attachments.keep_pods(&self.netns, &self.programs, &fit)?;
        for device in fit {
            if self.attachments.attach(&self.netns, &self.programs, device, Role::Pod).is_err() {
                let ports = self.topology.ports.values_mut().filter(|p| p.device == device);
                ports.for_each(|p| p.refusal = Some(Reason::Refused));
            }
        }
        Ok(())
    }

    /// What has changed sends every connection back to the stack before anything else is done.
    fn take_in(&mut self, changes: &Changes) -> Result<()> {
        let uplinks = self.attachments.uplinks();
        let mut links = changes.links.iter();
        let device_changed = links
            .any(|l| devices::is_of_interest(&self.topology, &uplinks, l.index) && self.topology.links.get(&l.index) != Some(l))
            || changes.gone.iter().any(|index| devices::is_of_interest(&self.topology, &uplinks, *index));
        if !(changes.rules || changes.routes || changes.tc || changes.lost || device_changed) {
            return Ok(());
        }
        self.begin_epoch();
        if changes.rules || changes.lost {
            self.rules.changed();
        }
        for index in &changes.gone {
            self.attachments.detach(&self.netns, &self.programs, *index)?;
        }
        if changes.tc || changes.lost || device_changed {
            self.outdated.note(Extent::Devices);
        } else if changes.routes {
            self.outdated.note(Extent::Plans);
        }
        self.catch_up()?;
        self.review()
    }

    /// Looks at devices and plans anew, as far as something has changed and that is due; whether it was.
    fn catch_up(&mut self) -> Result<bool> {
        let Some(extent) = self.outdated.due() else { return Ok(false) };
        let began = Instant::now();
        if extent == Extent::Devices {
            self.look_around()?;
        }
        self.plan_again()?;
        self.outdated.caught_up(began.elapsed());
        Ok(true)
    }

    /// Finds out anew what becomes of the packets of each connection.
    fn plan_again(&mut self) -> Result<()> {
        let listed = if self.table.is_list_worth_it(self.connections.len()) { self.list_by_tuple()? } else { HashMap::new() };
        for tuple in self.connections.tuples() {
            let Some(mut connection) = self.connections.take(&tuple) else { continue };
            let entry = match listed.get(&tuple) {
                Some(entry) => Some(entry.clone()),
                None => self.table.get(&connection.original)?,
            };
            let planned = match entry {
                Some(entry) if entry.id == connection.id => self.plan(&entry),
                _ => Err(Reason::NotTracked),
            };
            let same = planned.ok().is_some_and(|legs| connection.installed.as_ref().is_some_and(|(_, old)| **old == legs));
            if !same {
                self.uninstall(&mut connection);
                connection.state = match planned {
                    Ok(legs) if self.install(&mut connection, legs)? => State::Watched,
                    Ok(_) => State::Refused(Reason::Refused),
                    Err(reason) => State::Refused(reason),
                };
            }
            self.connections.put(connection);
        }
        Ok(())
    }

    /// Takes every connection of the chosen pods that connection tracking has.
    fn track_all(&mut self, live: bool) -> Result<()> {
        let at = Instant::now();
        let ports = &self.topology.ports;
        let found = self.table.list(|entry| [entry.original, entry.reply].iter().any(|t| ports.contains_key(&t.source.ip())))?;
        found.iter().try_for_each(|entry| self.track(entry, live, at))
    }

    /// A flow that the programs do not know has lasted for some packets.
    fn consider(&mut self, tuple: &Tuple) -> Result<()> {
        match self.table.get(tuple)? {
            Some(entry) => self.track(&entry, false, Instant::now()),
            None => Ok(()),
        }
    }

    /// Takes a connection that connection tracking holds as established and assured.
    fn track(&mut self, entry: &Entry, live: bool, asked: Instant) -> Result<()> {
        if !entry.assured || !entry.established || entry.dying {
            return Ok(());
        }
        match self.connections.get(&entry.original) {
            Some(known) if known.id == entry.id => return Ok(()),
            Some(_) => self.drop_connection(&entry.original),
            None => {}
        }
        let answer = (self.table.answer(entry, None), self.programs.epoch());
        let mut connection = Connection::new(entry, answer, live, asked);
        connection.state = match self.plan(entry) {
            Ok(legs) if self.install(&mut connection, legs)? => State::Watched,
            Ok(_) => State::Refused(Reason::Refused),
            Err(reason) => State::Refused(reason),
        };
        self.connections.put(connection);
        Ok(())
    }

    /// Connection tracking has forgotten an entry.
    fn forget(&mut self, entry: &Entry) {
        if self.connections.get(&entry.original).is_some_and(|c| c.id == entry.id) {
            self.drop_connection(&entry.original);
        }
    }

    fn drop_connection(&mut self, tuple: &Tuple) {
        if let Some(connection) = self.connections.take(tuple) {
            self.close(connection);
        }
    }

    /// A connection is over.
    fn close(&mut self, mut connection: Connection) {
        self.uninstall(&mut connection);
        self.control().add_closed(connection.packets, connection.bytes);
    }

    fn plan(&mut self, entry: &Entry) -> Result<[Leg; 2], Reason> {
        let Self { topology, routes, known_routes, .. } = self;
        let planned = legs(entry, topology, |source, destination, device| {
            let ask = || route::forwarding(routes, source, destination, device).ok();
            known_routes.entry((source, destination, device)).or_insert_with(ask).clone()
        })?;
        if self.rules.concern(entry) {
            return Err(Reason::PacketRule);
        }
        for leg in &planned {
            if let Target::Hop { device, .. } = leg.target
                && !self.dry
                && self.attachments.attach(&self.netns, &self.programs, device, Role::Uplink).is_err()
            {
                return Err(Reason::Refused);
            }
        }
        Ok(planned)
    }

    /// Makes the programs know a connection; false when there is no slot left.
    fn install(&mut self, connection: &mut Connection, legs: [Leg; 2]) -> Result<bool> {
        if self.dry {
            return Ok(true);
        }
        let Some(slot) = self.connections.take_slot(self.programs.slots()) else { return Ok(false) };
        let tuples = directions(connection.original, connection.reply);
        for ((number, leg), tuples) in (slot..).zip(&legs).zip(&tuples) {
            if let Some(state) = self.programs.slot(number) {
                state.clear();
            }
            self.programs.install(tuples, leg, number)?;
        }
        connection.installed = Some((slot, self.connections.share(legs)));
        connection.last_ns = 0;
        Ok(true)
    }

    /// Makes the programs forget it; its packets take the stack.
    fn uninstall(&mut self, connection: &mut Connection) {
        let Some((slot, legs)) = connection.installed.take() else { return };
        self.arm(slot, 0);
        for ((number, leg), from) in (slot..).zip(&*legs).zip([&connection.original, &connection.reply]) {
            self.programs.remove(from, leg);
            if let Some(state) = self.programs.slot(number) {
                connection.bytes += state.bytes.load(Ordering::Relaxed);
                connection.packets += state.packets.load(Ordering::Relaxed);
            }
        }
        self.connections.free_slot(slot);
    }

    fn arm(&self, slot: u32, epoch: u32) {
        for state in [slot, slot + 1].into_iter().filter_map(|number| self.programs.slot(number)) {
            state.armed.store(epoch, Ordering::Release);
        }
    }

    /// Decides about connections until there is nothing left to do. `listed` are entries of a list made just now: a connection in it is not
    /// asked about again.
    fn settle(&mut self, tuples: &[Tuple], listed: Option<&HashMap<Tuple, Entry>>) -> Result<()> {
        let mut pending = Vec::new();
        for tuple in tuples {
            if let Some(connection) = self.connections.take(tuple) {
                pending.extend(self.advance(connection, listed)?);
            }
        }
        // Entries are changed together: a system call for each would take most of the time.
        let updates: Vec<_> = pending.iter().map(|p| (p.connection.original, p.update)).collect();
        for (Pending { mut connection, update, rest }, exists) in pending.into_iter().zip(self.table.update_each(&updates)?) {
            if (update.liberal && !exists) || !self.apply_all(&mut connection, &rest, None)? {
                self.untrack(&mut connection);
            }
            self.connections.put(connection);
        }
        Ok(())
    }

    /// Decides about a connection and does what comes before a change of its entry; returns it if there is one.
    fn advance(&mut self, mut connection: Connection, listed: Option<&HashMap<Tuple, Entry>>) -> Result<Option<Pending>> {
        let tuple = connection.original;
        let mut tracking = Tracking::NotAsked;
        let mut planned = None;
        loop {
            let mut snapshot = self.snapshot(&connection, tracking);
            if listed.is_some() {
                snapshot.ask_every = Duration::ZERO;
            }
            self.note_pause(&connection, snapshot.paused);
            let (state, actions) = decide(connection.state, &snapshot);
            let settled = state == connection.state;
            let is_armed = |state| matches!(state, State::Armed { .. });
            self.approvals += u64::from(is_armed(state) != is_armed(connection.state) && state != State::Removed);
            connection.state = state;
            if actions == [Action::Ask] {
                (tracking, planned) = match (self.lasting_answer(&connection), listed.and_then(|entries| entries.get(&tuple))) {
                    (Some(answer), None) => answer,
                    (_, Some(entry)) => self.understand(&mut connection, Some(entry.clone()), self.listed)?,
                    (None, None) => self.ask(&mut connection)?,
                };
                continue;
            }
            if let Some((update, rest)) = self.change_of_entry(&actions, connection.original.protocol) {
                if !update.liberal {
                    connection.last_ns = self.last_ns(&connection);
                }
                return Ok(Some(Pending { connection, update, rest: rest.to_vec() }));
            }
            if !self.apply_all(&mut connection, &actions, planned)? {
                self.untrack(&mut connection);
                break;
            }
            // What was decided on an answer is not decided on it again.
            if settled || tracking != Tracking::NotAsked {
                break;
            }
        }
        if connection.state == State::Removed {
            self.close(connection);
        } else {
            self.connections.put(connection);
        }
        Ok(None)
    }

    /// The change of the entry that actions begin with, if so, and the others.
    fn change_of_entry<'a>(&self, actions: &'a [Action], protocol: u8) -> Option<(Update, &'a [Action])> {
        match actions.split_first()? {
            (Action::MakeLiberal, rest) => Some((MAKE_LIBERAL, rest)),
            (Action::Refresh, rest) => Some((self.table.refreshing(protocol), rest)),
            _ => None,
        }
    }

    /// Gives up a connection without a usable entry; it is asked about again.
    fn untrack(&mut self, connection: &mut Connection) {
        self.uninstall(connection);
        connection.state = State::Refused(Reason::NotTracked);
    }

    /// For processes that look at the slots.
    fn note_pause(&self, connection: &Connection, paused: bool) {
        if let Some([slot, _]) = self.slots(connection) {
            slot.paused.store(paused.into(), Ordering::Relaxed);
        }
    }

    /// When a packet of the connection was redirected last; 0: never.
    fn last_ns(&self, connection: &Connection) -> u64 {
        self.slots(connection).into_iter().flatten().map(|slot| slot.last_ns.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    fn snapshot(&self, connection: &Connection, tracking: Tracking) -> Snapshot {
        let epoch = self.programs.epoch();
        let slots = self.slots(connection);
        let read = |word: fn(&Slot) -> u32| slots.map(|s| s.map(word));
        let all_now = |word: fn(&Slot) -> u32| read(word).is_some_and(|w| w == [epoch; 2]);
        Snapshot {
            epoch,
            passed: !self.outdated.any() && all_now(|s| s.seen.load(Ordering::Relaxed)) && all_now(|s| s.delivered.load(Ordering::Relaxed)),
            ended: read(|s| s.ended.load(Ordering::Relaxed)).is_some_and(|e| e != [0; 2]),
            paused: self.paused(connection).is_some(),
            active: self.last_ns(connection) > connection.last_ns,
            asked: connection.asked.elapsed(),
            ask_every: self.table.ask_every(connection.original.protocol),
            tracking,
        }
    }

    /// What connection tracking has said of a connection that is to be approved, if that still holds.
    fn lasting_answer(&self, connection: &Connection) -> Option<(Tracking, Option<[Leg; 2]>)> {
        let (answer, epoch) = connection.answer;
        let is_good = matches!(answer, Tracking::Entry { sound: true, refusal: None, .. }) && connection.state == State::Watched;
        let is_translated = connection.original != connection.reply.reversed();
        let holds = is_good && !is_translated && epoch == self.programs.epoch() && connection.asked.elapsed() < ANSWER_HOLDS;
        connection.installed.as_ref().filter(|_| holds).map(|(_, legs)| (answer, Some(**legs)))
    }

    /// Asks connection tracking about a connection that may have to be planned, too.
    fn ask(&mut self, connection: &mut Connection) -> Result<(Tracking, Option<[Leg; 2]>)> {
        let at = Instant::now();
        let entry = self.table.get(&connection.original)?;
        self.understand(connection, entry, at)
    }

    /// What the entry of a connection means for it, if there is one.
    fn understand(&mut self, connection: &mut Connection, entry: Option<Entry>, at: Instant) -> Result<(Tracking, Option<[Leg; 2]>)> {
        connection.asked = at;
        let Some(entry) = entry.filter(|e| e.id == connection.id && e.original == connection.original) else {
            return Ok((Tracking::Gone, None));
        };
        let planned = match &connection.installed {
            Some((_, legs)) => super::eligible::refusal(&entry).map_or(Ok(**legs), Err),
            None => self.plan(&entry),
        };
        let answer = self.table.answer(&entry, planned.err());
        connection.answer = (answer, self.programs.epoch());
        Ok((answer, planned.ok()))
    }

    /// Does things in their order; false when one cannot be done.
    fn apply_all(&mut self, connection: &mut Connection, actions: &[Action], planned: Option<[Leg; 2]>) -> Result<bool> {
        for action in actions {
            if !self.apply(connection, *action, planned)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does one thing; false when it cannot be done.
    fn apply(&mut self, connection: &mut Connection, action: Action, planned: Option<[Leg; 2]>) -> Result<bool> {
        match action {
            // An entry is changed before anything else is done.
            Action::Ask | Action::MakeLiberal | Action::Refresh => {}
            Action::Install => return planned.map_or(Ok(false), |legs| self.install(connection, legs)),
            Action::Arm(epoch) => connection.installed.iter().for_each(|(slot, _)| self.arm(*slot, epoch)),
            Action::Disarm => connection.installed.iter().for_each(|(slot, _)| self.arm(*slot, 0)),
            Action::Remove => self.uninstall(connection),
        }
        Ok(true)
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
