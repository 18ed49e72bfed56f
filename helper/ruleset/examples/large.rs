//! How long it takes to read and evaluate a large ruleset, and how much memory: `large [RULES]` (root, nft; default 60,000).
//!
//! The rules are those of kube-proxy for so many Services, loaded into a network namespace of its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use sockpath_ruleset::{Baseline, Connection, Drop, Engine, Hook, Namespace, Packet, Word, state};

fn main() -> Result<()> {
    let rules: u32 = std::env::args().nth(1).map_or(Ok(60_000), |n| n.parse()).context("how many rules?")?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    load(&ruleset(rules))?;
    let idle = resident()?;
    let start = Instant::now();
    let before = Baseline::of(&Namespace::read_here()?.rules);
    let baseline = start.elapsed();
    let start = Instant::now();
    let namespace = Namespace::read_here()?;
    let read = start.elapsed();
    let mut packet = Packet::new([10, 42, 1, 2].into(), [10, 96, 255, 1].into(), 6).with_ports(40_000, 80);
    packet.mark = Word::known(0);
    packet.connection = Connection { states: state::NEW, reply: Some(false), status: None, mark: Word::known(0) };
    let start = Instant::now();
    let drop = Drop { packet: &packet, dropped: None, hook: Hook::PreRouting, engine: Some(Engine::Nftables) };
    let cause = namespace.rules.cause_of_drop(&drop, Some(&before));
    let evaluated = start.elapsed();
    println!(
        "{} rules: counters noted in {baseline:?}, read in {read:?}, evaluated in {evaluated:?} ({} steps), at most {} MiB; \
         {} ends, incomplete: {}",
        namespace.rules.len(),
        cause.steps,
        (resident()? - idle) / 1024,
        cause.candidates.len() + usize::from(cause.named.is_some()),
        cause.incomplete,
    );
    Ok(())
}

/// kube-proxy's chains: one for each Service, with a rule that leads there; every Service without endpoints is dropped by a rule that
/// tests more than can be known.
fn ruleset(rules: u32) -> String {
    let services = rules / 5;
    let mut text = String::from("table ip filter {\n");
    for i in 0..services {
        let _ = writeln!(
            text,
            " chain SVC-{i} {{ ip saddr != 10.42.0.0/16 counter return comment \"ns/service-{i}:http\"; counter; \
             meta mark and 0x4000 == 0x4000 counter return; limit rate 1/second counter drop comment \"ns/service-{i}:http\"; }}"
        );
    }
    text += " chain pre { type filter hook prerouting priority 0; policy accept;\n";
    for i in 0..services {
        let (a, b) = (i / 250 % 250, i % 250);
        let _ = writeln!(text, "  ip daddr 10.96.{a}.{b} tcp dport 80 counter jump SVC-{i} comment \"ns/service-{i}:http cluster IP\"");
    }
    text + "  counter drop comment \"the last one\"\n }\n}\n"
}

fn load(text: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot start nft")?;
    nft.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses the rules");
    Ok(())
}

/// The most memory that was resident so far, in KiB.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.trim().trim_end_matches(" kB").parse().context("no number")
}
