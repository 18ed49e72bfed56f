//! Which netfilter rule rewrote or dropped a packet, as far as the namespace's nftables rules tell. iptables-nft is nftables
//! underneath; the rules of iptables-legacy are not read (`legacy` tells that there are some), and those of a set or map are not followed.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use sockpath_protocol::packet::{Flow, Rule as Named};
use sockpath_protocol::request::Protocol;

pub use self::crossed::Crossed;
use self::decode::Ruleset;
use self::search::Sought;
use super::scene::Scene;
use crate::capability;

mod crossed;
mod decode;
pub mod legacy;
pub mod netlink;
mod search;

/// Why no rule can be named, when that is known beforehand: nfnetlink refuses every question without this capability (kernel function
/// `nfnetlink_rcv`).
#[must_use]
pub fn unreadable() -> Option<&'static str> {
    capability::is_missing(capability::NET_ADMIN).then_some("reading them needs CAP_NET_ADMIN")
}

/// How long rules that were read are good for.
const FRESH: Duration = Duration::from_secs(5);

/// Reads the rules of a namespace by its inode; `None` when they cannot be read.
pub type ReadRules = Box<dyn FnMut(u32) -> Option<Ruleset>>;

/// The rules of the namespaces of a trace, read when they are first asked for.
pub struct Rules {
    read: ReadRules,
    known: HashMap<u32, (Instant, Option<Ruleset>)>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

/// The rules of a namespace that drop, log, limit or copy packets between these addresses, beyond those of kube-proxy. That needs
/// CAP_NET_ADMIN in the namespace.
pub fn crossed(netns: &File, ips: &HashSet<IpAddr>) -> Result<Vec<Crossed>> {
    Ok(Ruleset::decode(&netlink::dump(netns)?).map(|rules| rules.crossed(ips)).unwrap_or_default())
}

/// `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// PRE_ROUTING.
    PreRouting,
    /// LOCAL_IN.
    LocalIn,
    /// FORWARD.
    Forward,
    /// LOCAL_OUT.
    LocalOut,
    /// POST_ROUTING.
    PostRouting,
}

impl Rules {
    /// Reads with this.
    #[must_use]
    pub fn new(read: ReadRules) -> Self {
        Self { read, known: HashMap::new() }
    }

    /// The rules of a scene's namespaces. Where they cannot be read (that needs CAP_NET_ADMIN), nothing is known.
    pub fn of(scene: &Scene) -> Self {
        let files: HashMap<u32, File> = scene.netns.iter().filter_map(|(n, _)| Some((n.inode, n.file.try_clone().ok()?))).collect();
        Self::new(Box::new(move |inode| Ruleset::decode(&netlink::dump(files.get(&inode)?).ok()?)))
    }

    /// The rule that sent a packet with addresses `before` to another destination, or gave it another source.
    pub fn translation(&mut self, netns: u32, protocol: Protocol, before: Flow, after: Flow) -> Option<Named> {
        let sought = if before.to == after.to { Sought::Source(after.from) } else { Sought::Destination(after.to) };
        self.rules(netns)?.find(sought, protocol, before)
    }

    /// The rule that dropped a packet at this hook.
    pub fn drop(&mut self, netns: u32, protocol: Protocol, flow: Flow, at: At) -> Option<Named> {
        self.rules(netns)?.find(Sought::Drop(at), protocol, flow)
    }

    fn rules(&mut self, netns: u32) -> Option<&Ruleset> {
        let now = Instant::now();
        if self.known.get(&netns).is_none_or(|(read, _)| now.duration_since(*read) > FRESH) {
            self.known.insert(netns, (now, (self.read)(netns)));
        }
        self.known.get(&netns)?.1.as_ref()
    }
}
