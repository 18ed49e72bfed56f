//! Which netfilter rule translated or dropped a packet. Rules are read and evaluated by a thread of their own (`worker`), because a
//! node may have tens of thousands of them; what they mean is `sockpath_ruleset`'s subject.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;

use anyhow::Result;
use sockpath_kernel::netns::inside;
use sockpath_ruleset::{Namespace, read};

pub use self::crossed::Crossed;
pub use self::question::{Before, DropQuestion, ElsewhereQuestion, Found, PacketFacts, Question, TranslationQuestion, What};
pub use self::worker::Rules;
use crate::capability;

mod crossed;
mod question;
mod worker;

/// Why no rule can be named, when that is known beforehand: nfnetlink refuses every question without this capability (kernel function
/// `nfnetlink_rcv`).
#[must_use]
pub fn unreadable() -> Option<&'static str> {
    capability::is_missing(capability::NET_ADMIN).then_some("reading them needs CAP_NET_ADMIN")
}

/// The rules of a namespace that drop, log, limit or copy packets between these addresses, beyond those of kube-proxy. That needs
/// CAP_NET_ADMIN in the namespace.
pub fn crossed(netns: &File, ips: &HashSet<IpAddr>) -> Result<Vec<Crossed>> {
    Ok(crossed::crossed(&rules_of(netns)?.rules, ips))
}

/// The tables of iptables-legacy that are not as empty as they begin, in words. That needs CAP_NET_ADMIN in the namespace.
pub fn legacy_tables(netns: &File) -> Result<Vec<String>> {
    inside(netns, read::legacy::summaries)
}

/// Everything that a packet's fate at netfilter depends on in a namespace.
fn rules_of(netns: &File) -> Result<Namespace> {
    inside(netns, Namespace::read_here)
}
