//! Notifications of what decides about forwarded packets: rules, routes, devices.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::link::{self, Link};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELTFILTER: u16 = 45;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;

const NFNLGRP_NFTABLES: u32 = 7;
/// `NFT_MSG_NEWGEN` of the subsystem nftables.
const NEWGEN: u16 = 10 << 8 | 15;

/// What has changed since the last look.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The nftables rule set has a new generation.
    pub rules: bool,
    /// Routes, routing rules or addresses.
    pub routes: bool,
    /// Queue disciplines or filters of tc.
    pub tc: bool,
    /// Devices that appeared, changed or went, as they are now.
    pub links: Vec<Link>,
    /// Devices that are gone, by index.
    pub gone: Vec<u32>,
    /// Notifications were lost: anything may have changed.
    pub lost: bool,
}

impl Changes {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn note(&mut self, kind: u16, body: &[u8]) {
        match kind {
            RTM_NEWLINK => self.links.extend(link::read(body)),
            RTM_DELLINK => self.gone.extend(link::read(body).map(|l| l.index)),
            RTM_NEWQDISC..=RTM_DELTFILTER => self.tc = true,
            NEWGEN => self.rules = true,
            kind if kind >> 8 != 0 => {}
            RTM_NEWADDR | RTM_DELADDR => self.routes = true,
            // What is left of these groups: routes and rules.
            _ => self.routes = true,
        }
    }
}

/// Subscriptions in one network namespace.
#[derive(Debug)]
pub struct Watch {
    route: Socket,
    /// `None` on kernels without nftables.
    nftables: Option<Socket>,
}

impl Watch {
    /// Subscribes in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_RULE,
        ];
        let route = Socket::subscribe(NETLINK_ROUTE, &groups)?;
        Ok(Self { route, nftables: Socket::subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).ok() })
    }

    /// Descriptors that are readable when something has changed.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.route.as_fd()).chain(self.nftables.iter().map(AsFd::as_fd))
    }

    /// What has changed since the last call, without waiting.
    ///
    /// # Errors
    /// When a socket cannot be read.
    pub fn changes(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        for socket in std::iter::once(&mut self.route).chain(self.nftables.as_mut()) {
            match socket.notifications()? {
                Some(messages) => messages.iter().for_each(|m| changes.note(m.kind, &m.body)),
                None => changes.lost = true,
            }
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_changes_are_distinguished() {
        let noted = |kind| {
            let mut changes = Changes::default();
            changes.note(kind, &[0; 32]);
            changes
        };
        assert!(noted(NEWGEN).rules && !noted(NEWGEN).routes);
        assert!(noted(24).routes && noted(25).routes && noted(32).routes && noted(RTM_DELADDR).routes);
        assert!(noted(36).tc && noted(44).tc);
        // Other messages of nftables, such as a rule that is part of a transaction.
        assert!(noted(10 << 8 | 6).is_empty());
    }
}
