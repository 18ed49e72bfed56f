//! What the plugin keeps of helpers, or a recording, that say as much as they may: bounded in bytes, not only in number.
#![cfg(unix)]
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::sync::Arc;

use kubectl_sockpath::output::write_document;
use kubectl_sockpath::recording;
use kubectl_sockpath::report::{self, Capture, PACKETS_KEPT};
use peak::peak_kib;
use sockpath_protocol::Message;
use sockpath_protocol::limits::MOST_HOPS;
use sockpath_protocol::message::Probed;
use sockpath_protocol::packet::{Incident, IncidentKind, Place};
use sockpath_protocol::request::Protocol;

mod peak;

/// What an ordinary trace may take, and half of that again.
const LIMIT_KIB: u64 = 120 << 10;

#[test]
fn much_of_everything_stays_within_the_limit() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/in-pod.jsonl");
    let recorded = recording::replay(&path).unwrap();
    let mut capture = Capture::new(recorded.origin.clone());
    let packet = &recorded.packets[0].1;
    let mut hear = |mut message: Message| {
        message.check().unwrap();
        capture.hear(0, message);
    };
    for number in 0..500 {
        let mut packet = packet.clone();
        let hop = packet.hops[0].clone();
        packet.hops = vec![hop; MOST_HOPS];
        for hop in &mut packet.hops {
            hop.note = Some("n".repeat(8_000));
        }
        packet.id = number;
        hear(Message::Packet(Box::new(packet)));
    }
    for number in 0..200_000u32 {
        let long = || format!("{number}{}", "x".repeat(1_000));
        hear(Message::Place(Place { index: number, node: long(), pod: Some(long()), netns: 1, device: None }));
        hear(Message::Warning { text: long() });
        hear(Message::Incident(Incident { at_ns: 1, what: IncidentKind::State, flow: None, place: None, detail: Some(long()) }));
        hear(Message::Probed(Probed { protocol: Protocol::Tcp, to: long(), answered: false, took_ns: 1, error: Some(long()), why: None }));
    }
    assert_eq!((capture.probed, capture.packets.len() as u64 + capture.not_kept), (200_000, 500));
    assert!(capture.packets.len() < PACKETS_KEPT / 10, "{} packets", capture.packets.len());
    let report = report::report(&Arc::new(capture));
    write_document(&report, &mut std::io::sink()).unwrap();
    let peak = peak_kib("self").unwrap();
    eprintln!("at most {:.1} MiB resident", peak as f64 / 1024.0);
    assert!(peak < LIMIT_KIB, "{peak} KiB");
}
