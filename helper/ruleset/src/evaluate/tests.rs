use std::sync::Arc;

use super::*;
use crate::cause::{Certainty, Drop};
use crate::counters::Baseline;
use crate::model::{Base, Bitwise, Comparison, Engine, Fact, Table};

fn chain(name: &str, base: Option<(i32, bool)>, rules: Vec<Rule>) -> Chain {
    let table = Arc::new(Table { engine: Engine::Nftables, family: 2, name: "filter".to_owned() });
    let base = base.map(|(priority, drops)| Base { hook: Hook::Forward, priority, kind: ChainKind::Filter, drops });
    Chain { table, name: name.into(), base, packets: None, rules }
}

fn rule(handle: u64, packets: Option<u64>, tests: Vec<Expression>, verdict: Verdict) -> Rule {
    let counter = packets.map(|_| Expression::Counter);
    let expressions = tests.into_iter().chain(counter).chain([Expression::Verdict(verdict)]).collect();
    Rule { handle, comment: None, packets, expressions, effects: Vec::new() }
}

fn maybe() -> Vec<Expression> {
    vec![Expression::Unknown { to: None, may_fail: true }]
}

fn packet() -> Packet {
    let mut packet = Packet::new([10, 42, 1, 2].into(), [10, 42, 1, 3].into(), 6).with_ports(40_000, 8080);
    packet.mark = Word::known(0);
    packet.connection = Connection { states: state::NEW, reply: Some(false), status: None, mark: Word::known(0) };
    packet
}

fn at_forward(rules: &Ruleset, packet: &Packet) -> Run {
    run(rules, Compared::ignored(), &Question { packet, translated: None, hook: Hook::Forward, translation: false })
}

fn ruleset(chains: Vec<Chain>) -> Ruleset {
    Ruleset { chains, ..Ruleset::default() }
}

/// Sets bits of the mark by what the packet's mark is.
fn mark(flip: u32) -> Vec<Expression> {
    let bits = Bitwise { from: 0, to: 0, mask: u32::MAX.to_ne_bytes().into(), flip: flip.to_ne_bytes().into() };
    vec![
        Expression::Load { fact: Fact::Mark, to: 0 },
        Expression::Bitwise(Box::new(bits)),
        Expression::SetMark { from: 0, connection: false },
    ]
}

/// Each chain jumps twice to the next one: 2^100 paths.
#[test]
fn chains_that_call_each_other_take_bounded_work() {
    let level = |i: u32, tests: &dyn Fn() -> Vec<Expression>| {
        let jump = |handle| rule(handle, None, tests(), Verdict::Jump(i + 1));
        let last = rule(1, None, maybe(), Verdict::Drop);
        let rules = if i < 15 { vec![jump(1), jump(2)] } else { vec![last] };
        chain(&format!("c{i}"), (i == 0).then_some((0, false)), rules)
    };
    let rules = ruleset((0..16).map(|i| level(i, &maybe)).collect());
    let run = at_forward(&rules, &packet());
    assert!(!run.incomplete && run.steps < 1000, "{} steps", run.steps);
    assert_eq!(run.ends.len(), 1);
    assert!(run.ends[0].path.rules().count() == 15 && run.passes.is_some());

    // A mark that differs on each path.
    let marked = |i: u32| move || mark(1 << i);
    let rules = ruleset((0..16).map(|i| level(i, &marked(i))).collect());
    assert!(at_forward(&rules, &packet()).steps < 2_000_000);
}

#[test]
fn too_much_work_leaves_the_result_incomplete() {
    let many = (0..3000).map(|i| rule(i, None, maybe(), Verdict::Jump(1))).collect();
    let longer = (0..10_000).map(|i| rule(i, None, mark(1).into_iter().chain(maybe()).collect(), Verdict::Continue)).collect();
    let rules = ruleset(vec![chain("base", Some((0, false)), many), chain("long", None, longer)]);
    let mut packet = packet();
    packet.mark = Word::UNKNOWN;
    let run = at_forward(&rules, &packet);
    assert!(run.steps <= MOST_STEPS + 20_000);
    // Chains that call themselves cannot be loaded, but must not hang either.
    let rules = ruleset(vec![chain("base", Some((0, false)), vec![rule(1, None, maybe(), Verdict::Jump(0))])]);
    assert!(at_forward(&rules, &packet).incomplete);
}

#[test]
fn a_mark_set_on_one_of_two_paths_is_unknown_after_both() {
    let rules = ruleset(vec![
        chain(
            "base",
            Some((0, true)),
            vec![
                rule(1, None, maybe(), Verdict::Jump(1)),
                rule(
                    2,
                    None,
                    vec![
                        Expression::Load { fact: Fact::Mark, to: 0 },
                        Expression::Compare { from: 0, how: Comparison::Equal, value: 4u32.to_ne_bytes().into() },
                    ],
                    Verdict::Accept,
                ),
            ],
        ),
        chain("marks", None, vec![rule(3, None, mark(4), Verdict::Continue)]),
    ]);
    let run = at_forward(&rules, &packet());
    assert!(run.passes.is_some());
    assert_eq!((run.ends.len(), run.ends[0].rule, run.ends[0].sure), (1, None, Truth::Maybe));
}

#[test]
fn a_rule_whose_counter_stands_still_is_innocent() {
    let rules = |hits: [u64; 3]| {
        let rules = (1..).zip(hits).map(|(handle, packets)| rule(handle, Some(packets), maybe(), Verdict::Drop)).collect();
        ruleset(vec![chain("base", Some((0, false)), rules)])
    };
    let (before, after) = (rules([5, 5, 0]), rules([5, 6, 0]));
    let packet = packet();
    let drop = Drop { packet: &packet, dropped: None, hook: Hook::Forward, engine: None };
    let cause = after.cause_of_drop(&drop, Some(&Baseline::of(&before)));
    let (candidate, certainty) = cause.named.expect("one rule counted");
    assert_eq!((candidate.handle, certainty), (Some(2), Certainty::Counted));
    // Without a reading of before, one that never counted is out, and the others are candidates.
    let cause = after.cause_of_drop(&drop, None);
    assert_eq!((cause.named, cause.candidates.len()), (None, 2));
    // Both rose: one of them was for another packet.
    let cause = rules([6, 6, 0]).cause_of_drop(&drop, Some(&Baseline::of(&before)));
    assert_eq!((cause.named, cause.candidates.len()), (None, 2));
}

#[test]
fn the_other_engine_and_other_marks_are_left_out() {
    let legacy = Arc::new(Table { engine: Engine::Legacy, family: 2, name: "filter".to_owned() });
    let mut chains = vec![
        chain("nft", Some((0, false)), vec![rule(1, None, maybe(), Verdict::Drop)]),
        chain("legacy", Some((0, false)), vec![rule(1, Some(3), maybe(), Verdict::Drop)]),
    ];
    chains[1].table = legacy;
    let rules = ruleset(chains);
    let packet = packet();
    let named = |engine, mark| {
        let mut dropped = packet.clone();
        dropped.mark = Word::known(mark);
        let drop = Drop { packet: &packet, dropped: Some(&dropped), hook: Hook::Forward, engine };
        rules.cause_of_drop(&drop, None).named.map(|(c, _)| c.chain)
    };
    assert_eq!(named(Some(Engine::Nftables), 0).as_deref(), Some("nft"));
    assert_eq!(named(Some(Engine::Legacy), 0).as_deref(), Some("legacy"));
    assert_eq!(named(None, 0), None);
    // No rule sets the mark it was dropped with.
    assert_eq!(named(Some(Engine::Nftables), 9), None);
}
