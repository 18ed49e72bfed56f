//! Single decisions.

use sockpath_bpf::accel::types::{accel_flag, accel_state};

use super::super::connection::PROFILE_READS;
use super::*;

const PROFILING: Profiling = Profiling { epoch: 1, reads: PROFILE_READS, polls: 32, judges_programs: false, selective: false };
const RUNNING: Wanted = Wanted { pause: None, resumes: false, apart: false, stopped: false };
const PAUSED: Wanted = Wanted { pause: Some(accel_pass::ACCEL_POLICY), resumes: true, ..RUNNING };
const RESUMED: Wanted = Wanted { resumes: true, ..RUNNING };

/// An end that was profiled, of a connection in which both sides talk.
fn profiled() -> End {
    End { state: accel_state::ACCEL_WATCHED, reads: 10, taken: 10, profiled: PROFILE_READS, epoch: 1, ..End::default() }
}

fn inserted() -> End {
    End { state: accel_state::ACCEL_INSERTED, ..profiled() }
}

fn out(why: accel_pass) -> End {
    End { left: why, ..profiled() }
}

fn at(history: History, ends: [End; 2], wanted: Wanted, now: Instant) -> (History, Vec<Action>) {
    let [a, b] = &ends;
    decide(history, &Snapshot { ends: [a, b], profiling: &PROFILING, wanted, now })
}

fn actions(ends: [End; 2], wanted: Wanted) -> Vec<Action> {
    at(History::default(), ends, wanted, Instant::now()).1
}

#[test]
fn what_is_profiled_goes_in() {
    assert_eq!(actions([profiled(); 2], RUNNING), [Action::OrderIn]);
    for unready in [
        End { profiled: PROFILE_READS - 1, ..profiled() },
        End { epoch: 2, ..profiled() },
        End { flags: accel_flag::ACCEL_MAY_SLEEP.0, polled: 31, ..profiled() },
        End { flags: accel_flag::ACCEL_SAW_SPLICE.0, ..profiled() },
        End { taken: 100 * MOST_PER_TURN, ..profiled() },
        End { reads: 0, ..profiled() },
        End { result: -libc::EEXIST, ..profiled() },
        out(accel_pass::ACCEL_FOREIGN),
    ] {
        assert_eq!(actions([unready, profiled()], RUNNING), [], "{unready:?}");
        assert_eq!(actions([profiled(), unready], RUNNING), [], "{unready:?}");
    }
    assert_eq!(actions([profiled(); 2], Wanted { stopped: true, ..RUNNING }), []);
}

#[test]
fn programs_are_judged_first_where_that_matters() {
    let ready = |profiling: &Profiling, end: End| profiling.is_ready([&end, &end]);
    let selective = Profiling { selective: true, judges_programs: true, ..PROFILING };
    let judged = End { reader: 7, judged: 7, ..profiled() };
    assert!(ready(&selective, judged) && selective.is_candidate([&judged, &judged]));
    for unjudged in [profiled(), End { reader: 8, ..judged }] {
        assert!(!ready(&selective, unjudged) && !selective.is_candidate([&unjudged, &unjudged]), "{unjudged:?}");
        assert!(PROFILING.is_candidate([&unjudged, &unjudged]));
    }
}

#[test]
fn requests_keep_out_and_take_out() {
    let policy = accel_pass::ACCEL_POLICY;
    assert_eq!(actions([profiled(); 2], PAUSED), [Action::KeepOut(policy)]);
    assert_eq!(actions([out(accel_pass::ACCEL_SLOWER); 2], PAUSED), [Action::KeepOut(policy)]);
    assert_eq!(actions([inserted(); 2], PAUSED), [Action::OrderOut(policy)]);
    assert_eq!(actions([out(accel_pass::ACCEL_ULP); 2], PAUSED), []);
    assert_eq!(actions([out(policy); 2], PAUSED), []);
    assert_eq!(actions([out(policy); 2], RESUMED), [Action::LetBack]);
    // A process that took over knows of no request.
    assert_eq!(actions([out(policy); 2], RUNNING), []);
    assert_eq!(actions([profiled(); 2], Wanted { apart: true, ..PAUSED }), [Action::KeepOut(accel_pass::ACCEL_OTHER_NODE)]);
}

#[test]
fn what_leaves_is_released_when_both_ends_are_out() {
    let policy = accel_pass::ACCEL_POLICY;
    let leaving = [End { hold: 1, ..inserted() }, End { hold: 1, left: policy, ..profiled() }];
    assert_eq!(actions(leaving, RESUMED), []);
    let now = Snapshot { ends: [&leaving[0], &leaving[1]], profiling: &PROFILING, wanted: RESUMED, now: Instant::now() };
    assert!(comes_back(&now) && !comes_back(&Snapshot { wanted: PAUSED, ..now }));
    let left = End { hold: 1, left: policy, ..profiled() };
    assert_eq!(actions([left; 2], RESUMED), [Action::Release, Action::LetBack]);
    assert_eq!(actions([left; 2], PAUSED), [Action::Release]);
    let for_good = End { left: accel_pass::ACCEL_SPLICE, ..left };
    assert_eq!(actions([for_good; 2], RESUMED), [Action::Release]);
}

#[test]
fn an_end_is_not_in_the_map_alone() {
    let refused = End { left: accel_pass::ACCEL_RCVLOWAT, ..profiled() };
    for wanted in [RUNNING, PAUSED, RESUMED] {
        assert_eq!(actions([inserted(), refused], wanted), [Action::TakeBack]);
        assert_eq!(actions([refused, inserted()], wanted), [Action::TakeBack]);
    }
}

#[test]
fn what_the_map_cannot_do_makes_it_leave() {
    let leaves = |end: End| actions([inserted(), end], RUNNING);
    let splice = End { flags: accel_flag::ACCEL_SAW_SPLICE.0, ..inserted() };
    assert_eq!(leaves(splice), [Action::OrderOut(accel_pass::ACCEL_SPLICE)]);
    // With a request at the same time, what lasts is noted.
    assert_eq!(actions([splice, inserted()], PAUSED), [Action::OrderOut(accel_pass::ACCEL_SPLICE)]);
    let passes = |why, count| End { last_pass: why, as_the_last: count, ..inserted() };
    assert_eq!(leaves(passes(accel_pass::ACCEL_ULP, 1)), [Action::OrderOut(accel_pass::ACCEL_ULP)]);
    assert_eq!(leaves(passes(accel_pass::ACCEL_RCVLOWAT, PERSISTENT - 1)), []);
    assert_eq!(leaves(passes(accel_pass::ACCEL_RCVLOWAT, PERSISTENT)), [Action::OrderOut(accel_pass::ACCEL_RCVLOWAT)]);
    assert_eq!(leaves(End { fast: 1, ..passes(accel_pass::ACCEL_RCVLOWAT, PERSISTENT) }), []);
    assert_eq!(leaves(passes(accel_pass::ACCEL_LEASE, 1_000)), []);
}

#[test]
fn where_tcp_is_faster_it_leaves_for_longer_each_time() {
    let slower = accel_pass::ACCEL_SLOWER;
    let mut now = Instant::now();
    let (mut history, first) = at(History::default(), [inserted(); 2], RUNNING, now);
    assert_eq!(first, []);
    let by_tcp = End { pass_bytes: JUDGED_BYTES, ..inserted() };
    for (seconds, before) in [2, 4, 8, 16, 32, 60, 60].into_iter().zip(1..) {
        let end = |n: u64| End { pass_bytes: n * JUDGED_BYTES, ..by_tcp };
        let (after, leaves) = at(history, [end(before); 2], RUNNING, now);
        assert_eq!(leaves, [Action::OrderOut(slower)], "time {before}");
        // Both sides read in turn, all the time.
        let talks = |reads| End { reads, pass_bytes: before * JUDGED_BYTES, ..out(slower) };
        let step = Duration::from_millis(100);
        let (almost, still) = at(after, [talks(10); 2], RUNNING, now + Duration::from_secs(seconds) - step);
        assert_eq!(still, [], "before {seconds} s are over");
        now += Duration::from_secs(seconds);
        assert_eq!(at(almost, [talks(11); 2], RUNNING, now).1, [], "TCP carries no conversation");
        let (back, comes) = at(almost, [talks(20); 2], RUNNING, now);
        assert_eq!(comes, [Action::LetBack]);
        history = back;
    }
}

#[test]
fn spills_and_streams_are_slower() {
    let now = Instant::now();
    let before = |end: End| at(History::default(), [end, inserted()], RUNNING, now).0;
    let leaves = |history, end: End| at(history, [end, inserted()], RUNNING, now).1;
    let slower = [Action::OrderOut(accel_pass::ACCEL_SLOWER)];
    let history = before(inserted());
    assert_eq!(leaves(history, End { over_budget: 1, ..inserted() }), slower);
    assert_eq!(leaves(history, End { bytes: 4 * MOST_PER_TURN, ..inserted() }), slower);
    assert_eq!(leaves(history, End { bytes: 4 * MOST_PER_TURN - 1, ..inserted() }), []);
    assert_eq!(leaves(history, End { pass_bytes: JUDGED_BYTES, ..inserted() }), slower);
    assert_eq!(leaves(history, End { pass_bytes: JUDGED_BYTES, bytes: 3 * JUDGED_BYTES, ..inserted() }), []);
    // Only what happened since the last look counts.
    assert_eq!(leaves(before(End { over_budget: 1, ..inserted() }), End { over_budget: 1, ..inserted() }), []);
}
