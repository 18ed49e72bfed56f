//! One table of both paths: a row for each connection, with what carries it now and why not more.

use std::collections::HashMap;
use std::net::SocketAddr;

use sockpath_protocol::accel::{Carrier, Pair, PairState, PairsSnapshot, Reason, Totals};

/// The two ends of a connection, in either order: of one that was open before the start the sockets do not show which is the client.
type Ends = [SocketAddr; 2];

fn ends(a: SocketAddr, b: SocketAddr) -> Ends {
    let canonical = |s: SocketAddr| SocketAddr::new(s.ip().to_canonical(), s.port());
    let mut ends = [canonical(a), canonical(b)];
    ends.sort_unstable();
    ends
}

/// What both paths say about all connections as one.
pub fn snapshots(socket: PairsSnapshot, short: PairsSnapshot) -> PairsSnapshot {
    let mut by_ends: HashMap<Ends, Pair> = HashMap::with_capacity(socket.pairs.len());
    for pair in socket.pairs {
        by_ends.insert(ends(pair.client, pair.server.unwrap_or(pair.dialled)), pair);
    }
    let mut merged = PairsSnapshot { pairs: Vec::with_capacity(by_ends.len().max(short.pairs.len())), totals: Totals::default() };
    let mut matched = Vec::new();
    for pair in short.pairs {
        let keys = [ends(pair.client, pair.server.unwrap_or(pair.dialled)), ends(pair.client, pair.dialled)];
        match keys.iter().find_map(|key| by_ends.get(key).map(|socket| (*key, socket))) {
            Some((key, socket)) => {
                merged.pairs.push(both(pair, socket));
                matched.push(key);
            }
            None => merged.pairs.push(pair),
        }
    }
    // In a lab one helper serves two nodes, each of which has a row of a connection between them.
    matched.iter().for_each(|key| drop(by_ends.remove(key)));
    merged.pairs.extend(by_ends.into_values().map(of_sockets_alone));
    merged.pairs.sort_by_key(|p| (p.client, p.dialled));
    merged.totals = socket.totals;
    add_path(&mut merged.totals, &short.totals);
    merged.totals.open = merged.pairs.len() as u64;
    merged.totals.accelerated = merged.pairs.iter().filter(|p| p.state == PairState::Accelerated).count() as u64;
    merged
}

/// Adds the sums of the short path over connections of which the socket path has the rest: each of the two has seen those that are over.
pub fn add_path(totals: &mut Totals, short: &Totals) {
    let closed = totals.closed.max(short.closed);
    let open = totals.open.max(short.open);
    *totals += short;
    (totals.closed, totals.open) = (closed, open);
}

/// The row of a connection that both know. The row of the short path has the right ends, that of the socket path what goes between them.
fn both(mut pair: Pair, socket: &Pair) -> Pair {
    pair.client_pod = pair.client_pod.or_else(|| pod_of(socket, pair.client));
    pair.server_pod = pair.server_pod.or_else(|| pod_of(socket, pair.server.unwrap_or(pair.dialled)));
    pair.live |= socket.live;
    pair.bypassed_bytes += socket.bypassed_bytes;
    pair.bypassed_messages += socket.bypassed_messages;
    for (reason, count) in &socket.passes {
        *pair.passes.entry(*reason).or_default() += count;
    }
    pair.by_path += socket.by_path;
    pair.turnaround_before_ns = socket.turnaround_before_ns.or(pair.turnaround_before_ns);
    pair.turnaround_after_ns = socket.turnaround_after_ns.or(pair.turnaround_after_ns);
    // What a limit at the device or a rule has to see does not go by sockets either.
    let is_limited = pair.reason.is_some_and(sees_every_packet);
    if socket.via == Carrier::Socket && !(is_limited && socket.by_path.socket.units == 0) {
        (pair.via, pair.state, pair.reason) = (Carrier::Socket, socket.state, socket.reason);
    } else if pair.via == Carrier::Short {
        // Why it goes no further; that something had to see its packets is over.
        pair.reason = socket.reason.filter(|reason| !sees_every_packet(*reason));
    }
    pair
}

/// Whether this is something at the device, or a rule, that has to see every packet.
fn sees_every_packet(reason: Reason) -> bool {
    matches!(reason, Reason::QueueDiscipline | Reason::TcFilter | Reason::PacketRule)
}

/// The pod at the end with this address.
fn pod_of(pair: &Pair, end: SocketAddr) -> Option<String> {
    if pair.client == end { pair.client_pod.clone() } else { pair.server_pod.clone().filter(|_| pair.server == Some(end)) }
}

/// The row of a connection that the short path does not know (yet): it becomes one of its candidates after some packets.
fn of_sockets_alone(mut pair: Pair) -> Pair {
    let is_for_good = matches!(pair.reason, Some(Reason::PeerNotChosen | Reason::OtherNode));
    if pair.via == Carrier::Stack && !is_for_good && matches!(pair.state, PairState::Waiting | PairState::LeftAlone) {
        (pair.state, pair.reason) = (PairState::Waiting, Some(Reason::AwaitingStack));
    }
    pair
}

#[cfg(test)]
mod tests {
    use sockpath_protocol::accel::{ByPath, Carried};

    use super::*;

    fn pair(client: &str, dialled: &str, server: Option<&str>, via: Carrier, state: PairState, reason: Option<Reason>) -> Pair {
        let carried = Carried::of_one(100, 2);
        let by_path = match via {
            Carrier::Socket => ByPath { socket: carried, ..ByPath::default() },
            Carrier::Short => ByPath { short: carried, ..ByPath::default() },
            Carrier::Stack => ByPath::default(),
        };
        Pair {
            client_pod: None,
            server_pod: None,
            client: client.parse().expect("an address"),
            dialled: dialled.parse().expect("an address"),
            server: server.map(|s| s.parse().expect("an address")),
            via_service: false,
            via,
            state,
            reason,
            live: false,
            bypassed_bytes: by_path.socket.bytes + by_path.short.bytes,
            bypassed_messages: by_path.socket.units + by_path.short.units,
            passes: Default::default(),
            by_path,
            turnaround_before_ns: None,
            turnaround_after_ns: None,
        }
    }

    fn snapshot(pairs: Vec<Pair>) -> PairsSnapshot {
        let mut totals = Totals { closed: pairs.len() as u64, ..Totals::default() };
        pairs.iter().for_each(|p| totals.add(p));
        PairsSnapshot { pairs, totals }
    }

    const CLIENT: &str = "10.42.1.2:40000";
    const SERVICE: &str = "10.96.0.10:80";
    const SERVER: &str = "10.42.1.3:8080";

    fn short(state: PairState, reason: Option<Reason>) -> Pair {
        let via = if state == PairState::Accelerated { Carrier::Short } else { Carrier::Stack };
        pair(CLIENT, SERVICE, Some(SERVER), via, state, reason)
    }

    fn merged(socket: Pair, short: Pair) -> Pair {
        let merged = snapshots(snapshot(vec![socket]), snapshot(vec![short]));
        assert_eq!((merged.pairs.len(), merged.totals.open, merged.totals.closed), (1, 1, 1));
        merged.pairs.into_iter().next().expect("a row")
    }

    #[test]
    fn the_further_path_is_shown_and_what_both_carried_is_added_up() {
        let socket = pair(CLIENT, SERVICE, Some(SERVER), Carrier::Socket, PairState::Accelerated, None);
        let row = merged(socket, short(PairState::Accelerated, None));
        assert_eq!((row.via, row.state, row.reason), (Carrier::Socket, PairState::Accelerated, None));
        assert_eq!((row.bypassed_bytes, row.by_path.short.bytes, row.by_path.socket.units), (200, 100, 2));
    }

    #[test]
    fn one_on_the_short_path_says_why_it_goes_no_further() {
        let socket = pair(CLIENT, SERVICE, Some(SERVER), Carrier::Stack, PairState::LeftAlone, Some(Reason::Unproven));
        let row = merged(socket.clone(), short(PairState::Accelerated, None));
        assert_eq!((row.via, row.state, row.reason), (Carrier::Short, PairState::Accelerated, Some(Reason::Unproven)));
        // One on the stack has the reason why it is not on the short path.
        let row = merged(socket, short(PairState::LeftAlone, Some(Reason::MtuDiffers)));
        assert_eq!((row.via, row.state, row.reason), (Carrier::Stack, PairState::LeftAlone, Some(Reason::MtuDiffers)));
    }

    #[test]
    fn ends_match_in_either_order() {
        // Open before the start, and the server has the higher port.
        let mut socket = pair(SERVER, CLIENT, Some(CLIENT), Carrier::Stack, PairState::LeftAlone, Some(Reason::SlowerThanTcp));
        (socket.client_pod, socket.server_pod) = (Some("a/server".into()), Some("a/client".into()));
        let row = merged(socket, short(PairState::Accelerated, None));
        assert_eq!((row.client, row.reason), (CLIENT.parse().expect("an address"), Some(Reason::SlowerThanTcp)));
        assert_eq!([row.client_pod.as_deref(), row.server_pod.as_deref()], [Some("a/client"), Some("a/server")]);
    }

    #[test]
    fn a_connection_between_nodes_of_a_lab_keeps_both_rows() {
        let socket = pair(CLIENT, SERVER, Some(SERVER), Carrier::Stack, PairState::LeftAlone, Some(Reason::OtherNode));
        let half = || pair(CLIENT, SERVER, Some(SERVER), Carrier::Short, PairState::Accelerated, None);
        let merged = snapshots(snapshot(vec![socket]), snapshot(vec![half(), half()]));
        assert!(merged.pairs.len() == 2 && merged.pairs.iter().all(|p| p.reason == Some(Reason::OtherNode)), "{merged:#?}");
    }

    #[test]
    fn what_the_short_path_does_not_know_yet_waits() {
        let young = pair(CLIENT, SERVER, Some(SERVER), Carrier::Stack, PairState::LeftAlone, Some(Reason::Unproven));
        let outside = pair("10.42.1.2:40001", "192.0.2.1:443", None, Carrier::Stack, PairState::LeftAlone, Some(Reason::PeerNotChosen));
        let merged = snapshots(snapshot(vec![young, outside]), PairsSnapshot::default());
        let found: Vec<_> = merged.pairs.iter().map(|p| (p.state, p.reason)).collect();
        assert_eq!(found, [(PairState::Waiting, Some(Reason::AwaitingStack)), (PairState::LeftAlone, Some(Reason::PeerNotChosen))]);
    }
}
