//! What becomes of connections when conntrack's table is full, when an entry is gone, and when two packets enter one connection at once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;
use sockpath_kernel::conntrack::{Conntrack, Tuple, UDP};
use sockpath_kernel::netlink::{Body, NETLINK_NETFILTER, Socket};
use sockpath_tests::lab::Lab;
use sockpath_tests::trace::{Trace, Traced, trace};
use sockpath_tests::{program_or_skip, root_or_skip};

/// The limit of every namespace's table; only the first network namespace may change it.
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// More entries than the labs of other tests have.
const MANY: u32 = 6000;

/// Datagrams after which an entry that the table may give up is gone for certain: each asks 8 of the 262,144 chains for room.
const MOST_DATAGRAMS: u32 = 3_000_000;

/// A smaller limit, until this is dropped.
struct Limit {
    before: String,
    _alone: MutexGuard<'static, ()>,
}

impl Limit {
    fn set(entries: u32) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::fs::read_to_string(LIMIT).expect("a limit");
        let limit = Self { before, _alone: alone };
        std::fs::write(LIMIT, entries.to_string()).expect("cannot change the limit");
        limit
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(e) = std::fs::write(LIMIT, self.before.trim()) {
            eprintln!("{LIMIT} is not what it was ({}): {e}", self.before.trim());
        }
    }
}

/// A client in curl that has asked the Service, and the endpoint in httpbin that has answered once.
struct Exchange {
    client: UdpSocket,
    endpoint: UdpSocket,
}

const ENDPOINT: u16 = 9040;
const SERVICE: &str = "10.96.0.10:80";

impl Exchange {
    /// On a port of the client. Conntrack has seen both directions then, but not for long enough to keep the entry in any case.
    fn begin(lab: &Lab, port: u16) -> Self {
        let bound = |place: &str, port: u16| lab.inside(place, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).expect("a free port");
        let (client, endpoint) = (bound("curl", port), bound("httpbin", ENDPOINT));
        for socket in [&client, &endpoint] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        }
        client.connect(SERVICE).expect("a route");
        client.send(b"ask").expect("cannot send");
        let (_, peer) = endpoint.recv_from(&mut [0; 16]).expect("nothing came");
        endpoint.connect(peer).expect("a route");
        endpoint.send(b"answer").expect("cannot send");
        client.recv(&mut [0; 16]).expect("no answer");
        Self { client, endpoint }
    }

    /// The entry's tuple as the client sends.
    fn tuple(port: u16) -> Tuple {
        Tuple { protocol: UDP, source: SocketAddr::from(([10, 42, 1, 2], port)), destination: SERVICE.parse().expect("an address") }
    }

    /// Sends another answer; whether it reached the client.
    fn answers_again(&self) -> bool {
        self.endpoint.send(b"again").expect("cannot send");
        // Where no socket takes it, the client's namespace says so.
        self.client.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let came = self.client.recv(&mut [0; 16]).is_ok();
        if !came {
            assert!(self.endpoint.recv(&mut [0; 16]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused), "it was taken or lost");
        }
        came
    }
}

/// What happens between an answer and the next one.
fn between_answers(lab: &Lab, port: u16, happens: impl FnOnce()) -> (Traced, bool) {
    let rule = format!(
        "table ip planted {{ chain pre {{ type nat hook prerouting priority -150; ip daddr 10.96.0.10 udp dport 80 dnat to 10.42.1.3:{ENDPOINT}; }}; }}"
    );
    lab.run("node-1", ["nft", rule.as_str()]);
    let running = Trace::start(lab, &["curl", "svc/httpbin", "--protocol", "udp", "--no-probe", "--duration", "30s"]);
    let exchange = Exchange::begin(lab, port);
    happens();
    let came = exchange.answers_again();
    running.interrupt();
    let traced = running.finish();
    lab.run("node-1", ["nft", "delete", "table", "ip", "planted"]);
    (traced, came)
}

fn is_tracked(lab: &Lab, tuple: &Tuple) -> bool {
    lab.inside("node-1", || Conntrack::open().and_then(|mut c| c.get(tuple))).expect("conntrack does not answer").is_some()
}

/// Sends first datagrams of connections in node-1 until the entry is gone.
fn crowd_out(lab: &Lab, tuple: &Tuple) {
    let (_sink, sender) = lab.inside("node-1", || {
        let sink = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999)).expect("a free port");
        (sink, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
    });
    let _limit = Limit::set(MANY);
    for number in 1..=MOST_DATAGRAMS {
        let [_, a, b, c] = number.to_be_bytes();
        // What finds no room in the table is dropped, which is what this is about.
        let _ = sender.send_to(b"x", (Ipv4Addr::new(127, a, b, c), 9999));
        if number % 5000 == 0 && number > MANY && !is_tracked(lab, tuple) {
            return;
        }
    }
    panic!("the table did not give up the entry");
}

fn first(traced: &Traced) -> &Value {
    traced.list("findings").first().unwrap_or_else(|| panic!("no finding in\n{}", traced.dump()))
}

fn counts(traced: &Traced) -> &Value {
    let node = traced.list("nodes").iter().find(|n| n["name"] == "node-1").unwrap_or(&Value::Null);
    assert!(node["conntrack"].is_object(), "{}", traced.dump());
    &node["conntrack"]
}

fn is_accused(traced: &Traced) -> bool {
    traced.list("findings").iter().any(|f| f["severity"] == "critical")
}

/// The first finding is that the connection was forgotten; all others that are critical follow from it.
fn assert_forgotten(traced: &Traced) -> &Value {
    let first = first(traced);
    assert_eq!((&first["id"], &first["severity"]), (&"forgotten-connection".into(), &"critical".into()), "{}", traced.dump());
    assert!(first["text"].as_str().is_some_and(|t| t.contains("node-1")), "{}", traced.dump());
    let others = traced.list("findings").iter().skip(1);
    assert!(others.clone().all(|f| f["severity"] != "critical" || f["root"] == 0), "{}", traced.dump());
    assert!(others.clone().any(|f| f["id"] == "untranslated-reply" && f["because"] == "forgotten-connection"), "{}", traced.dump());
    assert!(!traced.mentions("findings", "nothing listens"), "{}", traced.dump());
    first
}

fn ready(test: &str) -> bool {
    root_or_skip(test) && program_or_skip(test, "nft", "nftables")
}

#[test]
fn an_entry_that_was_given_up_is_named() {
    if !ready("an_entry_that_was_given_up_is_named") {
        return;
    }
    let lab = Lab::up();
    // A table with room keeps it.
    let (control, came) = between_answers(&lab, 50400, || {});
    assert!(came && !is_accused(&control), "{}", control.dump());
    assert_eq!(counts(&control)["early_drop"], 0, "{}", control.dump());

    let (traced, came) = between_answers(&lab, 50401, || crowd_out(&lab, &Exchange::tuple(50401)));
    assert!(!came, "{}", traced.dump());
    let first = assert_forgotten(&traced);
    assert_eq!((&first["mechanism"], &first["certainty"]), (&"early-drop".into(), &"inferred".into()), "{}", traced.dump());
    assert!(first["evidence"].to_string().contains("early_drop rose by"), "{}", traced.dump());
    assert!(counts(&traced)["early_drop"].as_u64().is_some_and(|n| n > 0), "{}", traced.dump());
}

#[test]
fn an_entry_that_was_deleted_is_not_blamed_on_the_table() {
    if !ready("an_entry_that_was_deleted_is_not_blamed_on_the_table") {
        return;
    }
    let lab = Lab::up();
    let delete = |port: u16| {
        let deleted = lab.inside("node-1", || Conntrack::open().and_then(|mut c| c.delete(&Exchange::tuple(port))));
        deleted.expect("conntrack does not answer")
    };
    // Another connection's entry may go.
    let (control, came) = between_answers(&lab, 50410, || assert!(!delete(50419)));
    assert!(came && !is_accused(&control), "{}", control.dump());

    let (traced, came) = between_answers(&lab, 50411, || assert!(delete(50411)));
    assert!(!came, "{}", traced.dump());
    let first = assert_forgotten(&traced);
    assert_eq!((&first["mechanism"], &first["certainty"]), (&Value::Null, &"observed".into()), "{}", traced.dump());
    assert!(!traced.mentions("findings", "early_drop"), "{}", traced.dump());
}

/// Fills the table of node-1 with entries that it may not give up.
fn fill(lab: &Lab, entries: u32) {
    const NEW: u16 = 1 << 8;
    const NLM_F_CREATE: u16 = 0x400;
    let (original, reply, status, timeout): (u16, u16, u16, u16) = (1, 2, 3, 7);
    /// `IPS_SEEN_REPLY`, `IPS_ASSURED` and `IPS_CONFIRMED`.
    const KEPT: u32 = 1 << 1 | 1 << 2 | 1 << 3;
    let tuple = |from: [u8; 4], to: [u8; 4]| {
        let ports = Body::default().with(1, &[UDP]).with(2, &7u16.to_be_bytes()).with(3, &7u16.to_be_bytes());
        Body::default().with_nested(1, &Body::default().with(1, &from).with(2, &to)).with_nested(2, &ports)
    };
    lab.inside("node-1", || {
        let mut socket = Socket::open(NETLINK_NETFILTER).expect("netfilter");
        for number in 0..entries {
            let [_, a, b, c] = number.to_be_bytes();
            let (from, to) = ([192, 0, 2, 1], [203, a, b, c]);
            let body = Body::new(&[2, 0, 0, 0])
                .with_nested(original, &tuple(from, to))
                .with_nested(reply, &tuple(to, from))
                .with(status, &KEPT.to_be_bytes())
                .with(timeout, &600u32.to_be_bytes());
            socket.request(NEW, NLM_F_CREATE, body.bytes()).expect("an entry");
        }
    });
}

#[test]
fn a_full_table_is_named() {
    if !ready("a_full_table_is_named") {
        return;
    }
    const ENTRIES: u32 = 2000;
    let lab = Lab::up();
    fill(&lab, ENTRIES);
    let probe = || trace(&lab, &["curl", "httpbin:8080", "--probe", "--duration", "1s"]);
    let control = probe();
    assert!(!is_accused(&control) && control.list("probes").iter().all(|p| p["answered"] == true), "{}", control.dump());

    let limit = Limit::set(ENTRIES);
    let traced = probe();
    drop(limit);
    let first = first(&traced);
    assert_eq!((&first["id"], &first["mechanism"]), (&"dropped".into(), &"table-full".into()), "{}", traced.dump());
    assert_eq!(first["certainty"], "proven-by-counters", "{}", traced.dump());
    assert!(first["text"].as_str().is_some_and(|t| t.contains("on node-1") && t.contains("not by a rule")), "{}", traced.dump());
    let evidence = first["evidence"].to_string();
    assert!(evidence.contains("counter drop rose") && evidence.contains("nf_conntrack_max is 2000"), "{}", traced.dump());
    let others = traced.list("findings").iter().skip(1);
    assert!(others.clone().all(|f| f["severity"] != "critical" || f["root"] == 0), "{}", traced.dump());
}

/// Rules in FORWARD that a packet takes long to pass: the time in which it has no entry in the table yet.
fn slow_rules() -> String {
    let rules = (0..2000).map(|n| format!("ip saddr 203.0.{}.{} counter;\n", n / 256, n % 256)).collect::<String>();
    format!("table ip planted {{ chain slow {{ type filter hook forward priority -10;\n{rules} }}; }}")
}

/// Two threads, each on a CPU of its own, send the first two datagrams of a socket; without `at_once` one after the other.
fn send_two(lab: &Lab, at_once: bool) {
    let socket = lab.inside("curl", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a free port");
    socket.connect(SERVICE).expect("a route");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    if at_once {
        let there = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let (socket, there) = (&socket, &there);
                scope.spawn(move || {
                    let mut cpus = CpuSet::new();
                    cpus.set(cpu).expect("a CPU");
                    sched_setaffinity(Pid::from_raw(0), &cpus).expect("a CPU of its own");
                    there.fetch_add(1, Ordering::SeqCst);
                    while there.load(Ordering::SeqCst) < 2 {
                        std::hint::spin_loop();
                    }
                    socket.send(&[b'a'; 20]).expect("cannot send");
                });
            }
        });
    }
    for datagram in 0..2 {
        if !at_once {
            socket.send(&[b'a'; 20]).expect("cannot send");
        }
        socket.recv(&mut [0; 100]).unwrap_or_else(|e| panic!("no answer to datagram {datagram}: {e}"));
    }
}

/// What node-1 has counted (`clashres` of /proc/net/stat/nf_conntrack, hexadecimal, a line for each CPU).
fn clashes(lab: &Lab) -> u64 {
    let text = lab.run("node-1", ["cat", "/proc/net/stat/nf_conntrack"]);
    let of_cpu = |line: &str| line.split_whitespace().nth(1).and_then(|n| u64::from_str_radix(n, 16).ok());
    text.lines().skip(1).filter_map(of_cpu).sum()
}

#[test]
fn two_first_datagrams_of_one_socket_are_entered() {
    if !ready("two_first_datagrams_of_one_socket_are_entered") {
        return;
    }
    let lab = Lab::up();
    let rules = slow_rules();
    let file = std::env::temp_dir().join(format!("sockpath-slow-{}.nft", std::process::id()));
    std::fs::write(&file, rules).expect("cannot write rules");
    lab.run("node-1", ["nft", "-f", &file.display().to_string()]);
    let _ = std::fs::remove_file(&file);
    let run = |at_once: bool| {
        let before = clashes(&lab);
        let running = Trace::start(&lab, &["curl", "svc/httpbin", "--protocol", "udp", "--no-probe", "--duration", "60s"]);
        for attempt in 0..500 {
            send_two(&lab, at_once);
            if attempt >= 5 && (!at_once || clashes(&lab) > before) {
                break;
            }
        }
        running.interrupt();
        running.finish()
    };
    let control = run(false);
    assert!(!is_accused(&control), "{}", control.dump());
    assert_eq!(counts(&control)["clash_resolve"], 0, "{}", control.dump());

    // This kernel enters both, so that nothing is lost and nothing is to be blamed.
    let traced = run(true);
    assert!(counts(&traced)["clash_resolve"].as_u64().is_some_and(|n| n > 0), "{}", traced.dump());
    assert!(!is_accused(&traced) && traced.list("drops").is_empty(), "{}", traced.dump());
}
