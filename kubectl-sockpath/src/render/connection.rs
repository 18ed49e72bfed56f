//! One connection in words: its ends, its state and the reason for it, bytes and times.

use std::net::SocketAddr;

use sockpath_protocol::accel::{Carrier, Pair, PairState};

use crate::duration::nanos;

/// A state in a word or two.
pub(super) fn state_word(state: PairState) -> &'static str {
    match state {
        PairState::Waiting => "waiting",
        PairState::Accelerated => "accelerated",
        PairState::Paused => "paused",
        PairState::Returned => "returned",
        PairState::LeftAlone => "excluded",
        PairState::Draining => "draining",
    }
}

/// The state of a pair; on a dry run, that it would be accelerated.
pub(super) fn shown_state(pair: &Pair) -> &'static str {
    if would_be(pair) { "would be accelerated" } else { state_word(pair.state) }
}

/// Whether this is what a dry run says of one that would be accelerated: it has a path that does not carry it.
pub(super) fn would_be(pair: &Pair) -> bool {
    pair.state == PairState::Waiting && pair.via != Carrier::Stack
}

/// Bytes in at most four digits and a binary unit.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS[unit];
    if value < 9.995 {
        format!("{value:.2} {name}")
    } else if value < 99.95 {
        format!("{value:.1} {name}")
    } else {
        format!("{value:.0} {name}")
    }
}

/// An end of a pair: the pod where it is known, and the port that tells connections apart.
fn end(pod: Option<&str>, addr: SocketAddr) -> String {
    match pod {
        Some(pod) => format!("{pod}:{}", addr.port()),
        None => addr.to_string(),
    }
}

/// `default/curl:41000`.
pub(super) fn client(pair: &Pair) -> String {
    end(pair.client_pod.as_deref(), pair.client)
}

/// `default/httpbin:8080`, or `default/httpbin:8080 via 10.96.0.10:80` when it was dialled through a Service.
pub(super) fn server(pair: &Pair) -> String {
    let text = end(pair.server_pod.as_deref(), pair.server.unwrap_or(pair.dialled));
    if pair.via_service { format!("{text} via {}", pair.dialled) } else { text }
}

/// Why it is not (always) accelerated.
pub(super) fn why(pair: &Pair) -> String {
    let most = || pair.passes.iter().max_by_key(|(_, n)| **n).map(|(reason, n)| format!("{} ({n})", reason.text()));
    match pair.reason {
        Some(reason) => reason.text().to_owned(),
        None if pair.state == PairState::Accelerated => String::new(),
        None => most().unwrap_or_default(),
    }
}

/// Times from a request to its answer, before and after.
pub(super) fn turnaround(pair: &Pair) -> String {
    match (pair.turnaround_before_ns, pair.turnaround_after_ns) {
        (Some(before), Some(after)) => format!("{} > {}", nanos(before), nanos(after)),
        (Some(before), None) => nanos(before),
        (None, Some(after)) => format!("? > {}", nanos(after)),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (n, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1 << 20, "1.00 MiB"), (10 << 30, "10.0 GiB"), (1_048_500, "1.00 MiB")]
        {
            assert_eq!(bytes(n), text);
        }
        assert!(bytes(u64::MAX).ends_with("EiB"));
    }
}
