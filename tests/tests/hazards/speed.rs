//! Rows 16 and 17: never slower than TCP.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use sockpath_tests::bench::accel::accelerated;
use sockpath_tests::bench::ground::{Cpus, Ground, Way};
use sockpath_tests::bench::measure::Case;
use sockpath_tests::bench::peer::Load;
use sockpath_tests::bench::stats::Sample;

use crate::scene::{Scene, await_accelerated};

/// How long and how often is measured: rounds of all cases plain, all accelerated, all plain again.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    time: Duration,
}

/// At first.
const SHORT: Effort = Effort { rounds: 7, time: Duration::from_millis(250) };
/// What falls short then is measured again, by itself: a short run is mostly the beginning of a connection.
const LONG: Effort = Effort { rounds: 9, time: Duration::from_millis(1000) };

/// Two plain runs of one round that differ by more than this say that the machine is busy with something else.
const MOST_NOISE: f64 = 0.3;

/// What was measured of one case.
struct Measured {
    case: Case,
    /// Accelerated over plain, by round.
    ratio: Sample,
    /// By how much the two plain runs of a round differ.
    noise: Sample,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { case, ratio, noise } = self;
        write!(f, "{:?} of {} bytes, {:?} CPU: {ratio} of TCP; plain runs differ by {noise}", case.load, case.size, case.cpus)
    }
}

impl Measured {
    /// Whether the median over all rounds is below `least` by more than two plain runs of one round differ from each other (the
    /// median of that over all rounds): a difference that this machine's plain TCP has to itself says nothing about
    /// acceleration.
    fn falls_short(&self, least: f64) -> bool {
        self.ratio.median() < least - self.noise.median()
    }

    /// Whether a sign test says so too: eight of nine rounds are below, which chance does in one of fifty.
    fn is_slower(&self, least: f64) -> bool {
        let below = self.ratio.0.iter().filter(|r| **r < least).count();
        self.falls_short(least) && below * 9 >= self.ratio.0.len() * 8
    }
}

fn measure(ground: &Ground, cases: &[Case], effort: Effort) -> Vec<Measured> {
    let run = |case: &Case| case.run(ground, Way::Direct, effort.time).expect("a run").rate;
    let mut measured: Vec<Measured> =
        cases.iter().map(|case| Measured { case: *case, ratio: Sample::default(), noise: Sample::default() }).collect();
    for _ in 0..effort.rounds {
        for cpus in [Cpus::One, Cpus::Two] {
            let mut chosen: Vec<&mut Measured> = measured.iter_mut().filter(|m| m.case.cpus == cpus).collect();
            if chosen.is_empty() {
                continue;
            }
            let all = |chosen: &[&mut Measured]| chosen.iter().map(|m| run(&m.case)).collect::<Vec<f64>>();
            let before = all(&chosen);
            let fast = accelerated(ground, cpus, &[], |_| Ok(all(&chosen))).expect("an acceleration").expect("this helper accelerates");
            let after = all(&chosen);
            for (i, m) in chosen.iter_mut().enumerate() {
                m.ratio.0.push(2.0 * fast[i] / (before[i] + after[i]));
                m.noise.0.push((before[i] - after[i]).abs() / before[i].max(after[i]));
            }
        }
    }
    for m in &measured {
        println!("{m}");
    }
    measured
}

/// Asserts that every case runs at `least` times the rate of plain TCP.
fn assert_rates(test: &str, cases: &[Case], least: f64) {
    if !sockpath_tests::root_or_skip(test) {
        return;
    }
    let ground = Ground::with_program(env!("CARGO_BIN_EXE_bench").into()).expect("a lab with servers");
    let short = measure(&ground, cases, SHORT);
    let again: Vec<Case> = short.iter().filter(|m| m.falls_short(least) || m.noise.median() > MOST_NOISE).map(|m| m.case).collect();
    let (noisy, clear): (Vec<_>, Vec<_>) = measure(&ground, &again, LONG).into_iter().partition(|m| m.noise.median() > MOST_NOISE);
    for m in noisy {
        sockpath_tests::skipped(test, &format!("too busy a machine for this case: {m}"));
    }
    let slow: Vec<String> = clear.iter().filter(|m| m.is_slower(least)).map(ToString::to_string).collect();
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

/// Where connections come too fast for each of them to be met, one that lasts is found all the same, while they come and afterwards.
#[test]
fn h17_those_that_last_are_found_in_a_storm() {
    /// Far more than come until a storm is noticed.
    const ENOUGH: u64 = 10_000;
    let Some(scene) = Scene::new("h17_those_that_last_are_found_in_a_storm") else { return };
    let mut on = scene.accelerate();
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            scene.lab.inside("curl", || {
                while !stop.load(Ordering::Relaxed) {
                    let stream = TcpStream::connect("10.42.1.3:8080").expect("the server accepts");
                    // Closed by a reset: no port stays taken.
                    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("SO_LINGER is set");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while count.load(Ordering::Relaxed) < ENOUGH {
            assert!(Instant::now() < deadline, "{} connections in a minute are no storm", count.load(Ordering::Relaxed));
            std::thread::yield_now();
        }
        let (client, server) = scene.connect(6000);
        await_accelerated(&mut on, &client, &server);
        let last = scene.connect(6001);
        stop.store(true, Ordering::Relaxed);
        last
    });
    await_accelerated(&mut on, &last.0, &last.1);
    on.finish().expect("end");
}
