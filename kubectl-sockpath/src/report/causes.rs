//! Which finding follows from which: causes first, each with its consequences behind it.

use sockpath_protocol::packet::{Certainty, Flow, Mechanism, PacketKind};

use super::document::{Finding, Severity};
use super::hint::Hint;
use super::kind::Id;

/// All of them, ordered by cause.
pub(super) fn ordered(hints: &[Hint]) -> Vec<Finding> {
    let causes: Vec<Option<usize>> = hints.iter().map(|h| cause_of(h, hints)).collect();
    let mut findings: Vec<Finding> = hints.iter().map(Hint::finding).collect();
    for (hint, (finding, cause)) in hints.iter().zip(findings.iter_mut().zip(&causes)) {
        if let Some(cause) = cause {
            finding.because = Some(hints[*cause].id().kind().id);
            // What to do is the cause's to say: advice for a reset, for instance, is about a port without a listener.
            finding.next = None;
        }
        soften(finding, hint, cause.map(|c| &hints[c]));
    }
    let root = |mut at: usize| {
        // A cause has a lower rank than what follows from it, so this ends.
        while let Some(cause) = causes[at] {
            at = cause;
        }
        at
    };
    let mut order: Vec<usize> = (0..hints.len()).collect();
    // A cause, then what follows from it; among causes the most urgent first, else as they were found.
    order.sort_by_key(|&i| (findings[root(i)].severity, root(i), causes[i].is_some(), rank(&hints[i]), i));
    let mut listed: Vec<Finding> = Vec::with_capacity(order.len());
    let mut roots: Vec<(usize, usize)> = Vec::new();
    for i in order {
        let mut finding = findings[i].clone();
        finding.root = causes[i].and_then(|_| roots.iter().find(|(of, _)| *of == root(i)).map(|(_, at)| *at));
        if listed.contains(&finding) {
            continue;
        }
        if causes[i].is_none() {
            roots.push((i, listed.len()));
        }
        listed.push(finding);
    }
    listed
}

/// Nothing is certain that rests on events that were lost, and side effects are not separate problems.
fn soften(finding: &mut Finding, hint: &Hint, cause: Option<&Hint>) {
    if cause.is_some_and(|c| c.id() == Id::LostEvents) {
        finding.severity = Severity::Warning;
        finding.certainty = Some(Certainty::Possible);
        finding.evidence.push("events were lost: the packets may have gone on".to_owned());
    }
    let known = cause.is_some() && matches!(hint, Hint::ProbeFailed { .. });
    if known || cause.is_some_and(|c| matches!(c.id(), Id::StillOpen | Id::TimeWait)) {
        finding.severity = Severity::Warning;
    }
    // Who takes datagrams need not answer.
    if is_side_effect(hint) || matches!(hint, Hint::NoReply { datagrams: true, .. }) {
        finding.severity = Severity::Info;
    }
}

/// Drops that take nothing from the pair: copies of what had arrived, and a router's hints about better routes.
fn is_side_effect(hint: &Hint) -> bool {
    matches!(hint, Hint::Dropped { kind: PacketKind::IcmpRedirect, .. } | Hint::Dropped { harmless: true, .. })
}

/// Causes have lower ranks than their consequences.
fn rank(hint: &Hint) -> u8 {
    match hint.id() {
        Id::PodChanged | Id::NodeMissing | Id::HelperFailed | Id::HelperLost => 0,
        Id::LostEvents => 1,
        Id::NoEndpoints => 2,
        Id::UnexpectedDnat | Id::StaleEntry | Id::Forgotten => 3,
        Id::Untranslated | Id::StillOpen | Id::TimeWait => 4,
        Id::CpuThrottled => 5,
        Id::Dropped if !is_side_effect(hint) => 5,
        Id::Backlog | Id::ReceiveQueueFull | Id::SynQueueFull => 6,
        Id::ZeroWindow | Id::SynCookies | Id::Vanished => 7,
        Id::HalfMissing => 8,
        Id::Dropped => 9,
        Id::NoReply => 10,
        Id::Reset => 11,
        Id::Retransmission => 12,
        Id::ProbeFailed => 13,
        _ => 14,
    }
}

/// The index of the finding that this one follows from: the strongest that explains it.
fn cause_of(hint: &Hint, hints: &[Hint]) -> Option<usize> {
    let explains = |cause: &Hint| rank(cause) < rank(hint) && explains(cause, hint);
    hints.iter().enumerate().filter(|(_, cause)| explains(cause)).min_by_key(|(i, cause)| (rank(cause), *i)).map(|(i, _)| i)
}

fn explains(cause: &Hint, of: &Hint) -> bool {
    match (cause, of) {
        (Hint::LostEvents { .. }, Hint::Vanished { .. } | Hint::HalfMissing { .. } | Hint::NoReply { .. }) => true,
        (
            Hint::NodeMissing { .. } | Hint::HelperFailed { .. } | Hint::HelperLost { .. },
            Hint::HalfMissing { .. } | Hint::NoReply { .. },
        ) => true,
        (Hint::NoEndpoints { .. }, Hint::ProbeFailed { .. } | Hint::NoReply { .. }) => true,
        (Hint::UnexpectedDnat(_) | Hint::StaleEntry(_) | Hint::Untranslated(_) | Hint::HalfMissing { .. }, Hint::NoReply { .. }) => true,
        // What was sent to the Service's address, or refused by the node for it.
        (Hint::NoEndpoints { frontends, .. }, of) => flows(of).iter().any(|f| frontends.contains(&f.to) || frontends.contains(&f.from)),
        (Hint::UnexpectedDnat(row) | Hint::StaleEntry(row), Hint::ProbeFailed { to, .. }) => *to == row.from.to_string(),
        (Hint::UnexpectedDnat(row) | Hint::StaleEntry(row), of) => {
            flows(of).iter().any(|f| [row.from, row.to].iter().any(|a| f.to == *a || f.from == *a))
        }
        (Hint::Forgotten(f), Hint::Untranslated(u)) => f.node == u.node,
        (Hint::Forgotten(f), Hint::ProbeFailed { to, mechanism: None, .. }) => f.flows.iter().any(|flow| flow.to.to_string() == *to),
        (Hint::Forgotten(_), Hint::NoReply { .. }) => true,
        (Hint::Forgotten(f), of) => flows(of).iter().any(|flow| f.flows.iter().any(|known| share(known, flow))),
        (
            Hint::Untranslated(u),
            Hint::Dropped { kind: PacketKind::IcmpRedirect, .. } | Hint::ProbeFailed { .. } | Hint::Retransmissions { .. },
        ) => u.count > 0,
        (Hint::Untranslated(u), of) => flows(of).iter().any(|f| f.from == u.endpoint || f.to == u.endpoint),
        (Hint::Dropped { reason, .. }, Hint::NeighbourLookups(_)) => reason.starts_with("NEIGH_"),
        // A call that fails for a reason of its own left no packet.
        // A drop in the source makes send() fail.
        (Hint::Dropped { flow, .. }, Hint::ProbeFailed { to, mechanism: Some(Mechanism::CgroupProgram), certainty, .. }) => {
            *certainty == Some(Certainty::Possible) && flow.to.to_string() == *to
        }
        (Hint::Dropped { .. }, Hint::ProbeFailed { mechanism, .. }) => matches!(mechanism, None | Some(Mechanism::SendRefused)),
        (Hint::Vanished { .. }, Hint::ProbeFailed { mechanism, .. }) => mechanism.is_none(),
        (Hint::Dropped { .. } | Hint::Vanished { .. }, Hint::NoReply { .. }) => true,
        (Hint::Dropped { .. }, Hint::Dropped { kind: PacketKind::IcmpRedirect, .. }) => true,
        (Hint::Dropped { flow, .. }, Hint::Resets { .. } | Hint::Retransmissions { .. }) => flows(of).iter().any(|f| share(flow, f)),
        // The kernel consumes a SYN that finds such a queue full as if it had been served.
        (Hint::BacklogOverflow { .. } | Hint::SynQueueFull { .. }, Hint::NoReply { .. }) => true,
        (Hint::BacklogOverflow { .. }, Hint::Retransmissions { .. } | Hint::ProbeFailed { .. } | Hint::Resets { .. }) => true,
        (Hint::SynQueueFull { .. }, Hint::Retransmissions { .. } | Hint::ProbeFailed { .. } | Hint::SynCookies { .. }) => true,
        (Hint::StillOpen(_), Hint::Dropped { reason, .. }) => matches!(reason.as_str(), "TCP_INVALID_SYN" | "TCP_INVALID_ACK_SEQUENCE"),
        (Hint::TimeWait(reached), Hint::Dropped { flow, .. }) => reached.flows.iter().any(|syn| share(syn, flow)),
        (Hint::StillOpen(reached) | Hint::TimeWait(reached), Hint::Resets { .. } | Hint::Retransmissions { .. }) => {
            flows(of).iter().any(|f| reached.flows.iter().any(|o| share(o, f)))
        }
        (Hint::TimeWait(reached), Hint::ProbeFailed { to, mechanism: None, .. }) => reached.flows.iter().any(|f| f.to.to_string() == *to),
        (Hint::CpuThrottled { place, .. }, Hint::ZeroWindow { place: at } | Hint::BacklogOverflow { place: at, .. }) => place == at,
        (Hint::CpuThrottled { .. }, Hint::ReaderSlow { .. }) => true,
        (Hint::Vanished { .. } | Hint::HalfMissing { .. }, Hint::Retransmissions { .. }) => true,
        (Hint::HalfMissing { .. }, Hint::ProbeFailed { mechanism, .. }) => mechanism.is_none(),
        _ => false,
    }
}

/// The addresses a finding is about.
fn flows(hint: &Hint) -> &[Flow] {
    match hint {
        Hint::Dropped { flow, .. } => std::slice::from_ref(flow),
        Hint::Resets { flows, .. } | Hint::Retransmissions { flows, .. } | Hint::Vanished { flows, .. } => flows,
        _ => &[],
    }
}

/// Whether two packets may belong to one conversation: an address and port of one is an address and port of the other.
fn share(a: &Flow, b: &Flow) -> bool {
    [a.from, a.to].iter().any(|end| end.port() != 0 && (*end == b.from || *end == b.to))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sockpath_protocol::packet::Direction;
    use sockpath_protocol::stage::StageId;

    use super::super::forgotten::Forgotten;
    use super::super::still_open::Reached;
    use super::super::untranslated::{Untranslated, Why};
    use super::*;

    fn flow(from: &str, to: &str) -> Flow {
        Flow { from: from.parse().expect("an address"), to: to.parse().expect("an address") }
    }

    fn dropped(reason: &str, kind: PacketKind, flow: Flow) -> Hint {
        Hint::Dropped {
            count: 1,
            reason: reason.to_owned(),
            place: "in pod b".to_owned(),
            direction: Direction::Request,
            advice: None,
            mechanism: None,
            detail: None,
            certainty: None,
            evidence: Vec::new(),
            flow,
            kind,
            harmless: reason == "TCP_OLD_DATA",
        }
    }

    fn vanished() -> Hint {
        let (last, expected) = (StageId::NodeXmit, StageId::DeviceHandover);
        Hint::Vanished { count: 1, last, expected, place: "on n".to_owned(), direction: Direction::Request, flows: Vec::new() }
    }

    fn failed(to: &str, mechanism: Option<Mechanism>, certainty: Option<Certainty>) -> Hint {
        Hint::ProbeFailed { to: to.to_owned(), error: "refused".to_owned(), mechanism, certainty, detail: None, evidence: Vec::new() }
    }

    #[test]
    fn a_drop_explains_a_refused_send_and_not_a_refused_connect() {
        let dropped = || dropped("NETFILTER_DROP", PacketKind::Data, flow(CLIENT, SERVER));
        let refused = |certainty| listed(&[dropped(), failed(SERVER, Some(Mechanism::CgroupProgram), Some(certainty))]);
        assert_eq!(refused(Certainty::Possible)[1], ("probe-failed", Severity::Warning, Some("dropped"), Some(0)));
        assert_eq!(refused(Certainty::Inferred)[1], ("probe-failed", Severity::Critical, None, None));
    }

    #[test]
    fn a_full_queue_of_a_listener_explains_that_nothing_came_back() {
        let no_reply = || Hint::NoReply { requests: 1, datagrams: false };
        let place = || "in pod b".to_owned();
        let full = [Hint::SynQueueFull { place: place() }, Hint::BacklogOverflow { count: 1, place: place() }];
        for full in full {
            let id = full.id().kind().id;
            let found = listed(&[no_reply(), full]);
            assert_eq!(found, [(id, Severity::Critical, None, None), ("no-reply", Severity::Critical, Some(id), Some(0))]);
        }
    }

    fn reached(flow: Flow, state: &str) -> Box<Reached> {
        let (place, state, certainty) = ("in pod b".to_owned(), Some(state.to_owned()), Certainty::Observed);
        Box::new(Reached { count: 1, place, flows: vec![flow], state, by_timestamp: false, certainty, evidence: Vec::new() })
    }

    #[test]
    fn the_drop_at_a_socket_in_time_wait_stands_below_it() {
        let syn = || flow(CLIENT, SERVER);
        let waiting = Hint::TimeWait(reached(syn(), "TIME_WAIT"));
        let resets = Hint::Resets { count: 1, sent: true, place: "in pod a".to_owned(), flows: vec![syn()] };
        let found = listed(&[dropped("NOT_SPECIFIED", PacketKind::Syn, syn()), resets, waiting]);
        let expected = [
            ("time-wait", Severity::Warning, None, None),
            ("dropped", Severity::Warning, Some("time-wait"), Some(0)),
            ("reset", Severity::Warning, Some("time-wait"), Some(0)),
        ];
        assert_eq!(found, expected);
        // Another connection's drop is a cause of its own.
        let elsewhere = dropped("NO_SOCKET", PacketKind::Syn, flow("10.0.0.7:1", "10.0.0.8:2"));
        assert_eq!(listed(&[elsewhere, Hint::TimeWait(reached(syn(), "TIME_WAIT"))])[0].0, "dropped");
    }

    #[test]
    fn what_conntrack_forgot_comes_before_what_was_not_translated_back() {
        let service: SocketAddr = "10.96.0.1:80".parse().expect("an address");
        let untranslated = Untranslated {
            count: 1,
            dialled: service,
            endpoint: SERVER.parse().expect("an address"),
            node: "n".to_owned(),
            pod: None,
            why: Why::Forgotten,
            evidence: Vec::new(),
        };
        let flows = vec![flow(CLIENT, "10.96.0.1:80"), flow(SERVER, CLIENT)];
        let forgotten = Forgotten { count: 1, node: "n".to_owned(), flows, early: true, evidence: Vec::new() };
        let hints = [
            Hint::Untranslated(Box::new(untranslated)),
            failed("10.96.0.1:80", None, None),
            Hint::Forgotten(Box::new(forgotten)),
            dropped("NO_SOCKET", PacketKind::Syn, flow("10.0.0.7:1", "10.0.0.8:2")),
        ];
        let found = listed(&hints);
        assert_eq!(found[0], ("forgotten-connection", Severity::Critical, None, None));
        assert_eq!(found[1], ("untranslated-reply", Severity::Critical, Some("forgotten-connection"), Some(0)));
        assert_eq!(found[2], ("probe-failed", Severity::Warning, Some("forgotten-connection"), Some(0)));
        assert_eq!(found[3], ("dropped", Severity::Critical, None, None));
    }

    fn listed(hints: &[Hint]) -> Vec<(&'static str, Severity, Option<&'static str>, Option<usize>)> {
        ordered(hints).into_iter().map(|f| (f.id, f.severity, f.because, f.root)).collect()
    }

    const CLIENT: &str = "10.0.0.1:40000";
    const SERVER: &str = "10.0.0.2:80";

    #[test]
    fn a_drop_comes_before_the_resets_that_follow_from_it() {
        let resets = |flow| Hint::Resets { count: 1, sent: true, place: "in pod b".to_owned(), flows: vec![flow] };
        let hints = [
            resets(flow(SERVER, CLIENT)),
            resets(flow("10.0.0.7:1", "10.0.0.8:2")),
            dropped("NO_SOCKET", PacketKind::Syn, flow(CLIENT, SERVER)),
        ];
        let expected = [
            ("dropped", Severity::Critical, None, None),
            ("reset", Severity::Warning, Some("dropped"), Some(0)),
            ("reset", Severity::Warning, None, None),
        ];
        assert_eq!(listed(&hints), expected);
    }

    #[test]
    fn nothing_vanishes_for_certain_while_events_are_lost() {
        assert_eq!(listed(&[vanished()]), [("vanished", Severity::Critical, None, None)]);
        let findings = ordered(&[vanished(), Hint::LostEvents { count: 3 }]);
        assert_eq!((findings[0].id, findings[0].severity), ("lost-events", Severity::Warning));
        assert_eq!((findings[1].id, findings[1].severity), ("vanished", Severity::Warning));
        assert_eq!((findings[1].because, findings[1].root), (Some("lost-events"), Some(0)));
        assert_eq!(findings[1].certainty, Some(Certainty::Possible));
    }

    #[test]
    fn side_effects_are_no_problem() {
        let redirect = || dropped("NETFILTER_DROP", PacketKind::IcmpRedirect, flow("10.0.0.9:0", "10.0.0.1:0"));
        assert_eq!(listed(&[redirect()]), [("dropped", Severity::Info, None, None)]);
        let found = listed(&[redirect(), vanished(), dropped("NO_SOCKET", PacketKind::Data, flow(CLIENT, SERVER))]);
        assert_eq!(found[0], ("vanished", Severity::Critical, None, None));
        assert_eq!(found[2], ("dropped", Severity::Info, Some("dropped"), Some(1)));
        assert_eq!(listed(&[dropped("TCP_OLD_DATA", PacketKind::Data, flow(CLIENT, SERVER))]), [("dropped", Severity::Info, None, None)]);
    }

    #[test]
    fn what_a_service_without_pods_causes_stands_below_it() {
        let service = "10.96.0.1:80";
        let hints = [
            dropped("NETFILTER_DROP", PacketKind::Syn, flow(CLIENT, service)),
            Hint::NoEndpoints { service: "a/b".to_owned(), frontends: vec![service.parse().expect("an address")] },
            failed(service, None, None),
        ];
        let expected = [
            ("no-endpoints", Severity::Critical, None, None),
            ("dropped", Severity::Critical, Some("no-endpoints"), Some(0)),
            ("probe-failed", Severity::Warning, Some("no-endpoints"), Some(0)),
        ];
        assert_eq!(listed(&hints), expected);
    }
}
