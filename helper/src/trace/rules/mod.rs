//! Which netfilter rule translated or dropped a packet. Rules are read and evaluated by a thread of their own (`worker`), because a
//! node may have tens of thousands of them; what they mean is `sockpath_ruleset`'s subject.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;

use anyhow::Result;

pub use self::question::{Before, DropQuestion, ElsewhereQuestion, Found, PacketFacts, Question, TranslationQuestion, What};
use self::read::rules_of;
pub use self::read::{legacy_tables, unreadable};
pub use self::traversed::TraversedRule;
pub use self::worker::Rules;

mod question;
mod read;
mod traversed;
mod worker;

/// The rules of a namespace that drop, log, limit or copy packets between these addresses, beyond those of kube-proxy. That needs
/// CAP_NET_ADMIN in the namespace.
pub fn traversed(netns: &File, ips: &HashSet<IpAddr>) -> Result<Vec<TraversedRule>> {
    Ok(traversed::traversed(&rules_of(netns)?.rules, ips))
}
