//! Packet counters of rules and chains, before and after.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::model::{Chain, Rule, Ruleset};

/// The counters of a ruleset at one moment.
#[derive(Debug, Default, Clone)]
pub struct Baseline(HashMap<u64, u64>);

impl Baseline {
    /// Those of this ruleset.
    #[must_use]
    pub fn of(ruleset: &Ruleset) -> Self {
        let mut counters = HashMap::new();
        for chain in &ruleset.chains {
            counters.extend(chain.packets.map(|packets| (key(chain, None), packets)));
            counters.extend(chain.rules.iter().filter_map(|r| Some((key(chain, Some(r)), r.packets?))));
        }
        Self(counters)
    }
}

/// Rules of iptables-legacy have no number of their own, so what they do is part of their name.
fn key(chain: &Chain, rule: Option<&Rule>) -> u64 {
    let mut hash = DefaultHasher::new();
    (&*chain.table, &chain.name, rule.map(|r| r.handle)).hash(&mut hash);
    if let Some(rule) = rule {
        (&rule.comment, rule.expressions.len()).hash(&mut hash);
    }
    hash.finish()
}

/// How often a rule or policy has counted packets since before the packet in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    /// It does not count, or was not read before.
    Unknown,
    /// Never: it did nothing to the packet.
    Never,
    /// So often.
    Times(u64),
}

/// A counter's two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Packets before, when they were read before the packet came.
    pub before: Option<u64>,
    /// Packets after.
    pub after: u64,
}

/// Compares the counters of a ruleset with those of a moment before the packet, where there was one.
#[derive(Debug, Clone, Copy)]
pub struct Compared<'a> {
    before: Option<&'a Baseline>,
    counts: bool,
}

impl<'a> Compared<'a> {
    /// With the counters of before.
    #[must_use]
    pub fn with(before: Option<&'a Baseline>) -> Self {
        Self { before, counts: true }
    }

    /// Counters say nothing: the packet may have come long ago.
    #[must_use]
    pub fn ignored() -> Self {
        Self { before: None, counts: false }
    }

    /// The readings of a rule, or of a chain's policy.
    #[must_use]
    pub fn readings(&self, chain: &Chain, rule: Option<&Rule>) -> Option<Counters> {
        let after = rule.map_or(chain.packets, |r| r.packets)?;
        // One that was not there before began at its first packet.
        let before = self.before.map(|b| b.0.get(&key(chain, rule)).copied());
        match before {
            Some(Some(before)) if before <= after => Some(Counters { before: Some(before), after }),
            // It is new, or was set back.
            _ => Some(Counters { before: None, after }),
        }
    }

    /// What the readings say.
    #[must_use]
    pub fn hits(&self, chain: &Chain, rule: Option<&Rule>) -> Hits {
        match self.readings(chain, rule).filter(|_| self.counts) {
            None => Hits::Unknown,
            Some(Counters { after: 0, .. }) => Hits::Never,
            Some(Counters { before: Some(before), after }) if before == after => Hits::Never,
            Some(Counters { before: Some(before), after }) => Hits::Times(after - before),
            Some(_) => Hits::Unknown,
        }
    }
}
