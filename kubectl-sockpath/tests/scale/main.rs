//! What the plugin needs on a cluster of 300 nodes, against an API server and helpers made of answers.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod cluster;
mod helper;
#[path = "../peak/mod.rs"]
mod peak;
mod server;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cluster::{NODES, REFUSED, UNPULLED, UNREADY};
use peak::peak_kib;
use server::{Call, Server};

/// The goals of docs/benchmarks.md.
const MOST_KIB: u64 = 150 << 10;
/// Pods created in any one second: the burst and the rate, and a moment of tolerance.
const MOST_CREATED: usize = 45;
/// Requests for each node, all kinds together.
const MOST_CALLS: usize = 8;

/// How long a command may go on that cannot reach the API server: a helper that cannot be attached to again, and deletions that are tried
/// again.
const MOST_ALONE: Duration = Duration::from_secs(90);

/// How a command went.
struct Run {
    status: ExitStatus,
    said: String,
    printed: String,
    /// Until its first line on stdout.
    first: Option<Duration>,
    took: Duration,
    peak_kib: u64,
    calls: Vec<Call>,
}

fn run(server: &Server, address: &str, args: &[&str]) -> Run {
    server.take_calls();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-sockpath"));
    command.args(args).args(["--server", address, "--token", "t", "--kubeconfig", "/dev/null"]).env("NO_COLOR", "1");
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).map(|_| said).unwrap_or_default()
    });
    let (first_line, first) = channel();
    let printed = std::thread::spawn(move || {
        let mut printed = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = first_line.send(Instant::now());
            printed += &line;
            printed.push('\n');
        }
        printed
    });
    let (process, mut peak) = (child.id().to_string(), 0);
    let status = loop {
        // The kernel keeps the most there was; it is read until the process is gone.
        peak = peak_kib(&process).unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (took, printed) = (began.elapsed(), printed.join().unwrap());
    let first = first.try_recv().ok().map(|at: Instant| at - began);
    let run = Run { status, said: said.join().unwrap(), printed, first, took, peak_kib: peak, calls: server.take_calls() };
    if std::env::var_os("SCALE_VERBOSE").is_some() {
        eprintln!("{}\n{}\n{:#?}", run.said, run.printed.lines().take(5).collect::<Vec<_>>().join("\n"), kinds(&run.calls));
    }
    eprintln!(
        "{}: first result after {:.1} s, end after {:.1} s, at most {:.1} MiB, {} requests, at most {} pods created and {} requests in a second",
        args.join(" "),
        run.first.unwrap_or_default().as_secs_f64(),
        run.took.as_secs_f64(),
        run.peak_kib as f64 / 1024.0,
        run.calls.len(),
        most_in_a_second(&run.calls, |c| c.what == "POST /api/v1/namespaces/sockpath/pods"),
        most_in_a_second(&run.calls, |_| true),
    );
    run
}

fn most_in_a_second(calls: &[Call], which: impl Fn(&Call) -> bool) -> usize {
    let times: Vec<Instant> = calls.iter().filter(|c| which(c)).map(|c| c.at).collect();
    times.iter().map(|at| times.iter().filter(|t| **t >= *at && **t < *at + Duration::from_secs(1)).count()).max().unwrap_or(0)
}

/// Kinds of requests and how many there were, names left out.
fn kinds(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for call in calls {
        let kind: Vec<&str> = call.what.split('/').map(|part| if part.starts_with("sockpath-") { "NAME" } else { part }).collect();
        *kinds.entry(kind.join("/")).or_default() += 1;
    }
    kinds
}

/// What holds for every command on many nodes.
fn check(run: &Run, server: &Server) {
    assert!(run.peak_kib < MOST_KIB, "{} KiB", run.peak_kib);
    let created = most_in_a_second(&run.calls, |c| c.what == "POST /api/v1/namespaces/sockpath/pods");
    assert!(created <= MOST_CREATED, "{created} pods in a second");
    assert!(run.calls.len() <= MOST_CALLS * NODES, "{} requests: {:#?}", run.calls.len(), kinds(&run.calls));
    for node in [REFUSED, UNPULLED, UNREADY] {
        let named = run.said.contains(node) || run.printed.contains(node);
        assert!(named, "{node} is not named: {}{}", run.said, run.printed);
    }
    assert_eq!(run.status.code(), Some(1), "nodes took no part: {}", run.said);
    assert_eq!(server.helper_pods(), 0, "no pod is left");
}

#[test]
fn commands_on_three_hundred_nodes_stay_within_their_limits() {
    let (server, address) = Server::start();
    let accelerate = run(&server, &address, &["accelerate", "-A", "--for", "25s"]);
    check(&accelerate, &server);
    assert!(accelerate.first.is_some_and(|first| first < Duration::from_secs(5)), "results of the first nodes come while others start");
    let end = accelerate.said.rfind("error: ").map(|at| &accelerate.said[at..]).unwrap_or_default();
    assert!([REFUSED, UNPULLED, UNREADY].iter().all(|node| end.contains(node)), "the nodes that took no part are listed at the end: {end}");

    let status = run(&server, &address, &["status"]);
    check(&status, &server);
    assert!(status.first.is_some_and(|first| first < Duration::from_secs(5)));
    assert_eq!(status.printed.lines().filter(|l| l.contains(": accelerated by me")).count(), NODES - 3);

    let doctor = run(&server, &address, &["doctor"]);
    check(&doctor, &server);
}

#[test]
fn an_api_server_that_goes_away_holds_no_command() {
    let (server, address) = Server::start();
    server.end_with(NODES / 3);
    let accelerate = run(&server, &address, &["accelerate", "-A", "--for", "25s"]);
    assert!(!accelerate.status.success(), "{}", accelerate.said);
    assert!(accelerate.took < MOST_ALONE, "it ended after {:?}: {}", accelerate.took, accelerate.said);
    let remaining = accelerate.said.lines().filter(|l| l.contains("with kubectl sockpath cleanup")).count();
    assert_eq!(remaining, 1, "what remains is reported once, not for each pod: {}", accelerate.said);
}
