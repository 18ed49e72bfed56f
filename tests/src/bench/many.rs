//! Ten thousand connections at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_protocol::accel::Via;

use super::accel::accelerated_with;
use super::environment::{Cpus, Environment, PORT, Process, Route};
use super::measure::{Case, Column, Effort};
use super::peer::{Load, Run};
use super::table::{Table, goal, reached};
use crate::torture::accelerator::{Accelerator, Choice};

const COUNT: usize = 10_000;
/// Exchanges per measurement: three over each connection.
const EXCHANGES: usize = 3 * COUNT;
/// Exchanges between two looks at how far the acceleration is: they go on with the next connection each time.
const STEP: usize = COUNT / 20;

fn turnaround(client: &mut Process, exchanges: usize) -> Result<Run> {
    client.say(&exchanges.to_string())?;
    serde_json::from_str(&client.line()?).context("the client printed no result")
}

/// All BPF maps of this machine: bytes that the kernel accounts, by id.
pub(super) fn maps() -> Result<BTreeMap<u64, u64>> {
    let out = Command::new("bpftool").args(["-j", "map", "list"]).output().context("cannot run bpftool")?;
    let list: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).context("bpftool -j map list")?;
    Ok(list.iter().filter_map(|m| Some((m["id"].as_u64()?, m["bytes_memlock"].as_u64()?))).collect())
}

/// Resident memory of the helper, without the maps that it has mapped: those are counted as maps.
fn resident(pid: u32) -> Result<u64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut sum, mut is_map) = (0, false);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Rss", size)) if !is_map => {
                sum += size.trim().trim_end_matches(" kB").parse::<u64>().with_context(|| format!("smaps: {line}"))? << 10;
            }
            // The first line of a mapping begins with its addresses.
            _ if line.split('-').next().is_some_and(|from| u64::from_str_radix(from, 16).is_ok()) => is_map = line.contains("bpf-map"),
            _ => {}
        }
    }
    Ok(sum)
}

/// A client that holds them all open, and how fast it opened them.
fn open(environment: &Environment) -> Result<(Process, Run)> {
    let to = SocketAddr::new(environment.ip("httpbin")?, PORT).to_string();
    let mut client = environment.start("curl", &["many", "--cpu", "0", "--to", &to, "--count", &COUNT.to_string()])?;
    let opened = serde_json::from_str(&client.line()?).context("the client printed no result")?;
    Ok((client, opened))
}

/// Has connections used, for a minute at most, until this many are accelerated: what is approved or opened for redirection is so by what it
/// carries. The number of those that are accelerated at the end.
pub(super) fn use_until_accelerated(count: usize, on: &mut Accelerator, mut exchange: impl FnMut() -> Result<()>) -> Result<u64> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        exchange()?;
        on.0.drain();
        let accelerated = on.0.pairs.totals.accelerated;
        if accelerated >= count as u64 || Instant::now() >= end {
            return Ok(accelerated);
        }
    }
}

/// A number of bytes in MiB.
pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes of maps that are not in `before`, and of the helper.
pub(super) fn memory(before: &BTreeMap<u64, u64>, on: &Accelerator) -> Result<(u64, u64)> {
    // On a machine that does nothing else, new maps are ours.
    let maps = maps()?.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, bytes)| bytes).sum();
    Ok((maps, resident(on.0.pid())?))
}

/// The short path: time until all are approved, memory, and what connections that come and go meanwhile cost the others.
///
/// # Errors
/// When a peer or the helper fails.
pub fn many_short(environment: &Environment, effort: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("10,000 connections on the short path", &["what", "measured", "goal"]);
    let choice = Choice { lease: Duration::from_secs(60), via: Via::Short, ..Choice::default() };
    let before = maps()?;
    let idle = Accelerator::start_with(&environment.lab, &choice)?;
    let (fixed_maps, fixed_helper) = memory(&before, &idle)?;
    idle.finish()?;
    let (mut client, _) = open(environment)?;
    let plain = turnaround(&mut client, EXCHANGES)?;
    let before = maps()?;
    let start = Instant::now();
    let mut on = Accelerator::start_with(&environment.lab, &choice)?;
    let armed = start.elapsed();
    let accelerated = use_until_accelerated(COUNT, &mut on, || turnaround(&mut client, STEP).map(drop))?;
    let took = start.elapsed();
    let soon = goal("<= 1 s", took <= Duration::from_secs(1) && accelerated >= COUNT as u64);
    let what = format!("{accelerated} of them approved (armed after {:.2} s, in use meanwhile)", armed.as_secs_f64());
    table.row(vec![what, format!("{:.2} s", took.as_secs_f64()), soon]);
    let fast = turnaround(&mut client, EXCHANGES)?;
    let ratio = plain.p50_ns as f64 / fast.p50_ns.max(1) as f64;
    table.row(vec!["turnaround, all in turn".to_owned(), format!("{ratio:.2} x the stack's"), reached(ratio, 1.0)]);
    let (maps, helper) = memory(&before, &on)?;
    let each = |bytes: u64, fixed: u64| bytes.saturating_sub(fixed) as f64 / COUNT as f64;
    let (of_maps, of_helper) = (each(maps, fixed_maps), each(helper, fixed_helper));
    let fixed = format!("{:.1} MiB of maps, {:.1} MiB of the helper without any", mib(fixed_maps), mib(fixed_helper));
    let what = format!("memory for each: {of_maps:.0} B of maps, {of_helper:.0} B of the helper ({fixed})");
    let all = of_maps + of_helper;
    table.row(vec![what, format!("{all:.0} B"), goal("<= 512 B", all <= 512.0)]);
    let start = Instant::now();
    on.finish()?;
    table.row(vec!["back to the stack".to_owned(), format!("{:.2} s", start.elapsed().as_secs_f64()), "-".to_owned()]);
    turnaround(&mut client, COUNT).context("after the end")?;
    let [stack, short] = [false, true].map(|on| coming_and_going(environment, on.then_some(&choice), effort));
    let (stack, short) = (stack?, short?);
    table.row(vec!["request-response beside 100 more a second, by the stack".to_owned(), format!("{stack:.3} x without"), "-".to_owned()]);
    let what = "the same by the short path".to_owned();
    table.row(vec![what, format!("{short:.3} x without"), reached(short / stack, 0.98)]);
    Ok(vec![table])
}

/// The rate of request-response beside 100 connections a second that come, have 16 exchanges and go, to that without them. They run on
/// another CPU, the helper on that of the request-response.
fn coming_and_going(environment: &Environment, choice: Option<&Choice>, effort: Effort) -> Result<f64> {
    let case = Case { load: Load::RequestResponse, size: 64, cpus: Cpus::One };
    let (_, place) = environment.place(Route::Direct, Cpus::Two)?;
    let super::peer::Place::Tcp(to) = place else { anyhow::bail!("connections come and go by TCP") };
    let args = ["churn", "--cpu", "1", "--rate", "100", "--exchanges", "16", "--to", &to.to_string()];
    let (mut quiet, mut busy) = (Column::default(), Column::default());
    let mut rounds = || -> Result<()> {
        for _ in 0..effort.repeats {
            quiet.0.push(case.run(environment, Route::Direct, effort.time)?);
            let mut others = environment.start("curl", &args)?;
            others.line()?;
            busy.0.push(case.run(environment, Route::Direct, effort.time)?);
        }
        Ok(())
    };
    match choice {
        Some(choice) => accelerated_with(environment, Cpus::One, choice, |_| rounds())?.context("no acceleration")?,
        None => rounds()?,
    }
    Ok(busy.rates().over(&quiet.rates()).median())
}

/// Opens them, accelerates them while they are open, and looks at time, memory and turnaround.
///
/// # Errors
/// When a peer or the helper fails.
pub fn many(environment: &Environment, _: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("10,000 connections between two pods", &["what", "measured", "goal"]);
    let (mut client, opened) = open(environment)?;
    let plain = turnaround(&mut client, EXCHANGES)?;
    table.row(vec!["opened over plain TCP".to_owned(), format!("{:.0} connections/s", opened.rate), "-".to_owned()]);
    let us = |run: &Run| format!("p50 {:.1} us, p99 {:.1} us", run.p50_ns as f64 / 1e3, run.p99_ns as f64 / 1e3);
    table.row(vec!["turnaround over plain TCP, all in turn".to_owned(), us(&plain), "-".to_owned()]);

    let before = maps()?;
    let start = Instant::now();
    let mut on = match Accelerator::start_with(&environment.lab, &Choice { lease: Duration::from_secs(60), ..Choice::default() }) {
        Ok(on) => on,
        Err(e) => {
            table.unmeasured(format!("Not accelerated: {e:#}"));
            return Ok(vec![table]);
        }
    };
    let armed = start.elapsed();
    let accelerated = use_until_accelerated(COUNT, &mut on, || turnaround(&mut client, STEP).map(drop))?;
    let took = start.elapsed();
    let soon = goal("< 2 s", took < Duration::from_secs(2) && accelerated >= COUNT as u64);
    let what = format!("{accelerated} of them accelerated (armed after {:.2} s, in use meanwhile)", armed.as_secs_f64());
    table.row(vec![what, format!("{:.2} s", took.as_secs_f64()), soon]);
    let fast = turnaround(&mut client, EXCHANGES)?;
    let ratio = plain.p50_ns as f64 / fast.p50_ns.max(1) as f64;
    table.row(vec!["turnaround accelerated, all in turn".to_owned(), format!("{} ({ratio:.2} x plain)", us(&fast)), reached(ratio, 1.0)]);
    let (maps, rss) = memory(&before, &on)?;
    let each = (maps + rss) as f64 / COUNT as f64 / 1024.0;
    let sizes = format!("{:.1} MiB of maps, {:.1} MiB of the helper", mib(maps), mib(rss));
    table.row(vec![format!("our memory per connection ({sizes})"), format!("{each:.2} KiB"), goal("< 4 KiB", each < 4.0)]);
    let start = Instant::now();
    on.finish()?;
    table.row(vec!["back to plain TCP".to_owned(), format!("{:.2} s", start.elapsed().as_secs_f64()), "-".to_owned()]);
    turnaround(&mut client, COUNT).context("after the end")?;
    Ok(vec![table])
}
