//! What is reported about the connections of the short path.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use sockpath_protocol::accel::{Carrier, Pair, PairState, PairsSnapshot, Reason, Totals};

use super::connections::Connection;
use super::flow::State;
use super::path::Path;
use super::programs::PASSES;

/// All connections of these nodes, and the sums.
pub fn snapshot<'a>(paths: impl Iterator<Item = &'a Path>) -> PairsSnapshot {
    let mut snapshot = PairsSnapshot::default();
    for path in paths {
        snapshot.pairs.extend(path.connections().map(|c| pair(path, c)));
        snapshot.totals.closed += path.over.connections;
        snapshot.totals.bypassed_bytes += path.over.bytes;
        snapshot.totals.bypassed_messages += path.over.packets;
    }
    snapshot.pairs.sort_by_key(|p| (p.client, p.dialled));
    add_up(&mut snapshot.totals, &snapshot.pairs);
    snapshot
}

fn add_up(totals: &mut Totals, pairs: &[Pair]) {
    for pair in pairs {
        totals.open += 1;
        totals.accelerated += u64::from(pair.state == PairState::Accelerated);
        totals.bypassed_bytes += pair.bypassed_bytes;
        totals.bypassed_messages += pair.bypassed_messages;
        for (reason, count) in &pair.passes {
            *totals.passes.entry(*reason).or_default() += count;
        }
    }
}

fn pair(path: &Path, connection: &Connection) -> Pair {
    let [client_pod, server_pod] = path.pod_names(connection).map(|n| n.map(str::to_owned));
    let (state, reason) = state(path, connection);
    let slots = path.slots(connection);
    let sum = |count: fn(&super::programs::Slot) -> u64| slots.map_or(0, |s| s.into_iter().map(count).sum());
    let mut passes: BTreeMap<Reason, u64> = BTreeMap::new();
    for slot in slots.into_iter().flatten() {
        for (reason, count) in PASSES.iter().zip(&slot.passes) {
            let count = count.load(Ordering::Relaxed);
            if count != 0 {
                *passes.entry(*reason).or_default() += u64::from(count);
            }
        }
    }
    Pair {
        client_pod,
        server_pod,
        client: connection.original.source,
        dialled: connection.original.destination,
        server: Some(connection.reply.source),
        via_service: connection.original.destination != connection.reply.source,
        // A dry run shows the path that it would take.
        via: match state {
            PairState::Accelerated => Carrier::Short,
            PairState::Waiting if path.is_dry() => Carrier::Short,
            _ => Carrier::Stack,
        },
        state,
        reason,
        live: connection.live,
        bypassed_bytes: sum(|s| s.bytes.load(Ordering::Relaxed)),
        bypassed_messages: sum(|s| s.packets.load(Ordering::Relaxed)),
        passes,
        turnaround_before_ns: None,
        turnaround_after_ns: None,
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
