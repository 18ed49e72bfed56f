//! Matches and targets of iptables (include/uapi/linux/netfilter/xt_*.h): the same under iptables-nft and iptables-legacy.

use std::net::IpAddr;

use crate::extension::{Match, PortRange, Remark};
use crate::model::{Expression, Translation, Verdict};

/// Reads a struct of the kernel.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn short(&self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.get(at..at + 2)?.try_into().ok()?))
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn ports(&self, at: usize, inverted: bool) -> Option<PortRange> {
        Some(PortRange { from: self.short(at)?, to: self.short(at + 2)?, negated: inverted })
    }

    fn bytes(&self, at: usize, length: usize) -> Option<Box<[u8]>> {
        self.0.get(at..at + length).map(Into::into)
    }
}

/// What an extension does that a sender, a receiver or others notice.
pub fn effect(name: &str) -> Option<&'static str> {
    const EFFECTS: [(&str, &str); 12] = [
        ("limit", "limit"),
        ("hashlimit", "hashlimit"),
        ("connlimit", "connlimit"),
        ("quota", "quota"),
        ("connbytes", "connbytes"),
        ("DROP", "drop"),
        ("REJECT", "reject"),
        ("LOG", "log"),
        ("NFLOG", "nflog"),
        ("NFQUEUE", "nfqueue"),
        ("TEE", "tee"),
        ("AUDIT", "audit"),
    ];
    EFFECTS.iter().find(|(of, _)| *of == name).map(|(_, effect)| *effect)
}

/// A match by its name, revision and data.
pub fn matches(name: &str, revision: u32, info: &[u8]) -> Expression {
    let known = decode(name, revision, &Fields(info));
    known.map_or(Expression::Unknown { to: None, may_fail: true }, |m| Expression::Match(Box::new(m)))
}

fn decode(name: &str, revision: u32, f: &Fields<'_>) -> Option<Match> {
    match (name, revision) {
        ("tcp", _) => {
            let inverted = f.byte(11)?;
            let flags = (f.byte(9)?, f.byte(10)?, inverted & 4 != 0);
            Some(Match::Ports {
                source: f.ports(0, inverted & 1 != 0)?,
                destination: f.ports(4, inverted & 2 != 0)?,
                flags: (flags.0 != 0).then_some(flags),
                option: f.byte(8)? != 0,
            })
        }
        ("udp", _) => {
            let inverted = f.byte(8)?;
            let (source, destination) = (f.ports(0, inverted & 1 != 0)?, f.ports(4, inverted & 2 != 0)?);
            Some(Match::Ports { source, destination, flags: None, option: false })
        }
        ("multiport", 1) => multiport(f),
        ("conntrack", 1..=3) => {
            let short = |at: usize, old: usize| if revision == 1 { f.byte(old).map(u16::from) } else { f.short(at) };
            Some(Match::Connection { asks: f.short(146)?, negated: f.short(148)?, states: short(150, 150)?, status: short(152, 151)? })
        }
        ("state", _) => Some(Match::Connection { asks: 1, negated: 0, states: u16::try_from(f.word(0)?).ok()?, status: 0 }),
        ("mark" | "connmark", 1) => {
            Some(Match::Mark { connection: name == "connmark", value: f.word(0)?, mask: f.word(4)?, negated: f.byte(8)? != 0 })
        }
        ("addrtype", 1) => {
            let flags = f.word(4)?;
            Some(Match::AddressType {
                source: f.short(0)?,
                destination: f.short(2)?,
                negated: (flags & 1 != 0, flags & 2 != 0),
                of_device: flags & 12 != 0,
            })
        }
        ("icmp" | "icmp6", _) => Some(Match::Icmp { kind: f.byte(0)?, codes: (f.byte(1)?, f.byte(2)?), negated: f.byte(3)? & 1 != 0 }),
        ("iprange", 1) => {
            let flags = f.byte(64)?;
            let range = |at: usize, bit: u8| (flags & bit != 0).then(|| Some((f.bytes(at, 16)?, f.bytes(at + 16, 16)?))).flatten();
            Some(Match::Addresses { source: range(0, 1), destination: range(32, 2), negated: (flags & 16 != 0, flags & 32 != 0) })
        }
        ("length", _) => Some(Match::Length { from: f.short(0)?, to: f.short(2)?, negated: f.byte(4)? != 0 }),
        _ => None,
    }
}

fn multiport(f: &Fields<'_>) -> Option<Match> {
    let count = usize::from(f.byte(1)?).min(15);
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < count {
        let from = f.short(2 + 2 * at)?;
        let is_range = f.byte(32 + at)? != 0;
        let to = if is_range && at + 1 < 15 { f.short(4 + 2 * at)? } else { from };
        ranges.push((from, to));
        at += if is_range { 2 } else { 1 };
    }
    Some(Match::AnyPort { of: f.byte(0)?, ranges: ranges.into(), negated: f.byte(47)? != 0 })
}

/// A target by its name, revision and data; `None` when the rule goes on as if it were not there.
pub fn target(name: &str, revision: u32, info: &[u8]) -> Option<Expression> {
    let f = Fields(info);
    let verdict = |v| Some(Expression::Verdict(v));
    let remark = |r: Option<Remark>| Some(Expression::Remark(Box::new(r.unwrap_or(Remark::Unknown))));
    match name {
        "ACCEPT" => verdict(Verdict::Accept),
        "DROP" => verdict(Verdict::Drop),
        "RETURN" => verdict(Verdict::Return),
        "REJECT" => verdict(Verdict::Reject),
        "NFQUEUE" => verdict(Verdict::Queue),
        "DNAT" | "SNAT" => Some(Expression::Translate(translation(name == "DNAT", revision, &f))),
        "MASQUERADE" => Some(Expression::Translate(Translation::Masquerade)),
        "REDIRECT" => Some(Expression::Translate(Translation::Redirect)),
        "MARK" if revision == 2 => remark(f.word(0).zip(f.word(4)).map(|(value, mask)| Remark::Mark { value, mask })),
        "CONNMARK" if matches!(revision, 1 | 2) => remark(connection_mark(revision, &f)),
        "MARK" | "CONNMARK" => remark(None),
        "CT" | "NOTRACK" => (name == "NOTRACK" || f.short(0)? & 1 != 0).then_some(Expression::Untrack),
        "LOG" | "NFLOG" | "ULOG" | "TCPMSS" | "TEE" | "CLASSIFY" | "CHECKSUM" | "TRACE" | "AUDIT" | "DSCP" | "TOS" | "TTL" | "HL"
        | "SET" | "IDLETIMER" | "RATEEST" | "LED" | "SECMARK" | "CONNSECMARK" | "TCPOPTSTRIP" | "ECN" | "HMARK" => {
            (name == "HMARK").then(|| Expression::Remark(Box::new(Remark::Unknown)))
        }
        _ => verdict(Verdict::Unknown),
    }
}

fn connection_mark(revision: u32, f: &Fields<'_>) -> Option<Remark> {
    let shifted = revision == 2 && f.byte(13)? != 0;
    let mode = f.byte(if revision == 2 { 14 } else { 12 })?;
    let (value, connection_mask, packet_mask) = (f.word(0)?, f.word(4)?, f.word(8)?);
    match mode {
        _ if shifted => None,
        0 => Some(Remark::Connection { value, mask: connection_mask }),
        1 => Some(Remark::Save { connection: connection_mask, packet: packet_mask }),
        2 => Some(Remark::Restore { connection: connection_mask, packet: packet_mask }),
        _ => None,
    }
}

/// `struct nf_nat_range2` (revision 1 and later), or the older `nf_nat_ipv4_multi_range_compat`.
fn translation(destination: bool, revision: u32, f: &Fields<'_>) -> Translation {
    const MAP_IPS: u32 = 1;
    const PROTO_SPECIFIED: u32 = 2;
    let base = if revision == 0 { 4 } else { 0 };
    let flags = f.word(base).unwrap_or(0);
    let (address, port) = if revision == 0 { (f.bytes(base + 4, 4), f.bytes(base + 12, 2)) } else { (f.bytes(4, 16), f.bytes(36, 2)) };
    let ip = address.filter(|_| flags & MAP_IPS != 0).and_then(|b| if b.len() == 4 || b[4..] == [0; 12] { ip(&b[..4]) } else { ip(&b) });
    let port = port.filter(|_| flags & PROTO_SPECIFIED != 0).map(|b| u16::from_be_bytes([b[0], b[1]]));
    Translation::Fixed { destination, address: ip, port }
}

/// An address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
