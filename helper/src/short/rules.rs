//! Rules of a node that have to see every packet of a connection, because they limit, count, log or copy packets, or hand them to a program:
//! the connections that they are about do not use the short path.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sockpath_kernel::conntrack::{Entry, Tuple};
use sockpath_kernel::netns::inside;
use sockpath_ruleset::evaluate::passes;
use sockpath_ruleset::{Chain, ChainKind, Connection, Namespace, Packet, Rule, Ruleset, Truth, state};

use crate::node::Netns;

/// What rules do for which the number or content of packets matters, as `sockpath_ruleset` calls it.
const FOR_EVERY_PACKET: [&str; 10] = ["limit", "hashlimit", "quota", "connbytes", "log", "nflog", "queue", "nfqueue", "dup", "tee"];

/// Chains of kube-proxy and kubelet begin with this; they decide once for each connection.
const OF_KUBERNETES: &str = "KUBE-";

/// Reading the rules takes at most one part in so many of the time: a node may have tens of thousands.
const SHARE: u32 = 20;

/// The rules of a node that have to see every packet.
#[derive(Debug, Default)]
pub struct PacketRules {
    rules: Ruleset,
    /// Chain and number of each.
    found: Vec<(usize, usize)>,
    /// When they may be read again.
    next: Option<Instant>,
    /// They have changed since they were read.
    stale: bool,
}

impl PacketRules {
    /// They have changed, or may have.
    pub fn changed(&mut self) {
        self.stale = true;
    }

    /// Reads them again where they have changed, unless that was done just now; whether there are other ones.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn refresh(&mut self, netns: &Netns) -> Result<bool> {
        if !self.stale || self.next.is_some_and(|next| Instant::now() < next) {
            return Ok(false);
        }
        let began = Instant::now();
        let rules = inside(&netns.file, Namespace::read_here).context("cannot read the rules of the node")?.rules;
        let had_some = !self.found.is_empty();
        self.found = find(&rules);
        self.rules = if self.found.is_empty() { Ruleset::default() } else { rules };
        self.stale = false;
        self.next = Some(Instant::now() + (began.elapsed() * SHARE).max(Duration::from_millis(100)));
        Ok(had_some || !self.found.is_empty())
    }

    /// Whether one of them may see packets of this connection.
    pub fn concern(&self, entry: &Entry) -> bool {
        if self.found.is_empty() {
            return false;
        }
        // Before and behind address translation.
        let (original, reply) = (entry.original, entry.reply);
        let packets = [(original, false), (reply.reversed(), false), (reply, true), (original.reversed(), true)].map(packet);
        let rules = self.found.iter().filter_map(|(chain, rule)| self.rules.chains.get(*chain)?.rules.get(*rule));
        rules.into_iter().any(|rule| packets.iter().any(|packet| passes(&self.rules, rule, packet) != Truth::No))
    }
}

fn find(rules: &Ruleset) -> Vec<(usize, usize)> {
    let is_meant = |rule: &Rule| rule.effects.iter().any(|effect| FOR_EVERY_PACKET.contains(effect));
    let of_chain = |(at, chain): (usize, &Chain)| -> Vec<(usize, usize)> {
        let sees_each =
            !chain.name.starts_with(OF_KUBERNETES) && chain.base.is_none_or(|b| b.kind != ChainKind::Nat) && chain.table.name != "nat";
        let found = chain.rules.iter().enumerate().filter(|(_, rule)| sees_each && is_meant(rule));
        found.map(|(number, _)| (at, number)).collect()
    };
    rules.chains.iter().enumerate().flat_map(of_chain).collect()
}

/// A packet in mid-connection.
fn packet((tuple, reply): (Tuple, bool)) -> Packet {
    let connection = Connection { states: state::ESTABLISHED, reply: Some(reply), ..Connection::UNKNOWN };
    let packet = Packet::new(tuple.source.ip(), tuple.destination.ip(), tuple.protocol);
    Packet { connection, ..packet.with_ports(tuple.source.port(), tuple.destination.port()) }
}
