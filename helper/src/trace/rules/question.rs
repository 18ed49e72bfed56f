//! A question about a packet, and how the answer is put into the protocol's words.

use sockpath_protocol::packet::{Cause as Told, Certainty as Sure, Counter, Element, Flow, Mechanism, Rule};
use sockpath_protocol::request::Protocol;
use sockpath_ruleset::{
    Baseline, Candidate, Cause, Certainty, Connection, ConntrackCounters, Device, Drop, Engine, Hook, Namespace, Packet, Sought, Word,
};

use crate::trace::event::Facts;
use crate::trace::settings::KernelDrop;

/// A question about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// Inode of the namespace whose rules are meant.
    pub netns: u32,
    /// When the packet was there, `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    /// The question.
    pub what: What,
}

/// A question about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// What dropped it.
    Drop(DropQuestion),
    /// What dropped it outside of the hooks of IP.
    Elsewhere(ElsewhereQuestion),
    /// What translated it.
    Translation(TranslationQuestion),
    /// Why the kernel dropped it without netfilter.
    Kernel(KernelDrop),
}

/// What is known of a packet at a hook.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PacketFacts {
    /// Addresses and ports.
    pub flow: Flow,
    /// TCP's byte of flags, or ICMP's type.
    pub kind: u8,
    /// `skb->len`, from the network header on.
    pub length: Option<u32>,
    /// What the hook saw besides.
    pub facts: Option<Facts>,
}

/// A packet that was dropped by netfilter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DropQuestion {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The hook whose rules it had come to.
    pub hook: Hook,
    /// It had passed the rules: what comes after them dropped it.
    pub behind_rules: bool,
    /// As it came to the hook.
    pub entered: PacketFacts,
    /// As it was dropped.
    pub dropped: PacketFacts,
    /// The device it came in by: index and name; `None` when that is not known.
    pub input: Option<Option<(u32, Option<String>)>>,
    /// The device it leaves by.
    pub output: Option<Option<(u32, Option<String>)>>,
    /// Who dropped it, where the kernel's function tells.
    pub engine: Option<Engine>,
}

/// A packet that rules of the families bridge or netdev dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ElsewhereQuestion {
    /// Transport protocol.
    pub protocol: Protocol,
    /// As it was dropped.
    pub dropped: PacketFacts,
}

/// A packet that was translated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TranslationQuestion {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The hook, where it is known.
    pub hook: Option<Hook>,
    /// Addresses before.
    pub before: Flow,
    /// Addresses after.
    pub after: Flow,
}

/// Counters of a namespace before the packet came.
#[derive(Debug)]
pub struct Before {
    /// Of its rules.
    pub rules: Baseline,
    /// Of conntrack.
    pub conntrack: Option<ConntrackCounters>,
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The rule that did it.
    pub rule: Option<Rule>,
    /// What did it; of drops only.
    pub cause: Option<Told>,
    /// In words, where it is not a rule.
    pub detail: Option<String>,
    /// The name of the drop reason, where it is one of a subsystem.
    pub reason: Option<String>,
}

impl Question {
    /// The same question about a packet like this one: a later answer would be the same.
    #[must_use]
    pub fn alike(&self) -> Self {
        let mut alike = self.clone();
        alike.at = 0;
        match &mut alike.what {
            What::Translation(t) => {
                t.before.from.set_port(0);
                if t.before.from.ip() == t.after.from.ip() {
                    t.after.from.set_port(0);
                }
            }
            What::Drop(d) => {
                d.entered.length = None;
                d.dropped.length = None;
            }
            What::Elsewhere(e) => e.dropped.length = None,
            What::Kernel(k) => {
                k.flow.from.set_port(0);
                k.flow.to.set_port(0);
            }
        }
        alike
    }
}

impl PacketFacts {
    fn packet(&self, protocol: Protocol, namespace: &Namespace) -> Packet {
        let flow = self.flow;
        let number = match (protocol, flow.to.is_ipv6()) {
            (Protocol::Tcp, _) => 6,
            (Protocol::Udp, _) => 17,
            (Protocol::Icmp, false) => 1,
            (Protocol::Icmp, true) => 58,
        };
        let mut packet = Packet::new(flow.from.ip(), flow.to.ip(), number);
        match protocol {
            Protocol::Tcp => packet.tcp_flags = Some(self.kind),
            Protocol::Icmp => packet.icmp_type = Some(self.kind),
            Protocol::Udp => {}
        }
        if protocol != Protocol::Icmp {
            packet = packet.with_ports(flow.from.port(), flow.to.port());
        }
        packet.length = self.length;
        packet.source_type = Some(namespace.address_type(flow.from.ip()));
        packet.destination_type = Some(namespace.address_type(flow.to.ip()));
        if let Some(facts) = &self.facts {
            packet.mark = Word::known(facts.mark);
            packet.connection = connection(facts);
        }
        packet
    }
}

fn connection(facts: &Facts) -> Connection {
    match facts.connection {
        Some(tracked) => Connection {
            // NF_CT_STATE_BIT: ctinfo % IP_CT_IS_REPLY + 1.
            states: 1 << (tracked.info % 3 + 1),
            reply: Some(tracked.is_reply()),
            status: (tracked.status != 0).then_some(tracked.status),
            mark: Word::known(tracked.mark),
        },
        None if facts.untracked => Connection { states: 64, ..Connection::NONE },
        None => Connection::NONE,
    }
}

impl ElsewhereQuestion {
    /// Asks the rules. `before` holds counters that were read before the packet came.
    #[must_use]
    pub fn ask(&self, namespace: &Namespace, before: Option<&Before>) -> Found {
        let packet = self.dropped.packet(self.protocol, namespace);
        let cause = namespace.rules.cause_outside_ip(&packet, before.map(|b| &b.rules));
        let Some((candidate, certainty)) = &cause.named else { return unnamed(&cause, None, Vec::new()) };
        let rule = rule(candidate);
        let mut evidence = vec!["it was dropped between the hooks of IP, where rules of the families bridge and netdev run".to_owned()];
        evidence.extend(speaks_for(&rule, candidate));
        let certainty = if *certainty == Certainty::Counted { Sure::ProvenByCounters } else { Sure::Inferred };
        let mechanism = if rule.policy { Mechanism::Policy } else { Mechanism::Rule };
        Found { rule: Some(rule), cause: Some(Told { mechanism, certainty, evidence, candidates: Vec::new() }), ..Found::default() }
    }
}

impl DropQuestion {
    /// Asks the rules. `before` holds counters that were read before the packet came.
    #[must_use]
    pub fn ask(&self, namespace: &Namespace, before: Option<&Before>) -> Found {
        if self.behind_rules {
            return self.confirmation(namespace, before);
        }
        let device = |d: &Option<Option<(u32, Option<String>)>>| {
            d.as_ref().map(|d| d.as_ref().map(|(index, name)| Device { index: *index, name: name.clone() }))
        };
        let (mut packet, mut dropped) = (self.entered.packet(self.protocol, namespace), self.dropped.packet(self.protocol, namespace));
        for p in [&mut packet, &mut dropped] {
            (p.input, p.output) = (device(&self.input), device(&self.output));
        }
        let drop = Drop { packet: &packet, dropped: Some(&dropped), hook: self.hook, engine: self.engine };
        let mut found = self.put(&namespace.rules.cause_of_drop(&drop, before.map(|b| &b.rules)));
        if let Some(cause) = &mut found.cause {
            cause.evidence.extend(self.invalid(namespace, before));
        }
        if found.rule.is_none() && self.engine != Some(Engine::Nftables) {
            return self.full_table(namespace, before).unwrap_or(found);
        }
        found
    }

    /// That conntrack had found the packet invalid, where it had.
    fn invalid(&self, namespace: &Namespace, before: Option<&Before>) -> Vec<String> {
        let behind_conntrack = !matches!(self.hook, Hook::PreRouting | Hook::LocalOut);
        let without = self.entered.facts.is_some_and(|f| f.connection.is_none() && !f.untracked);
        if !behind_conntrack || !without {
            return Vec::new();
        }
        let mut words =
            vec!["conntrack had found the packet invalid (out of window, bad checksum, or an answer to nothing it knows)".to_owned()];
        words.extend(rose("invalid", namespace, before, |c| c.invalid));
        words.extend(rose("early_drop", namespace, before, |c| c.early_drop).map(|r| format!("{r}: its entry may have been given up")));
        words
    }

    fn put(&self, cause: &Cause) -> Found {
        let mut evidence = Vec::new();
        if let Some(engine) = self.engine {
            evidence.push(engine_shown(engine).to_owned());
        }
        let Some((candidate, certainty)) = &cause.named else { return unnamed(cause, self.engine, evidence) };
        let rule = rule(candidate);
        evidence.extend(speaks_for(&rule, candidate));
        let sure = if *certainty == Certainty::Counted { Sure::ProvenByCounters } else { Sure::Inferred };
        let mechanism = if rule.policy { Mechanism::Policy } else { Mechanism::Rule };
        Found { rule: Some(rule), cause: Some(Told { mechanism, certainty: sure, evidence, candidates: Vec::new() }), ..Found::default() }
    }

    /// Behind the last rules there is only conntrack, which enters new connections into its table.
    fn confirmation(&self, namespace: &Namespace, before: Option<&Before>) -> Found {
        let mut evidence =
            vec!["the packet had passed all rules of the hook; behind them conntrack enters new connections into its table".to_owned()];
        if self.entered.flow.from != self.dropped.flow.from {
            evidence.push(format!("its source had been translated to {}, which another connection has", self.dropped.flow.from));
        }
        let failed = rose("insert_failed", namespace, before, |c| c.insert_failed);
        let long = rose("chaintoolong", namespace, before, |c| c.chain_too_long);
        let mechanism = self.not_entered(failed.is_some(), long.is_some());
        if mechanism == Mechanism::Clash {
            evidence.push("its source was not translated, so that no port was missing: only another first packet of its socket has these addresses and ports".to_owned());
        }
        let certainty = if failed.is_some() || long.is_some() { Sure::ProvenByCounters } else { Sure::Inferred };
        evidence.extend([failed, long].into_iter().flatten());
        Found { cause: Some(Told { mechanism, certainty, evidence, candidates: Vec::new() }), ..Found::default() }
    }

    /// Why conntrack did not enter the connection, by what its counters say.
    fn not_entered(&self, failed: bool, long: bool) -> Mechanism {
        let translated = self.entered.flow.from != self.dropped.flow.from;
        match self.protocol {
            _ if long => Mechanism::ChainTooLong,
            Protocol::Udp if failed && !translated => Mechanism::Clash,
            _ => Mechanism::Confirmation,
        }
    }

    /// Where conntrack first sees a packet, it drops it when its table is full.
    fn full_table(&self, namespace: &Namespace, before: Option<&Before>) -> Option<Found> {
        let sees_first =
            matches!(self.hook, Hook::PreRouting | Hook::LocalOut) && self.dropped.facts.is_none_or(|f| f.connection.is_none());
        let mut evidence = vec![rose("drop", namespace, before, |c| c.drop).filter(|_| sees_first)?];
        let table = namespace.conntrack.filter(|c| c.most > 0);
        evidence.extend(table.map(|c| format!("the table has {} entries, and net.netfilter.nf_conntrack_max is {}", c.entries, c.most)));
        let cause = Told { mechanism: Mechanism::TableFull, certainty: Sure::ProvenByCounters, evidence, candidates: Vec::new() };
        Some(Found { cause: Some(cause), ..Found::default() })
    }
}

/// That a counter of conntrack rose, in words.
fn rose(name: &str, namespace: &Namespace, before: Option<&Before>, counter: impl Fn(&ConntrackCounters) -> u64) -> Option<String> {
    let (before, after) = (counter(before?.conntrack.as_ref()?), counter(namespace.conntrack.as_ref()?));
    (after > before).then(|| format!("conntrack's counter {name} rose from {before} to {after}"))
}

impl TranslationQuestion {
    /// Asks the rules.
    #[must_use]
    pub fn ask(&self, namespace: &Namespace) -> Found {
        let facts = PacketFacts { flow: self.before, kind: 0, length: None, facts: None };
        let mut packet = facts.packet(self.protocol, namespace);
        // The first packet of the connection was translated, whose flags are not known.
        (packet.tcp_flags, packet.icmp_type) = (None, None);
        packet.connection = Connection { states: 8, reply: Some(false), status: None, mark: Word::UNKNOWN };
        let destination = self.before.to != self.after.to;
        let to = if destination { self.after.to } else { self.after.from };
        let sought = Sought { packet: &packet, hook: self.hook, destination, to: (to.ip(), to.port()) };
        let cause = namespace.rules.cause_of_translation(&sought);
        Found { rule: cause.named.as_ref().map(|(candidate, _)| rule(candidate)), ..Found::default() }
    }
}

/// The report when no rule is named.
fn unnamed(cause: &Cause, engine: Option<Engine>, mut evidence: Vec<String>) -> Found {
    /// Candidates listed.
    const MOST: usize = 8;
    if cause.incomplete {
        evidence.push("the rules could not be evaluated to the end".to_owned());
    }
    let found = cause.candidates.len();
    if found == 0 && !cause.incomplete {
        evidence.push("no rule that can be read drops such a packet here".to_owned());
    }
    if found > MOST {
        evidence.push(format!("{found} rules may drop such a packet; {MOST} are listed"));
    }
    let candidates: Vec<Rule> = cause.candidates.iter().take(MOST).map(rule).collect();
    let by_nft = engine == Some(Engine::Nftables);
    let mechanism = if by_nft || found > 0 { Mechanism::Rules } else { Mechanism::Unknown };
    let certainty = if by_nft { Sure::Observed } else { Sure::Possible };
    Found { cause: Some(Told { mechanism, certainty, evidence, candidates }), ..Found::default() }
}

fn engine_shown(engine: Engine) -> &'static str {
    match engine {
        Engine::Nftables => "the kernel freed it in nft_do_chain: a rule or policy of nftables (or iptables-nft) dropped it",
        Engine::Legacy => "the kernel freed it in nf_hook_slow: not nftables dropped it, but iptables-legacy or another hook",
    }
}

fn speaks_for(rule: &Rule, candidate: &Candidate) -> Vec<String> {
    let mut words = Vec::new();
    let what = if rule.policy { "policy" } else { "rule" };
    words.push(match candidate.must {
        true => format!("evaluated with what the hook saw, every such packet comes to this {what}"),
        false => format!("evaluated with what the hook saw, nothing else can drop such a packet than this {what}"),
    });
    match rule.counter {
        Some(Counter { before: Some(before), after }) => words.push(format!("its packet counter rose from {before} to {after}")),
        Some(Counter { before: None, after }) => words.push(format!("its packet counter stands at {after}")),
        None => words.push("it has no packet counter".to_owned()),
    }
    words
}

fn rule(candidate: &Candidate) -> Rule {
    let element = candidate.element.clone().map(|(set, comment)| Element { set, comment });
    Rule {
        table: candidate.table.clone(),
        chain: candidate.chain.clone(),
        handle: candidate.handle,
        comment: candidate.comment.clone(),
        via: candidate.via.clone(),
        policy: candidate.handle.is_none(),
        legacy: candidate.engine == Engine::Legacy,
        element,
        counter: candidate.counters.map(|c| Counter { before: c.before, after: c.after }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(protocol: Protocol, source: &str) -> DropQuestion {
        let flow = |from: &str| Flow { from: from.parse().expect("an address"), to: "10.42.1.3:53".parse().expect("an address") };
        let facts = |from: &str| PacketFacts { flow: flow(from), kind: 0, length: None, facts: None };
        let (entered, dropped) = (facts("10.42.1.2:40000"), facts(source));
        DropQuestion { protocol, hook: Hook::PostRouting, behind_rules: true, entered, dropped, input: None, output: None, engine: None }
    }

    fn asked(question: &DropQuestion, after: ConntrackCounters) -> Told {
        let mut namespace = Namespace::default();
        namespace.conntrack = Some(after);
        let before = Before { rules: Baseline::of(&namespace.rules), conntrack: Some(ConntrackCounters::default()) };
        question.ask(&namespace, Some(&before)).cause.expect("a cause").clone()
    }

    const SAME: &str = "10.42.1.2:40000";
    const TRANSLATED: &str = "10.0.0.1:40000";

    #[test]
    fn two_first_datagrams_of_one_socket_are_not_a_missing_port() {
        let failed = ConntrackCounters { insert_failed: 1, drop: 1, ..ConntrackCounters::default() };
        let mechanism = |protocol, source| asked(&dropped(protocol, source), failed).mechanism;
        assert_eq!(mechanism(Protocol::Udp, SAME), Mechanism::Clash);
        assert_eq!(mechanism(Protocol::Udp, TRANSLATED), Mechanism::Confirmation);
        assert_eq!(mechanism(Protocol::Tcp, SAME), Mechanism::Confirmation);
        let cause = asked(&dropped(Protocol::Udp, SAME), failed);
        assert_eq!(cause.certainty, Sure::ProvenByCounters);
        assert!(cause.evidence.iter().any(|e| e.contains("insert_failed rose from 0 to 1")), "{cause:?}");
        // A clash that was resolved lost nothing.
        let resolved = ConntrackCounters { clash_resolve: 1, ..ConntrackCounters::default() };
        assert_eq!(asked(&dropped(Protocol::Udp, SAME), resolved).mechanism, Mechanism::Confirmation);
    }

    #[test]
    fn a_chain_that_is_too_long_is_named_before_a_missing_port() {
        let long = ConntrackCounters { insert_failed: 1, chain_too_long: 1, ..ConntrackCounters::default() };
        let cause = asked(&dropped(Protocol::Tcp, TRANSLATED), long);
        assert_eq!((cause.mechanism, cause.certainty), (Mechanism::ChainTooLong, Sure::ProvenByCounters));
        assert!(cause.evidence.iter().any(|e| e.contains("chaintoolong")), "{cause:?}");
    }

    #[test]
    fn a_full_table_has_its_size_as_evidence() {
        let mut question = dropped(Protocol::Udp, SAME);
        (question.hook, question.behind_rules) = (Hook::PreRouting, false);
        let cause = asked(&question, ConntrackCounters { drop: 3, entries: 64, most: 64, ..ConntrackCounters::default() });
        assert_eq!(cause.mechanism, Mechanism::TableFull);
        assert!(cause.evidence.iter().any(|e| e.contains("64 entries")), "{cause:?}");
        let innocent = asked(&question, ConntrackCounters { entries: 64, most: 64, ..ConntrackCounters::default() });
        assert_ne!(innocent.mechanism, Mechanism::TableFull);
    }
}
