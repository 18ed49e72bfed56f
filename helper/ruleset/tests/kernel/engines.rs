//! IPv6: one text loaded by ip6tables-nft and by ip6tables-legacy has to mean the same.

use std::net::{IpAddr, Ipv6Addr};

use sockpath_ruleset::evaluate::{Fate, Question, passes, run};
use sockpath_ruleset::{AddressType, Compared, Connection, Device, Engine, Hook, Namespace, Packet, Ruleset, Truth, Word, state};

use crate::Random;
use crate::packets::{feed, nft};
use crate::rulesets::Dialect;

/// The addresses of the IPv4 rulesets as those of IPv6.
fn in_v6(text: &str) -> String {
    let lengths = [("/24", "/64"), ("/30", "/126"), ("/25", "/121"), ("/32", "/128")];
    let mut text = text.replace("10.0.0.0/8", "fd00::/8").replace("LOCAL,BROADCAST", "LOCAL,UNREACHABLE");
    for third in 0..3 {
        text = text
            .replace(&format!("10.9.{third}.0/"), &format!("fd00:9:{third}::/"))
            .replace(&format!("10.9.{third}."), &format!("fd00:9:{third}::"));
    }
    for (v4, v6) in lengths {
        text = text.replace(v4, v6);
    }
    text
}

/// Table, chain and position of an end, whether it answers, and whether it is certain.
type Place = (String, String, Option<u32>, bool, Truth);

/// What evaluation says: the ends by table, chain and position, and whether the packet may pass.
fn ends(rules: &Ruleset, engine: Engine, packet: &Packet) -> (Vec<Place>, Option<Word>) {
    let question = Question { packet, translated: None, hook: Hook::LocalIn, translation: false };
    let run = run(rules, Compared::ignored(), &question);
    let mut ends: Vec<_> = run
        .ends
        .iter()
        .map(|e| {
            let chain = &rules.chains[e.chain as usize];
            assert_eq!(chain.table.engine, engine);
            let answered = e.fate == Fate::Dropped { answered: true };
            (chain.table.title(), chain.name.to_string(), e.rule.map(|(_, rule)| rule), answered, e.sure)
        })
        .collect();
    ends.sort();
    (ends, run.passes.map(|s| s.mark))
}

fn packet(random: &mut Random) -> Packet {
    let address = |random: &mut Random| {
        let (third, last) = random.of(&[(0, 1), (0, 2), (1, 1), (2, 0x200)]);
        IpAddr::from(Ipv6Addr::new(0xfd00, 9, third, 0, 0, 0, 0, last))
    };
    let protocol = random.of(&[6, 17]);
    let port = random.of(&[53, 80, 443, 8080, 9999]);
    let mut packet = Packet::new(address(random), address(random), protocol).with_ports(random.of(&[20_005, 40_000]), port);
    packet.tcp_flags = Some(random.of(&[0x02, 0x10, 0x04]));
    packet.length = Some(random.of(&[60, 128, 700]));
    packet.mark = Word::known(random.of(&[0, 1, 0x4000, 0x24001]));
    let states = random.of(&[state::NEW, state::ESTABLISHED, state::INVALID, state::UNTRACKED]);
    packet.connection = Connection { states, reply: Some(random.once_in(2)), status: Some(0), mark: Word::known(random.of(&[0, 0x10])) };
    packet.input = Some(Some(Device { index: 1, name: Some(random.of(&["lo", "eth0", "veth7"]).to_owned()) }));
    packet.output = Some(None);
    packet.destination_type = Some(random.of(&[AddressType::Local, AddressType::Unicast]));
    packet.source_type = Some(AddressType::Unicast);
    packet
}

/// Each rule has to let the packet pass by both.
fn same_tests(by_nft: &Ruleset, by_legacy: &Ruleset, packet: &Packet, text: &str) {
    // Tables of iptables-legacy stay once they are there.
    for chain in by_nft.chains.iter().filter(|c| c.table.engine == Engine::Nftables) {
        let same = |c: &&sockpath_ruleset::Chain| c.table.title() == chain.table.title() && c.name == chain.name;
        let other = by_legacy.chains.iter().find(same).expect("the chain");
        // A chain that is jumped to ends in an entry that returns.
        let returns = usize::from(chain.base.is_none());
        assert_eq!(chain.rules.len() + returns, other.rules.len(), "chain {} of {}\n{text}", chain.name, chain.table.title());
        for (rule, same) in chain.rules.iter().zip(&other.rules) {
            let (nft, legacy) = (passes(by_nft, rule, packet), passes(by_legacy, same, packet));
            assert_eq!(nft, legacy, "{packet:#?}\n{rule:#?}\n{same:#?}\n{text}");
        }
    }
}

/// Compares so many rulesets.
pub fn compare(rulesets: usize) {
    let mut random = Random::new(14);
    let (mut ended, mut cases) = (0, 0);
    for _ in 0..rulesets {
        let text = in_v6(&Dialect::IptablesNft.random(&mut random));
        nft("flush ruleset\n");
        feed("ip6tables-nft-restore", &[], &text);
        let by_nft = Namespace::read_here().expect("cannot read the rules").rules;
        nft("flush ruleset\n");
        feed("ip6tables-legacy-restore", &[], &text);
        let by_legacy = Namespace::read_here().expect("cannot read the rules").rules;
        feed("ip6tables-legacy-restore", &[], "*filter\n:INPUT ACCEPT\nCOMMIT\n*mangle\n:INPUT ACCEPT\nCOMMIT\n");
        for _ in 0..100 {
            let packet = packet(&mut random);
            let (nft, legacy) = (ends(&by_nft, Engine::Nftables, &packet), ends(&by_legacy, Engine::Legacy, &packet));
            same_tests(&by_nft, &by_legacy, &packet, &text);
            assert_eq!(nft, legacy, "{packet:#?}\n{text}");
            ended += usize::from(!nft.0.is_empty());
            cases += 1;
        }
    }
    println!("{cases} cases, {ended} with a drop");
    assert!(ended * 5 > cases);
}
