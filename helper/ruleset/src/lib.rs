//! Netfilter's rules as data.
//!
//! `decode` reads what the kernel dumps (nftables by netlink, iptables-legacy by getsockopt) into a [`Ruleset`], `evaluate` runs one
//! [`Packet`] through the chains of a hook with three-valued results, and `cause` compares the result with the packet counters of rules
//! and chains to name what dropped or translated the packet. Only `read` calls the kernel.

pub use self::bits::{Truth, Word};
pub use self::cause::{Candidate, Cause, Certainty, Drop, Sought};
pub use self::counters::{Baseline, Compared, Counters, Hits};
pub use self::decode::Reader;
pub use self::decode::legacy::{LegacyFamily, Table as LegacyTable};
pub use self::extension::{Match, PortRange, Remark};
pub use self::model::{
    Base, Bitwise, Chain, ChainKind, Comparison, Data, Element, Engine, Expression, Fact, Header, Hook, Rule, Ruleset, Set, Table,
    Translation, Verdict,
};
pub use self::packet::{AddressType, Connection, Device, Packet, state};
pub use self::read::Namespace;
pub use self::read::netlink::ConntrackCounters;

mod bits;
mod cause;
mod counters;
mod decode;
pub mod evaluate;
mod expression;
mod extension;
mod model;
mod packet;
pub mod read;
