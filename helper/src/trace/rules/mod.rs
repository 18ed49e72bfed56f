//! Which netfilter rule translated or dropped a packet. Rules are read and evaluated by a thread of their own (`worker`), because a
//! node may have tens of thousands of them; what they mean is `sockpath_ruleset`'s subject.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;

use anyhow::Result;

pub use self::crossed::Crossed;
pub use self::question::{Before, DropQuestion, ElsewhereQuestion, Found, PacketFacts, Question, TranslationQuestion, What};
use self::read::rules_of;
pub use self::read::{legacy_tables, unreadable};
pub use self::worker::Rules;

mod crossed;
mod question;
mod read;
mod worker;

/// The rules of a namespace that drop, log, limit or copy packets between these addresses, beyond those of kube-proxy. That needs
/// CAP_NET_ADMIN in the namespace.
pub fn crossed(netns: &File, ips: &HashSet<IpAddr>) -> Result<Vec<Crossed>> {
    Ok(crossed::crossed(&rules_of(netns)?.rules, ips))
}
