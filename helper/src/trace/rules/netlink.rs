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
    /// Of chains.
    pub chains: Vec<(u8, Vec<u8>)>,
    /// Of rules.
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
    let subsystem = NFNL_SUBSYS_NFTABLES << 8;
    // Family (all), version and resource.
    let bodies = dump_all(socket, subsystem | request, subsystem | answer, &[0; GENERIC]).context("cannot ask netfilter")?;
    Ok(bodies.into_iter().filter_map(|b| b.split_at_checked(GENERIC).map(|(generic, rest)| (generic[0], rest.to_vec()))).collect())
}

/// Asks for everything of a kind; gives what follows the header of each answer of type `answer`.
pub fn dump_all(socket: &Socket, request: u16, answer: u16, ask: &[u8]) -> Result<Vec<Vec<u8>>> {
    let length = u32::try_from(HEADER + ask.len())?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP)?;
    let mut message = Vec::with_capacity(HEADER + ask.len());
    message.extend(length.to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port.
    message.extend([0; 8]);
    message.extend(ask);
    socket.send(&message, 0).context("cannot write to netlink")?;
    let mut found = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().context("cannot read netlink's answer")?;
        let mut rest = bytes.as_slice();
        while let Some((length, kind)) = header(rest) {
            let body = rest.get(HEADER..length).unwrap_or_default();
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => {
                    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    bail!("netlink refuses: {}", std::io::Error::from_raw_os_error(-code));
                }
                kind if kind == answer => found.push(body.to_vec()),
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

/// Attributes of a netlink message, by type.
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Reads them as far as they are whole.
    pub fn of(mut bytes: &'a [u8]) -> Self {
        const TYPE: u16 = 0x3fff;
        let mut found = Vec::new();
        while let Some((head, _)) = bytes.split_at_checked(4) {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let Some(value) = bytes.get(4..length) else { break };
            found.push((u16::from_ne_bytes([head[2], head[3]]) & TYPE, value));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Self(found)
    }

    /// The bytes of the first of this type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v)
    }

    /// The attributes in the first of this type.
    pub fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes::of)
    }

    /// The text of the first of this type.
    pub fn text(&self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    /// The number, in network order, of the first of this type.
    pub fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The bytes of all, in their order.
    pub fn values(&self) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().map(|(_, value)| *value)
    }
}

/// Text that a NUL may end.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
