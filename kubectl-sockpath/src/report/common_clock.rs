//! Times of several nodes on one clock, for pictures that show their packets beside each other. Durations are never computed with it.

use std::collections::HashMap;

use super::document::Report;

/// Converts times of nodes to the clock of the first one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommonClock(HashMap<String, i128>);

impl CommonClock {
    /// By the clocks of the report's nodes and their measured offsets.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let measured = |name: &str| {
            let row = report.clocks.iter().find(|row| row.node.split(", ").any(|n| n == name));
            row.map_or(0, |row| i128::from(row.offset_ns))
        };
        Self(report.nodes.iter().map(|n| (n.name.clone(), i128::from(n.clock_offset_ns) - measured(&n.name))).collect())
    }

    /// A time of a node's `CLOCK_MONOTONIC`, as nanoseconds since 1970 on the first node's clock. Times of unknown nodes stay as they are.
    #[must_use]
    pub fn at(&self, node: Option<&str>, at_ns: u64) -> i128 {
        i128::from(at_ns) + node.and_then(|n| self.0.get(n)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_offset_between_two_nodes_is_taken_out() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/cross-node-two-helpers.jsonl");
        let report = crate::report::report(&Arc::new(crate::recording::replay(&path).unwrap()));
        let clock = CommonClock::of(&report);
        let [first, second] = &report.nodes[..] else { panic!("two nodes") };
        let [row] = &report.clocks[..] else { panic!("one offset") };
        assert_eq!((row.against.as_str(), row.node.as_str()), (first.name.as_str(), second.name.as_str()));
        assert_eq!(clock.at(Some(&first.name), 5), 5 + i128::from(first.clock_offset_ns));
        assert_eq!(clock.at(Some(&second.name), 5), 5 + i128::from(second.clock_offset_ns) - i128::from(row.offset_ns));
        assert_eq!(clock.at(None, 5), 5);
    }
}
