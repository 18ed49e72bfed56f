//! Rulesets as they are found on nodes, recorded from a kernel (`UPDATE_GOLDEN=1 cargo test -p sockpath-ruleset --test kernel`), and what
//! becomes of packets there.

use std::path::PathBuf;

use sockpath_ruleset::{
    AddressType, Candidate, Certainty, Connection, Device, Drop, Engine, Hook, Packet, Reader, Ruleset, Sought, Word, state,
};

fn read(name: &str) -> Ruleset {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/shapes").join(name).with_extension("dump");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut reader = Reader::default();
    let mut rest = bytes.as_slice();
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let (body, after) = tail.split_at(length);
        reader.message(number(0), u8::try_from(number(2)).expect("a family"), body);
        rest = after;
    }
    let mut rules = reader.finish();
    // A counter that stands at 0 is evidence; these are to say nothing.
    for chain in &mut rules.chains {
        chain.packets = chain.packets.map(|n| n + 1);
        chain.rules.iter_mut().for_each(|rule| rule.packets = rule.packets.map(|n| n + 1));
    }
    rules
}

fn packet(from: &str, to: &str, port: u16, states: u32) -> Packet {
    let ip = |text: &str| text.parse().expect("an address");
    let mut packet = Packet::new(ip(from), ip(to), 6).with_ports(40_000, port);
    packet.tcp_flags = Some(if states == state::NEW { 2 } else { 16 });
    packet.mark = Word::known(0);
    packet.connection = Connection { states, reply: Some(false), status: Some(0), mark: Word::known(0) };
    (packet.source_type, packet.destination_type) = (Some(AddressType::Unicast), Some(AddressType::Unicast));
    through(packet, "cni0", "eth0")
}

fn through(mut packet: Packet, input: &str, output: &str) -> Packet {
    let device = |name: &str| Some(Some(Device { index: 7, name: Some(name.to_owned()) }));
    (packet.input, packet.output) = (device(input), device(output));
    packet
}

/// What drops the packet in FORWARD.
fn dropped(rules: &Ruleset, packet: &Packet) -> Option<Candidate> {
    let mut rules = rules.cause_of_drop(&Drop { packet, dropped: None, hook: Hook::Forward, engine: Some(Engine::Nftables) }, None);
    assert!(!rules.incomplete);
    rules.named.take().map(|(candidate, certainty)| {
        assert_eq!(certainty, Certainty::Inferred);
        candidate
    })
}

fn translated(rules: &Ruleset, packet: &Packet, destination: bool, to: &str) -> Option<Candidate> {
    let to: std::net::SocketAddr = to.parse().expect("an address with a port");
    let hook = Some(if destination { Hook::PreRouting } else { Hook::PostRouting });
    rules.cause_of_translation(&Sought { packet, hook, destination, to: (to.ip(), to.port()) }).named.map(|(candidate, _)| candidate)
}

#[test]
fn kube_proxy_with_iptables() {
    let rules = read("kube-proxy-iptables");
    let invalid = dropped(&rules, &packet("10.42.1.2", "10.42.1.3", 8080, state::INVALID)).expect("a drop");
    assert_eq!((invalid.chain.as_str(), invalid.via.as_slice()), ("KUBE-FORWARD", &["FORWARD".to_owned()][..]));
    let empty = dropped(&rules, &packet("10.42.1.2", "10.96.0.12", 80, state::NEW)).expect("a drop");
    assert_eq!(empty.comment.as_deref(), Some("default/empty:http has no endpoints"));
    assert_eq!(dropped(&rules, &packet("10.42.1.2", "10.42.1.3", 8080, state::NEW)), None);
    assert_eq!(dropped(&rules, &packet("10.42.1.2", "10.96.0.12", 80, state::ESTABLISHED)), None);

    // Two Services share an endpoint: what was dialled tells which chains the packet took.
    let dialled = |ip| packet("10.42.1.2", ip, 80, state::NEW);
    let a = translated(&rules, &dialled("10.96.0.10"), true, "10.42.1.3:8080").expect("a rule");
    assert_eq!((a.chain.as_str(), a.via.join(" ")), ("KUBE-SEP-A", "PREROUTING KUBE-SERVICES KUBE-SVC-A".to_owned()));
    let b = translated(&rules, &dialled("10.96.0.11"), true, "10.42.1.3:8080").expect("a rule");
    assert_eq!(b.via.join(" "), "PREROUTING KUBE-SERVICES KUBE-SVC-B");
    assert_eq!(translated(&rules, &dialled("10.96.0.11"), true, "10.42.2.3:8080"), None);
    let mut marked = packet("10.42.1.3", "10.42.1.3", 8080, state::NEW);
    marked.mark = Word::known(0x4000);
    assert_eq!(translated(&rules, &marked, false, "10.42.1.1:40000").expect("a rule").chain, "KUBE-POSTROUTING");
    marked.mark = Word::known(0);
    assert_eq!(translated(&rules, &marked, false, "10.42.1.1:40000"), None);
}

#[test]
fn kube_proxy_with_nftables() {
    let rules = read("kube-proxy-nftables");
    let element = |to, port| dropped(&rules, &packet("10.42.1.2", to, port, state::NEW));
    let gone = element("10.96.0.13", 80).expect("a drop");
    assert_eq!(gone.element, Some(("no-endpoint-services".to_owned(), Some("default/local:http".to_owned()))));
    assert_eq!((gone.chain.as_str(), gone.via.join(" ")), ("service-endpoints-check", "filter-forward".to_owned()));
    let empty = element("10.96.0.12", 80).expect("a drop");
    assert_eq!((empty.chain.as_str(), empty.via.join(" ")), ("reject-chain", "filter-forward service-endpoints-check".to_owned()));
    assert_eq!(empty.element.and_then(|(_, comment)| comment).as_deref(), Some("default/empty:http"));
    let wrong_port = element("10.96.0.10", 81).expect("a drop");
    assert_eq!(wrong_port.comment.as_deref(), Some("Reject traffic to invalid ports of ClusterIPs"));
    assert_eq!(element("10.42.1.3", 8080), None);
    let endpoint = translated(&rules, &packet("10.42.1.2", "10.96.0.10", 80, state::NEW), true, "10.42.2.3:8080").expect("a rule");
    assert_eq!((endpoint.chain.as_str(), endpoint.via.join(" ")), ("endpoint-B", "nat-prerouting services service-A".to_owned()));
}

#[test]
fn calico() {
    let rules = read("calico");
    let between = |port, states| through(packet("10.42.1.2", "10.42.1.3", port, states), "cali1", "cali2");
    let denied = dropped(&rules, &between(8080, state::NEW)).expect("a drop");
    assert_eq!(denied.comment.as_deref(), Some("cali:Drop if no policies passed packet"));
    assert_eq!((denied.chain.as_str(), denied.via.join(" ")), ("cali-tw-cali2", "FORWARD cali-FORWARD cali-to-wl-dispatch".to_owned()));
    assert_eq!(dropped(&rules, &between(9050, state::NEW)), None);
    assert_eq!(dropped(&rules, &between(8080, state::ESTABLISHED)), None);
    let unknown = through(between(8080, state::NEW), "cali9", "cali2");
    assert_eq!(dropped(&rules, &unknown).map(|c| c.chain).as_deref(), Some("cali-from-wl-dispatch"));
}

#[test]
fn docker() {
    let rules = read("docker");
    let way = |input, output, states| dropped(&rules, &through(packet("172.17.0.3", "172.17.0.2", 5432, states), input, output));
    let policy = way("eth0", "docker0", state::NEW).expect("a drop");
    assert_eq!((policy.chain.as_str(), policy.handle), ("FORWARD", None));
    let isolated = way("br-app", "docker0", state::NEW).expect("a drop");
    assert_eq!(
        (isolated.chain.as_str(), isolated.via.join(" ")),
        ("DOCKER-ISOLATION-STAGE-2", "FORWARD DOCKER-ISOLATION-STAGE-1".to_owned())
    );
    assert_eq!(way("eth0", "docker0", state::ESTABLISHED), None);
    assert_eq!(way("docker0", "docker0", state::NEW), None);
}

#[test]
fn firewalld() {
    let rules = read("firewalld");
    let way = |input, states| dropped(&rules, &through(packet("10.42.1.2", "10.42.2.3", 8080, states), input, "eth0"));
    let public = way("br0", state::NEW).expect("a drop");
    assert_eq!((public.chain.as_str(), public.via.join(" ")), ("filter_FWD_public", "filter_FORWARD filter_FORWARD_POLICIES".to_owned()));
    assert_eq!(way("cni0", state::NEW), None);
    assert_eq!(way("br0", state::INVALID).map(|c| c.chain).as_deref(), Some("filter_FORWARD"));
}

#[test]
fn ufw() {
    let rules = read("ufw");
    let to = |port| dropped(&rules, &packet("10.42.1.2", "10.42.2.3", port, state::NEW));
    let policy = to(5432).expect("a drop");
    assert_eq!((policy.chain.as_str(), policy.handle, policy.must), ("FORWARD", None, true));
    let rejected = to(8080).expect("a drop");
    assert_eq!((rejected.chain.as_str(), rejected.via.join(" ")), ("ufw-user-forward", "FORWARD ufw-before-forward".to_owned()));
    assert_eq!(to(443), None);
}
