//! Times on a cluster, where there is one (`KUBECONFIG` or `K8S_BIN`, as for `make e2e`).

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::environment::Environment;
use super::measure::Effort;
use super::stats::Sample;
use super::table::{Table, goal};
use crate::cluster::{Cluster, Setup, cluster_or_skip};
use crate::state::look;

/// Traces at the same time on one node.
const USERS: usize = 50;

/// How long the deletion of helper pods may take.
const DELETED_WITHIN: Duration = Duration::from_secs(20);

/// A trace; interrupted when dropped, so that it deletes its helper pod.
struct Trace {
    began: Instant,
    child: Child,
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT);
            let _ = self.child.wait();
        }
    }
}

/// The table of the cluster; without one it says so, and has no goals.
///
/// # Errors
/// When a trace fails.
pub fn cluster(_: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("On a cluster", &["what", "measured", "goal"]);
    let Some(cluster) = cluster_or_skip("bench, section cluster", Setup::RoutesNftables) else {
        table.note("Not measured: there is no cluster (`KUBECONFIG`, or `K8S_BIN`).".to_owned());
        return Ok(vec![table]);
    };
    let (mut same_node, mut between, mut interrupted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.repeats {
        same_node.push(first_packet(start(&cluster, "web:8080")?)?);
        between.push(first_packet(start(&cluster, "web-1:8080")?)?);
        interrupted.push(interrupt(&cluster)?);
    }
    let mut most = |what: &str, measured: Vec<f64>, seconds: f64| {
        let measured = Sample(measured);
        table.row(vec![what.to_owned(), format!("{measured:.2} s"), goal(&format!("<= {seconds} s"), measured.median() <= seconds)]);
    };
    most("command to first packet, same node", same_node, 1.0);
    most("command to first packet, between nodes", between, 1.5);
    most("Ctrl-C to the end of the command", interrupted, 0.25);
    let began = Instant::now();
    let traces = (0..USERS).map(|_| start(&cluster, "web:8080")).collect::<Result<Vec<_>>>()?;
    let users: Vec<_> = traces.into_iter().map(|trace| std::thread::spawn(|| first_packet(trace))).collect();
    let ended = users.into_iter().map(|user| user.join().unwrap_or_else(|_| bail!("a thread panicked")));
    let (seen, failed): (Vec<_>, Vec<_>) = ended.partition(Result::is_ok);
    let all = began.elapsed().as_secs_f64();
    let seen = Sample(seen.into_iter().flatten().collect());
    let what = format!("{USERS} users trace one pair on a node at the same time: command to first packet (all ended after {all:.0} s)");
    let reached = goal(&format!("all {USERS}"), failed.is_empty());
    table.row(vec![what, format!("{seen:.1} s, {} failed", failed.len()), reached]);
    if let Some(e) = failed.into_iter().find_map(Result::err) {
        table.note(format!("The first one that failed: {e:#}"));
    }
    let left = look(DELETED_WITHIN, || cluster.helper_pods().is_empty().then_some(0)).unwrap_or_else(|| cluster.helper_pods().len());
    table.row(vec!["helper pods that they left".to_owned(), left.to_string(), goal("0", left == 0)]);
    Ok(vec![table])
}

/// A trace that ends with its first packet.
fn start(cluster: &Cluster, target: &str) -> Result<Trace> {
    let began = Instant::now();
    let mut trace = cluster.plugin();
    trace.args(["trace", "client", target, "--probe", "--count", "1", "-o", "jsonl"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Trace { began, child: trace.spawn().context("cannot start the plugin")? })
}

/// Seconds until it printed a packet. It has ended then.
fn first_packet(mut trace: Trace) -> Result<f64> {
    let mut seconds = None;
    for line in BufReader::new(trace.child.stdout.take().context("no stdout")?).lines() {
        let line: serde_json::Value = serde_json::from_str(&line?).context("a line of the trace")?;
        if line["hops"].is_array() {
            seconds.get_or_insert(trace.began.elapsed().as_secs_f64());
        }
    }
    let mut said = String::new();
    trace.child.stderr.take().context("no stderr")?.read_to_string(&mut said)?;
    ensure!(trace.child.wait()?.success(), "trace: {said}");
    seconds.with_context(|| format!("the trace showed no packet: {said}"))
}

/// Seconds from the signal to the end of a trace that watches.
fn interrupt(cluster: &Cluster) -> Result<f64> {
    let mut trace = cluster.plugin();
    trace.args(["-v", "trace", "client", "web:8080", "--no-probe", "--duration", "60s"]);
    let mut child = trace.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start the plugin")?;
    let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut said = String::new();
    while !said.contains("watching ") {
        ensure!(stderr.read_line(&mut said)? > 0, "the trace ended: {said}");
    }
    let start = Instant::now();
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    std::io::copy(&mut stderr, &mut std::io::sink())?;
    child.wait()?;
    Ok(start.elapsed().as_secs_f64())
}
