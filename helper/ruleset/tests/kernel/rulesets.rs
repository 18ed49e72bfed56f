//! Random rulesets.

use std::fmt::Write as _;

use sockpath_ruleset::Engine;

use crate::Random;
use crate::packets::{feed, nft};

/// What a ruleset is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// nft.
    Nft,
    /// iptables-nft-restore.
    IptablesNft,
    /// iptables-legacy-restore.
    IptablesLegacy,
}

/// Counts what has passed everything, and keeps answers of the kernel from being sent.
const WITNESS: &str = "table ip witness {
 chain last { type filter hook input priority 2000; counter; }
 chain answers { type filter hook output priority -400; ip dscp != ef drop; }
}
";

/// Chains that rules jump to. A chain jumps to later ones only.
const CHAINS: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Dialect {
    /// Who runs it.
    pub fn engine(self) -> Engine {
        match self {
            Self::IptablesLegacy => Engine::Legacy,
            _ => Engine::Nftables,
        }
    }

    /// Takes everything away.
    pub fn flush(self) {
        if self == Self::IptablesLegacy {
            feed("iptables-legacy-restore", &[], "*filter\n:INPUT ACCEPT\nCOMMIT\n*mangle\n:INPUT ACCEPT\nCOMMIT\n");
        }
        nft("flush ruleset\n");
    }

    /// Loads a ruleset.
    pub fn load(self, text: &str) {
        match self {
            Self::Nft => nft(&format!("flush ruleset\n{text}{WITNESS}")),
            Self::IptablesNft => {
                feed("iptables-nft-restore", &[], text);
                nft(WITNESS);
            }
            Self::IptablesLegacy => {
                nft(&format!(
                    "flush ruleset\n{WITNESS}table ip tracking {{ chain o {{ type filter hook output priority 0; ct state new accept; }}; }}\n"
                ));
                feed("iptables-legacy-restore", &[], text);
            }
        }
    }

    /// A random ruleset.
    pub fn random(self, random: &mut Random) -> String {
        match self {
            Self::Nft => nft_ruleset(random),
            _ => iptables_ruleset(random),
        }
    }
}

fn nft_ruleset(random: &mut Random) -> String {
    let mut text = String::from("table ip t {\n");
    text += " set hosts { type ipv4_addr; flags interval; elements = { 10.9.0.0/31, 10.9.1.0-10.9.1.128 }; }\n";
    text += " set pairs { type ipv4_addr . inet_service; elements = { 10.9.0.1 . 80, 10.9.0.2 . 53, 10.9.1.1 . 8080 }; }\n";
    text += " set ranges { type ipv4_addr . inet_service; flags interval; elements = { 10.9.0.0/24 . 80-443, 10.9.2.0/24 . 8080 }; }\n";
    text += " set marks { type mark; elements = { 0x1, 0x4000 }; }\n";
    let verdicts: Vec<&str> = (0..4).map(|_| random.of(&["drop", "accept", "return", "jump d", "goto e", "continue"])).collect();
    let _ = writeln!(
        text,
        " map ports {{ type inet_service : verdict; flags interval; elements = {{ 53-79 : {}, 80 : {}, 8000-9000 : {}, 9999 : {} }}; }}",
        verdicts[0], verdicts[1], verdicts[2], verdicts[3]
    );
    let _ = writeln!(
        text,
        " map by_host {{ type ipv4_addr . inet_proto : verdict; elements = {{ 10.9.0.1 . udp : jump d, 10.9.0.2 . tcp comment \"no tcp\" : drop }}; }}"
    );
    // Later ones first: a rule may only name a chain that is there.
    for (i, chain) in CHAINS.iter().enumerate().rev() {
        let _ = writeln!(text, " chain {chain} {{");
        for _ in 0..1 + random.below(5) {
            let _ = writeln!(text, "  {}", nft_rule(random, i + 1));
        }
        text += " }\n";
    }
    for (name, priority) in [("first", -150), ("second", 0), ("third", 0)] {
        let policy = if random.once_in(4) { "drop" } else { "accept" };
        let _ = writeln!(text, " chain {name} {{\n  type filter hook input priority {priority}; policy {policy};");
        for _ in 0..2 + random.below(5) {
            let _ = writeln!(text, "  {}", nft_rule(random, 0));
        }
        text += " }\n";
    }
    text += "}\n";
    text
}

fn address(random: &mut Random) -> &'static str {
    random.of(&["10.9.0.1", "10.9.0.2", "10.9.1.1", "10.9.0.0/24", "10.9.0.0/30", "{ 10.9.0.1, 10.9.1.1 }", "10.9.0.2-10.9.1.9", "@hosts"])
}

fn port(random: &mut Random) -> &'static str {
    random.of(&["80", "53", "8080", "80-443", "{ 53, 9999 }", "{ 1-79, 443, 8000-9000 }", "30000-65535"])
}

fn nft_test(random: &mut Random, protocol: &str) -> String {
    let not = if random.once_in(4) { "!= " } else { "" };
    match random.below(19) {
        0 | 1 => format!("ip saddr {not}{}", address(random)),
        2 | 3 => format!("ip daddr {not}{}", address(random)),
        4..=6 => format!("{protocol} dport {not}{}", port(random)),
        7 => format!("th dport {not}{}", port(random)),
        8 => random.of(&["meta l4proto != icmp", "ip protocol 6-17", "ip protocol != 17-20"]).to_owned(),
        9 => format!("meta mark {not}{}", random.of(&["0x0", "0x1", "0x4000", "@marks", "0x1-0x20000", "{ 0x20000, 0x24001 }"])),
        10 => format!("meta mark and {} {}", random.of(&["0x4000", "0x24000", "0x1"]), random.of(&["== 0x0", "!= 0x0", "0x4000"])),
        11 => format!("ct state {}", random.of(&["new", "established,related", "invalid", "{ new, untracked }", "!= established"])),
        12 => format!("ct mark {not}{}", random.of(&["0x0", "0x10", "0x2"])),
        13 => format!("iifname {not}{}", random.of(&["\"lo\"", "\"eth*\"", "\"l*\"", "{ \"lo\", \"eth0\" }"])),
        14 if protocol == "udp" => "udp length > 30".to_owned(),
        14 => format!("tcp flags {}", random.of(&["syn", "& (syn | ack | rst) == syn", "& rst == rst", "! ack", "syn,ack"])),
        15 => format!("ip saddr . th dport {not}{}", random.of(&["@pairs", "@ranges"])),
        16 => format!("meta length {not}{}", random.of(&["0-60", "128", "101-2000", "0-48"])),
        17 => format!("fib daddr type {not}{}", random.of(&["local", "unicast", "{ local, broadcast }"])),
        _ => random.of(&["ct direction reply", "ct direction original", "iif lo", "limit rate 1/second burst 2 packets"]).to_string(),
    }
}

fn nft_rule(random: &mut Random, from: usize) -> String {
    let mut rule = String::new();
    // nft refuses rules about two protocols.
    let protocol = random.of(&["tcp", "udp"]);
    for _ in 0..1 + random.below(2) + random.below(2) {
        rule += &nft_test(random, protocol);
        rule.push(' ');
    }
    if random.once_in(6) {
        rule += "counter ";
        // A rule has one counter: what follows is not counted again.
        rule += &nft_test(random, protocol);
        rule.push(' ');
        return rule + action(random, from).as_str();
    }
    if random.once_in(5) {
        let set = random.of(&[
            "meta mark set 0x1",
            "meta mark set meta mark or 0x4000",
            "meta mark set meta mark and 0xfffdffff",
            "meta mark set meta mark xor 0x1",
            "ct mark set 0x10",
            "ct mark set meta mark",
            "meta mark set ct mark",
        ]);
        return format!("{rule}counter {set}");
    }
    if random.once_in(6) {
        let map = random.of(&[
            "th dport vmap @ports",
            "ip daddr . meta l4proto vmap @by_host",
            "ct state vmap { established : accept, invalid : drop, new : continue }",
            "meta mark vmap { 0x1 : return, 0x4000 : accept }",
            "numgen random mod 2 vmap { 0 : accept, 1 : continue }",
        ]);
        // What a map decides on is counted by a rule of its own: the verdict is the last.
        return match from {
            0..=3 => format!("{rule}counter {map}"),
            _ => format!("{rule}counter continue"),
        };
    }
    format!("{rule}counter {}", action(random, from))
}

fn action(random: &mut Random, from: usize) -> String {
    let jump = CHAINS.get(from..).filter(|c| !c.is_empty()).map(|c| random.of(c));
    match (random.below(10), jump) {
        (0 | 1, _) => "drop".to_owned(),
        (2, _) => "accept".to_owned(),
        (3, _) => "return".to_owned(),
        (4, _) => "reject".to_owned(),
        (5, Some(chain)) => format!("goto {chain}"),
        (6, _) => "continue".to_owned(),
        (_, Some(chain)) if random.once_in(3) => format!("jump {chain} comment \"a reason\""),
        (_, Some(chain)) => format!("jump {chain}"),
        (_, None) => "comment \"does nothing\"".to_owned(),
    }
}

fn iptables_ruleset(random: &mut Random) -> String {
    let mut text = String::new();
    for table in ["mangle", "filter"] {
        let policy = if table == "filter" && random.once_in(4) { "DROP" } else { "ACCEPT" };
        let _ = writeln!(text, "*{table}\n:INPUT {policy} [0:0]");
        for chain in CHAINS {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (i, chain) in CHAINS.iter().enumerate() {
            for _ in 0..1 + random.below(5) {
                let _ = writeln!(text, "-A {chain} {}", iptables_rule(random, table, i + 1));
            }
        }
        for _ in 0..2 + random.below(6) {
            let _ = writeln!(text, "-A INPUT {}", iptables_rule(random, table, 0));
        }
        text += "COMMIT\n";
    }
    text
}

fn iptables_test(random: &mut Random) -> String {
    let not = if random.once_in(4) { "! " } else { "" };
    match random.below(13) {
        0 | 1 => format!("{not}-s {}", random.of(&["10.9.0.1", "10.9.0.0/24", "10.9.1.1/32", "10.9.0.0/30", "10.0.0.0/8"])),
        2 | 3 => format!("{not}-d {}", random.of(&["10.9.0.2", "10.9.0.0/24", "10.9.2.0/24", "10.9.1.0/25"])),
        4 => format!("{not}-i {}", random.of(&["lo", "eth0", "l+", "veth+"])),
        5 => format!("-m conntrack {not}--ctstate {}", random.of(&["NEW", "ESTABLISHED,RELATED", "INVALID", "NEW,UNTRACKED"])),
        6 => format!("-m mark {not}--mark {}", random.of(&["0x1", "0x0/0x20000", "0x4000/0x4000", "0x24001"])),
        7 => format!("-m connmark {not}--mark {}", random.of(&["0x0", "0x10", "0x1/0x1"])),
        8 => format!("-m addrtype {not}--dst-type {}", random.of(&["LOCAL", "UNICAST", "LOCAL,BROADCAST"])),
        9 => format!("-m iprange {not}--src-range {}", random.of(&["10.9.0.1-10.9.0.9", "10.9.0.2-10.9.1.1"])),
        10 => format!("-m length {not}--length {}", random.of(&["0:60", "128", "100:65535"])),
        11 => format!("-m comment --comment \"{}\"", random.of(&["a reason", "ns/name:http", "x"])),
        _ => random
            .of(&["-m statistic --mode random --probability 0.5", "-m limit --limit 1/s --limit-burst 2", "-m conntrack --ctdir REPLY"])
            .to_string(),
    }
}

fn iptables_rule(random: &mut Random, table: &str, from: usize) -> String {
    let mut rule = String::new();
    let not = if random.once_in(4) { "! " } else { "" };
    if random.once_in(2) {
        let protocol = random.of(&["tcp", "udp"]);
        let _ = match random.below(5) {
            0 => write!(rule, "-p {protocol} "),
            1 => write!(rule, "-p {protocol} -m {protocol} {not}--dport {} ", random.of(&["80", "53", "8000:9000", ":443"])),
            2 => write!(rule, "-p {protocol} -m multiport {not}--dports {} ", random.of(&["80,443", "53,8000:9000,9999", "1:100"])),
            3 => write!(rule, "-p tcp -m tcp {not}--tcp-flags {} ", random.of(&["SYN,ACK,RST SYN", "RST RST", "ACK NONE"])),
            _ => write!(rule, "-p {protocol} -m multiport {not}--ports {} ", random.of(&["80,20000:20010", "9999"])),
        };
    }
    let mut used = Vec::new();
    for _ in 0..1 + random.below(2) + random.below(2) {
        let test = iptables_test(random);
        let kind = test.trim_start_matches("! ").split(' ').take(2).collect::<Vec<_>>().join(" ");
        let option = if kind.starts_with("-m") { kind } else { kind[..2].to_owned() };
        if !used.contains(&option) {
            rule += &test;
            rule.push(' ');
            used.push(option);
        }
    }
    let jump = CHAINS.get(from..).filter(|c| !c.is_empty()).map(|c| random.of(c));
    let target = match (random.below(10), jump) {
        (0 | 1, _) => "-j DROP".to_owned(),
        (2, _) => "-j ACCEPT".to_owned(),
        (3, _) => "-j RETURN".to_owned(),
        (4, _) if table == "filter" => "-j REJECT".to_owned(),
        (4, _) => random
            .of(&[
                "-j MARK --set-xmark 0x1/0xffffffff",
                "-j MARK --or-mark 0x4000",
                "-j MARK --and-mark 0xfffdffff",
                "-j MARK --xor-mark 0x1",
            ])
            .to_string(),
        (5, _) if table == "mangle" => random
            .of(&[
                "-j CONNMARK --set-xmark 0x10/0xffffffff",
                "-j CONNMARK --save-mark",
                "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
            ])
            .to_string(),
        (6, Some(chain)) => format!("-g {chain}"),
        (_, Some(chain)) => format!("-j {chain}"),
        (_, None) => String::new(),
    };
    rule + &target
}
