//! Asking a namespace for its nftables chains and rules (NFT_MSG_GETCHAIN, NFT_MSG_GETRULE; include/uapi/linux/netfilter/nf_tables.h).

use std::fs::File;

use anyhow::{Context, Result, bail};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::trace::netns::inside;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// What the kernel answered: address family and attributes of each chain and rule.
#[derive(Debug, Default)]
pub struct Dump {
    pub chains: Vec<(u8, Vec<u8>)>,
    pub rules: Vec<(u8, Vec<u8>)>,
}

/// Dumps all families. That needs CAP_NET_ADMIN in the namespace.
pub fn dump(netns: &File) -> Result<Dump> {
    inside(netns, || {
        let mut socket = Socket::new(NETLINK_NETFILTER).context("cannot open a netfilter socket")?;
        socket.bind_auto().context("cannot bind a netfilter socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("cannot reach netfilter")?;
        Ok(Dump { chains: ask(&socket, NFT_MSG_GETCHAIN, NFT_MSG_NEWCHAIN)?, rules: ask(&socket, NFT_MSG_GETRULE, NFT_MSG_NEWRULE)? })
    })
}

fn ask(socket: &Socket, request: u16, answer: u16) -> Result<Vec<(u8, Vec<u8>)>> {
    let length = u32::try_from(HEADER + GENERIC)?;
    let kind = NFNL_SUBSYS_NFTABLES << 8 | request;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP)?;
    let mut message = Vec::with_capacity(HEADER + GENERIC);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port, then family (all), version and resource.
    message.extend([0; 8]);
    message.extend([0; 4]);
    socket.send(&message, 0).context("cannot ask netfilter")?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().context("cannot read netfilter's answer")?;
        let mut rest = bytes.as_slice();
        while let Some((length, kind)) = header(rest) {
            let body = rest.get(HEADER..length).unwrap_or_default();
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    bail!("netfilter refuses: {}", std::io::Error::from_raw_os_error(-code));
                }
                kind if kind == NFNL_SUBSYS_NFTABLES << 8 | answer => {
                    if let Some((generic, attributes)) = body.split_at_checked(GENERIC) {
                        found.push((generic[0], attributes.to_vec()));
                    }
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Length and type of the message that begins here.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (length >= HEADER && length <= bytes.len()).then_some((length, kind))
}
