//! What tracing costs: on the pair that is traced, on others, beside bpftrace, and how fast it starts and ends.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sockpath_protocol::Request;
use sockpath_protocol::pod::{Node, Pod};
use sockpath_protocol::request::TraceRequest;

use super::environment::{Cpus, Environment, Route};
use super::measure::{Case, Column, Effort};
use super::peer::Load;
use super::stats::Sample;
use super::table::{Table, goal, reached};

/// A trace by a helper whose lines are read and thrown away, as fast as a plugin could at best.
struct Tracing {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    armed: Receiver<Instant>,
}

impl Tracing {
    fn start(environment: &Environment, every_packet: bool) -> Result<(Self, Duration)> {
        let pod =
            |name: &str| environment.status.pods.iter().find(|p| p.name == name).map(Pod::from).with_context(|| format!("no pod {name}"));
        let request = TraceRequest {
            source: pod("curl")?,
            targets: vec![pod("httpbin")?],
            addresses: Vec::new(),
            services: Vec::new(),
            port: None,
            nodes: environment.status.nodes.iter().filter(|n| n.name == "node-1").map(Node::from).collect(),
            every_packet,
            no_rules: false,
            packets_per_second: 0,
            count: None,
        };
        let start = Instant::now();
        let mut command = environment.lab.helper();
        command.arg("session").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the helper")?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        writeln!(stdin, "{}", serde_json::to_string(&Request::Trace(Box::new(request)))?)?;
        // Without it the helper would end by itself in the middle of a longer run.
        let mut heart = std::fs::File::from(stdin.as_fd().try_clone_to_owned()?);
        let beat = serde_json::to_string(&Request::Heartbeat)?;
        std::thread::spawn(move || {
            while writeln!(heart, "{beat}").is_ok() {
                std::thread::sleep(Duration::from_millis(sockpath_protocol::HEARTBEAT_INTERVAL_MS));
            }
        });
        let (tx, armed) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::with_capacity(1 << 20, stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                if line.starts_with(br#"{"type":"armed""#) {
                    let _ = tx.send(Instant::now());
                } else if line.starts_with(br#"{"type":"error""#) {
                    eprintln!("  {}", String::from_utf8_lossy(&line).trim());
                }
                line.clear();
            }
        });
        let tracing = Self { child, stdin: Some(stdin), armed };
        let at = tracing.armed.recv_timeout(Duration::from_secs(20)).context("the trace was never armed")?;
        Ok((tracing, at - start))
    }

    /// Largest resident memory of the helper so far, in bytes.
    fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }

    fn end(mut self) -> Result<Duration> {
        let start = Instant::now();
        let mut stdin = self.stdin.take().context("stdin is closed")?;
        writeln!(stdin, "{}", serde_json::to_string(&Request::Finish)?)?;
        self.child.wait()?;
        Ok(start.elapsed())
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bpftrace script that prints every packet of the pair at the tracepoints that the trace uses too.
struct Bpftrace(Child);

impl Bpftrace {
    /// `None`, with a reason on stderr, where it does not run.
    fn start(environment: &Environment) -> Result<Option<Self>> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/path.bt");
        let number = |pod: &str| -> Result<String> {
            match environment.ip(pod)? {
                // As the kernel keeps it: in network order.
                std::net::IpAddr::V4(v4) => Ok(u32::from_ne_bytes(v4.octets()).to_string()),
                std::net::IpAddr::V6(_) => anyhow::bail!("no IPv4 address"),
            }
        };
        // bpftrace 0.17 finds tracepoints by tracefs only, which need not be mounted; the mount is its own.
        let run = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; exec bpftrace \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", run, "bpftrace", script, &number("curl")?, &number("httpbin")?]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run unshare")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (tx, ready) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::with_capacity(1 << 20, stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                if line.starts_with(b"ready") {
                    let _ = tx.send(());
                }
                line.clear();
            }
        });
        if ready.recv_timeout(Duration::from_secs(20)).is_err() {
            let _ = child.kill();
            let out = child.wait_with_output()?;
            eprintln!("  no bpftrace: {}", String::from_utf8_lossy(&out.stderr).trim());
            return Ok(None);
        }
        Ok(Some(Self(child)))
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All tables of tracing.
///
/// # Errors
/// When a peer or the helper fails.
pub fn trace(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    Ok(vec![cost(environment, effort)?, times(environment, effort)?])
}

/// How long the traced pair is silent before other pairs are measured: long enough for the machine-wide hooks to be detached.
const SILENCE: Duration = Duration::from_millis(2500);

/// Request-response of 64 B with and without traces.
fn cost(environment: &Environment, effort: Effort) -> Result<Table> {
    let head = ["pair, CPUs", "untraced /s", "traced /s", "ratio", "goal"];
    let mut table = Table::new("Cost of tracing curl to httpbin (request-response, 64 B)", &head);
    for cpus in [Cpus::One, Cpus::Two] {
        let case = Case { load: Load::RequestResponse, size: 64, cpus };
        let routes = [
            (Route::Direct, "the traced pair"),
            (Route::Remote, "another pair, from a pod of this one to the other node"),
            (Route::OtherLoopback, "another pair, inside a pod of this one"),
            (Route::Elsewhere, "another pair, with no pod or node of this one"),
        ];
        let mut columns: Vec<[Column; 4]> = routes.iter().map(|_| std::array::from_fn(|_| Column::default())).collect();
        for _ in 0..effort.repeats {
            let mut runs = |column: usize, only_first: bool| -> Result<()> {
                for (n, (route, _)) in routes.iter().enumerate().take(if only_first { 1 } else { routes.len() }) {
                    if n == 1 && column == 1 {
                        case.run(environment, *route, SILENCE)?;
                    }
                    columns[n][column].0.push(case.run(environment, *route, effort.time)?);
                }
                Ok(())
            };
            runs(0, false)?;
            let (tracing, _) = Tracing::start(environment, false)?;
            runs(1, false)?;
            tracing.end()?;
            let (tracing, _) = Tracing::start(environment, true)?;
            runs(2, true)?;
            tracing.end()?;
            if let Some(other) = Bpftrace::start(environment)? {
                runs(3, true)?;
                drop(other);
            }
        }
        let cpus = cpus.text();
        let mut row = |what: &str, base: Sample, with: Sample, least: Option<f64>| {
            let ratio = with.over(&base);
            let goal = least.map_or_else(|| "-".to_owned(), |l| reached(ratio.median(), l));
            table.row(vec![format!("{what}, {cpus}"), format!("{base:.0}"), format!("{with:.0}"), ratio.to_string(), goal]);
        };
        for ((_, name), column) in routes.iter().zip(&columns) {
            let least = if *name == "the traced pair" { 0.85 } else { 0.93 };
            row(name, column[0].rates(), column[1].rates(), Some(least));
        }
        row("the traced pair, every packet", columns[0][0].rates(), columns[0][2].rates(), None);
        row("the same by bpftrace (tests/bench/path.bt)", columns[0][0].rates(), columns[0][3].rates(), None);
        let gain = columns[0][2].rates().over(&columns[0][3].rates());
        let goal = reached(gain.median(), 1.5);
        table.row(vec![format!("every packet, ours against bpftrace, {cpus}"), "-".to_owned(), "-".to_owned(), gain.to_string(), goal]);
    }
    Ok(table)
}

/// Start, end and memory.
fn times(environment: &Environment, effort: Effort) -> Result<Table> {
    let mut table = Table::new("Start, end and memory of a trace", &["what", "measured", "goal"]);
    let (mut armed, mut ended, mut command, mut interrupted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repeats {
        let (tracing, took) = Tracing::start(environment, false)?;
        armed.push(took.as_secs_f64() * 1e3);
        ended.push(tracing.end()?.as_secs_f64() * 1e3);
        let start = Instant::now();
        let trace = crate::trace::Trace::start(&environment.lab, &["curl", "httpbin", "--no-probe"]);
        command.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        trace.interrupt();
        let _ = trace.finish();
        interrupted.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut most = |what: &str, ms: Vec<f64>| {
        let ms = Sample(ms);
        table.row(vec![what.to_owned(), format!("{ms:.0} ms"), goal("<= 300", ms.median() <= 300.0)]);
    };
    most("command to armed (plugin and helper)", command);
    most("Ctrl-C to exit (plugin and helper)", interrupted);
    most("helper started to armed", armed);
    most("helper asked to end to gone", ended);
    for every in [false, true] {
        let (tracing, _) = Tracing::start(environment, every)?;
        let to = std::net::SocketAddr::new(environment.ip("httpbin")?, 7301).to_string();
        let out = environment.exec("curl", &["flood", "--to", &to, "--rate", "200000", "--ms", "3000"]).output()?;
        ensure!(out.status.success(), "flood: {}", String::from_utf8_lossy(&out.stderr));
        let rate: f64 = String::from_utf8_lossy(&out.stdout).trim().parse()?;
        let mib = tracing.peak_memory()? as f64 / f64::from(1 << 20);
        tracing.end()?;
        let how = if every { "every packet" } else { "default mode" };
        let what = format!("helper's memory, {how}, at {rate:.0} packets/s");
        table.row(vec![what, format!("{mib:.1} MiB"), goal("< 64 MiB", mib < 64.0)]);
    }
    Ok(table)
}
