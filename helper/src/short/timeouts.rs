//! How long connection tracking keeps an entry: sysctls of a node's network namespace.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use sockpath_kernel::conntrack::TCP;
use sockpath_kernel::netns::inside;

use crate::node::Netns;

/// What entries are given where the sysctl cannot be read, in seconds: the kernel's defaults.
const TCP_DEFAULT: u32 = 432_000;
const UDP_DEFAULT: u32 = 120;

/// The sysctls, held open: they stay those of the namespace in which they were opened.
#[derive(Debug)]
pub struct Timeouts {
    tcp: Option<File>,
    udp: Option<File>,
}

impl Timeouts {
    /// Opens those of a namespace.
    pub fn of(netns: &Netns) -> Result<Self> {
        let open = |name: &str| File::open(format!("/proc/sys/net/netfilter/{name}")).ok();
        inside(&netns.file, || Ok(Self { tcp: open("nf_conntrack_tcp_timeout_established"), udp: open("nf_conntrack_udp_timeout_stream") }))
    }

    /// Seconds that an entry of this protocol is kept without a packet.
    pub fn of_protocol(&self, protocol: u8) -> u32 {
        let (file, default) = if protocol == TCP { (&self.tcp, TCP_DEFAULT) } else { (&self.udp, UDP_DEFAULT) };
        file.as_ref().and_then(read).unwrap_or(default)
    }
}

fn read(file: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}
