use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::*;

const ENDS: [Socket; 2] = [Socket { slot: 0, cookie: 10 }, Socket { slot: 2, cookie: 12 }];

/// Three slots in ordinary memory, the sockets `ENDS` in two of them.
fn ends() -> Ends {
    let fd = memfd_create("ends", MFdFlags::MFD_CLOEXEC).expect("memory");
    let (size, count) = (size_of::<Slot>(), 3);
    ftruncate(&fd, i64::try_from(size * count).expect("a size")).expect("its size");
    let mapped = Mapped::new(fd.as_fd(), u32::try_from(size).expect("a size"), u32::try_from(count).expect("a count")).expect("a mapping");
    let ends = Ends(mapped);
    for socket in ENDS {
        slot(&ends, socket).cookie.set(socket.cookie);
        slot(&ends, socket).state.set(accel_state::ACCEL_WATCHED);
    }
    ends
}

fn slot(ends: &Ends, socket: Socket) -> &Slot {
    ends.get(socket.slot).expect("a slot")
}

/// What decisions write: hold, reason, order and cookie of the socket that it is for.
fn written(ends: &Ends) -> [(u32, accel_pass, accel_order, u64); 2] {
    ENDS.map(|socket| {
        let end = slot(ends, socket);
        (end.hold.get(), end.left.get(), end.order.get(), end.ordered.get())
    })
}

#[test]
fn decisions_are_written_to_both_ends() {
    let why = accel_pass::ACCEL_POLICY;
    let nothing = accel_order::ACCEL_NOTHING;
    let both = |hold, left, order, of: [u64; 2]| of.map(|cookie| (hold, left, order, cookie));
    let after = |actions: &[Action]| {
        let ends = ends();
        actions.iter().for_each(|action| ends.apply(ENDS, *action));
        assert_eq!(ends.get(1).map(|other| (other.hold.get(), other.ordered.get())), Some((0, 0)), "the slot of none of them");
        written(&ends)
    };
    assert_eq!(after(&[Action::OrderIn]), both(0, NONE, accel_order::ACCEL_INSERT, [10, 12]));
    assert_eq!(after(&[Action::OrderOut(why)]), both(1, why, accel_order::ACCEL_REMOVE, [10, 12]));
    assert_eq!(after(&[Action::TakeBack]), both(1, NONE, accel_order::ACCEL_REMOVE, [10, 12]));
    assert_eq!(after(&[Action::KeepOut(why)]), both(0, why, nothing, [0, 0]));
    assert_eq!(after(&[Action::OrderOut(why), Action::Release]), both(0, why, accel_order::ACCEL_REMOVE, [10, 12]));
    assert_eq!(after(&[Action::KeepOut(why), Action::LetBack]), both(0, NONE, nothing, [0, 0]));
}

#[test]
fn readers_are_profiled_afresh_after_a_return() {
    let ends = ends();
    for socket in ENDS {
        let end = slot(&ends, socket);
        [&end.profiled, &end.polled].iter().for_each(|count| count.set(40));
        end.result.set(-libc::EEXIST);
    }
    ends.apply(ENDS, Action::LetBack);
    for socket in ENDS {
        let end = slot(&ends, socket);
        assert_eq!((end.profiled.get(), end.polled.get(), end.result.get()), (0, 0, 0));
    }
}

#[test]
fn nothing_is_done_to_the_next_socket_in_a_slot() {
    let ends = ends();
    let next = slot(&ends, ENDS[0]);
    next.cookie.set(99);
    let actions = [Action::OrderIn, Action::OrderOut(accel_pass::ACCEL_POLICY), Action::TakeBack, Action::KeepOut(accel_pass::ACCEL_ULP)];
    for action in actions {
        ends.apply(ENDS, action);
        let [(hold, left, _, ordered), _] = written(&ends);
        assert_eq!((hold, left), (0, NONE), "{action:?}");
        assert_ne!(ordered, 99, "{action:?}: the order is for another socket");
    }
    ends.pair(ENDS);
    ends.note_flags(ENDS[0], 1);
    ends.note_lone(ENDS[0], accel_pass::ACCEL_OTHER_NODE);
    ends.note_judged(ENDS[0], 7);
    assert_eq!((next.peer_cookie.get(), next.flags.get(), next.left.get(), next.judged.get()), (0, 0, NONE, 0));
    assert_eq!(slot(&ends, ENDS[1]).peer_cookie.get(), 0, "half of a pair");
}

#[test]
fn what_is_not_found_is_refused() {
    let ends = ends();
    ends.apply(ENDS, Action::OrderIn);
    // The first was inserted.
    slot(&ends, ENDS[0]).order.set(accel_order::ACCEL_NOTHING);
    ends.refuse(0..3);
    assert_eq!(ENDS.map(|socket| slot(&ends, socket).result.get()), [0, -libc::ESRCH]);

    ends.apply(ENDS, Action::OrderIn);
    slot(&ends, ENDS[0]).cookie.set(99);
    ends.refuse(0..3);
    assert_eq!(ENDS.map(|socket| slot(&ends, socket).result.get()), [0, -libc::ESRCH]);
    assert!((0..3).all(|slot| !ends.is_ordered_in(slot)));
}

#[test]
fn only_sockets_in_the_map_are_ordered_out_at_the_end() {
    let ends = ends();
    slot(&ends, ENDS[1]).state.set(accel_state::ACCEL_INSERTED);
    ends.order_all_out(3);
    assert_eq!(written(&ends), [(0, NONE, accel_order::ACCEL_NOTHING, 0), (0, NONE, accel_order::ACCEL_REMOVE, 12)]);
}

#[test]
fn copies_have_every_field_in_its_place() {
    let ends = ends();
    let end = slot(&ends, ENDS[0]);
    end.passes.iter().zip(1..).for_each(|(count, n)| count.set(n));
    end.after_ns.iter().for_each(|ns| ns.set(u32::MAX));
    end.reinjection.set(accel_reinjection::ACCEL_REINJECT_DONE);
    let copy = end.copy();
    assert_eq!((copy.cookie, copy.reinjection, copy.after_ns), (10, accel_reinjection::ACCEL_REINJECT_DONE, [u32::MAX; 16]));
    assert_eq!(copy.passes[0], 1);
    assert_eq!(end.passes(accel_pass::ACCEL_LIMITED), accel_pass::ACCEL_LIMITED.0 + 1);
    assert_eq!(end.passes(accel_pass(1_000)), 0);
}
