//! What the plugin keeps while many nodes stream: the sessions and the capture of a trace, fed by twenty helpers as fast as they are read.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use kubectl_sockpath::recording;
use kubectl_sockpath::report::{Capture, HelperOrigin, PACKETS_KEPT};
use kubectl_sockpath::session::{Aftermath, Ending, Event, Fleet, Keeper, Ready, Transport};
use sockpath_protocol::Message;
use sockpath_protocol::message::{End, EndReason};
use sockpath_protocol::packet::Packet;
use tokio::io::{AsyncWriteExt, split};

const NODES: usize = 20;
/// The goal of docs/benchmarks.md.
const LIMIT_KIB: u64 = 80 << 10;

struct Nobody;

impl Keeper for Nobody {
    fn end(self: Box<Self>, _: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async { Aftermath::default() })
    }
}

fn line(message: &Message) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    line
}

/// Resident memory of this process, the most there was, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn twenty_nodes_stay_within_the_limit() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/lab-same-node-service.jsonl");
    let recorded = recording::replay(&path).unwrap();
    let packets: Vec<Packet> = recorded.packets.iter().map(|(_, p)| p.clone()).collect();
    assert!(packets.iter().any(|p| p.hops.len() >= 15), "the recording has packets with many hops");
    let helper = recorded.origin.helpers[0].clone();
    let helpers: Vec<HelperOrigin> =
        (0..NODES).map(|i| HelperOrigin { nodes: vec![format!("node-{i}")], hello: helper.hello.clone() }).collect();
    let mut capture = Capture::new(kubectl_sockpath::report::Origin { helpers: helpers.clone(), ..recorded.origin });
    // Three times as many as are kept, so that the reservoir is full and packets are replaced.
    let rounds = 3 * PACKETS_KEPT / NODES / packets.len() + 1;
    let lines: Vec<Vec<u8>> = packets.iter().map(|p| line(&Message::Packet(Box::new(p.clone())))).collect();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut fleet = Fleet::default();
        for helper in &helpers {
            let (ours, mut theirs) = tokio::io::duplex(256 << 10);
            let (reader, writer) = split(ours);
            let (reader, writer) = (Box::new(reader), Box::new(writer));
            theirs.write_all(&line(&Message::Hello(helper.hello.clone()))).await.unwrap();
            let transport = Transport { nodes: helper.nodes.clone(), reader, writer, keeper: Box::new(Nobody) };
            fleet.join(Ready::handshake(transport, Duration::from_secs(1)).await.unwrap());
            let lines = lines.clone();
            tokio::spawn(async move {
                for _ in 0..rounds {
                    for line in &lines {
                        theirs.write_all(line).await.unwrap();
                    }
                }
                theirs.write_all(&line(&Message::End(End { reason: EndReason::Done }))).await.unwrap();
                // Held until everything was read.
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
        }
        while let Some((helper, event)) = fleet.next().await {
            assert!(!matches!(event, Event::Lost(_)), "{event:?}");
            capture.take(helper, event);
        }
    });
    assert_eq!((capture.packets.len(), capture.not_kept > PACKETS_KEPT as u64), (PACKETS_KEPT, true));
    eprintln!("{NODES} nodes, {} packets: at most {:.1} MiB resident", NODES * rounds * packets.len(), peak() as f64 / 1024.0);
    assert!(peak() < LIMIT_KIB, "{} KiB", peak());
}
