//! What watching cost.

use std::collections::BTreeMap;

use serde::Serialize;

use super::capture::Capture;

/// What watching cost, summed over helpers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Overhead {
    /// Runs and time of our programs, by hook.
    pub programs: BTreeMap<String, Program>,
    /// Time in our programs, in nanoseconds; absent when the kernel does not count it.
    pub programs_ns: Option<u64>,
    /// CPU time of the helpers, in nanoseconds.
    pub helper_cpu_ns: u64,
    /// Resident memory of the helpers, in bytes.
    pub helper_rss_bytes: u64,
    /// Time since the hooks were attached, in nanoseconds.
    pub elapsed_ns: u64,
    /// Time in which the machine-wide hooks were detached, in nanoseconds.
    pub rested_ns: u64,
    /// Packets that matched the pair.
    pub matched: u64,
    /// Packets whose hops were recorded.
    pub recorded: u64,
    /// Packets left out by sampling.
    pub sampled_out: u64,
    /// Packets that could not be tracked.
    pub untracked: u64,
    /// Events that belonged to no packet known.
    pub filter_misses: u64,
    /// Times a program could not run because it was running already.
    pub recursion_misses: u64,
    /// Packets that came but were not kept for the report.
    pub not_kept: u64,
}

/// One program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// How often it ran.
    pub runs: u64,
    /// Total time in it, in nanoseconds.
    pub ns: u64,
    /// Mean time of one run, in nanoseconds.
    pub ns_per_run: Option<u64>,
}

/// Sums what helpers said, and the events they lost.
pub(super) fn overhead(capture: &Capture) -> (Overhead, u64) {
    let mut sum = Overhead { not_kept: capture.not_kept, ..Overhead::default() };
    let mut lost = 0;
    for counters in capture.helpers.iter().filter_map(|h| h.counters.as_ref()) {
        for (name, time) in &counters.programs {
            let program = sum.programs.entry(name.clone()).or_default();
            program.runs += time.runs;
            program.ns += time.ns;
        }
        sum.helper_cpu_ns += counters.helper_cpu_ns;
        sum.helper_rss_bytes += counters.helper_rss_bytes;
        sum.elapsed_ns = sum.elapsed_ns.max(counters.elapsed_ns);
        sum.rested_ns = sum.rested_ns.max(counters.rested_ns);
        sum.matched += counters.matched;
        sum.recorded += counters.recorded;
        sum.sampled_out += counters.sampled_out;
        sum.untracked += counters.untracked;
        sum.filter_misses += counters.filter_misses;
        sum.recursion_misses += counters.recursion_misses;
        lost += counters.lost_events;
    }
    for program in sum.programs.values_mut() {
        program.ns_per_run = (program.ns > 0).then(|| program.ns / program.runs.max(1));
    }
    let total: u64 = sum.programs.values().map(|p| p.ns).sum();
    sum.programs_ns = (total > 0).then_some(total);
    (sum, lost)
}
