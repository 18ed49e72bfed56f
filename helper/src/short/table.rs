//! Connection tracking of a node, as far as the short path asks and changes it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_kernel::conntrack::{Conntrack, Destroyed, Entry, TCP, Tuple, Update};
use sockpath_kernel::netns::inside;
use sockpath_protocol::accel::Reason;

use super::flow::Tracking;
use super::timeouts::{Sysctl, Timeouts};
use crate::node::Netns;

/// Longest time between two questions about one entry.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The helper queries an entry, and refreshes it, this many times before it would expire.
const ASKS_BEFORE_EXPIRY: u32 = 4;

/// An entry whose time has become shorter by this part is refreshed.
const AGE: u32 = 32;

/// With this many connections all entries are listed at once instead of one by one, unless there are too many times more: a question takes
/// 14 times as long as an entry of a list (52 us and 3.7 us on Linux 6.18).
const LISTED_FROM: usize = 256;
const OTHERS_AT_MOST: usize = 8;

/// What has an entry accept packets outside its windows.
pub const MAKE_LIBERAL: Update = Update { liberal: true, timeout: None };

/// The entries of a node.
#[derive(Debug)]
pub struct Table {
    conntrack: Conntrack,
    /// For kernels whose programs cannot ask.
    destroyed: Option<Destroyed>,
    timeouts: Timeouts,
    count: Sysctl,
}

impl Table {
    /// Opens that of a node; `follow` has it report entries that are gone.
    ///
    /// # Errors
    /// When the kernel has no connection tracking, or refuses.
    pub fn open(netns: &Netns, follow: bool) -> Result<Self> {
        inside(&netns.file, || {
            let conntrack = Conntrack::open().context("cannot reach connection tracking")?;
            let destroyed = follow.then(Destroyed::open).transpose().context("cannot follow connection tracking")?;
            Ok(Self { conntrack, destroyed, timeouts: Timeouts::open(), count: Sysctl::open("nf_conntrack_count", 0) })
        })
    }

    /// The descriptor that is readable when entries are gone, where that is reported.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.destroyed.as_ref().map(Destroyed::fd)
    }

    /// Entries that are gone since the last call; `None` when some may have been missed.
    pub fn gone(&mut self) -> Result<Option<Vec<Entry>>> {
        match &mut self.destroyed {
            Some(destroyed) => destroyed.entries().context("cannot read connection tracking"),
            None => Ok(Some(Vec::new())),
        }
    }

    /// Whether one list of all entries takes less time than a query for each of so many connections.
    pub fn is_list_worth_it(&self, connections: usize) -> bool {
        connections >= LISTED_FROM && self.count.value() as usize / OTHERS_AT_MOST <= connections
    }

    /// All entries that are wanted. A list that is made while the table grows may lack some.
    pub fn list(&mut self, is_wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let listed = self.conntrack.dump(|entry| found.extend(Some(entry).filter(&is_wanted)));
        listed.context("cannot list what connection tracking has")?;
        Ok(found)
    }

    /// The entry that has this tuple in either direction.
    pub fn get(&mut self, tuple: &Tuple) -> Result<Option<Entry>> {
        self.conntrack.get(tuple).context("cannot ask connection tracking")
    }

    /// What puts off the expiry of an entry as a packet would.
    pub fn refreshing(&self, protocol: u8) -> Update {
        Update { liberal: false, timeout: Some(self.timeouts.of_protocol(protocol)) }
    }

    /// Changes the entries that have these tuples; for each, whether there is one. An entry whose timeout is fixed is not refreshed.
    pub fn update_each(&mut self, updates: &[(Tuple, Update)]) -> Result<Vec<bool>> {
        let outcomes = self.conntrack.update_each(updates).context("cannot change entries")?;
        let exists = |(outcome, (_, update)): (std::io::Result<bool>, &(Tuple, Update))| match outcome {
            Err(_) if !update.liberal => Ok(true),
            outcome => outcome.context("cannot change an entry"),
        };
        outcomes.into_iter().zip(updates).map(exists).collect()
    }

    /// Reads again how long entries are kept, and how many there are.
    pub fn refresh_settings(&mut self) {
        self.timeouts.refresh();
        self.count.refresh();
    }

    /// How often entries of a protocol are to be asked about.
    pub fn ask_every(&self, protocol: u8) -> Duration {
        ask_every(self.timeouts.of_protocol(protocol))
    }

    /// What an entry means for its connection, which something else may refuse.
    pub fn answer(&self, entry: &Entry, refusal: Option<Reason>) -> Tracking {
        answer(entry, self.timeouts.of_protocol(entry.original.protocol), refusal)
    }
}

fn ask_every(timeout: u32) -> Duration {
    ASK_EVERY.min(Duration::from_secs(timeout.into()) / ASKS_BEFORE_EXPIRY)
}

fn answer(entry: &Entry, timeout: u32, refusal: Option<Reason>) -> Tracking {
    let sound = entry.assured && entry.established && !entry.dying;
    let aged = entry.timeout < timeout - timeout / AGE;
    // UDP has no windows.
    let liberal = entry.liberal || entry.original.protocol != TCP;
    Tracking::Entry { sound, refusal, liberal, aged }
}

#[cfg(test)]
mod tests {
    use super::super::eligible::tests::direct;
    use super::*;

    fn entry(protocol: u8, timeout: u32) -> Entry {
        let mut entry = direct("10.42.1.2:4000", "10.42.1.3:80");
        (entry.original.protocol, entry.reply.protocol, entry.timeout) = (protocol, protocol, timeout);
        entry
    }

    #[test]
    fn an_entry_ages_and_is_asked_about_well_before_it_expires() {
        let is_aged = |timeout, left| matches!(answer(&entry(TCP, left), timeout, None), Tracking::Entry { aged: true, .. });
        assert!(!is_aged(432_000, 432_000) && !is_aged(432_000, 420_000) && is_aged(432_000, 418_000));
        assert!(!is_aged(120, 117) && is_aged(120, 116));
        // The next query of an entry that is almost aged comes before it can expire.
        for timeout in [1, 4, 30, 120, 432_000] {
            let young = timeout - timeout / AGE;
            assert!(ask_every(timeout) < Duration::from_secs(young.into()), "{timeout} s");
        }
        assert_eq!((ask_every(432_000), ask_every(4)), (ASK_EVERY, Duration::from_secs(1)));
    }

    #[test]
    fn an_answer_says_what_is_against_an_approval() {
        let of = |entry: &Entry| answer(entry, 120, None);
        assert!(matches!(of(&entry(TCP, 120)), Tracking::Entry { sound: true, liberal: false, refusal: None, .. }));
        assert!(matches!(of(&entry(17, 120)), Tracking::Entry { liberal: true, .. }));
        let unsound = [
            Entry { assured: false, ..entry(TCP, 1) },
            Entry { established: false, ..entry(TCP, 1) },
            Entry { dying: true, ..entry(TCP, 1) },
        ];
        assert!(unsound.iter().all(|e| matches!(of(e), Tracking::Entry { sound: false, .. })));
    }
}
