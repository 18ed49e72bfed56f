//! What conntrack counts in the namespaces of the nodes: no hook shows an entry that is given up, or two packets that enter one connection.

use std::fs::File;

use sockpath_kernel::netns::inside;
use sockpath_protocol::message::{ConntrackCounts, ConntrackOfNode};
use sockpath_ruleset::ConntrackCounters;
use sockpath_ruleset::read::netlink::conntrack_counters;

use super::environment::Environment;

/// Namespaces of nodes whose counters are read.
#[derive(Debug)]
pub struct Conntrack(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    node: String,
    netns: File,
    begin: ConntrackCounters,
}

impl Conntrack {
    /// Reads the counters as they stand. A namespace that cannot be read is left out.
    pub fn begin(environment: &Environment) -> Self {
        let nodes = environment.netns.iter().filter(|(netns, _)| environment.nodes.contains(&netns.inode));
        let watched = nodes.filter_map(|(netns, traced)| {
            let file = netns.file.try_clone().ok()?;
            let begin = read(&file)?;
            Some(Watched { node: traced.node.clone(), netns: file, begin })
        });
        Self(watched.collect())
    }

    /// What has been counted since the begin, and how full the tables are.
    pub fn counts(&self) -> Vec<ConntrackOfNode> {
        let of = |w: &Watched| Some(ConntrackOfNode { node: w.node.clone(), counts: rise(&w.begin, &read(&w.netns)?) });
        self.0.iter().filter_map(of).collect()
    }
}

fn read(netns: &File) -> Option<ConntrackCounters> {
    inside(netns, || Ok(conntrack_counters())).ok().flatten()
}

fn rise(begin: &ConntrackCounters, now: &ConntrackCounters) -> ConntrackCounts {
    let of = |counter: fn(&ConntrackCounters) -> u64| counter(now).saturating_sub(counter(begin));
    ConntrackCounts {
        invalid: of(|c| c.invalid),
        insert_failed: of(|c| c.insert_failed),
        drop: of(|c| c.drop),
        early_drop: of(|c| c.early_drop),
        clash_resolve: of(|c| c.clash_resolve),
        chain_too_long: of(|c| c.chain_too_long),
        search_restart: of(|c| c.search_restart),
        entries: now.entries,
        max_entries: now.most,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_since_the_begin_and_the_table_is_that_of_now() {
        let begin = ConntrackCounters { early_drop: 5, drop: 9, entries: 60, most: 64, ..ConntrackCounters::default() };
        let now = ConntrackCounters { early_drop: 7, drop: 9, clash_resolve: 1, entries: 62, ..begin };
        let expected = ConntrackCounts { early_drop: 2, clash_resolve: 1, entries: 62, max_entries: 64, ..ConntrackCounts::default() };
        assert_eq!(rise(&begin, &now), expected);
    }
}
