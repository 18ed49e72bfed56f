//! Counts what the connections of a peer process saw.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::outcome::{End, Outcome, deviates, judge};
use super::plan::{Plan, Side};
use super::report::{Report, Totals, tell};

/// Most faults that one process reports one by one.
const MOST_FAULTS: u64 = 40;

/// Shared by all threads of a peer process.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<Totals>>);

impl Tally {
    fn with<T>(&self, f: impl FnOnce(&mut Totals) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Judges and counts one end of a connection.
    pub fn count(&self, plan: &Plan, side: Side, route: &str, doomed: bool, mut outcome: Outcome) {
        // Whether it is excused is the controller's to say, who knows if anything was accelerated.
        let deviates = deviates(plan, side, &outcome) && !doomed;
        if deviates {
            outcome.read_end = End::Reset;
        }
        judge(plan, side, doomed, &mut outcome);
        let mut hasher = DefaultHasher::new();
        (plan.id, side, outcome.received, outcome.sent, format!("{:?} {:?}", outcome.read_end, outcome.write_end)).hash(&mut hasher);
        let nth = self.with(|t| {
            t.connections += 1;
            t.received += outcome.received;
            t.sent += outcome.sent;
            t.messages += plan.of(side).messages(outcome.sent);
            *t.routes.entry(route.to_owned()).or_default() += 1;
            t.deviations += u64::from(deviates);
            t.misled += u64::from(outcome.misled > 0);
            if plan.same_when_accelerated() {
                t.digest = t.digest.wrapping_add(hasher.finish());
            }
            t.faults += u64::from(!outcome.faults.is_empty());
            t.faults
        });
        if !outcome.faults.is_empty() && nth <= MOST_FAULTS {
            self.tell_fault(Some(plan.id), side, route, plan.to_string(), outcome.faults.join("; "));
        }
    }

    /// Counts a connection that was reset before its header was read.
    pub fn headless(&self) {
        self.with(|t| t.headless += 1);
    }

    /// Counts and reports what went wrong outside a plan.
    pub fn fault(&self, id: Option<u64>, side: Side, route: &str, text: String) {
        if self.with(|t| {
            t.faults += 1;
            t.faults
        }) <= MOST_FAULTS
        {
            self.tell_fault(id, side, route, String::new(), text);
        }
    }

    fn tell_fault(&self, id: Option<u64>, side: Side, route: &str, plan: String, text: String) {
        tell(&Report::Fault { id, side: format!("{side:?}").to_lowercase(), route: route.to_owned(), plan, text });
    }

    /// The sums so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.with(|t| t.clone())
    }
}
