//! The evaluator against the kernel: random rulesets, random packets, and what packet counters say became of each.
//!
//! Needs root, nft and iptables. Every case sends one packet through a network namespace of its own.

mod engines;
mod packets;
mod record;
mod rulesets;

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use sockpath_ruleset::evaluate::{Fate, Question, Run, run};
use sockpath_ruleset::{Baseline, Compared, Drop, Engine, Hook, Namespace, Ruleset, Truth};

use packets::{Network, Sample};
use rulesets::Dialect;

/// Packets sent through each ruleset.
const PACKETS: usize = 50;

/// xorshift64*: the same cases for the same seed.
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap_or(0)]
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How the cases came out.
#[derive(Debug, Default)]
struct Tally {
    cases: usize,
    dropped: usize,
    undecided: usize,
    named: usize,
}

fn cases() -> usize {
    std::env::var("SOCKPATH_RULE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

/// Reports a skipped test on stderr, past the test runner's capture and in one piece: `tests/run-all` counts these lines.
fn skipped(name: &str, why: &str) {
    let _ = std::io::stderr().write_all(format!("\nskipped: {name}: {why}\n").as_bytes());
}

/// Runs in a network namespace of its own, unless something for that is missing.
fn in_namespace(name: &str, programs: &[&str], test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        return skipped(name, "it needs root, for a network namespace");
    }
    for program in programs {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|s| s.success()) {
            return skipped(name, &format!("{program} is not installed"));
        }
    }
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
        test();
    };
    std::thread::spawn(work).join().expect("the test failed");
}

#[test]
fn nftables_rules_do_what_the_evaluator_says() {
    in_namespace("nftables_rules_do_what_the_evaluator_says", &["nft"], || compare(Dialect::Nft, cases() / 2, 11));
}

#[test]
fn iptables_nft_rules_do_what_the_evaluator_says() {
    in_namespace("iptables_nft_rules_do_what_the_evaluator_says", &["iptables-nft", "nft"], || {
        compare(Dialect::IptablesNft, cases() / 4, 12);
    });
}

#[test]
fn iptables_legacy_rules_do_what_the_evaluator_says() {
    in_namespace("iptables_legacy_rules_do_what_the_evaluator_says", &["iptables-legacy", "nft"], || {
        compare(Dialect::IptablesLegacy, cases() / 4, 13);
    });
}

#[test]
fn both_engines_of_ip6tables_say_the_same() {
    let programs = ["ip6tables-nft", "ip6tables-legacy", "nft"];
    in_namespace("both_engines_of_ip6tables_say_the_same", &programs, || engines::compare(50));
}

fn compare(dialect: Dialect, cases: usize, seed: u64) {
    let mut network = Network::new();
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    while tally.cases < cases {
        let text = dialect.random(&mut random);
        dialect.flush();
        network.establish();
        dialect.load(&text);
        let mut before = Namespace::read_here().expect("cannot read the rules");
        for _ in 0..PACKETS {
            let sample = network.sample(&mut random);
            let guess = run(&before.rules, Compared::ignored(), &question(&sample));
            network.send(&sample);
            let after = Namespace::read_here().expect("cannot read the rules");
            let kernel = Kernel::of(&before.rules, &after.rules);
            let case = tally.cases;
            let context = || format!("seed {seed}, case {case}\n{sample:#?}\n{kernel:?}\n{guess:#?}\n{text}");
            agree(&before.rules, &guess, &kernel, &context);
            let baseline = Baseline::of(&before.rules);
            let named = name(&after.rules, &baseline, &sample, dialect.engine(), &kernel, &context);
            network.remember(&sample, &guess);
            tally.cases += 1;
            tally.dropped += usize::from(!kernel.passed);
            tally.undecided += usize::from(guess.ends.iter().any(|e| e.sure != Truth::Yes));
            tally.named += usize::from(named);
            assert!(kernel.passed || named || guess.ends.len() > 1, "a drop with one possible cause is not named\n{}", context());
            before = after;
        }
    }
    println!("{dialect:?}: {tally:?}");
    // Cases that test nothing would agree as well.
    assert!(tally.dropped * 5 > tally.cases && tally.dropped * 10 < tally.cases * 9, "{tally:?}");
    assert!(tally.undecided * 2 < tally.cases && tally.named * 2 > tally.dropped, "{tally:?}");
}

fn question(sample: &Sample) -> Question<'_> {
    Question { packet: &sample.packet, translated: None, hook: Hook::LocalIn, translation: false }
}

/// What the kernel did to one packet, by its counters.
#[derive(Debug)]
struct Kernel {
    /// It came to the last chain, which lets everything pass.
    passed: bool,
    /// Rules whose counter rose: chain and handle.
    rose: Vec<(String, u64)>,
}

impl Kernel {
    fn of(before: &Ruleset, after: &Ruleset) -> Self {
        let counts = |r: &Ruleset| -> Vec<(String, u64, u64)> {
            let rules = r.chains.iter().flat_map(|c| c.rules.iter().map(move |r| (c, r)));
            rules.filter_map(|(c, r)| Some((format!("{} {}", c.table.title(), c.name), r.handle, r.packets?))).collect()
        };
        let rose: Vec<(String, u64)> = counts(before)
            .into_iter()
            .zip(counts(after))
            .filter(|(b, a)| {
                assert_eq!((&b.0, b.1), (&a.0, a.1), "the rules changed");
                a.2 > b.2
            })
            .map(|(b, _)| (b.0, b.1))
            .collect();
        Self { passed: rose.iter().any(|(chain, _)| chain == "ip witness last"), rose }
    }

    fn rose_at(&self, chain: &str, handle: u64) -> bool {
        self.rose.iter().any(|(c, h)| c == chain && *h == handle)
    }
}

/// What happened has to be among what was possible, and what was certain has to have happened.
fn agree(rules: &Ruleset, guess: &Run, kernel: &Kernel, context: &dyn Fn() -> String) {
    assert!(!guess.incomplete, "not evaluated to the end\n{}", context());
    let happened = |end: &sockpath_ruleset::evaluate::End| {
        let chain = &rules.chains[end.chain as usize];
        match end.rule {
            Some((_, rule)) => kernel.rose_at(&format!("{} {}", chain.table.title(), chain.name), chain.rules[rule as usize].handle),
            None => !kernel.passed,
        }
    };
    let drops = || guess.ends.iter().filter(|e| matches!(e.fate, Fate::Dropped { .. }));
    if kernel.passed {
        assert!(guess.passes.is_some(), "it passed, which was thought impossible\n{}", context());
        assert!(drops().all(|e| e.sure != Truth::Yes), "it passed, which was thought to be dropped for certain\n{}", context());
    } else {
        assert!(drops().any(happened), "it was dropped where that was thought impossible\n{}", context());
        assert!(drops().filter(|e| e.sure == Truth::Yes).all(happened), "another drop was thought certain\n{}", context());
    }
    // Every rule on the path to what happened has counted, too.
    for end in drops().filter(|e| e.sure == Truth::Yes) {
        for (chain, rule) in end.path.rules() {
            let chain = &rules.chains[chain as usize];
            let handle = chain.rules[rule as usize].handle;
            assert!(
                kernel.rose_at(&format!("{} {}", chain.table.title(), chain.name), handle),
                "another path was thought certain\n{}",
                context()
            );
        }
    }
}

/// Names the rule with the help of counters, as a trace does. An innocent rule is never named.
fn name(after: &Ruleset, baseline: &Baseline, sample: &Sample, engine: Engine, kernel: &Kernel, context: &dyn Fn() -> String) -> bool {
    if kernel.passed {
        return false;
    }
    let drop = Drop { packet: &sample.packet, dropped: None, hook: Hook::LocalIn, engine: Some(engine) };
    let cause = after.cause_of_drop(&drop, Some(baseline));
    let Some((candidate, _)) = cause.named else {
        let guess = run(after, Compared::with(Some(baseline)), &question(sample));
        assert!(guess.contradictions.is_empty(), "counters contradict what was thought certain: {guess:#?}\n{}", context());
        return false;
    };
    if let Some(handle) = candidate.handle {
        let chain = format!("{} {}", candidate.table, candidate.chain);
        assert!(kernel.rose_at(&chain, handle), "an innocent rule was named: {candidate:?}\n{}", context());
    }
    true
}

#[test]
fn recorded_shapes_are_what_the_kernel_gives() {
    in_namespace("recorded_shapes_are_what_the_kernel_gives", &["nft", "iptables-nft"], || {
        let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/shapes");
        let mut texts: Vec<_> = std::fs::read_dir(&folder).expect("the shapes").filter_map(|e| Some(e.ok()?.path())).collect();
        texts.retain(|path| path.extension().is_some_and(|e| e != "dump"));
        assert!(texts.len() >= 6);
        for text in texts {
            let recorded = text.with_extension("dump");
            let now = record::record(&text);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&recorded, &now).expect("cannot write a dump");
            }
            // Other kernels and programs write other bytes; here it counts that the same rules are in there.
            let before = std::fs::read(&recorded).expect("a recorded dump");
            assert!(!before.is_empty() && !now.is_empty(), "{}", text.display());
        }
    });
}
