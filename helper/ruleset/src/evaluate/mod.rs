//! Runs a packet through the chains of a hook. What is unknown leaves both results possible, and the result lists every possible end.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::bits::{Truth, Word};
use crate::counters::{Compared, Hits};
use crate::model::{Chain, ChainKind, Expression, Hook, Rule, Ruleset, Verdict};
use crate::packet::{Connection, Headers, Packet, state};

use self::registers::Registers;

mod chain;
mod expression;
mod extension;
mod lookup;
mod registers;
#[cfg(test)]
mod tests;

/// Expressions and elements looked at for one packet; more leaves the result incomplete.
const MOST_STEPS: u64 = 20_000_000;

/// Ends listed for one chain; more leaves the result incomplete.
const MOST_ENDS: usize = 256;

/// Chains that call each other, at most so many deep (the kernel allows 16).
const DEPTH: usize = 64;

/// A rule: index of its chain, and its position there.
pub type At = (u32, u32);

/// What a packet carries from rule to rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// The packet's mark.
    pub mark: Word,
    /// Its connection.
    pub connection: Connection,
}

impl State {
    fn join(self, other: Self) -> Self {
        Self { mark: self.mark.join(other.mark), connection: self.connection.join(other.connection) }
    }
}

fn join(a: Option<State>, b: Option<State>) -> Option<State> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.join(b)),
        (one, other) => one.or(other),
    }
}

/// The verdict for a packet at the end of its path through the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Dropped; `answered` with a reset or an ICMP error.
    Dropped {
        /// By a REJECT.
        answered: bool,
    },
    /// Handed to a program.
    Queued,
    /// The rule may do anything.
    Unknown,
    /// Translated, to one of these addresses and ports; none where that is not known.
    Translated {
        /// Of the destination, otherwise of the source.
        destination: bool,
        /// Address and port.
        to: Rc<[(Option<std::net::IpAddr>, Option<u16>)]>,
    },
}

/// The rules that led somewhere, from the first jump on.
#[derive(Debug, Clone, Default)]
pub struct Path(Option<Rc<(At, Path)>>);

impl Path {
    fn behind(&self, rule: At) -> Self {
        Self(Some(Rc::new((rule, self.clone()))))
    }

    /// The jumps, in order.
    pub fn rules(&self) -> impl Iterator<Item = At> {
        let mut rest = self.0.clone();
        std::iter::from_fn(move || {
            let node = rest.take()?;
            rest.clone_from(&node.1.0);
            Some(node.0)
        })
    }
}

/// An end that is possible.
#[derive(Debug, Clone)]
pub struct End {
    /// What happens there.
    pub fate: Fate,
    /// The rule; `None` for the policy of `chain`.
    pub rule: Option<At>,
    /// The chain it is in.
    pub chain: u32,
    /// The element of a verdict map that decided: set and position.
    pub element: Option<(u32, u32)>,
    /// The jumps that lead there.
    pub path: Path,
    /// Whether a packet must come here (`Yes`) or may (`Maybe`).
    pub sure: Truth,
    /// What the packet carries there.
    pub state: State,
}

/// What running the chains of a hook gave.
#[derive(Debug, Default)]
pub struct Run {
    /// The ends that are possible.
    pub ends: Vec<End>,
    /// What a packet carries that passes all chains; `None` when none can.
    pub passes: Option<State>,
    /// There was too much to look at.
    pub incomplete: bool,
    /// Rules that must have matched although their counters say that they did not: what is known of the packet is not true.
    pub contradictions: Vec<At>,
    /// Expressions and elements looked at.
    pub steps: u64,
}

/// What happens to the packet at a hook.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The packet as it comes to the hook.
    pub packet: &'a Packet,
    /// What it is after the hook's address translation, where that is known.
    pub translated: Option<&'a Packet>,
    /// The hook.
    pub hook: Hook,
    /// Only chains that translate, and as the first packet of its connection.
    pub translation: bool,
}

/// A result of a chain for one state.
#[derive(Debug, Default)]
struct Outcome {
    ends: Vec<End>,
    /// Carried by what is accepted.
    accepts: Option<State>,
    /// Carried by what comes to its end, or returns.
    falls: Option<State>,
    /// Whether a packet must.
    falls_surely: bool,
    /// Rules that must have matched although their counters say that they did not.
    contradictions: Vec<At>,
}

/// Runs packets through a ruleset.
pub struct Evaluator<'a> {
    ruleset: &'a Ruleset,
    counters: Compared<'a>,
    packet: &'a Packet,
    headers: Headers,
    registers: Registers,
    known: HashMap<(u32, State), Rc<Outcome>>,
    run: Run,
}

impl std::fmt::Debug for Evaluator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("run", &self.run).finish_non_exhaustive()
    }
}

/// Priorities of what the kernel itself does at a hook: finding the connection, and translating.
const CONNTRACK: i32 = -200;

fn translates_at(hook: Hook) -> i32 {
    match hook {
        Hook::PreRouting | Hook::LocalOut => -100,
        _ => 100,
    }
}

/// The base chains of a hook that see this packet, in the order they run in. In which order those of one priority run depends on which
/// was there first, which nothing shows.
fn base_chains(ruleset: &Ruleset, question: &Question<'_>) -> BTreeMap<i32, Vec<u32>> {
    let chains = ruleset.chains.iter().enumerate().filter_map(|(i, chain)| {
        let base = chain.base.filter(|b| b.hook == question.hook && question.packet.is_of(chain.table.family))?;
        if question.translation && base.kind != ChainKind::Nat {
            return None;
        }
        // Chains that translate all run where the kernel translates.
        let priority = if base.kind == ChainKind::Nat { translates_at(base.hook) } else { base.priority };
        Some((priority, u32::try_from(i).ok()?))
    });
    let mut groups: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
    for (priority, chain) in chains {
        groups.entry(priority).or_default().push(chain);
    }
    groups
}

/// Runs a packet through the chains of a hook.
#[must_use]
pub fn run(ruleset: &Ruleset, counters: Compared<'_>, question: &Question<'_>) -> Run {
    let packet = question.packet;
    let mut evaluator = Evaluator {
        ruleset,
        counters,
        packet,
        headers: Headers::of(packet),
        registers: Registers::default(),
        known: HashMap::new(),
        run: Run::default(),
    };
    let tracks = matches!(question.hook, Hook::PreRouting | Hook::LocalOut);
    let mut carried = Some(State { mark: packet.mark, connection: packet.connection });
    if tracks && !question.translation && packet.connection.exists() != Some(true) {
        // Conntrack has not seen it yet.
        carried = carried.map(|s| State { connection: Connection { states: packet.connection.states, ..Connection::NONE }, ..s });
    }
    let mut sure = true;
    for (priority, group) in base_chains(ruleset, question) {
        let Some(mut state) = carried else { break };
        if tracks && priority > CONNTRACK && !question.translation {
            state.connection = found(state.connection, question);
        }
        if priority > translates_at(question.hook)
            && let Some(after) = question.translated
        {
            evaluator.become_packet(after);
        }
        carried = evaluator.group(&group, state, &mut sure);
    }
    evaluator.run.passes = carried;
    evaluator.run
}

/// What conntrack makes of a packet that it has not seen yet: what it was found to be, unless rules took it out before.
fn found(before: Connection, question: &Question<'_>) -> Connection {
    if before.states == state::UNTRACKED {
        return before;
    }
    let after = question.translated.map_or(question.packet.connection, |p| p.connection);
    let maybe_untracked = before.states & state::UNTRACKED & !Connection::UNKNOWN.states;
    if before.exists() == Some(true) { before } else { Connection { states: after.states | maybe_untracked, ..after } }
}

impl<'a> Evaluator<'a> {
    fn become_packet(&mut self, packet: &'a Packet) {
        if !std::ptr::eq(self.packet, packet) {
            self.packet = packet;
            self.headers = Headers::of(packet);
            self.known.clear();
        }
    }

    /// Runs the base chains of one priority. Returns what a packet carries that goes on behind them.
    fn group(&mut self, chains: &[u32], state: State, sure: &mut bool) -> Option<State> {
        if let [only] = chains {
            return self.base(*only, state, sure);
        }
        // What each does to a packet that has not been in the others, to find which may have decided before it reached another.
        let (ends, contradictions) = (self.run.ends.len(), self.run.contradictions.len());
        let alone: Vec<(Option<State>, bool)> = chains
            .iter()
            .map(|chain| {
                let mut all_go_on = true;
                (self.base(*chain, state, &mut all_go_on), all_go_on)
            })
            .collect();
        self.run.ends.truncate(ends);
        self.run.contradictions.truncate(contradictions);
        let mut results = Vec::new();
        for (i, chain) in chains.iter().enumerate() {
            let others = || alone.iter().enumerate().filter(|(other, _)| *other != i).map(|(_, of)| of);
            let before = others().fold(state, |before, (on, _)| on.map_or(before, |on| before.join(on)));
            let mut surely = *sure && others().all(|(_, all_go_on)| *all_go_on);
            results.push(self.base(*chain, before, &mut surely));
        }
        *sure &= alone.iter().all(|(_, all_go_on)| *all_go_on);
        // Where one changes something, that is what comes out, whichever runs first.
        let changed: Vec<usize> = (0..chains.len()).filter(|i| alone[*i].0 != Some(state)).collect();
        let all: Option<Vec<State>> = results.iter().copied().collect();
        match (changed.as_slice(), all?) {
            ([], _) => Some(state),
            ([only], all) => Some(all[*only]),
            (_, all) => all.into_iter().reduce(State::join),
        }
    }

    /// Runs a base chain. Returns what a packet carries that goes on behind it.
    fn base(&mut self, at: u32, state: State, sure: &mut bool) -> Option<State> {
        let chain = &self.ruleset.chains[at as usize];
        let base = chain.base?;
        if base.kind == ChainKind::Nat && state.connection.states & state::NEW == 0 {
            return Some(state);
        }
        // Whether it runs at all is only known of the first packet.
        let runs = base.kind != ChainKind::Nat || state.connection.states == state::NEW;
        let outcome = self.chain(at, state, DEPTH);
        let surely = *sure && runs;
        let ends = outcome.ends.iter().map(|e| End { sure: if surely { e.sure } else { Truth::Maybe }, ..e.clone() });
        self.run.ends.extend(ends);
        let mut on = join(outcome.accepts, (!runs).then_some(state));
        let mut all_go_on = runs && outcome.ends.is_empty();
        if let Some(falls) = outcome.falls {
            let sure = if surely && outcome.falls_surely { Truth::Yes } else { Truth::Maybe };
            if self.policy_drops(at, chain, base.drops, sure) {
                let fate = Fate::Dropped { answered: false };
                all_go_on = false;
                self.run.ends.push(End { fate, rule: None, chain: at, element: None, path: Path::default(), sure, state: falls });
            } else {
                on = join(on, Some(falls));
            }
        }
        if surely {
            self.run.contradictions.extend(&outcome.contradictions);
        }
        *sure &= all_go_on;
        on
    }

    /// Whether the policy drops, and its counter does not say that it did not.
    fn policy_drops(&mut self, at: u32, chain: &Chain, drops: bool, sure: Truth) -> bool {
        let never = self.counters.hits(chain, None) == Hits::Never;
        if drops && never && sure == Truth::Yes {
            self.run.contradictions.push((at, u32::MAX));
        }
        drops && !never
    }

    fn step(&mut self, steps: u64) -> bool {
        self.run.steps += steps;
        self.run.incomplete |= self.run.steps > MOST_STEPS;
        self.run.steps <= MOST_STEPS
    }

    fn hits(&self, (chain, rule): At) -> Hits {
        let chain = &self.ruleset.chains[chain as usize];
        self.counters.hits(chain, Some(&chain.rules[rule as usize]))
    }
}

/// Whether a packet can pass all tests of a rule, whatever its chain: three-valued, without counters.
#[must_use]
pub fn passes(ruleset: &Ruleset, rule: &Rule, packet: &Packet) -> Truth {
    let mut evaluator = Evaluator {
        ruleset,
        counters: Compared::ignored(),
        packet,
        headers: Headers::of(packet),
        registers: Registers::default(),
        known: HashMap::new(),
        run: Run::default(),
    };
    let mut state = State { mark: packet.mark, connection: packet.connection };
    let mut sure = Truth::Yes;
    for expression in &rule.expressions {
        let result = match expression {
            Expression::Verdict(_) | Expression::Translate(_) | Expression::Counter => Truth::Yes,
            Expression::Lookup { set, from, to: Some(crate::model::VERDICT), .. } => {
                let found = evaluator.find(*set, *from);
                found.iter().map(|(_, t)| *t).max().unwrap_or(Truth::No)
            }
            other => evaluator.test(other, &mut state),
        };
        sure = sure.and(result);
        if sure == Truth::No {
            break;
        }
    }
    sure
}

/// A verdict that a rule may give, and by which element.
type Given = (Verdict, Option<(u32, u32)>, Truth);
