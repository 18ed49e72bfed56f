//! The short form of the torture; `make torture` runs the long one.

use std::time::{Duration, SystemTime};

use sockpath_tests::root_or_skip;
use sockpath_tests::torture::controller::{Torture, Verdict};

/// `SOCKPATH_TEST_SEED`, or one that the clock chooses.
fn seed() -> u64 {
    let chosen = std::env::var("SOCKPATH_TEST_SEED").ok().map(|s| s.parse().expect("SOCKPATH_TEST_SEED is no number"));
    chosen.unwrap_or_else(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_secs()))
}

fn run(test: &str, torture: Torture) -> Verdict {
    eprintln!("{test}: SOCKPATH_TEST_SEED={}", torture.seed);
    let verdict = torture.run().expect("the torture could not run");
    eprintln!("{verdict}");
    verdict
}

#[test]
fn plain_tcp_passes_the_torture() {
    if !root_or_skip("plain_tcp_passes_the_torture") {
        return;
    }
    let torture =
        Torture { seed: seed(), connections: 3_000, accelerate: false, without_order_gate: false, limit: Some(Duration::from_secs(30)) };
    let verdict = run("plain_tcp_passes_the_torture", torture);
    assert!(verdict.passed(), "{verdict}");
    assert!(verdict.clients.connections > 1_000, "{verdict}");
}
