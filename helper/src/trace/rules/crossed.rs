//! Rules that do something to packets from or to certain addresses, other than what kube-proxy needs to do.

use std::collections::HashSet;
use std::net::IpAddr;

use super::decode::{Rule, Ruleset, Test};

/// Chains of kube-proxy and kubelet begin with this.
const OF_KUBERNETES: &str = "KUBE-";

/// A rule, or the end of a chain, that such packets may come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossed {
    /// What it does, and its comment.
    pub what: String,
    /// Table and chain.
    pub chain: String,
    /// The addresses it asks for; empty when it asks for none.
    pub ips: Vec<IpAddr>,
}

impl Ruleset {
    /// Those that drop, log, limit or copy packets between these addresses, as far as their tests are understood. Whether a chain is
    /// ever jumped to is left open.
    pub fn crossed(&self, ips: &HashSet<IpAddr>) -> Vec<Crossed> {
        let policies = self.chains.iter().filter(|c| c.drops).map(|chain| Crossed {
            what: "drops what none of its rules accepts".to_owned(),
            chain: format!("{}/{}", super::search::table_name(&chain.table), chain.name),
            ips: Vec::new(),
        });
        let rules = self.rules.iter().filter(|r| !r.does.is_empty() && !r.chain.starts_with(OF_KUBERNETES));
        rules.filter_map(|r| crossed(r, ips)).chain(policies).collect()
    }
}

fn crossed(rule: &Rule, ips: &HashSet<IpAddr>) -> Option<Crossed> {
    /// Offsets of source and destination, in the headers of IPv4 and IPv6.
    const ADDRESSES: [[usize; 2]; 2] = [[12, 8], [16, 24]];
    let mut asked: Vec<IpAddr> = Vec::new();
    for [v4, v6] in ADDRESSES {
        let about = |ip: &IpAddr, test: &Test| match test {
            Test::Header { transport: false, offset, mask, value, negated } => {
                let (bytes, at) = match ip {
                    IpAddr::V4(ip) => (ip.octets().to_vec(), v4),
                    IpAddr::V6(ip) => (ip.octets().to_vec(), v6),
                };
                if *offset != at || mask.len() > bytes.len() {
                    return None;
                }
                let masked = bytes.iter().zip(mask).map(|(b, m)| b & m);
                Some(masked.zip(value).all(|(b, v)| b == *v) != *negated)
            }
            _ => None,
        };
        let is_asked = |ip: &&IpAddr| rule.tests.iter().any(|t| about(ip, t).is_some());
        if !ips.iter().any(|ip| is_asked(&ip)) {
            continue;
        }
        let fits: Vec<IpAddr> =
            ips.iter().filter(is_asked).filter(|ip| rule.tests.iter().all(|t| about(ip, t) != Some(false))).copied().collect();
        if fits.is_empty() {
            return None;
        }
        asked.extend(fits);
    }
    asked.sort_unstable();
    asked.dedup();
    let comment = rule.comment.as_ref().map(|c| format!(" \"{c}\"")).unwrap_or_default();
    Some(Crossed {
        what: format!("{}{comment} (handle {})", rule.does.join(", "), rule.handle),
        chain: format!("{}/{}", super::search::table_name(&rule.table), rule.chain),
        ips: asked,
    })
}

#[cfg(test)]
mod tests {
    use super::super::decode::Action;
    use super::*;

    fn rule(chain: &str, does: &[&str], tests: Vec<Test>) -> Rule {
        Rule {
            table: (2, "filter".into()),
            chain: chain.into(),
            handle: 4,
            comment: Some("why".into()),
            tests,
            action: Action::Other,
            does: does.iter().map(|d| (*d).to_owned()).collect(),
        }
    }

    fn address(offset: usize, value: [u8; 4], negated: bool) -> Test {
        Test::Header { transport: false, offset, mask: vec![255; 4], value: value.to_vec(), negated }
    }

    #[test]
    fn rules_about_others_are_left_out() {
        let (a, b): (IpAddr, IpAddr) = ("10.42.1.2".parse().expect("an address"), "10.42.1.3".parse().expect("an address"));
        let from_a = || address(12, [10, 42, 1, 2], false);
        let rules = vec![
            rule("FORWARD", &["drop"], vec![from_a()]),
            rule("FORWARD", &["log"], vec![Test::Unknown]),
            rule("FORWARD", &["drop"], vec![from_a(), address(16, [10, 9, 9, 9], false)]),
            rule("FORWARD", &["limit"], vec![address(16, [10, 9, 9, 9], true)]),
            rule("KUBE-FORWARD", &["drop"], vec![]),
            rule("FORWARD", &[], vec![from_a()]),
        ];
        let crossed = Ruleset { chains: Vec::new(), rules }.crossed(&HashSet::from([a, b]));
        let told: Vec<(&str, &[IpAddr])> = crossed.iter().map(|c| (c.what.as_str(), c.ips.as_slice())).collect();
        assert_eq!(
            told,
            [("drop \"why\" (handle 4)", &[a][..]), ("log \"why\" (handle 4)", &[][..]), ("limit \"why\" (handle 4)", &[a, b][..]),]
        );
    }
}
