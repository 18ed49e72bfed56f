//! An independent witness: tcpdump with nanosecond stamps at three devices sees the same packets in the same order at the same times.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use serde_json::Value;
use sockpath_tests::lab::{Lab, succeed};
use sockpath_tests::trace::Trace;
use sockpath_tests::{program_or_skip, root_or_skip};

/// Largest difference between the trace's times and tcpdump's, for a quarter of the packets: a wrong hop or clock is off for all of them, while
/// the two stamps of one packet are further apart where another program gets the CPU between them.
const TOLERANCE_NS: u64 = 20_000;

/// A capture of the requests at one device.
struct Witness {
    tcpdump: Child,
    stdout: std::thread::JoinHandle<String>,
}

impl Witness {
    /// Starts tcpdump and waits until it listens.
    fn start(lab: &Lab, place: &str, device: &str) -> Self {
        // It ends by itself with the last request; an interrupt would lose what the kernel's ring still holds.
        let command =
            ["timeout", "30", "tcpdump", "-Z", "root", "-i", device, "-j", "host", "--time-stamp-precision=nano", "-tt", "-n", "-S", "-l"];
        let filter = ["--immediate-mode", "-c", "50"].iter().chain(&[
            "tcp",
            "dst",
            "port",
            "8080",
            "and",
            "tcp[tcpflags]",
            "&",
            "tcp-push",
            "!=",
            "0",
        ]);
        let mut tcpdump = lab
            .exec(place, command.iter().chain(filter))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start tcpdump");
        let mut stdout = tcpdump.stdout.take().expect("stdout is piped");
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let mut stderr = BufReader::new(tcpdump.stderr.take().expect("stderr is piped"));
        let mut said = String::new();
        while !said.contains("listening on") {
            let read = stderr.read_line(&mut said).expect("cannot read from tcpdump");
            assert!(read > 0, "tcpdump ended: {said}");
        }
        // It writes its totals there at the end; the test need not wait for that.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { tcpdump, stdout }
    }

    /// Times by sequence number, in the order of capture.
    fn finish(mut self) -> Vec<(u32, u64)> {
        let _ = self.tcpdump.wait();
        self.stdout.join().expect("tcpdump's reader panicked").lines().filter_map(parse).collect()
    }
}

/// `1700000000.123456789 IP 10.42.1.2.40000 > 10.42.1.3.8080: Flags [P.], seq 1:77, ack 1, ...`
fn parse(line: &str) -> Option<(u32, u64)> {
    let (seconds, nanos) = line.split(' ').next()?.split_once('.')?;
    let at = seconds.parse::<u64>().ok()? * 1_000_000_000 + nanos.parse::<u64>().ok()?;
    let seq = line.split("seq ").nth(1)?.split([':', ',']).next()?.parse().ok()?;
    Some((seq, at))
}

fn hop_time(packet: &Value, stage: &str, device: &str) -> Option<u64> {
    let hops = packet["hops"].as_array()?;
    hops.iter().find(|h| h["stage"] == stage && h["device"]["name"] == device)?["at_ns"].as_u64()
}

#[test]
fn tcpdump_sees_the_same_packets_in_the_same_order_at_the_same_times() {
    let name = "tcpdump_sees_the_same_packets_in_the_same_order_at_the_same_times";
    if !root_or_skip(name) || !program_or_skip(name, "tcpdump", "tcpdump") || !program_or_skip(name, "curl", "curl") {
        return;
    }
    let lab = Lab::up();
    let veth = lab.host_veth("httpbin", "node-1");
    let witnesses =
        [("curl", "eth0"), ("node-1", veth.as_str()), ("httpbin", "eth0")].map(|(place, device)| Witness::start(&lab, place, device));
    let running = Trace::start(&lab, &["curl", "httpbin:8080", "--no-probe", "--every-packet", "--count", "50", "--duration", "20s"]);
    succeed(&mut lab.exec("curl", ["curl", "-s", "http://10.42.1.3:8080/[1-50]"]));
    let traced = running.finish();
    let [at_source, at_node, at_target] = witnesses.map(Witness::finish);

    let packets: Vec<&Value> =
        traced.list("packets").iter().filter(|p| p["direction"] == "request" && p["payload"].as_u64() > Some(0)).collect();
    assert_eq!(packets.len(), 50, "{}", traced.dump());
    let traced_order: Vec<u64> = packets.iter().filter_map(|p| p["seq"].as_u64()).collect();
    for witness in [&at_source, &at_node, &at_target] {
        let order: Vec<u64> = witness.iter().map(|(seq, _)| u64::from(*seq)).collect();
        assert_eq!(order, traced_order, "tcpdump saw other packets, or in another order");
    }

    let stages = ["device-xmit", "node-xmit", "device-handover"];
    let devices = ["eth0", veth.as_str(), "eth0"];
    let times = [&at_source, &at_node, &at_target].map(|w| w.iter().copied().collect::<HashMap<u32, u64>>());
    // tcpdump reads the wall clock, the trace the monotonic one: compared is the time since the first device.
    for later in [1, 2] {
        let mut differences: Vec<u64> = packets
            .iter()
            .map(|p| {
                let seq = u32::try_from(p["seq"].as_u64().expect("a packet has a sequence number")).expect("it has 32 bits");
                let at = |n: usize| hop_time(p, stages[n], devices[n]).unwrap_or_else(|| panic!("no {} in packet {}", stages[n], p["id"]));
                let ours = at(later) - at(0);
                let theirs = times[later][&seq] - times[0][&seq];
                ours.abs_diff(theirs)
            })
            .collect();
        differences.sort_unstable();
        let quartile = differences[differences.len() / 4];
        println!("{} after {}: difference to tcpdump {quartile} ns (lower quartile)", stages[later], stages[0]);
        assert!(quartile < TOLERANCE_NS, "{}: lower quartile of the differences {quartile} ns, all {differences:?}", stages[later]);
    }
}
