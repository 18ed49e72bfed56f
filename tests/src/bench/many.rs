//! Ten thousand connections at once.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ground::{Ground, Process};
use super::measure::Effort;
use super::peer::Run;
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
fn maps() -> Result<BTreeMap<u64, u64>> {
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

/// Opens them, accelerates them while they are open, and looks at time, memory and turnaround.
///
/// # Errors
/// When a peer or the helper fails.
pub fn many(ground: &Ground, _: Effort) -> Result<Vec<Table>> {
    let mut table = Table::new("10,000 connections between two pods", &["what", "measured", "goal"]);
    let to = std::net::SocketAddr::new(ground.ip("httpbin")?, super::ground::PORT).to_string();
    let mut client = ground.start("curl", &["many", "--cpu", "0", "--to", &to, "--count", &COUNT.to_string()])?;
    let opened: Run = serde_json::from_str(&client.line()?)?;
    let plain = turnaround(&mut client, EXCHANGES)?;
    table.row(vec!["opened over plain TCP".to_owned(), format!("{:.0} connections/s", opened.rate), "-".to_owned()]);
    let us = |run: &Run| format!("p50 {:.1} us, p99 {:.1} us", run.p50_ns as f64 / 1e3, run.p99_ns as f64 / 1e3);
    table.row(vec!["turnaround over plain TCP, all in turn".to_owned(), us(&plain), "-".to_owned()]);

    let before = maps()?;
    let start = Instant::now();
    let mut on = match Accelerator::start_with(&ground.lab, &Choice { lease: Duration::from_secs(60), ..Choice::default() }) {
        Ok(on) => on,
        Err(e) => {
            table.unmeasured(format!("Not accelerated: {e:#}"));
            return Ok(vec![table]);
        }
    };
    let armed = start.elapsed();
    // Pairs are opened for redirection by what their readers do, so they have to be used meanwhile.
    let end = Instant::now() + Duration::from_secs(60);
    let mut accelerated = 0;
    while accelerated < COUNT as u64 && Instant::now() < end {
        turnaround(&mut client, STEP)?;
        on.0.drain();
        accelerated = on.0.pairs.totals.accelerated;
    }
    let took = start.elapsed();
    let soon = goal("< 2 s", took < Duration::from_secs(2) && accelerated >= COUNT as u64);
    let what = format!("{accelerated} of them accelerated (armed after {:.2} s, in use meanwhile)", armed.as_secs_f64());
    table.row(vec![what, format!("{:.2} s", took.as_secs_f64()), soon]);
    let fast = turnaround(&mut client, EXCHANGES)?;
    let ratio = plain.p50_ns as f64 / fast.p50_ns.max(1) as f64;
    table.row(vec!["turnaround accelerated, all in turn".to_owned(), format!("{} ({ratio:.2} x plain)", us(&fast)), reached(ratio, 1.0)]);
    // On a machine that does nothing else, new maps are ours.
    let maps: u64 = maps()?.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, bytes)| bytes).sum();
    let rss = resident(on.0.pid())?;
    let each = (maps + rss) as f64 / COUNT as f64 / 1024.0;
    let sizes = format!("{:.1} MiB of maps, {:.1} MiB of the helper", maps as f64 / f64::from(1 << 20), rss as f64 / f64::from(1 << 20));
    table.row(vec![format!("our memory per connection ({sizes})"), format!("{each:.2} KiB"), goal("< 4 KiB", each < 4.0)]);
    let start = Instant::now();
    on.finish()?;
    table.row(vec!["back to plain TCP".to_owned(), format!("{:.2} s", start.elapsed().as_secs_f64()), "-".to_owned()]);
    turnaround(&mut client, COUNT).context("after the end")?;
    Ok(vec![table])
}
