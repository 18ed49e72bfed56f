//! What the plugin keeps while many nodes stream: the sessions and the capture of a trace, fed by twenty helpers as fast as they are read.
#![cfg(unix)]
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kubectl_sockpath::output::write_document;
use kubectl_sockpath::recording;
use kubectl_sockpath::report::{self, Capture, HelperOrigin, PACKETS_KEPT};
use kubectl_sockpath::session::{Aftermath, Ending, Event, Fleet, Keeper, Ready, Transport};
use peak::peak_kib;
use sockpath_protocol::Message;
use sockpath_protocol::message::{End, EndReason};
use sockpath_protocol::packet::Packet;
use tokio::io::{AsyncWriteExt, split};

mod peak;

const NODES: usize = 20;
/// The goal of docs/benchmarks.md.
const LIMIT_KIB: u64 = 80 << 10;

fn peak() -> u64 {
    peak_kib("self").unwrap()
}

struct NoKeeper;

impl Keeper for NoKeeper {
    fn end(self: Box<Self>, _: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        Box::pin(async { Aftermath::default() })
    }
}

/// Counts what is written.
struct Count(u64);

impl std::io::Write for Count {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn line(message: &Message) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    line
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
            let transport = Transport { nodes: helper.nodes.clone(), reader, writer, keeper: Box::new(NoKeeper) };
            let start = |mailbox| Ready::handshake(transport, Duration::from_secs(1), mailbox);
            fleet.expect(helper.nodes.clone(), Box::new(|| None), start);
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

    // The document takes little more: `-o json` holds one packet of it at a time.
    let (kept, came) = (capture.packets.len(), capture.packets.len() as u64 + capture.not_kept);
    let report = report::report(&Arc::new(capture));
    let mut written = Count(0);
    write_document(&report, &mut written).unwrap();
    eprintln!("a document of {:.1} MiB: at most {:.1} MiB resident", written.0 as f64 / 1_048_576.0, peak() as f64 / 1024.0);
    assert!(written.0 > 20 << 20, "all packets are in it: {} bytes", written.0);
    assert!(peak() < LIMIT_KIB, "{} KiB", peak());
    assert_eq!((report.packets.len(), report.overhead.not_kept), (kept, came - kept as u64));
    assert!(report.findings.iter().any(|f| f.id == "not-kept" && f.text.contains(&came.to_string())), "the cut is stated");
    assert!(report.seen.requests + report.seen.replies > kept as u64, "statistics go on");
}
