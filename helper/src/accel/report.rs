//! What is reported about the pairs.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::ser::{Serialize, SerializeMap, Serializer};
use sockpath_bpf::accel::types::{accel_end, accel_flag, accel_pass, accel_role};
use sockpath_protocol::accel::{ByPath, Carried, Carrier, Pair, PairState, PairsSnapshot, Reason, Totals};

use super::connection::{End, State, is_refused, streams};
use super::instance::Instance;
use super::matching::Identity;
use super::tracked::{TrackedSocket, peer_of};

/// Names of the chosen pods.
#[derive(Debug, Default)]
pub struct PodNames {
    /// Of those on this node, by the inode of their network namespace.
    pub here: HashMap<u32, String>,
    /// Of those on other nodes, by address.
    pub elsewhere: HashMap<IpAddr, String>,
}

/// The reason that is reported for each `accel_pass`, in its order.
const REASONS: [Option<Reason>; accel_pass::ACCEL_PASSES.0 as usize] = [
    None,
    Some(Reason::NoPeer),
    Some(Reason::Order),
    Some(Reason::WaitingForReaders),
    Some(Reason::Budget),
    Some(Reason::Paused),
    Some(Reason::Lease),
    Some(Reason::PeerGone),
    Some(Reason::Ulp),
    Some(Reason::Zerocopy),
    Some(Reason::RcvLowat),
    Some(Reason::UnaccountedReads),
    Some(Reason::WaitAll),
    Some(Reason::Splice),
    Some(Reason::Fionread),
    Some(Reason::TwoTasks),
    Some(Reason::BlockingReader),
    Some(Reason::Urgent),
    Some(Reason::Learning),
    Some(Reason::Refused),
    Some(Reason::SlowerThanTcp),
    Some(Reason::ForeignOwner),
    Some(Reason::NetworkPolicy),
    Some(Reason::Memory),
    Some(Reason::PeerNotChosen),
    Some(Reason::OtherNode),
    Some(Reason::Unproven),
    Some(Reason::QueueDiscipline),
];

/// The reason that is reported, if any.
fn reason(pass: accel_pass) -> Option<Reason> {
    REASONS.get(pass.0 as usize).copied().flatten()
}

/// All pairs at one moment. It is described pair by pair while it is sent: the words for ten thousand take megabytes.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Where they are.
    pub instance: &'a Instance,
    /// The tracked sockets.
    pub all: &'a [TrackedSocket],
    /// What the pods are called.
    pub pods: &'a PodNames,
    /// On a dry run the path is shown that a pair would take.
    pub dry: bool,
}

impl Snapshot<'_> {
    fn pairs(&self) -> impl Iterator<Item = Pair> {
        self.all.iter().filter_map(|tracked| match peer_of(self.all, tracked) {
            Some(peer) if tracked.slot > peer.slot => None,
            None if tracked.end.peer_cookie != 0 => None,
            peer => self.describe(tracked, peer),
        })
    }

    /// As a value.
    pub fn collect(&self) -> PairsSnapshot {
        let mut totals = closed_totals(self.instance);
        let pairs = self.pairs().inspect(|pair| totals.add(pair)).collect();
        PairsSnapshot { pairs, totals }
    }

    /// The sums alone.
    pub fn totals(&self) -> Totals {
        let mut totals = closed_totals(self.instance);
        self.pairs().for_each(|pair| totals.add(&pair));
        totals
    }
}

/// As [`Message::Pairs`](sockpath_protocol::Message::Pairs) is written.
impl Serialize for Snapshot<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let totals = RefCell::new(closed_totals(self.instance));
        let mut message = serializer.serialize_map(None)?;
        message.serialize_entry("type", "pairs")?;
        message.serialize_entry("pairs", &Sequence { snapshot: self, totals: &totals })?;
        message.serialize_entry("totals", &*totals.borrow())?;
        message.end()
    }
}

struct Sequence<'a> {
    snapshot: &'a Snapshot<'a>,
    totals: &'a RefCell<Totals>,
}

impl Serialize for Sequence<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.snapshot.pairs().inspect(|pair| self.totals.borrow_mut().add(pair)))
    }
}

fn closed_totals(instance: &Instance) -> Totals {
    let control = instance.control().copy();
    let mut passes = BTreeMap::new();
    for (count, reason) in control.closed_passes.iter().zip(REASONS) {
        if let (Some(reason), 1..) = (reason, *count) {
            passes.insert(reason, *count);
        }
    }
    Totals {
        open: 0,
        accelerated: 0,
        closed: control.closed_pairs,
        bypassed_bytes: control.closed_bytes,
        bypassed_messages: control.closed_messages,
        passes,
        by_path: ByPath {
            socket: Carried { connections: control.closed_carried, bytes: control.closed_bytes, units: control.closed_messages },
            ..ByPath::default()
        },
    }
}

/// One end, with everything that is recorded of it.
struct ReportedEnd<'a> {
    tracked: &'a TrackedSocket,
    identity: Identity,
    end: accel_end,
}

impl<'a> ReportedEnd<'a> {
    /// `None` when its connection is over by now.
    fn of(instance: &Instance, tracked: &'a TrackedSocket) -> Option<Self> {
        let end = instance.end_of(tracked.socket())?;
        Some(Self { tracked, identity: Identity::of(tracked.slot, &end), end })
    }
}

impl Snapshot<'_> {
    fn describe(&self, tracked: &TrackedSocket, peer: Option<&TrackedSocket>) -> Option<Pair> {
        let tracked = ReportedEnd::of(self.instance, tracked)?;
        let peer = match peer {
            Some(peer) => Some(ReportedEnd::of(self.instance, peer)?),
            None => None,
        };
        let mut pair = pair(&tracked, peer.as_ref(), self.pods);
        let ends = || std::iter::once(&tracked).chain(&peer);
        let selective = self.instance.control().selective.get() == 1;
        if self.dry && pair.state == PairState::Waiting && (!selective || ends().all(|end| end.tracked.end.is_judged())) {
            pair.via = Carrier::Socket;
        }
        Some(pair)
    }
}

fn pair(tracked: &ReportedEnd<'_>, peer: Option<&ReportedEnd<'_>>, pods: &PodNames) -> Pair {
    let (client, server) = match peer {
        Some(peer) if is_client(peer, tracked) => (Some(peer), Some(tracked)),
        Some(peer) => (Some(tracked), Some(peer)),
        None if tracked.end.role == accel_role::ACCEL_SERVER => (None, Some(tracked)),
        None => (Some(tracked), None),
    };
    let ends: Vec<&ReportedEnd<'_>> = [client, server].into_iter().flatten().collect();
    let pod = |k: Option<&ReportedEnd<'_>>| match k {
        Some(k) => pods.here.get(&k.identity.netns).cloned(),
        None => pods.elsewhere.get(&tracked.identity.remote.ip()).cloned(),
    };
    let mut passes = BTreeMap::new();
    for end in &ends {
        for (count, reason) in end.end.passes.iter().zip(REASONS) {
            if let (Some(reason), 1..) = (reason, *count) {
                *passes.entry(reason).or_default() += u64::from(*count);
            }
        }
    }
    let (state, reason) = state(&ends.iter().map(|k| &k.tracked.end).collect::<Vec<_>>());
    let (bytes, messages) = (ends.iter().map(|k| k.end.bytes).sum(), ends.iter().map(|k| k.end.messages).sum());
    let sample = |f: fn(&accel_end) -> &[u32; 16]| median(ends.iter().flat_map(|k| f(&k.end)).copied().filter(|s| *s > 0));
    Pair {
        client_pod: pod(client),
        server_pod: pod(server),
        client: client.map_or_else(|| tracked.identity.remote, |c| c.identity.local),
        dialled: client.map_or(tracked.identity.local, |c| c.identity.remote),
        server: server.map(|s| s.identity.local),
        via_service: client.zip(server).is_some_and(|(c, s)| c.identity.is_translated(&s.identity)),
        via: if state == PairState::Accelerated { Carrier::Socket } else { Carrier::Stack },
        state,
        reason,
        live: ends.iter().any(|k| k.tracked.end.has(accel_flag::ACCEL_LIVE)),
        bypassed_bytes: bytes,
        bypassed_messages: messages,
        passes,
        by_path: ByPath { socket: Carried::of_one(bytes, messages), ..ByPath::default() },
        turnaround_before_ns: sample(|e| &e.before_ns),
        turnaround_after_ns: sample(|e| &e.after_ns),
    }
}

/// Whether `a` is the client of the two; for live connections the higher port is taken for it.
fn is_client(a: &ReportedEnd<'_>, b: &ReportedEnd<'_>) -> bool {
    match (a.end.role, b.end.role) {
        (accel_role::ACCEL_CLIENT, _) | (_, accel_role::ACCEL_SERVER) => true,
        (accel_role::ACCEL_SERVER, _) | (_, accel_role::ACCEL_CLIENT) => false,
        _ => a.identity.local.port() > b.identity.local.port(),
    }
}

fn state(ends: &[&End]) -> (PairState, Option<Reason>) {
    let &[a, b] = ends else {
        let why = ends.first().and_then(|lone| reason(lone.left)).unwrap_or(Reason::PeerNotChosen);
        return (PairState::LeftAlone, Some(why));
    };
    let bypassed = a.messages + b.messages > 0;
    match State::of([a, b]) {
        State::Leaving(why) | State::Left(why) => (PairState::Draining, reason(why)),
        State::Inserted if a.fast != 0 || b.fast != 0 => (PairState::Accelerated, None),
        State::Inserted => {
            let reason = reason(a.last_pass).or_else(|| reason(b.last_pass));
            (if bypassed { PairState::Paused } else { PairState::Waiting }, reason)
        }
        State::Half => match reason(a.left).or_else(|| reason(b.left)) {
            Some(why) => (PairState::Draining, Some(why)),
            None if is_refused([a, b]) => (PairState::LeftAlone, Some(Reason::Refused)),
            None => (PairState::Waiting, Some(Reason::Learning)),
        },
        State::Out(accel_pass::ACCEL_POLICY) => (PairState::Paused, Some(Reason::NetworkPolicy)),
        State::Out(why) => (if bypassed { PairState::Returned } else { PairState::LeftAlone }, reason(why)),
        State::Refused => (PairState::LeftAlone, Some(Reason::Refused)),
        State::Tracked => {
            let unsupported = ends.iter().find_map(|end| end.unsupported()).and_then(reason);
            match unsupported.or(streams([a, b]).then_some(Reason::SlowerThanTcp)) {
                Some(reason) => (PairState::LeftAlone, Some(reason)),
                None => (PairState::Waiting, Some(Reason::Learning)),
            }
        }
    }
}

fn median(samples: impl Iterator<Item = u32>) -> Option<u64> {
    let mut samples: Vec<u32> = samples.collect();
    let middle = samples.len().checked_sub(1)? / 2;
    let (_, median, _) = samples.select_nth_unstable(middle);
    Some(u64::from(*median))
}
