//! The short form of the torture; `make torture` runs the long one.

use std::time::{Duration, SystemTime};

use sockpath_protocol::accel::Via;
use sockpath_tests::root_or_skip;
use sockpath_tests::torture::controller::{Torture, Verdict};

/// Connections of a run: enough for acceleration to come and go several times, under each of the plans and by each route.
const CONNECTIONS: u64 = 2_500;

/// `SOCKPATH_TEST_SEED`, or one that the clock chooses.
fn seed() -> u64 {
    let chosen = std::env::var("SOCKPATH_TEST_SEED").ok().map(|s| s.parse().expect("SOCKPATH_TEST_SEED is not a number"));
    chosen.unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs()))
}

fn run(test: &str, torture: Torture) -> Verdict {
    eprintln!("{test}: SOCKPATH_TEST_SEED={}", torture.seed);
    let verdict = torture.run().expect("the torture could not run");
    eprintln!("{verdict}");
    verdict
}

/// A run that has to come out right, for comparison with others of its seed.
fn passing(test: &str, torture: Torture) -> Verdict {
    let verdict = run(test, torture);
    assert!(verdict.passed(), "{verdict}");
    verdict
}

#[test]
fn accelerated_connections_see_what_plain_ones_see() {
    const TEST: &str = "accelerated_connections_see_what_plain_ones_see";
    if !root_or_skip(TEST) {
        return;
    }
    let torture =
        Torture { seed: seed(), connections: CONNECTIONS, accelerate: false, without_order_gate: false, via: Via::Socket, limit: None };
    let plain = passing(TEST, torture);
    let accelerated = passing(TEST, Torture { accelerate: true, ..torture });
    let share = accelerated.bypassed_share();
    let deeds = accelerated.deeds.expect("acceleration was not switched");
    // Seen: 20 to 50 messages for each connection, 7 to 26 % of all. The rest is cross-node, ineligible, or falls into the times when
    // acceleration is off or starting, which takes seconds on a machine as busy as this run makes it.
    assert!(deeds.bypassed_messages > 5 * CONNECTIONS && share > 0.02, "little was accelerated: {share:.3} of all writes, {deeds:?}");
    // Bytes and ends of every connection whose outcome its plan decides.
    assert_eq!((accelerated.clients.digest, accelerated.servers.digest), (plain.clients.digest, plain.servers.digest));
}

#[test]
fn the_torture_sees_a_missing_order_gate() {
    const TEST: &str = "the_torture_sees_a_missing_order_gate";
    if !root_or_skip(TEST) {
        return;
    }
    // Most short runs see it; acceleration may not be on for long enough in one of them.
    let first = seed();
    let saw_reordering = (first..first + 4).any(|seed| {
        let limit = Some(Duration::from_secs(10));
        let verdict = run(TEST, Torture { seed, connections: 6_000, accelerate: true, without_order_gate: true, via: Via::Socket, limit });
        verdict.faults.iter().any(|f| f.contains("wrong byte"))
    });
    assert!(saw_reordering, "programs without the order gate pass the torture: it would not see reordering");
}
