//! All benchmarks, one after the other, as one markdown document.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::accel;
use super::environment::Environment;
use super::measure::Effort;
use super::table::Table;
use super::{cluster, crowd, lab, many, programs, short as short_path, trace};

/// Runs what `only` names (everything when it is empty), prints the tables, and returns the goals that were missed, in words.
///
/// # Errors
/// When `only` names no section, or the environment cannot be prepared; a section that fails is reported in its place, and is a missed goal.
pub fn run(quick: bool, only: &[String]) -> Result<Vec<String>> {
    type Section = fn(&Environment, Effort) -> Result<Vec<Table>>;
    let ms = Duration::from_millis;
    let (repeats, short, long) = if quick { (3, ms(150), ms(250)) } else { (7, ms(300), ms(700)) };
    let sections: [(&str, Section, Effort); 13] = [
        ("rr", accel::request_response, Effort { repeats, time: short }),
        ("short", short_path::short, Effort { repeats, time: long }),
        ("sleeping", accel::sleeping_readers, Effort { repeats, time: short }),
        ("streams", accel::streams, Effort { repeats, time: long }),
        ("connections", accel::connections, Effort { repeats, time: long }),
        ("programs", programs::programs, Effort { repeats: if quick { 2 } else { 5 }, time: Duration::from_secs(1) }),
        ("bystanders", accel::bystanders, Effort { repeats, time: short }),
        ("many", many::many, Effort { repeats: 1, time: short }),
        ("many-short", many::many_short, Effort { repeats, time: long }),
        ("crowd", crowd::crowd, Effort { repeats: 1, time: short }),
        ("trace", trace::trace, Effort { repeats, time: short }),
        ("lab", lab::lab, Effort { repeats, time: short }),
        ("cluster", cluster::cluster, Effort { repeats, time: short }),
    ];
    if let Some(unknown) = only.iter().find(|o| sections.iter().all(|(name, ..)| name != o)) {
        bail!("no section {unknown}: there are {}", sections.map(|(name, ..)| name).join(", "));
    }
    let start = Instant::now();
    println!("{}", heading(quick)?);
    let environment = Environment::new()?;
    let mut missed = Vec::new();
    for (name, section, effort) in sections {
        if !only.is_empty() && !only.iter().any(|o| o == name) {
            continue;
        }
        eprintln!("{name}");
        match section(&environment, effort) {
            Ok(tables) => tables.iter().for_each(|t| {
                print!("{}", t.markdown());
                missed.extend(t.missed());
            }),
            Err(e) => {
                println!("\n## {name}\n\nThis section failed: {e:#}");
                missed.push(format!("section {name} failed: {e:#}"));
            }
        }
    }
    println!("\nMeasured in {:.0} s.", start.elapsed().as_secs_f64());
    Ok(missed)
}

fn heading(quick: bool) -> Result<String> {
    let uname = nix::sys::utsname::uname()?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("unknown CPU", |m| m.trim_start_matches([' ', '\t', ':']));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(format!(
        "Kernel {} on {model}, {} CPUs; load before: {}; command: `bench{}`. Each cell is the median of alternating runs with their range; \
         ratios are taken run by run.",
        uname.release().to_string_lossy(),
        std::thread::available_parallelism()?,
        load.split(' ').next().unwrap_or("?"),
        if quick { " --quick" } else { "" }
    ))
}
