//! Reading everything of a namespace that a packet's fate at netfilter depends on: the only part that calls the kernel.

use std::net::IpAddr;

use crate::decode::Reader;
use crate::model::Ruleset;
use crate::packet::AddressType;
use anyhow::Result;

pub mod legacy;
pub mod netlink;

/// The rules of a namespace, and its addresses.
#[derive(Debug, Default)]
pub struct Namespace {
    /// Rules of nftables and of iptables-legacy.
    pub rules: Ruleset,
    /// Conntrack's counters, where they can be read.
    pub conntrack: Option<netlink::ConntrackCounters>,
    addresses: Vec<IpAddr>,
    broadcast: Vec<IpAddr>,
}

impl Namespace {
    /// Reads the namespace that this thread is in.
    ///
    /// # Errors
    /// When the kernel refuses (it takes CAP_NET_ADMIN in the namespace), or has no nftables.
    pub fn read_here() -> Result<Self> {
        let mut reader = match netlink::read_rules() {
            Err(e) if is_absent(&e) => Reader::default(),
            reader => reader?,
        };
        if let Err(e) = legacy::read_tables(&mut |table| reader.legacy(table)) {
            reader.gap(format!("{e:#}"));
        }
        let (addresses, broadcast) = netlink::addresses()?;
        Ok(Self { rules: reader.finish(), conntrack: netlink::conntrack_counters(), addresses, broadcast })
    }

    /// What an address is to this namespace's routing.
    #[must_use]
    pub fn address_type(&self, ip: IpAddr) -> AddressType {
        let everyone = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_loopback() || self.addresses.contains(&ip) {
            AddressType::Local
        } else if ip.is_multicast() {
            AddressType::Multicast
        } else if everyone || self.broadcast.contains(&ip) {
            AddressType::Broadcast
        } else {
            AddressType::Unicast
        }
    }
}

/// Whether this kernel has no nftables: no such protocol, or no such subsystem of it.
fn is_absent(error: &anyhow::Error) -> bool {
    let unknown = [libc::EPROTONOSUPPORT, libc::EINVAL, libc::EOPNOTSUPP];
    error.chain().any(|cause| {
        let errno = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        errno.is_some_and(|errno| unknown.contains(&errno))
    })
}
