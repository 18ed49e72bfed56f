//! Recorded dumps of rulesets in the shapes that are found on nodes: what the kernel gave when it was loaded with the text beside it.

use std::path::Path;

use sockpath_netlink::{NETLINK_NETFILTER, Socket};
use sockpath_ruleset::read::netlink::dump;

use crate::packets::{feed, nft};

/// Loads a text and gives what the kernel dumps then: kind, address family, length and attributes of each message.
pub fn record(text: &Path) -> Vec<u8> {
    let content = std::fs::read_to_string(text).expect("a ruleset");
    nft("flush ruleset\n");
    match text.extension().and_then(|e| e.to_str()) {
        Some("nft") => nft(&content),
        _ => feed("iptables-nft-restore", &[], &content),
    }
    let mut socket = Socket::open(NETLINK_NETFILTER).expect("cannot open a netfilter socket");
    let mut bytes = Vec::new();
    let mut take = |kind: u16, family: u8, body: &[u8]| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u16::from(family).to_le_bytes());
        bytes.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
        bytes.extend(body);
    };
    dump(&mut socket, &mut take).expect("cannot read the rules");
    bytes
}
