//! Real programs through the Service: by the stack, by the short path, and as the default has it.

use anyhow::{Context, Result, ensure};
use sockpath_protocol::accel::Via;

use super::accel::accelerated_with;
use super::environment::{Cpus, Environment};
use super::measure::Effort;
use super::stats::Sample;
use super::table::{Table, reached};
use crate::services::{Program, Service};
use crate::torture::accelerator::Choice;

/// One load.
#[derive(Debug, Clone, Copy)]
struct Job {
    name: &'static str,
    program: Program,
    /// The least ratio to the stack by the short path, and by the default.
    least: [f64; 2],
    command: fn(&str, u64) -> String,
    rate: fn(&str) -> Option<f64>,
}

/// The paths beside the stack.
const PATHS: [Via; 2] = [Via::Short, Via::Auto];

const JOBS: [Job; 8] = [
    Job {
        name: "redis GET, 1 client",
        program: Program::Redis,
        least: [1.2, 1.45],
        command: |ip, s| redis(ip, 1, 8_000 * s),
        rate: redis_rate,
    },
    Job {
        name: "redis GET, 50 clients",
        program: Program::Redis,
        least: [1.0, 1.5],
        command: |ip, s| redis(ip, 50, 40_000 * s),
        rate: redis_rate,
    },
    Job {
        name: "pgbench select-only, 8 clients",
        program: Program::Postgres,
        least: [1.0, 1.6],
        command: |ip, s| format!("/usr/bin/pgbench -h {ip} -p 5432 -U postgres -S -n -c 8 -T {s} postgres"),
        rate: |out| number(out.lines().find(|l| l.starts_with("tps"))?.split(' ').nth(2)?),
    },
    Job {
        name: "memcached, 16 connections",
        program: Program::Memcached,
        least: [1.0, 1.6],
        command: |ip, s| format!("/usr/bin/memcaslap -s {ip}:5211 -T 1 -c 16 -t {s}s"),
        rate: |out| number(out.rsplit_once("TPS: ")?.1.split(' ').next()?),
    },
    Job {
        name: "MariaDB point select, 8 clients",
        program: Program::MariaDb,
        least: [1.0, 1.4],
        command: |ip, s| {
            format!(
                "/usr/bin/sysbench oltp_point_select --db-driver=mysql --mysql-host={ip} --mysql-port=5306 --mysql-user=root --mysql-db=test \
                 --table-size=1000 --threads=8 --time={s} run"
            )
        },
        rate: |out| number(out.split_once("queries:")?.1.split_once('(')?.1.split(' ').next()?),
    },
    Job {
        name: "nginx 1 KiB, 16 connections",
        program: Program::Nginx,
        least: [1.0, 1.0],
        command: |ip, s| format!("/usr/bin/wrk -t 1 -c 16 -d {s} http://{ip}:5080/small"),
        rate: wrk_rate,
    },
    Job {
        name: "nginx 8 MiB by sendfile, 2 connections",
        program: Program::Nginx,
        least: [1.0, 1.0],
        command: |ip, s| format!("/usr/bin/wrk -t 1 -c 2 -d {s} http://{ip}:5080/large"),
        rate: wrk_rate,
    },
    Job {
        name: "iperf3",
        program: Program::Iperf,
        least: [1.0, 1.0],
        command: |ip, s| format!("/usr/bin/iperf3 -c {ip} -p 5201 -t {s} -J"),
        rate: |out| serde_json::from_str::<serde_json::Value>(out).ok()?["end"]["sum_received"]["bits_per_second"].as_f64(),
    },
];

fn redis(ip: &str, clients: u32, requests: u64) -> String {
    format!("/usr/bin/redis-benchmark -h {ip} -p 6379 -t get -c {clients} -n {requests} --csv")
}

fn redis_rate(out: &str) -> Option<f64> {
    number(out.lines().find(|l| l.starts_with("\"GET\""))?.split(',').nth(1)?.trim_matches('"'))
}

fn wrk_rate(out: &str) -> Option<f64> {
    number(out.lines().find(|l| l.starts_with("Requests/sec"))?.split_whitespace().last()?)
}

fn number(word: &str) -> Option<f64> {
    word.parse().ok()
}

/// The table of programs.
///
/// # Errors
/// When a program or the helper fails.
pub fn programs(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let head = ["program", "stack /s", "short path /s", "x stack", "goal", "default /s", "x stack", "goal"];
    let mut table = Table::new("Programs, through the Service", &head);
    let seconds = effort.time.as_secs().max(1);
    let mut measured: Vec<Program> = JOBS.iter().map(|job| job.program).collect();
    measured.dedup();
    for program in measured {
        if let Some(why) = program.missing() {
            table.unmeasured(format!("{program:?} was not measured: {why}"));
            continue;
        }
        let service = Service::start(&environment.lab, "httpbin", program)?;
        for job in JOBS.iter().filter(|j| j.program == program) {
            table.row(measure(environment, job, effort.repeats, seconds)?);
        }
        drop(service);
    }
    Ok(vec![table])
}

/// In each round by the stack, then by each path.
fn measure(environment: &Environment, job: &Job, repeats: usize, seconds: u64) -> Result<Vec<String>> {
    let mut stack = Vec::new();
    let mut paths = PATHS.map(|_| Vec::new());
    for _ in 0..repeats {
        stack.push(run(environment, job, seconds)?);
        for (via, rates) in PATHS.into_iter().zip(&mut paths) {
            let choice = Choice { via, ..Choice::default() };
            rates.extend(accelerated_with(environment, Cpus::Two, &choice, |_| run(environment, job, seconds))?);
        }
    }
    let stack = Sample(stack);
    let mut cells = vec![job.name.to_owned(), format!("{stack:.0}")];
    for (rates, least) in paths.into_iter().zip(job.least) {
        let rates = Sample(rates);
        let gain = rates.over(&stack);
        cells.extend([format!("{rates:.0}"), gain.to_string(), reached(gain.median(), least)]);
    }
    Ok(cells)
}

fn run(environment: &Environment, job: &Job, seconds: u64) -> Result<f64> {
    let ip = environment.service_ip("httpbin")?.to_string();
    let command = (job.command)(&ip, seconds);
    let out = environment.lab.exec("curl", command.split(' ')).output().with_context(|| format!("cannot run {command}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&out.stderr));
    (job.rate)(&text).with_context(|| format!("{command} printed no rate: {text}"))
}
