//! Running the rules of one chain.

use std::rc::Rc;

use super::{At, DEPTH, End, Evaluator, Fate, Given, MOST_ENDS, Outcome, Path, State, join};
use crate::bits::Truth;
use crate::counters::Hits;
use crate::model::{Data, Expression, Register, Rule, VERDICT, Verdict};

/// A chain that is being run.
struct Running {
    outcome: Outcome,
    /// Carried by what goes on with the next rule; `None` when nothing does.
    state: Option<State>,
    /// Whether every packet that came is still here, and whether those that are not have returned.
    here: bool,
    alive: bool,
    /// Carried by what has returned.
    returned: Option<State>,
}

impl Running {
    /// A packet may have come to an end.
    fn leave(&mut self) {
        (self.here, self.alive) = (false, false);
    }
}

impl Evaluator<'_> {
    /// What a chain does to a packet that comes with this state.
    pub(super) fn chain(&mut self, at: u32, state: State, depth: usize) -> Rc<Outcome> {
        if let Some(known) = self.known.get(&(at, state)) {
            return Rc::clone(known);
        }
        if depth == 0 {
            self.run.incomplete = true;
            return Rc::new(Outcome { falls: Some(state), ..Outcome::default() });
        }
        let ruleset = self.ruleset;
        let mut running = Running { outcome: Outcome::default(), state: Some(state), here: true, alive: true, returned: None };
        for (i, rule) in ruleset.chains[at as usize].rules.iter().enumerate() {
            let Some(state) = running.state else { break };
            if !self.step(rule.expressions.len() as u64 + 1) {
                break;
            }
            self.rule((at, u32::try_from(i).unwrap_or(u32::MAX)), rule, state, &mut running, depth);
        }
        let mut outcome = running.outcome;
        outcome.falls = join(running.state, running.returned);
        outcome.falls_surely = outcome.falls.is_some() && running.alive;
        self.keep_some(&mut outcome.ends);
        let outcome = Rc::new(outcome);
        self.known.insert((at, state), Rc::clone(&outcome));
        outcome
    }

    /// Of several jumps that lead to one end, one is enough.
    fn keep_some(&mut self, ends: &mut Vec<End>) {
        let mut seen = std::collections::HashSet::new();
        ends.sort_by_key(|e| std::cmp::Reverse(e.sure));
        ends.retain(|e| matches!(e.fate, Fate::Translated { .. }) || seen.insert((e.rule, e.chain, e.element)));
        if ends.len() > MOST_ENDS {
            self.run.incomplete = true;
            ends.truncate(MOST_ENDS);
        }
    }

    fn rule(&mut self, at: At, rule: &Rule, before: State, running: &mut Running, depth: usize) {
        // What the packet carries if the rule's tests succeed up to here, and if one has failed.
        let mut state = before;
        let mut failed: Option<State> = None;
        let mut sure = Truth::Yes;
        for expression in &rule.expressions {
            let given = match expression {
                Expression::Counter if self.hits(at) == Hits::Never => {
                    // What comes to a rule that lets everything pass to its counter is counted: nothing came.
                    let must = sure == Truth::Yes;
                    if must && running.here {
                        running.outcome.contradictions.push(at);
                    }
                    running.state = if must { None } else { join(failed, Some(state)) };
                    return;
                }
                Expression::Counter => continue,
                Expression::Verdict(verdict) => vec![(*verdict, None, Truth::Yes)],
                Expression::Lookup { set, from, to: Some(VERDICT), .. } => self.verdicts(*set, *from),
                Expression::Translate(translation) => {
                    let fate = self.fate_of(translation);
                    self.end(at, fate, None, sure, state, running);
                    running.outcome.accepts = join(running.outcome.accepts, Some(state));
                    running.state = if sure == Truth::Yes { failed } else { join(failed, Some(state)) };
                    return;
                }
                test => {
                    let unchanged = state;
                    match self.test(test, &mut state) {
                        Truth::No => {
                            running.state = join(failed, Some(state));
                            return;
                        }
                        Truth::Maybe => (failed, sure) = (join(failed, Some(unchanged)), Truth::Maybe),
                        Truth::Yes => {}
                    }
                    continue;
                }
            };
            let on = self.decide(at, &given, sure, state, running, depth);
            running.state = join(failed, on);
            let goes_on = !given.is_empty() && given.iter().all(|(v, _, _)| *v == Verdict::Continue);
            match on.filter(|_| goes_on) {
                Some(on) => state = on,
                // A map without this key ends the rule; a jump comes back to the next one.
                None => return,
            }
        }
        running.state = join(failed, Some(state));
    }

    /// The verdicts of a map.
    fn verdicts(&mut self, set: u32, from: Register) -> Vec<Given> {
        let found = self.find(set, from);
        let elements = &self.ruleset.sets[set as usize].elements;
        let verdict = |i: u32| match elements[i as usize].data {
            Data::Verdict(v) => v,
            _ => Verdict::Unknown,
        };
        found.into_iter().map(|(i, t)| i.map_or((Verdict::Unknown, None, t), |i| (verdict(i), Some((set, i)), t))).collect()
    }

    /// Follows the verdicts a rule may give. Returns what is carried by packets that go on behind it.
    fn decide(&mut self, at: At, given: &[Given], sure: Truth, state: State, running: &mut Running, depth: usize) -> Option<State> {
        // Without a verdict that is certain, the rule may end without one.
        let certain = given.iter().any(|(_, _, t)| *t == Truth::Yes);
        let mut on = (!certain).then_some(state);
        for (verdict, element, truth) in given {
            let sure = if running.here { sure.and(*truth) } else { Truth::Maybe };
            let stays = match verdict {
                Verdict::Continue => Some(state),
                Verdict::Return => {
                    running.returned = join(running.returned, Some(state));
                    running.here = false;
                    None
                }
                Verdict::Accept => {
                    running.outcome.accepts = join(running.outcome.accepts, Some(state));
                    running.leave();
                    None
                }
                Verdict::Jump(to) | Verdict::Goto(to) => {
                    let outcome = self.chain(*to, state, depth.min(DEPTH) - 1);
                    self.take(at, *element, &outcome, sure, running);
                    match verdict {
                        Verdict::Goto(_) => {
                            running.returned = join(running.returned, outcome.falls);
                            running.here = false;
                            None
                        }
                        _ => outcome.falls,
                    }
                }
                Verdict::Drop | Verdict::Reject => {
                    self.end(at, Fate::Dropped { answered: *verdict == Verdict::Reject }, *element, sure, state, running);
                    None
                }
                Verdict::Queue => {
                    self.end(at, Fate::Queued, *element, sure, state, running);
                    // The program may send it on.
                    running.outcome.accepts = join(running.outcome.accepts, Some(state));
                    None
                }
                Verdict::Unknown => {
                    self.end(at, Fate::Unknown, *element, Truth::Maybe, state, running);
                    running.outcome.accepts = join(running.outcome.accepts, Some(state));
                    Some(state)
                }
            };
            on = join(on, stays);
        }
        on
    }

    fn end(&mut self, at: At, fate: Fate, element: Option<(u32, u32)>, sure: Truth, state: State, running: &mut Running) {
        let sure = if running.here { sure } else { Truth::Maybe };
        running.outcome.ends.push(End { fate, rule: Some(at), chain: at.0, element, path: Path::default(), sure, state });
        running.leave();
    }

    /// The ends of a chain that this rule jumps to.
    fn take(&mut self, at: At, element: Option<(u32, u32)>, outcome: &Outcome, sure: Truth, running: &mut Running) {
        self.step(outcome.ends.len() as u64);
        running.outcome.ends.extend(outcome.ends.iter().map(|e| End {
            path: e.path.behind(at),
            sure: e.sure.and(sure),
            element: e.element.or(element),
            ..e.clone()
        }));
        if sure == Truth::Yes {
            running.outcome.contradictions.extend(&outcome.contradictions);
        }
        running.outcome.accepts = join(running.outcome.accepts, outcome.accepts);
        if !outcome.falls_surely {
            running.leave();
        }
    }
}
