//! Rules that do something to packets from or to certain addresses, other than what kube-proxy needs to do.

use std::collections::HashSet;
use std::net::IpAddr;

use sockpath_ruleset::evaluate::passes;
use sockpath_ruleset::{Chain, Engine, Expression, Header, Packet, Rule, Ruleset, Truth};

/// Chains of kube-proxy and kubelet begin with this.
const OF_KUBERNETES: &str = "KUBE-";

/// A rule, or the end of a chain, that such packets may traverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraversedRule {
    /// What it does, and its comment.
    pub what: String,
    /// Table and chain.
    pub chain: String,
    /// The addresses it asks for; empty when it asks for none.
    pub ips: Vec<IpAddr>,
}

/// Those that drop, log, limit or copy packets between these addresses, as far as their tests are understood. Whether a chain is ever
/// jumped to is left open.
pub fn traversed(rules: &Ruleset, ips: &HashSet<IpAddr>) -> Vec<TraversedRule> {
    let chains = || rules.chains.iter().filter(|c| c.table.engine == Engine::Nftables);
    let policies = chains().filter(|c| c.base.is_some_and(|b| b.drops)).map(|chain| TraversedRule {
        what: "drops what none of its rules accepts".to_owned(),
        chain: format!("{}/{}", chain.table.title(), chain.name),
        ips: Vec::new(),
    });
    let own = chains().filter(|c| !c.name.starts_with(OF_KUBERNETES));
    own.flat_map(|chain| chain.rules.iter().filter(|r| !r.effects.is_empty()).filter_map(|rule| of_rule(rules, chain, rule, ips)))
        .chain(policies)
        .collect()
}

fn of_rule(rules: &Ruleset, chain: &Chain, rule: &Rule, ips: &HashSet<IpAddr>) -> Option<TraversedRule> {
    let mut asked: Vec<IpAddr> = Vec::new();
    for destination in [false, true] {
        let is_asked = |ip: &&IpAddr| asks_for(rule, **ip, destination);
        if !ips.iter().any(|ip| is_asked(&ip)) {
            continue;
        }
        let fits: Vec<IpAddr> = ips.iter().filter(is_asked).filter(|ip| fits(rules, rule, **ip, destination)).copied().collect();
        if fits.is_empty() {
            return None;
        }
        asked.extend(fits);
    }
    asked.sort_unstable();
    asked.dedup();
    let comment = rule.comment.as_ref().map(|c| format!(" \"{c}\"")).unwrap_or_default();
    Some(TraversedRule {
        what: format!("{}{comment} (handle {})", rule.effects.join(", "), rule.handle),
        chain: format!("{}/{}", chain.table.title(), chain.name),
        ips: asked,
    })
}

/// Offset and length of an address in its header.
fn place(ip: IpAddr, destination: bool) -> (u16, u8) {
    match (ip, destination) {
        (IpAddr::V4(_), false) => (12, 4),
        (IpAddr::V4(_), true) => (16, 4),
        (IpAddr::V6(_), false) => (8, 16),
        (IpAddr::V6(_), true) => (24, 16),
    }
}

/// Whether the rule looks at the source or destination address of packets of this family.
fn asks_for(rule: &Rule, ip: IpAddr, destination: bool) -> bool {
    let (at, most) = place(ip, destination);
    rule.expressions.iter().any(|e| match e {
        Expression::Payload { header: Header::Network, offset, length, .. } => *offset == at && *length <= most,
        _ => false,
    })
}

/// Whether a packet with this source or destination address may pass the rule's tests.
fn fits(rules: &Ruleset, rule: &Rule, ip: IpAddr, destination: bool) -> bool {
    let mut packet = Packet::unknown(ip.is_ipv6());
    *(if destination { &mut packet.destination } else { &mut packet.source }) = Some(ip);
    passes(rules, rule, &packet) != Truth::No
}

#[cfg(test)]
mod tests {
    use sockpath_ruleset::{Comparison, Table, Verdict};

    use super::*;

    fn chain(name: &str, rules: Vec<Rule>) -> Chain {
        let table = Table { engine: Engine::Nftables, family: 2, name: "filter".to_owned() };
        Chain { table: table.into(), name: name.into(), base: None, packets: None, rules }
    }

    fn rule(effects: &[&'static str], tests: Vec<Expression>) -> Rule {
        let expressions = tests.into_iter().chain([Expression::Verdict(Verdict::Drop)]).collect();
        Rule { handle: 4, comment: Some("why".into()), packets: None, expressions, effects: effects.to_vec() }
    }

    fn address(offset: u16, value: [u8; 4], how: Comparison) -> Vec<Expression> {
        let load = Expression::Payload { header: Header::Network, offset, length: 4, to: 0 };
        vec![load, Expression::Compare { from: 0, how, value: value.into() }]
    }

    #[test]
    fn rules_about_others_are_left_out() {
        let (a, b): (IpAddr, IpAddr) = ("10.42.1.2".parse().expect("an address"), "10.42.1.3".parse().expect("an address"));
        let from_a = || address(12, [10, 42, 1, 2], Comparison::Equal);
        let to_another = |how| address(16, [10, 9, 9, 9], how);
        let rules = vec![
            rule(&["drop"], from_a()),
            rule(&["log"], vec![Expression::Unknown { to: None, may_fail: true }]),
            rule(&["drop"], from_a().into_iter().chain(to_another(Comparison::Equal)).collect()),
            rule(&["limit"], to_another(Comparison::Unequal)),
            rule(&[], from_a()),
        ];
        let chains = vec![chain("FORWARD", rules), chain("KUBE-FORWARD", vec![rule(&["drop"], vec![])])];
        let traversed = traversed(&Ruleset { chains, ..Ruleset::default() }, &HashSet::from([a, b]));
        let found: Vec<(&str, &[IpAddr])> = traversed.iter().map(|c| (c.what.as_str(), c.ips.as_slice())).collect();
        assert_eq!(
            found,
            [("drop \"why\" (handle 4)", &[a][..]), ("log \"why\" (handle 4)", &[][..]), ("limit \"why\" (handle 4)", &[a, b][..]),]
        );
    }
}
