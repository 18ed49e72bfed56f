//! Which rule dropped or translated a packet: what evaluation says is compared with the counters.

use std::net::IpAddr;

use crate::bits::{Truth, Word};
use crate::counters::{Baseline, Compared, Counters, Hits};
use crate::evaluate::{End, Fate, Question, Run, passes, run};
use crate::model::{Chain, Engine, Expression, Hook, Rule, Ruleset, Verdict};
use crate::packet::Packet;

/// `NFPROTO_NETDEV` and `NFPROTO_BRIDGE`.
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;

/// How sure it is that this did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// It may have been this, or something else.
    Possible,
    /// Nothing else in the rules can have.
    Inferred,
    /// Nothing else can have, and its counter rose.
    Counted,
}

/// A rule, or the policy of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Who ran it.
    pub engine: Engine,
    /// Family and name of its table: `ip nat`.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// The chains that lead there, from the hook's own on.
    pub via: Vec<String>,
    /// Number of the rule; position in the chain for iptables-legacy; `None` for a policy.
    pub handle: Option<u64>,
    /// Comment of the rule.
    pub comment: Option<String>,
    /// The element of a set or map that decided: set, key and comment.
    pub element: Option<(String, Option<String>)>,
    /// Its counter.
    pub counters: Option<Counters>,
    /// Whether every packet like this comes to it, as far as the rules tell.
    pub must: bool,
}

/// What is found about a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause {
    /// What did it, and how sure that is.
    pub named: Option<(Candidate, Certainty)>,
    /// Otherwise, what may have.
    pub candidates: Vec<Candidate>,
    /// There was too much to look at, or something could not be read.
    pub incomplete: bool,
    /// Rules read and expressions looked at.
    pub steps: u64,
}

/// A drop.
#[derive(Debug, Clone, Copy)]
pub struct Drop<'a> {
    /// The packet as it came to the hook.
    pub packet: &'a Packet,
    /// The packet as it was dropped, when that is known.
    pub dropped: Option<&'a Packet>,
    /// The hook.
    pub hook: Hook,
    /// Who dropped it, where the kernel shows that.
    pub engine: Option<Engine>,
}

/// What a translation is looked for by.
#[derive(Debug, Clone, Copy)]
pub struct Sought<'a> {
    /// The packet before.
    pub packet: &'a Packet,
    /// The hook; both of those that can when it is not known.
    pub hook: Option<Hook>,
    /// Whether its destination was translated, otherwise its source.
    pub destination: bool,
    /// To this address and port.
    pub to: (IpAddr, u16),
}

impl Ruleset {
    /// What dropped a packet. `before` holds counters that were read before it came.
    #[must_use]
    pub fn cause_of_drop(&self, drop: &Drop<'_>, before: Option<&Baseline>) -> Cause {
        let counters = Compared::with(before);
        let question = Question { packet: drop.packet, translated: drop.dropped, hook: drop.hook, translation: false };
        let run = run(self, counters, &question);
        let mark = drop.dropped.map_or(Word::UNKNOWN, |p| p.mark);
        let can = |e: &&End| {
            matches!(e.fate, Fate::Dropped { .. } | Fate::Unknown | Fate::Queued)
                && drop.engine.is_none_or(|engine| self.chains[e.chain as usize].table.engine == engine)
                && e.state.mark.agrees(mark)
        };
        let ends: Vec<&End> = run.ends.iter().filter(can).collect();
        self.judge(&ends, &run, counters, drop.engine.is_some())
    }

    /// What dropped a packet at a hook of the families bridge and netdev. Whether a chain is jumped to is left to the counters.
    #[must_use]
    pub fn cause_outside_ip(&self, packet: &Packet, before: Option<&Baseline>) -> Cause {
        let counters = Compared::with(before);
        let mut cause = Cause { incomplete: !self.gaps.is_empty(), ..Cause::default() };
        let mut counted = Vec::new();
        for chain in self.chains.iter().filter(|c| matches!(c.table.family, NETDEV | BRIDGE)) {
            let rules = chain.rules.iter().filter(|r| drops(r) && passes(self, r, packet) != Truth::No).map(Some);
            let policy = chain.base.filter(|b| b.drops).map(|_| None);
            for rule in rules.chain(policy) {
                let hits = counters.hits(chain, rule);
                if hits == Hits::Never {
                    continue;
                }
                let candidate = outside(chain, rule, counters);
                if matches!(hits, Hits::Times(_)) {
                    counted.push(candidate.clone());
                }
                cause.candidates.push(candidate);
            }
        }
        // One rule that counts it, or the only one that can have.
        let only = match (counted.as_slice(), cause.candidates.as_slice()) {
            ([one], _) => Some((one.clone(), Certainty::Counted)),
            ([], [one]) if !cause.incomplete => Some((one.clone(), Certainty::Inferred)),
            _ => None,
        };
        if only.is_some() {
            cause.candidates.clear();
        }
        cause.named = only;
        cause
    }

    /// The rule that translated a packet.
    #[must_use]
    pub fn cause_of_translation(&self, sought: &Sought<'_>) -> Cause {
        let hooks = match (sought.hook, sought.destination) {
            (Some(hook), _) => vec![hook],
            (None, true) => vec![Hook::PreRouting, Hook::LocalOut],
            (None, false) => vec![Hook::PostRouting, Hook::LocalIn],
        };
        let counters = Compared::ignored();
        for hook in hooks {
            let question = Question { packet: sought.packet, translated: None, hook, translation: true };
            let run = run(self, counters, &question);
            let ends: Vec<&End> = run.ends.iter().filter(|e| translates(e, sought)).collect();
            if !ends.is_empty() {
                return self.judge(&ends, &run, counters, true);
            }
        }
        Cause::default()
    }

    fn judge(&self, ends: &[&End], run: &Run, counters: Compared<'_>, known_engine: bool) -> Cause {
        let incomplete = run.incomplete || !self.gaps.is_empty();
        let mut cause = Cause { incomplete, steps: run.steps, ..Cause::default() };
        let candidates = || ends.iter().map(|e| self.candidate(e, counters)).collect::<Vec<_>>();
        let [only] = ends else {
            cause.candidates = candidates();
            return cause;
        };
        let rose = matches!(self.hits(only, counters), Hits::Times(_));
        let certainty = match &only.fate {
            Fate::Unknown | Fate::Queued if !rose => Certainty::Possible,
            _ if incomplete || !run.contradictions.is_empty() => Certainty::Possible,
            _ if rose => Certainty::Counted,
            _ if known_engine || only.sure == crate::bits::Truth::Yes => Certainty::Inferred,
            _ => Certainty::Possible,
        };
        if certainty == Certainty::Possible {
            cause.candidates = candidates();
        } else {
            cause.named = Some((self.candidate(only, counters), certainty));
        }
        cause
    }

    fn hits(&self, end: &End, counters: Compared<'_>) -> Hits {
        let chain = &self.chains[end.chain as usize];
        counters.hits(chain, end.rule.map(|(_, rule)| &chain.rules[rule as usize]))
    }

    fn candidate(&self, end: &End, counters: Compared<'_>) -> Candidate {
        let chain = &self.chains[end.chain as usize];
        let rule = end.rule.map(|(_, rule)| &chain.rules[rule as usize]);
        let element = end.element.map(|(set, at)| {
            let set = &self.sets[set as usize];
            (set.name.to_string(), set.elements[at as usize].comment.as_deref().map(str::to_owned))
        });
        Candidate {
            engine: chain.table.engine,
            table: chain.table.title(),
            chain: chain.name.to_string(),
            via: end.path.rules().map(|(chain, _)| self.chains[chain as usize].name.to_string()).collect(),
            handle: rule.map(|r| r.handle),
            comment: rule.and_then(|r| r.comment.as_deref()).map(str::to_owned),
            element,
            counters: counters.readings(chain, rule),
            must: end.sure == crate::bits::Truth::Yes,
        }
    }
}

/// Whether a rule drops what it matches.
fn drops(rule: &Rule) -> bool {
    rule.expressions.iter().any(|e| matches!(e, Expression::Verdict(Verdict::Drop)))
}

fn outside(chain: &Chain, rule: Option<&Rule>, counters: Compared<'_>) -> Candidate {
    Candidate {
        engine: chain.table.engine,
        table: chain.table.title(),
        chain: chain.name.to_string(),
        via: Vec::new(),
        handle: rule.map(|r| r.handle),
        comment: rule.and_then(|r| r.comment.as_deref()).map(str::to_owned),
        element: None,
        counters: counters.readings(chain, rule),
        must: false,
    }
}

/// Whether this end may translate to what is sought.
fn translates(end: &End, sought: &Sought<'_>) -> bool {
    let Fate::Translated { destination, to } = &end.fate else { return false };
    let fits =
        |(ip, port): &(Option<IpAddr>, Option<u16>)| ip.is_none_or(|ip| ip == sought.to.0) && port.is_none_or(|port| port == sought.to.1);
    *destination == sought.destination && to.iter().any(fits)
}
