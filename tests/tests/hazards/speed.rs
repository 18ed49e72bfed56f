//! Rows 16 and 17: never slower than TCP.

use std::time::Duration;

use sockpath_tests::bench::accel::accelerated;
use sockpath_tests::bench::ground::{Cpus, Ground, Way};
use sockpath_tests::bench::measure::Case;
use sockpath_tests::bench::peer::Load;
use sockpath_tests::bench::stats::Sample;

/// Rounds of: all cases plain, all accelerated, all plain again.
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(250);

/// Two plain runs of one round that differ by more than this say that the machine is busy with something else.
const MOST_NOISE: f64 = 0.3;

/// Asserts that every case runs at `least` times the rate of plain TCP. The median over all rounds of accelerated over plain may be
/// below that by as much as two plain runs of one round differ from each other (the median of that over all rounds): a
/// difference that this machine's plain TCP has to itself says nothing about acceleration.
fn assert_rates(test: &str, cases: &[Case], least: f64) {
    if !sockpath_tests::root_or_skip(test) {
        return;
    }
    let ground = Ground::with_program(env!("CARGO_BIN_EXE_bench").into()).expect("a lab with servers");
    let run = |case: &Case| case.run(&ground, Way::Direct, TIME).expect("a run").rate;
    let (mut ratios, mut noises) = (vec![Sample::default(); cases.len()], vec![Sample::default(); cases.len()]);
    for _ in 0..ROUNDS {
        for cpus in [Cpus::One, Cpus::Two] {
            let chosen: Vec<(usize, &Case)> = cases.iter().enumerate().filter(|(_, c)| c.cpus == cpus).collect();
            let all = || chosen.iter().map(|(_, case)| run(case)).collect::<Vec<f64>>();
            let before = all();
            let fast = accelerated(&ground, cpus, &[], |_| Ok(all())).expect("an acceleration").expect("this helper accelerates");
            let after = all();
            for (i, (case, _)) in chosen.iter().enumerate() {
                ratios[*case].0.push(2.0 * fast[i] / (before[i] + after[i]));
                noises[*case].0.push((before[i] - after[i]).abs() / before[i].max(after[i]));
            }
        }
    }
    let mut slow = Vec::new();
    for (case, (ratio, noise)) in cases.iter().zip(ratios.iter().zip(&noises)) {
        let told = format!("{:?} of {} bytes, {:?} CPU: {ratio} of TCP; plain runs differ by {noise}", case.load, case.size, case.cpus);
        println!("{told}");
        if noise.median() > MOST_NOISE {
            sockpath_tests::skipped(test, &format!("too busy a machine for this case: {told}"));
        } else if ratio.median() < least - noise.median() {
            slow.push(told);
        }
    }
    assert!(slow.is_empty(), "below {least}:\n{}", slow.join("\n"));
}

fn cases(load: Load, sizes: &[usize]) -> Vec<Case> {
    [Cpus::One, Cpus::Two].into_iter().flat_map(|cpus| sizes.iter().map(move |&size| Case { load, size, cpus })).collect()
}

#[test]
fn h16_slower_than_tcp() {
    let streams = cases(Load::Stream, &[256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20]);
    assert_rates("h16_slower_than_tcp", &streams, 1.0);
}

#[test]
fn h17_connection_churn() {
    assert_rates("h17_connection_churn", &cases(Load::Connect, &[64]), 0.97);
}
