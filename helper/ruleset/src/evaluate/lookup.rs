//! Looking values up in sets and maps.

use super::Evaluator;
use crate::bits::{Truth, equals, within};
use crate::model::{Data, Element, Register, Set};

/// Elements that may match, listed for one lookup; more leaves the result incomplete.
const MOST_FOUND: usize = 4096;

impl Evaluator<'_> {
    /// The elements that match the key in a register, each with whether it does. An entry without element stands for one that is not
    /// listed. Empty when none can match.
    pub(super) fn find(&mut self, at: u32, from: Register) -> Vec<(Option<u32>, Truth)> {
        let ruleset = self.ruleset;
        let set = &ruleset.sets[at as usize];
        let (bytes, known) = self.registers.get(from, usize::from(set.key_length));
        let (bytes, known) = (bytes.to_vec(), known.to_vec());
        let exact = known.iter().all(|k| *k == u8::MAX);
        if !self.step(if exact && (!set.by_key.is_empty() || sorted(set)) { 1 } else { set.elements.len() as u64 }) {
            return vec![(None, Truth::Maybe)];
        }
        let mut found: Vec<(Option<u32>, Truth)> = match exact {
            true => one(set, &bytes).into_iter().map(|i| (Some(i), Truth::Yes)).collect(),
            false => several(set, &bytes, &known),
        };
        if found.len() > MOST_FOUND {
            self.run.incomplete = true;
            found.truncate(MOST_FOUND);
        }
        if found.iter().all(|(_, t)| *t != Truth::Yes) {
            // The element that stands for all others.
            let other = set.elements.iter().position(|e| e.key.is_empty()).and_then(|i| u32::try_from(i).ok());
            let truth = if found.is_empty() && set.absent() == Truth::No { Truth::Yes } else { Truth::Maybe };
            found.extend(other.map(|i| (Some(i), truth)));
            if set.absent() == Truth::Maybe {
                found.push((None, Truth::Maybe));
            }
        }
        found
    }

    /// A lookup that gives no verdict.
    pub(super) fn look_up(&mut self, at: u32, from: Register, to: Option<Register>, negated: bool) -> Truth {
        let found = self.find(at, from);
        let truth = found.iter().map(|(_, t)| *t).max().unwrap_or(Truth::No);
        if let Some(to) = to {
            match found.as_slice() {
                [(Some(only), Truth::Yes)] => match &self.ruleset.sets[at as usize].elements[*only as usize].data {
                    Data::Value(value) => self.registers.set(to, value),
                    _ => self.registers.forget(to),
                },
                _ => {
                    self.registers.forget(to);
                    self.registers.map = Some((to, at));
                }
            }
        }
        truth.xor(negated)
    }
}

/// Whether the elements are sorted ranges of a single field.
fn sorted(set: &Set) -> bool {
    set.ranges && set.fields.len() < 2
}

/// The element that a key is in.
fn one(set: &Set, key: &[u8]) -> Option<u32> {
    let number = |i: usize| u32::try_from(i).ok();
    if !set.ranges {
        return set.by_key.get(key).copied().filter(|i| !set.elements[*i as usize].key.is_empty());
    }
    if sorted(set) {
        // Ranges do not overlap: the last one that begins before it.
        let after = set.elements.partition_point(|e| *e.key <= *key);
        let last = after.checked_sub(1)?;
        let element = &set.elements[last];
        return (!element.key.is_empty() && element.end.as_ref().is_none_or(|end| *key <= **end)).then(|| number(last))?;
    }
    let known = vec![u8::MAX; key.len()];
    set.elements.iter().position(|e| !e.key.is_empty() && matches(set, e, key, &known) == Truth::Yes).and_then(number)
}

/// The elements that a key of which some bits are known may be in.
fn several(set: &Set, key: &[u8], known: &[u8]) -> Vec<(Option<u32>, Truth)> {
    let truth = |(i, e): (usize, &Element)| {
        let truth = if e.key.is_empty() { Truth::No } else { matches(set, e, key, known) };
        (truth != Truth::No).then(|| (u32::try_from(i).ok(), truth))
    };
    set.elements.iter().enumerate().filter_map(truth).collect()
}

fn matches(set: &Set, element: &Element, key: &[u8], known: &[u8]) -> Truth {
    let Some(end) = &element.end else { return equals(key, known, &element.key) };
    let whole = [u8::try_from(element.key.len()).unwrap_or(u8::MAX)];
    let fields: &[u8] = if set.fields.is_empty() { &whole } else { &set.fields };
    let mut at = 0;
    let mut truth = Truth::Yes;
    for length in fields.iter().map(|f| usize::from(*f)) {
        let part = |b: &[u8]| b.get(at..at + length).map(<[u8]>::to_vec);
        truth = truth.and(match (part(key), part(known), part(&element.key), part(end)) {
            (Some(key), Some(known), Some(from), Some(to)) => within(&key, &known, &from, &to),
            _ => Truth::Maybe,
        });
        at += length.next_multiple_of(4);
    }
    truth
}
