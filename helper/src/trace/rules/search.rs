//! Finding the one rule that can have done it.

use std::net::{IpAddr, SocketAddr};

use sockpath_protocol::packet::{Flow, Rule as Named};
use sockpath_protocol::request::Protocol;

use super::At;
use super::decode::{Action, Chain, Rule, Ruleset, Table, Test};

/// Chains that jump to each other, at most so many deep (NFT_JUMP_STACK_SIZE).
const DEPTH: usize = 16;

/// What the rule that is sought did.
#[derive(Debug, Clone, Copy)]
pub enum Sought {
    Destination(SocketAddr),
    Source(SocketAddr),
    Drop(At),
}

/// Whether a packet passes a rule's tests, as far as they are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Passes {
    No,
    Maybe,
    Yes,
}

impl Ruleset {
    /// The rule that did it: the only one that can have, or the only one that must have when it was reached. `None` when
    /// several can.
    pub fn find(&self, sought: Sought, protocol: Protocol, flow: Flow) -> Option<Named> {
        let packet = Packet::of(protocol, flow);
        let can: Vec<(&Rule, Passes, Vec<String>)> = self
            .rules
            .iter()
            .filter(|r| packet.is_of(r.table.0) && did(&r.action, sought))
            .filter_map(|r| {
                let passes = packet.passes(r);
                let via = (passes != Passes::No).then(|| self.way_to(&r.table, &r.chain, sought, &packet, DEPTH)).flatten()?;
                Some((r, passes, via))
            })
            .collect();
        let certain: Vec<_> = can.iter().filter(|(_, passes, _)| *passes == Passes::Yes).collect();
        let found = match (can.as_slice(), certain.as_slice()) {
            ([only], _) => Some(only),
            (_, [only]) => Some(*only),
            _ => None,
        };
        let by_policy = |c: &&Chain| matches!(sought, Sought::Drop(at) if c.hook == Some(at)) && c.drops && packet.is_of(c.table.0);
        match (found, self.chains.iter().find(by_policy)) {
            (Some((rule, passes, via)), policy) if *passes == Passes::Yes || policy.is_none() => Some(Named {
                table: table_name(&rule.table),
                chain: rule.chain.clone(),
                handle: Some(rule.handle),
                comment: rule.comment.clone(),
                via: via.clone(),
            }),
            (None, Some(chain)) if can.is_empty() => Some(Named {
                table: table_name(&chain.table),
                chain: chain.name.clone(),
                handle: None,
                comment: Some("policy drop".to_owned()),
                via: Vec::new(),
            }),
            _ => None,
        }
    }

    /// The chains that lead there from a hook where this can be done, when the packet can come that way.
    fn way_to(&self, table: &Table, chain: &str, sought: Sought, packet: &Packet, depth: usize) -> Option<Vec<String>> {
        let here = self.chains.iter().find(|c| c.table == *table && c.name == chain)?;
        if let Some(hook) = here.hook {
            return sought.is_at(hook).then(Vec::new);
        }
        let depth = depth.checked_sub(1)?;
        let mut jumps = self.rules.iter().filter(|r| r.table == *table && matches!(&r.action, Action::Jump(to) if to == chain)).peekable();
        if jumps.peek().is_none() {
            // By a map of verdicts: which packets come here is not known.
            return self.rules.iter().any(|r| r.table == *table && r.tests.contains(&Test::Unknown)).then(Vec::new);
        }
        jumps.filter(|r| packet.passes(r) != Passes::No).find_map(|r| {
            let mut way = self.way_to(table, &r.chain, sought, packet, depth)?;
            way.push(r.chain.clone());
            Some(way)
        })
    }
}

impl Sought {
    fn is_at(self, hook: At) -> bool {
        match self {
            Self::Destination(_) => matches!(hook, At::PreRouting | At::LocalOut),
            Self::Source(_) => matches!(hook, At::PostRouting | At::LocalIn),
            Self::Drop(at) => at == hook,
        }
    }
}

fn did(action: &Action, sought: Sought) -> bool {
    let fits = |ip: &Option<IpAddr>, port: &Option<u16>, to: SocketAddr| {
        ip.is_none_or(|ip| ip == to.ip()) && port.is_none_or(|port| port == to.port()) && (ip.is_some() || port.is_some())
    };
    match (action, sought) {
        (Action::Destination(ip, port), Sought::Destination(to)) => fits(ip, port, to),
        (Action::Source(ip, port), Sought::Source(to)) => fits(ip, port, to),
        (Action::Masquerade, Sought::Source(_)) | (Action::Drop, Sought::Drop(_)) => true,
        _ => false,
    }
}

/// `ip nat`.
pub fn table_name((family, name): &Table) -> String {
    let family = match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    };
    format!("{family} {name}")
}

/// What is known of a packet's headers.
struct Packet {
    v6: bool,
    protocol: u8,
    network: [Option<u8>; 40],
    transport: [Option<u8>; 4],
}

impl Packet {
    fn of(protocol: Protocol, flow: Flow) -> Self {
        let v6 = flow.to.is_ipv6();
        let protocol = match (protocol, v6) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Icmp, false) => 1,
            (Protocol::Icmp, true) => 58,
        };
        let mut packet = Self { v6, protocol, network: [None; 40], transport: [None; 4] };
        let (source, destination, next) = if v6 { (8, 24, 6) } else { (12, 16, 9) };
        packet.network[next] = Some(protocol);
        for (at, ip) in [(source, flow.from.ip()), (destination, flow.to.ip())] {
            let octets = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            for (slot, octet) in packet.network[at..].iter_mut().zip(octets) {
                *slot = Some(octet);
            }
        }
        if protocol == 6 || protocol == 17 {
            let ports = [flow.from.port().to_be_bytes(), flow.to.port().to_be_bytes()].concat();
            for (slot, octet) in packet.transport.iter_mut().zip(ports) {
                *slot = Some(octet);
            }
        }
        packet
    }

    fn is_of(&self, family: u8) -> bool {
        family == 1 || family == if self.v6 { 10 } else { 2 }
    }

    fn passes(&self, rule: &Rule) -> Passes {
        rule.tests.iter().map(|t| self.passes_test(t)).min().unwrap_or(Passes::Yes)
    }

    fn passes_test(&self, test: &Test) -> Passes {
        let (equal, negated) = match test {
            Test::Unknown => return Passes::Maybe,
            Test::Protocol { value, negated } => (self.protocol == *value, *negated),
            Test::Header { transport, offset, mask, value, negated } => {
                let header: &[Option<u8>] = if *transport { &self.transport } else { &self.network };
                let Some(bytes) = header.get(*offset..offset + value.len()) else { return Passes::Maybe };
                let Some(bytes) = bytes.iter().copied().collect::<Option<Vec<u8>>>() else { return Passes::Maybe };
                (bytes.iter().zip(mask).map(|(b, m)| b & m).eq(value.iter().copied()), *negated)
            }
        };
        if equal == negated { Passes::No } else { Passes::Yes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        (2, "nat".to_owned())
    }

    fn base(name: &str, hook: At) -> Chain {
        Chain { table: table(), name: name.to_owned(), hook: Some(hook), drops: false }
    }

    fn chain(name: &str) -> Chain {
        Chain { table: table(), name: name.to_owned(), hook: None, drops: false }
    }

    fn rule(chain: &str, handle: u64, tests: Vec<Test>, action: Action) -> Rule {
        Rule { table: table(), chain: chain.to_owned(), handle, comment: None, tests, action, does: Vec::new() }
    }

    fn to(ip: [u8; 4]) -> Test {
        Test::Header { transport: false, offset: 16, mask: vec![0xff; 4], value: ip.to_vec(), negated: false }
    }

    fn flow(to: &str) -> Flow {
        Flow { from: "10.42.1.2:40000".parse().unwrap(), to: to.parse().unwrap() }
    }

    fn jump(to: &str) -> Action {
        Action::Jump(to.to_owned())
    }

    /// Two Services with the same endpoint, as kube-proxy writes them.
    fn services() -> Ruleset {
        let endpoint = || Action::Destination(Some([10, 42, 1, 3].into()), Some(8080));
        Ruleset {
            chains: vec![
                base("PREROUTING", At::PreRouting),
                chain("SERVICES"),
                chain("SVC-A"),
                chain("SEP-A"),
                chain("SVC-B"),
                chain("SEP-B"),
            ],
            rules: vec![
                rule("PREROUTING", 1, vec![], jump("SERVICES")),
                rule("SERVICES", 2, vec![to([10, 96, 0, 10])], jump("SVC-A")),
                rule("SERVICES", 3, vec![to([10, 96, 0, 20])], jump("SVC-B")),
                rule("SVC-A", 4, vec![Test::Unknown], jump("SEP-A")),
                rule("SVC-B", 5, vec![Test::Unknown], jump("SEP-B")),
                rule("SEP-A", 6, vec![Test::Protocol { value: 6, negated: false }], endpoint()),
                rule("SEP-B", 7, vec![Test::Protocol { value: 6, negated: false }], endpoint()),
            ],
        }
    }

    #[test]
    fn the_address_that_was_dialled_tells_services_with_the_same_endpoint_apart() {
        let sought = Sought::Destination("10.42.1.3:8080".parse().unwrap());
        let found = services().find(sought, Protocol::Tcp, flow("10.96.0.20:80")).unwrap();
        assert_eq!((found.chain.as_str(), found.handle), ("SEP-B", Some(7)));
        assert_eq!(found.via, ["PREROUTING", "SERVICES", "SVC-B"]);
        assert_eq!(services().find(sought, Protocol::Udp, flow("10.96.0.20:80")), None);
        assert_eq!(services().find(Sought::Destination("10.42.1.4:8080".parse().unwrap()), Protocol::Tcp, flow("10.96.0.20:80")), None);
    }

    #[test]
    fn a_drop_is_named_when_only_one_rule_can_have_done_it() {
        let drop = |tests| rule("f", 9, tests, Action::Drop);
        let mut rules = Ruleset { chains: vec![base("f", At::Forward)], rules: vec![drop(vec![to([10, 42, 1, 3])])] };
        let find = |rules: &Ruleset, at, to| rules.find(Sought::Drop(at), Protocol::Tcp, flow(to)).and_then(|r| r.handle);
        assert_eq!(find(&rules, At::Forward, "10.42.1.3:80"), Some(9));
        assert_eq!(find(&rules, At::Forward, "10.42.1.4:80"), None);
        assert_eq!(find(&rules, At::LocalIn, "10.42.1.3:80"), None);
        // One more that may or may not: the one that matches stands.
        rules.rules.push(rule("f", 10, vec![Test::Unknown], Action::Drop));
        assert_eq!(find(&rules, At::Forward, "10.42.1.3:80"), Some(9));
        assert_eq!(find(&rules, At::Forward, "10.42.1.4:80"), Some(10));
        // Two that match.
        rules.rules.push(rule("f", 11, vec![], Action::Drop));
        assert_eq!(find(&rules, At::Forward, "10.42.1.3:80"), None);
    }

    #[test]
    fn a_policy_drops_what_no_rule_can_have() {
        let chains = vec![Chain { drops: true, ..base("f", At::Forward) }];
        let rules = Ruleset { chains, rules: vec![rule("f", 1, vec![], Action::Other)] };
        let found = rules.find(Sought::Drop(At::Forward), Protocol::Tcp, flow("10.42.1.3:80")).unwrap();
        assert_eq!((found.handle, found.comment.as_deref()), (None, Some("policy drop")));
    }
}
