//! What the helper asks of the kernel, without knowing why: netlink (links, addresses, routes, IPsec policies, changes), connection
//! tracking, tc, control groups, network namespaces, clocks, type information, and maps shared with BPF programs.
//!
//! A [`netlink::Socket`] belongs to the network namespace of the thread that opened it; everything that takes one works there.

pub mod address;
pub mod bridge;
pub mod btf;
pub mod cgroup;
pub mod change;
pub mod clock;
pub mod conntrack;
pub mod link;
pub mod neighbour;
pub mod netns;
pub mod route;
pub mod shared;
pub mod tc;
pub mod xfrm;

pub use sockpath_netlink as netlink;
