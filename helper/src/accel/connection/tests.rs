use super::*;

const PROFILING: Profiling = Profiling { epoch: 1, reads: PROFILE_READS, polls: 32, judges_programs: false, selective: false };

/// An end of a connection in which both sides talk.
fn talks() -> End {
    End { state: accel_state::ACCEL_WATCHED, reads: 10, taken: 10, ..End::default() }
}

fn inserted() -> End {
    End { state: accel_state::ACCEL_INSERTED, profiled: PROFILE_READS, ..talks() }
}

#[test]
fn states_follow_from_both_ends() {
    let why = accel_pass::ACCEL_SPLICE;
    let of = |a: End, b: End| {
        let both = [State::of([&a, &b]), State::of([&b, &a])];
        assert_eq!(both[0], both[1], "the order of the ends matters: {a:?} {b:?}");
        both[0]
    };
    let held = |end: End| End { hold: 1, left: why, ..end };
    assert_eq!(of(talks(), talks()), State::Tracked);
    assert_eq!(of(inserted(), inserted()), State::Inserted);
    assert_eq!(of(inserted(), talks()), State::Half);
    assert_eq!(of(held(inserted()), held(inserted())), State::Leaving(why));
    assert_eq!(of(held(inserted()), held(talks())), State::Leaving(why));
    assert_eq!(of(held(talks()), held(talks())), State::Left(why));
    assert_eq!(of(talks(), End { left: why, ..talks() }), State::Out(why));
    assert_eq!(of(talks(), End { result: -libc::ENOENT, ..talks() }), State::Refused);
    assert_eq!(of(talks(), End { result: -libc::ENOENT, left: why, ..talks() }), State::Out(why));
    // One end is closed.
    assert_eq!(of(inserted(), End { state: accel_state::ACCEL_OVER, ..talks() }), State::Half);
}

#[test]
fn calls_are_observed_while_that_may_matter() {
    let needs = |end: End, peer: End| PROFILING.needs(&end, Some(&peer));
    let candidate = Needs { calls: true, sends: true, arrivals: false };
    assert_eq!(needs(talks(), talks()), candidate);
    assert_eq!(needs(inserted(), inserted()), Needs { sends: false, ..candidate });
    // Its reader is another process since, which is profiled, too.
    assert_eq!(needs(End { profiled: 0, ..inserted() }, inserted()), candidate);
    let may_sleep = End { flags: accel_flag::ACCEL_MAY_SLEEP.0, ..talks() };
    assert_eq!(needs(may_sleep, talks()), Needs { arrivals: true, ..candidate });
    assert_eq!(needs(End { polled: 32, flags: may_sleep.flags, ..inserted() }, inserted()), Needs { sends: false, ..candidate });
    for idle in [
        End { left: accel_pass::ACCEL_SLOWER, ..talks() },
        End { taken: 100 * MOST_PER_TURN, ..talks() },
        End { flags: accel_flag::ACCEL_SAW_SPLICE.0, ..talks() },
        End { reads: 0, ..talks() },
    ] {
        assert_eq!(needs(idle, talks()), Needs::default(), "{idle:?}");
    }
    assert_eq!(PROFILING.needs(&talks(), None), Needs::default());
}

#[test]
fn what_streams_is_known_by_its_turns() {
    let pair = |reads: [u64; 2], taken: u64| [End { reads: reads[0], taken, ..talks() }, End { reads: reads[1], taken: 0, ..talks() }];
    let streams = |[a, b]: [End; 2]| streams([&a, &b]);
    assert!(streams(pair([100, 1], 2 * MOST_PER_TURN)));
    assert!(!streams(pair([100, 2], 2 * MOST_PER_TURN)));
    // Too little was read to say.
    assert!(!streams(pair([3, 1], 2 * MOST_PER_TURN)));
}
