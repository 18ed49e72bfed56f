//! What is reported about the connections of the short path.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sockpath_bpf::short::types::short_estimate;
use sockpath_protocol::accel::{ByPath, Carried, Carrier, Pair, PairState, PairsSnapshot, Reason, Totals};

use super::connection::Connection;
use super::flow::State;
use super::path::Path;
use super::programs::{Control, PASSES, Slot};

/// All connections of these nodes, and the sums.
pub fn snapshot<'a>(paths: impl Iterator<Item = &'a Path>) -> PairsSnapshot {
    let mut snapshot = PairsSnapshot::default();
    for path in paths {
        snapshot.pairs.extend(path.connections().map(|c| pair(path, c)));
        add_closed(&mut snapshot.totals, path.control());
    }
    finish(&mut snapshot);
    snapshot
}

/// Adds the connections of a node that are over.
pub fn add_closed(totals: &mut Totals, control: &Control) {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (bytes, packets) = (read(&control.closed_bytes), read(&control.closed_packets));
    totals.closed += read(&control.closed_connections);
    totals.bypassed_bytes += bytes;
    totals.bypassed_messages += packets;
    totals.by_path.short += Carried { connections: read(&control.closed_carried), bytes, units: packets };
}

/// Sorts the pairs and adds them up.
pub fn finish(snapshot: &mut PairsSnapshot) {
    snapshot.pairs.sort_by_key(|p| (p.client, p.dialled));
    snapshot.pairs.iter().for_each(|p| snapshot.totals.add(p));
}

/// Why packets of these directions took the stack.
pub fn passes(slots: Option<[&Slot; 2]>) -> BTreeMap<Reason, u64> {
    let mut passes: BTreeMap<Reason, u64> = BTreeMap::new();
    for slot in slots.into_iter().flatten() {
        for (reason, count) in PASSES.iter().zip(&slot.passes) {
            let count = count.load(Ordering::Relaxed);
            if count != 0 {
                *passes.entry(*reason).or_default() += u64::from(count);
            }
        }
    }
    passes
}

/// A median that the programs keep in the slot of the server's direction, once it is made of some samples.
pub fn turnaround(slots: Option<[&Slot; 2]>, estimate: fn(&Slot) -> &AtomicU32) -> Option<u64> {
    let [_, of_server] = slots?;
    let estimate = estimate(of_server).load(Ordering::Relaxed);
    let median = short_estimate::SHORT_MEDIAN.0;
    (estimate / (median + 1) >= short_estimate::SHORT_SAMPLES.0).then_some((estimate & median).into())
}

/// Bytes and packets of these directions.
pub fn carried(slots: Option<[&Slot; 2]>) -> (u64, u64) {
    let sum = |count: fn(&Slot) -> u64| slots.map_or(0, |s| s.into_iter().map(count).sum());
    (sum(|s| s.bytes.load(Ordering::Relaxed)), sum(|s| s.packets.load(Ordering::Relaxed)))
}

fn pair(path: &Path, connection: &Connection) -> Pair {
    let [client_pod, server_pod] = path.pod_names(connection).map(|n| n.map(str::to_owned));
    let (state, reason) = state(path, connection);
    let (original, reply) = (connection.original(), connection.reply());
    let slots = path.slots(connection);
    let (bytes, packets) = carried(slots);
    let (bytes, packets) = (connection.bytes + bytes, connection.packets + packets);
    Pair {
        client_pod,
        server_pod,
        client: original.source,
        dialled: original.destination,
        server: Some(reply.source),
        via_service: original.destination != reply.source,
        // A dry run shows the path that it would take.
        via: match state {
            PairState::Accelerated => Carrier::Short,
            PairState::Waiting if path.is_dry() => Carrier::Short,
            _ => Carrier::Stack,
        },
        state,
        reason,
        live: connection.live,
        bypassed_bytes: bytes,
        bypassed_messages: packets,
        passes: passes(slots),
        by_path: ByPath { short: Carried::of_one(bytes, packets), ..ByPath::default() },
        turnaround_before_ns: turnaround(slots, |s| &s.before_ns),
        turnaround_after_ns: turnaround(slots, |s| &s.after_ns),
    }
}

fn state(path: &Path, connection: &Connection) -> (PairState, Option<Reason>) {
    match connection.state {
        State::Refused(reason) => (PairState::LeftAlone, Some(reason)),
        State::Armed { epoch } if epoch == path.epoch() => (PairState::Accelerated, None),
        State::Armed { .. } | State::Watched => match path.paused(connection) {
            Some(reason) => (PairState::Paused, Some(reason)),
            None => (PairState::Waiting, (!path.is_dry()).then_some(Reason::AwaitingStack)),
        },
        State::Removed => (PairState::Returned, Some(Reason::Ending)),
    }
}
