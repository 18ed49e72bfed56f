//! Connection tracking by ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h): entries, and what may be changed in them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::netlink::{Attributes, Body, NETLINK_NETFILTER, Socket, family, octets};

const SUBSYSTEM: u16 = 1 << 8;
const CT_NEW: u16 = SUBSYSTEM;
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_TIMEOUT: u16 = 7;
const CTA_ID: u16 = 12;
const CTA_SEQ_ADJ_ORIG: u16 = 15;
const CTA_SEQ_ADJ_REPLY: u16 = 16;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

const IPS_ASSURED: u32 = 1 << 2;
const IPS_SEQ_ADJUST: u32 = 1 << 6;
const IPS_DYING: u32 = 1 << 9;
const IPS_HELPER: u32 = 1 << 13;
const IPS_OFFLOAD: u32 = 1 << 14;
const IPS_HW_OFFLOAD: u32 = 1 << 15;
const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 0x08;
const IP_CT_TCP_FLAG_MAXACK_SET: u8 = 0x20;

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;

/// One direction of a flow: protocol, where its packets come from and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// TCP or UDP.
    pub protocol: u8,
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
}

impl Tuple {
    /// The direction back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

/// What connection tracking knows of a flow of TCP or UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As the first packet came in.
    pub original: Tuple,
    /// As packets of the answer come in: the reverse of what the first packet was translated to.
    pub reply: Tuple,
    /// Tells it from an earlier entry of the same tuples.
    pub id: u32,
    /// Both sides have sent enough to be believed.
    pub assured: bool,
    /// TCP's state is ESTABLISHED; always true for UDP.
    pub established: bool,
    /// It is being removed.
    pub dying: bool,
    /// Sequence numbers are adjusted.
    pub sequence_adjusted: bool,
    /// A helper (FTP, SIP, ...) follows it.
    pub helper: bool,
    /// A flow table carries its packets already.
    pub offloaded: bool,
    /// Its zone; 0 is the default one.
    pub zone: u16,
    /// Seconds until it expires without a packet.
    pub timeout: u32,
    /// Packets outside TCP's windows are let through in both directions.
    pub liberal: bool,
}

/// What is to be changed in an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Update {
    /// Let packets outside TCP's windows through, in both directions: it has not seen all packets.
    pub liberal: bool,
    /// Seconds until it expires.
    pub timeout: Option<u32>,
}

/// Connection tracking of one network namespace.
#[derive(Debug)]
pub struct Conntrack(Socket);

impl Conntrack {
    /// Opens it in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has no netfilter, or refuses.
    pub fn open() -> io::Result<Self> {
        Socket::open(NETLINK_NETFILTER).map(Self)
    }

    /// All entries of TCP and UDP, one after the other.
    ///
    /// # Errors
    /// When the kernel has no ctnetlink, or refuses.
    pub fn dump(&mut self, mut each: impl FnMut(Entry)) -> io::Result<()> {
        self.0.dump(CT_GET, CT_NEW, generic(0).bytes(), |body| {
            if let Some(entry) = read(body) {
                each(entry);
            }
        })
    }

    /// The entry that has this tuple in either direction.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn get(&mut self, tuple: &Tuple) -> io::Result<Option<Entry>> {
        match self.0.request(CT_GET, 0, named(tuple).bytes()) {
            Ok(answers) => Ok(answers.iter().filter(|m| m.kind == CT_NEW).find_map(|m| read(&m.body))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Changes entries in their order, many with each system call; for each, whether there is one, or why it cannot be changed.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn update_each(&mut self, updates: &[(Tuple, Update)]) -> io::Result<Vec<io::Result<bool>>> {
        let bodies: Vec<Body> = updates.iter().map(|(tuple, update)| changed(tuple, *update)).collect();
        Ok(self.0.request_each(CT_NEW, &bodies)?.into_iter().map(found).collect())
    }

    /// Deletes the entry that has this tuple; false when there is none.
    ///
    /// # Errors
    /// When the kernel refuses (CAP_NET_ADMIN).
    pub fn delete(&mut self, tuple: &Tuple) -> io::Result<bool> {
        found(self.0.request(CT_DELETE, 0, named(tuple).bytes()).map(drop))
    }
}

fn found(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        // ETIME: it is being removed.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ETIME)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Notifications of entries that are gone.
#[derive(Debug)]
pub struct Destroyed(Socket);

impl Destroyed {
    /// Subscribes in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Socket::subscribe(NETLINK_NETFILTER, &[NFNLGRP_CONNTRACK_DESTROY]).map(Self)
    }

    /// The descriptor that is readable when there are any.
    #[must_use]
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Entries that have gone since the last call, without waiting; `None` when notifications were lost.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn entries(&mut self) -> io::Result<Option<Vec<Entry>>> {
        let messages = self.0.notifications()?;
        Ok(messages.map(|all| all.iter().filter(|m| m.kind == CT_DELETE).filter_map(|m| read(&m.body)).collect()))
    }
}

/// Begins a message about a family.
fn generic(family: u8) -> Body {
    Body::new(&[family, 0, 0, 0])
}

/// A message that changes the entry that has this tuple.
fn changed(tuple: &Tuple, update: Update) -> Body {
    let mut body = named(tuple);
    if update.liberal && tuple.protocol == TCP {
        let flags = [IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL | IP_CT_TCP_FLAG_MAXACK_SET];
        let tcp = Body::default().with(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &flags).with(CTA_PROTOINFO_TCP_FLAGS_REPLY, &flags);
        body = body.with_nested(CTA_PROTOINFO, &Body::default().with_nested(CTA_PROTOINFO_TCP, &tcp));
    }
    if let Some(timeout) = update.timeout {
        body = body.with(CTA_TIMEOUT, &timeout.to_be_bytes());
    }
    body
}

/// Begins a message about the entry that has this tuple.
fn named(tuple: &Tuple) -> Body {
    let (source, destination) = (tuple.source.ip(), tuple.destination.ip());
    let kinds = if source.is_ipv4() { [CTA_IP_V4_SRC, CTA_IP_V4_DST] } else { [CTA_IP_V6_SRC, CTA_IP_V6_DST] };
    let ip = Body::default().with(kinds[0], &octets(source)).with(kinds[1], &octets(destination));
    let ports = Body::default()
        .with(CTA_PROTO_NUM, &[tuple.protocol])
        .with(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes())
        .with(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    let inner = Body::default().with_nested(CTA_TUPLE_IP, &ip).with_nested(CTA_TUPLE_PROTO, &ports);
    generic(family(source)).with_nested(CTA_TUPLE_ORIG, &inner)
}

fn read_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let (ip, proto) = (attributes.nested(CTA_TUPLE_IP)?, attributes.nested(CTA_TUPLE_PROTO)?);
    let protocol = *proto.get(CTA_PROTO_NUM)?.first()?;
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let address = |v4, v6| -> Option<IpAddr> { ip.address(v4).or_else(|| ip.address(v6)) };
    let port = |kind| -> Option<u16> { Some(u16::from_be_bytes(proto.get(kind)?.try_into().ok()?)) };
    Some(Tuple {
        protocol,
        source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    })
}

/// An entry out of a message; `None` for other protocols than TCP and UDP.
fn read(body: &[u8]) -> Option<Entry> {
    let attributes = Attributes::behind(body, NFGENMSG);
    let (original, reply) = (attributes.nested(CTA_TUPLE_ORIG)?, attributes.nested(CTA_TUPLE_REPLY)?);
    let status = attributes.network_word(CTA_STATUS).unwrap_or(0);
    let tcp = attributes.nested(CTA_PROTOINFO).and_then(|p| p.nested(CTA_PROTOINFO_TCP));
    let byte = |kind| tcp.and_then(|t| t.get(kind)?.first().copied());
    let is_liberal = |kind| byte(kind).is_some_and(|flags| flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0);
    let zone = |a: Attributes<'_>, kind| a.get(kind).and_then(|z| Some(u16::from_be_bytes(z.try_into().ok()?))).unwrap_or(0);
    let tuple = read_tuple(original)?;
    Some(Entry {
        original: tuple,
        reply: read_tuple(reply)?,
        id: attributes.network_word(CTA_ID).unwrap_or(0),
        assured: status & IPS_ASSURED != 0,
        established: tuple.protocol == UDP || byte(CTA_PROTOINFO_TCP_STATE) == Some(TCP_CONNTRACK_ESTABLISHED),
        dying: status & IPS_DYING != 0,
        sequence_adjusted: status & IPS_SEQ_ADJUST != 0
            || attributes.get(CTA_SEQ_ADJ_ORIG).is_some()
            || attributes.get(CTA_SEQ_ADJ_REPLY).is_some(),
        helper: status & IPS_HELPER != 0 || attributes.get(CTA_HELP).is_some(),
        offloaded: status & (IPS_OFFLOAD | IPS_HW_OFFLOAD) != 0,
        zone: zone(attributes, CTA_ZONE) | zone(original, CTA_TUPLE_ZONE) | zone(reply, CTA_TUPLE_ZONE),
        timeout: attributes.network_word(CTA_TIMEOUT).unwrap_or(0),
        liberal: is_liberal(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL) && is_liberal(CTA_PROTOINFO_TCP_FLAGS_REPLY),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple { protocol: TCP, source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
    }

    /// The attributes of a tuple as the kernel sends them.
    fn written(tuple: &Tuple) -> Body {
        let whole = named(tuple);
        let inner = Attributes::behind(whole.bytes(), NFGENMSG).get(CTA_TUPLE_ORIG).expect("a tuple");
        Body::new(inner)
    }

    fn entry(status: u32, state: u8, flags: u8) -> Vec<u8> {
        let tcp = Body::default()
            .with(CTA_PROTOINFO_TCP_STATE, &[state])
            .with(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &[flags, 0])
            .with(CTA_PROTOINFO_TCP_FLAGS_REPLY, &[flags, 0]);
        generic(2)
            .with_nested(CTA_TUPLE_ORIG, &written(&tuple("10.42.1.2:4000", "10.96.0.10:80")))
            .with_nested(CTA_TUPLE_REPLY, &written(&tuple("10.42.1.3:8080", "10.42.1.2:4000")))
            .with(CTA_STATUS, &status.to_be_bytes())
            .with_nested(CTA_PROTOINFO, &Body::default().with_nested(CTA_PROTOINFO_TCP, &tcp))
            .with(CTA_TIMEOUT, &300u32.to_be_bytes())
            .with(CTA_ID, &77u32.to_be_bytes())
            .bytes()
            .to_vec()
    }

    #[test]
    fn an_entry_is_read() {
        let read = read(&entry(IPS_ASSURED, 3, 0)).expect("an entry");
        assert_eq!(read.original, tuple("10.42.1.2:4000", "10.96.0.10:80"));
        assert_eq!(read.reply, tuple("10.42.1.3:8080", "10.42.1.2:4000"));
        assert!(read.assured && read.established && !read.liberal && !read.helper && !read.sequence_adjusted && !read.offloaded);
        assert_eq!((read.id, read.timeout, read.zone), (77, 300, 0));
    }

    #[test]
    fn what_makes_an_entry_unfit_is_read() {
        let with = |status| read(&entry(status, 3, 0)).expect("an entry");
        assert!(with(IPS_SEQ_ADJUST).sequence_adjusted && with(IPS_HELPER).helper && with(IPS_OFFLOAD).offloaded && with(IPS_DYING).dying);
        assert!(!read(&entry(IPS_ASSURED, 4, 0)).expect("an entry").established);
        assert!(read(&entry(IPS_ASSURED, 3, 8)).expect("an entry").liberal);
    }

    #[test]
    fn a_tuple_of_ipv6_survives_the_codec() {
        let six = tuple("[fd00::2]:4000", "[fd00::3]:80");
        assert_eq!(read_tuple(Attributes::behind(written(&six).bytes(), 0)), Some(six));
        assert_eq!(six.reversed().reversed(), six);
    }

    #[test]
    fn other_protocols_are_left_out() {
        let mut icmp = tuple("10.42.1.2:4000", "10.96.0.10:80");
        icmp.protocol = 1;
        assert_eq!(read_tuple(Attributes::behind(written(&icmp).bytes(), 0)), None);
    }
}
