//! Reading the rules of a namespace, or why that is not possible.

use std::fs::File;

use anyhow::Result;
use sockpath_kernel::netns::inside;
use sockpath_ruleset::{Namespace, read};

use crate::capability;

/// Why no rule can be named, when that is known beforehand: nfnetlink refuses every question without this capability (kernel function
/// `nfnetlink_rcv`).
#[must_use]
pub fn unreadable() -> Option<&'static str> {
    capability::is_missing(capability::NET_ADMIN).then_some("reading them needs CAP_NET_ADMIN")
}

/// The tables of iptables-legacy that are not as empty as they begin, in words. That needs CAP_NET_ADMIN in the namespace.
pub fn legacy_tables(netns: &File) -> Result<Vec<String>> {
    inside(netns, read::legacy::summaries)
}

/// Everything that a packet's fate at netfilter depends on in a namespace.
pub(super) fn rules_of(netns: &File) -> Result<Namespace> {
    inside(netns, Namespace::read_here)
}
