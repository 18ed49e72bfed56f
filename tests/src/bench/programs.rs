//! Real programs through the Service.

use anyhow::{Context, Result, ensure};

use super::accel::accelerated;
use super::ground::{Cpus, Ground};
use super::measure::Effort;
use super::stats::Sample;
use super::table::{Table, reached};
use crate::services::{Program, Service};

/// One load.
#[derive(Debug, Clone, Copy)]
struct Job {
    name: &'static str,
    program: Program,
    least: f64,
    command: fn(&str, u64) -> String,
    rate: fn(&str) -> Option<f64>,
}

const JOBS: [Job; 5] = [
    Job { name: "redis GET, 1 client", program: Program::Redis, least: 1.5, command: |ip, s| redis(ip, 1, 8_000 * s), rate: redis_rate },
    Job {
        name: "redis GET, 50 clients",
        program: Program::Redis,
        least: 1.2,
        command: |ip, s| redis(ip, 50, 40_000 * s),
        rate: redis_rate,
    },
    Job {
        name: "pgbench select-only, 8 clients",
        program: Program::Postgres,
        least: 1.2,
        command: |ip, s| format!("/usr/bin/pgbench -h {ip} -p 5432 -U postgres -S -n -c 8 -T {s} postgres"),
        rate: |out| number(out.lines().find(|l| l.starts_with("tps"))?.split(' ').nth(2)?),
    },
    Job {
        name: "nginx 1 KiB, 16 connections",
        program: Program::Nginx,
        least: 1.2,
        command: |ip, s| format!("/usr/bin/wrk -t 1 -c 16 -d {s} http://{ip}:5080/small"),
        rate: |out| number(out.lines().find(|l| l.starts_with("Requests/sec"))?.split_whitespace().last()?),
    },
    Job {
        name: "nginx 8 MiB by sendfile, 2 connections",
        program: Program::Nginx,
        least: 1.0,
        command: |ip, s| format!("/usr/bin/wrk -t 1 -c 2 -d {s} http://{ip}:5080/large"),
        rate: |out| number(out.lines().find(|l| l.starts_with("Requests/sec"))?.split_whitespace().last()?),
    },
];

fn redis(ip: &str, clients: u32, requests: u64) -> String {
    format!("/usr/bin/redis-benchmark -h {ip} -p 6379 -t get -c {clients} -n {requests} --csv")
}

fn redis_rate(out: &str) -> Option<f64> {
    number(out.lines().find(|l| l.starts_with("\"GET\""))?.split(',').nth(1)?.trim_matches('"'))
}

fn number(word: &str) -> Option<f64> {
    word.parse().ok()
}

/// The table of programs.
///
/// # Errors
/// When a program or the helper fails.
pub fn programs(ground: &Ground, effort: Effort) -> Result<Vec<Table>> {
    let head = ["program", "plain TCP /s", "accelerated /s", "x plain", "goal"];
    let mut table = Table::new("Programs, through the Service", &head);
    let seconds = effort.time.as_secs().max(1);
    for program in [Program::Redis, Program::Postgres, Program::Nginx] {
        if let Some(why) = program.missing() {
            table.unmeasured(format!("{program:?} was not measured: {why}"));
            continue;
        }
        let service = Service::start(&ground.lab, "httpbin", program)?;
        for job in JOBS.iter().filter(|j| j.program == program) {
            let (mut plain, mut fast) = (Vec::new(), Vec::new());
            for _ in 0..effort.repeats {
                plain.push(run(ground, job, seconds)?);
                fast.extend(accelerated(ground, Cpus::Two, &[], |_| run(ground, job, seconds))?);
            }
            let (plain, fast) = (Sample(plain), Sample(fast));
            let gain = fast.over(&plain);
            let goal = reached(gain.median(), job.least);
            table.row(vec![job.name.to_owned(), format!("{plain:.0}"), format!("{fast:.0}"), gain.to_string(), goal]);
        }
        drop(service);
    }
    Ok(vec![table])
}

fn run(ground: &Ground, job: &Job, seconds: u64) -> Result<f64> {
    let ip = ground.service_ip("httpbin")?.to_string();
    let command = (job.command)(&ip, seconds);
    let out = ground.lab.exec("curl", command.split(' ')).output().with_context(|| format!("cannot run {command}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&out.stderr));
    (job.rate)(&text).with_context(|| format!("{command} printed no rate: {text}"))
}
