//! What acceleration gains, beside plain TCP, loopback TCP and AF_UNIX.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::environment::{Cpus, Environment, Route};
use super::measure::{Case, Column, Effort};
use super::peer::{Load, Run};
use super::stats::Sample;
use super::table::{Table, reached};
use crate::torture::accelerator::{Accelerator, Choice};

/// Runs `f` while acceleration is on for `pods` (all when empty); `None` when this helper cannot accelerate.
///
/// # Errors
/// What `f` says, or the end of the acceleration.
pub fn accelerated<T>(
    environment: &Environment,
    cpus: Cpus,
    pods: &[&str],
    f: impl FnOnce(&mut Accelerator) -> Result<T>,
) -> Result<Option<T>> {
    let choice = Choice { pods: pods.iter().map(|p| (*p).to_owned()).collect(), ..Choice::default() };
    accelerated_with(environment, cpus, &choice, f)
}

/// The same with this choice.
///
/// # Errors
/// What `f` says, or the end of the acceleration.
pub(super) fn accelerated_with<T>(
    environment: &Environment,
    cpus: Cpus,
    choice: &Choice,
    f: impl FnOnce(&mut Accelerator) -> Result<T>,
) -> Result<Option<T>> {
    let mut on = match Accelerator::start_with(&environment.lab, choice) {
        Ok(on) => on,
        Err(e) => {
            eprintln!("  no acceleration: {e:#}");
            return Ok(None);
        }
    };
    if cpus == Cpus::One {
        let mut set = CpuSet::new();
        set.set(0).context("no CPU 0")?;
        sched_setaffinity(Pid::from_raw(i32::try_from(on.0.pid())?), &set).context("cannot bind the helper")?;
    }
    let result = f(&mut on);
    on.finish().context("end of an acceleration")?;
    result.map(Some)
}

/// A line of a table: the same case by up to four routes.
#[derive(Debug)]
struct Line {
    case: Case,
    route: Route,
    plain: Column,
    accelerated: Column,
    loopback: Column,
    unix: Column,
}

impl Line {
    fn new(load: Load, size: usize, cpus: Cpus, route: Route) -> Self {
        let empty = Column::default;
        Self { case: Case { load, size, cpus }, route, plain: empty(), accelerated: empty(), loopback: empty(), unix: empty() }
    }

    fn what(&self) -> String {
        let through = if self.route == Route::Service { ", through the Service" } else { "" };
        format!("{}, {}{through}", size_name(self.case.size), self.case.cpus.text())
    }
}

/// `64 B`, `16 KiB`, `1 MiB`.
pub(super) fn size_name(size: usize) -> String {
    match size {
        s if s >= 1 << 20 => format!("{} MiB", s >> 20),
        s if s >= 1 << 10 => format!("{} KiB", s >> 10),
        s => format!("{s} B"),
    }
}

/// Measures lines of equal CPUs: in each round every line plain, by loopback and AF_UNIX, then every line accelerated.
fn measure(environment: &Environment, lines: &mut [Line], effort: Effort) -> Result<()> {
    let Some(cpus) = lines.first().map(|l| l.case.cpus) else { return Ok(()) };
    for _ in 0..effort.repeats {
        for line in &mut *lines {
            let run = |route: Route| line.case.run(environment, route, effort.time);
            line.plain.0.push(run(line.route)?);
            if line.route == Route::Direct && line.case.load != Load::Connect {
                line.loopback.0.push(run(Route::Loopback)?);
                line.unix.0.push(run(Route::Unix)?);
            }
        }
        let blocking_readers = lines.iter().any(|line| line.case.load == Load::Blocking);
        accelerated_with(environment, cpus, &Choice { blocking_readers, ..Choice::default() }, |_| {
            for line in &mut *lines {
                line.accelerated.0.push(line.case.run(environment, line.route, effort.time)?);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Request-response, with the distribution of turnarounds.
///
/// # Errors
/// When a peer or the helper fails.
pub fn request_response(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new(
        "Request-response",
        &[
            "message, CPUs",
            "plain TCP /s",
            "accelerated /s",
            "loopback /s",
            "AF_UNIX /s",
            "x plain",
            "goal",
            "x AF_UNIX",
            "goal",
            "p50 x plain",
        ],
    );
    let mut turnarounds = Table::new(
        "Turnaround of request-response, microseconds",
        &[
            "message, CPUs",
            "plain p50",
            "p99",
            "accelerated p50",
            "p99",
            "AF_UNIX p50",
            "p99",
            "client CPU plain",
            "accelerated",
            "AF_UNIX",
        ],
    );
    for cpus in [Cpus::One, Cpus::Two] {
        let mut lines: Vec<Line> = [64, 1 << 10, 16 << 10]
            .into_iter()
            .flat_map(|size| [Route::Direct, Route::Service].map(|route| Line::new(Load::RequestResponse, size, cpus, route)))
            .collect();
        measure(environment, &mut lines, effort)?;
        for l in &lines {
            let (plain, fast, unix) = (l.plain.rates(), l.accelerated.rates(), l.unix.rates());
            let (gain, limit) = (fast.over(&plain), fast.over(&unix));
            let (least, least_of_unix) = if cpus == Cpus::One || l.route == Route::Service { (2.0, 1.0) } else { (1.0, 0.9) };
            let goal = if cpus == Cpus::Two && l.route == Route::Service { "-".to_owned() } else { reached(gain.median(), least) };
            let unix_goal = if l.route == Route::Direct { reached(limit.median(), least_of_unix) } else { "-".to_owned() };
            table.row(vec![
                l.what(),
                format!("{plain:.0}"),
                format!("{fast:.0}"),
                format!("{:.0}", l.loopback.rates()),
                format!("{unix:.0}"),
                gain.to_string(),
                goal,
                limit.to_string(),
                unix_goal,
                // Under load from elsewhere medians of turnarounds are steadier than rates.
                l.plain.p50_us().over(&l.accelerated.p50_us()).to_string(),
            ]);
            let us = |s: Sample| format!("{s:.1}");
            turnarounds.row(vec![
                l.what(),
                us(l.plain.p50_us()),
                us(l.plain.p99_us()),
                us(l.accelerated.p50_us()),
                us(l.accelerated.p99_us()),
                us(l.unix.p50_us()),
                us(l.unix.p99_us()),
                us(l.plain.cpu_us()),
                us(l.accelerated.cpu_us()),
                us(l.unix.cpu_us()),
            ]);
        }
    }
    Ok(vec![table, turnarounds])
}

/// Request-response between readers that sleep in recv(2): excluded without `--blocking-readers`.
///
/// # Errors
/// When a peer or the helper fails.
pub fn sleeping_readers(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let head = ["message, CPUs", "plain TCP /s", "accelerated /s", "loopback /s", "AF_UNIX /s", "x plain", "x AF_UNIX", "p50 x plain"];
    let mut table = Table::new("Request-response of readers that sleep in recv, with --blocking-readers", &head);
    for cpus in [Cpus::One, Cpus::Two] {
        let sizes = [64, 1 << 10, 16 << 10];
        let mut lines: Vec<Line> = sizes.into_iter().map(|size| Line::new(Load::Blocking, size, cpus, Route::Direct)).collect();
        measure(environment, &mut lines, effort)?;
        for l in &lines {
            let (plain, fast, unix) = (l.plain.rates(), l.accelerated.rates(), l.unix.rates());
            table.row(vec![
                l.what(),
                format!("{plain:.0}"),
                format!("{fast:.0}"),
                format!("{:.0}", l.loopback.rates()),
                format!("{unix:.0}"),
                fast.over(&plain).to_string(),
                fast.over(&unix).to_string(),
                l.plain.p50_us().over(&l.accelerated.p50_us()).to_string(),
            ]);
        }
    }
    Ok(vec![table])
}

/// Streams.
///
/// # Errors
/// When a peer or the helper fails.
pub fn streams(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let head = ["write, CPUs", "plain TCP Gbit/s", "accelerated", "loopback", "AF_UNIX", "x plain", "goal"];
    let mut table = Table::new("Streams", &head);
    for cpus in [Cpus::One, Cpus::Two] {
        let sizes = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
        let mut lines: Vec<Line> = sizes.into_iter().map(|size| Line::new(Load::Stream, size, cpus, Route::Direct)).collect();
        measure(environment, &mut lines, effort)?;
        for l in &lines {
            let gain = l.accelerated.rates().over(&l.plain.rates());
            let least = if cpus == Cpus::One && l.case.size >= 64 << 10 { 2.5 } else { 1.0 };
            let goal = reached(gain.median(), least);
            let [plain, fast, loopback, unix] = [&l.plain, &l.accelerated, &l.loopback, &l.unix].map(|c| c.gbit().to_string());
            table.row(vec![l.what(), plain, fast, loopback, unix, gain.to_string(), goal]);
        }
    }
    Ok(vec![table])
}

/// Connect, request, answer, close.
///
/// # Errors
/// When a peer or the helper fails.
pub fn connections(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("Connect-request-close", &["message, CPUs", "plain TCP /s", "accelerated /s", "x plain", "goal"]);
    for cpus in [Cpus::One, Cpus::Two] {
        let mut lines = vec![Line::new(Load::Connect, 64, cpus, Route::Direct), Line::new(Load::Connect, 64, cpus, Route::Service)];
        measure(environment, &mut lines, effort)?;
        for l in &lines {
            let gain = l.accelerated.rates().over(&l.plain.rates());
            let goal = reached(gain.median(), 0.97);
            table.row(vec![l.what(), format!("{:.0}", l.plain.rates()), format!("{:.0}", l.accelerated.rates()), gain.to_string(), goal]);
        }
    }
    Ok(vec![table])
}

/// Pairs that are not accelerated while others are.
///
/// # Errors
/// When a peer or the helper fails.
pub fn bystanders(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let head = ["pair, CPUs", "without /s", "while others are accelerated /s", "ratio", "goal"];
    let mut table = Table::new("Connections that are not accelerated (request-response, 64 B)", &head);
    let cases: [(&str, Route, &[&str]); 3] = [
        ("other node", Route::Remote, &[]),
        ("peer not chosen", Route::Direct, &["curl"]),
        ("neither chosen, in-pod", Route::OtherLoopback, &["curl"]),
    ];
    for cpus in [Cpus::One, Cpus::Two] {
        for (name, route, pods) in cases {
            let case = Case { load: Load::RequestResponse, size: 64, cpus };
            let (mut without, mut with) = (Vec::<Run>::new(), Vec::<Run>::new());
            for _ in 0..effort.repeats {
                without.push(case.run(environment, route, effort.time)?);
                let run = accelerated(environment, cpus, pods, |_| case.run(environment, route, effort.time))?;
                with.extend(run);
            }
            let (without, with) = (Column(without).rates(), Column(with).rates());
            let ratio = with.over(&without);
            let goal = reached(ratio.median(), 0.99);
            table.row(vec![format!("{name}, {}", cpus.text()), format!("{without:.0}"), format!("{with:.0}"), ratio.to_string(), goal]);
        }
    }
    Ok(vec![table])
}
