//! Times on a cluster, where there is one (`KUBECONFIG` or `K8S_BIN`, as for `make e2e`).

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ground::Ground;
use super::measure::Effort;
use super::stats::Sample;
use super::table::{Table, goal};
use crate::cluster::{Cluster, Setup, cluster_or_skip, output, text};

/// The table of the cluster; without one it says so, and has no goals.
///
/// # Errors
/// When a trace fails.
pub fn cluster(_: &Ground, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("On a cluster", &["what", "measured", "goal"]);
    let Some(cluster) = cluster_or_skip("bench, section cluster", Setup::RoutesNftables) else {
        table.note("Not measured: there is no cluster (`KUBECONFIG`, or `K8S_BIN`).".to_owned());
        return Ok(vec![table]);
    };
    let (mut one_packet, mut interrupted) = (Vec::new(), Vec::new());
    for _ in 0..effort.repeats {
        let start = Instant::now();
        let out = output(cluster.plugin().args(["trace", "client", "web:8080", "--probe", "--count", "1", "-o", "jsonl"]));
        one_packet.push(start.elapsed().as_secs_f64());
        ensure!(out.status.success(), "trace: {}", text(&out.stderr));
        interrupted.push(interrupt(&cluster)?);
    }
    let mut most = |what: &str, measured: Vec<f64>, seconds: f64| {
        let measured = Sample(measured);
        table.row(vec![what.to_owned(), format!("{measured:.2} s"), goal(&format!("< {seconds} s"), measured.median() < seconds)]);
    };
    most("command to end of a one-packet trace", one_packet, 2.0);
    most("Ctrl-C to exit of a trace", interrupted, 1.0);
    Ok(vec![table])
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
