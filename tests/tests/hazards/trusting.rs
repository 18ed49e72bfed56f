//! Hazard 8 where FIONREAD of the kernel does not count TCP bytes of a socket in a sockmap: an edge-triggered reader that trusts it waits
//! for an edge. nginx asks only after a read that filled its buffer, so its first question comes long after its connection was accelerated.

use std::time::Duration;

use nix::sys::signal::Signal;
use sockpath_tests::torture::accelerator::{self, Accelerator, Choice};
use sockpath_tests::torture::agent::Op;
use sockpath_tests::torture::pods::{Remote, Ticket};
use sockpath_tests::torture::reader::ReaderKind;

use crate::fixture::{Fixture, exchange};

/// More than may be redirected to a reader at a time.
const BODY: u64 = 400_000;

/// A body after small messages: more than the budget, so that part of it goes by TCP into a mapped socket.
fn body(client: &Remote, server: &Remote, content: u64) -> (Ticket, Ticket) {
    let reading = server.start_on(1, Op::ReadContent { id: content, from: 0, to: BODY, kind: ReaderKind::EdgeTrusting, pause_us: 0 });
    let writing = client.start_on(1, Op::SendContent { id: content, from: 0, len: usize::try_from(BODY).expect("a small number") });
    (reading, writing)
}

fn arrives((reading, writing): (Ticket, Ticket)) {
    let all = i64::try_from(BODY).expect("a small number");
    assert_eq!(writing.number(), all);
    assert_eq!(reading.number(), all, "the reader waits for an edge although bytes are unread");
}

fn fixture_with_small_messages(test: &str, choice: &Choice) -> Option<(Fixture, Accelerator, Remote, Remote)> {
    let fixture = Fixture::of_askers(test)?;
    let mut on = fixture.accelerate_with(choice);
    let (client, server) = fixture.connect_accelerated(&mut on, 6000);
    exchange(&client, &server, 300);
    Some((fixture, on, client, server))
}

#[test]
fn h08_a_large_body_after_small_messages() {
    let test = "h08_a_large_body_after_small_messages";
    let Some((_fixture, on, client, server)) = fixture_with_small_messages(test, &Choice::default()) else { return };
    for content in 1..=5 {
        arrives(body(&client, &server, content));
        exchange(&client, &server, 20);
    }
    on.finish().expect("end");
}

#[test]
fn h08_a_large_body_while_stopping() {
    let test = "h08_a_large_body_while_stopping";
    let Some((fixture, mut on, client, server)) = fixture_with_small_messages(test, &Choice::default()) else { return };
    for content in 1..=5 {
        let transfer = body(&client, &server, content);
        on.finish().expect("end");
        arrives(transfer);
        on = fixture.accelerate();
        crate::fixture::await_accelerated(&mut on, &client, &server);
    }
    on.finish().expect("end");
}

#[test]
fn h08_a_large_body_when_the_lease_is_over() {
    let choice = Choice { lease: Duration::from_millis(1_200), ..Choice::default() };
    let test = "h08_a_large_body_when_the_lease_is_over";
    let Some((fixture, mut on, client, server)) = fixture_with_small_messages(test, &choice) else { return };
    // The helper is killed: the sockets stay in the map, and what is written now goes by TCP.
    on.0.signal(Signal::SIGSTOP).expect("stop the helper");
    accelerator::await_lease_end(&fixture.lab).expect("the lease ends");
    on.0.kill().expect("kill");
    let transfer = body(&client, &server, 1);
    // `stop` rearms the reader, if that waits.
    accelerator::stop(&fixture.lab).expect("stop");
    arrives(transfer);
    assert!(!accelerator::status(&fixture.lab).expect("status").active);
}
