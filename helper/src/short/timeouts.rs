//! How long connection tracking keeps an entry: sysctls of a node's network namespace.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sockpath_kernel::conntrack::TCP;

/// What entries are given where the sysctl cannot be read, in seconds: the kernel's defaults.
const TCP_DEFAULT: u32 = 432_000;
const UDP_DEFAULT: u32 = 120;

/// A sysctl of connection tracking that is a number, held open: it stays that of the namespace in which it was opened.
#[derive(Debug)]
pub struct Sysctl {
    file: Option<File>,
    value: u32,
}

impl Sysctl {
    /// Reads it in the namespace of this thread; `default` is its value where it cannot be read.
    pub fn open(name: &str, default: u32) -> Self {
        let mut sysctl = Self { file: File::open(format!("/proc/sys/net/netfilter/{name}")).ok(), value: default };
        sysctl.refresh();
        sysctl
    }

    /// Its value when it was read last.
    pub fn value(&self) -> u32 {
        self.value
    }

    /// Reads it again.
    pub fn refresh(&mut self) {
        self.value = self.file.as_ref().and_then(read).unwrap_or(self.value);
    }
}

/// The sysctls.
#[derive(Debug)]
pub struct Timeouts {
    tcp: Sysctl,
    udp: Sysctl,
}

impl Timeouts {
    /// Reads those of the namespace of this thread.
    pub fn open() -> Self {
        let tcp = Sysctl::open("nf_conntrack_tcp_timeout_established", TCP_DEFAULT);
        Self { tcp, udp: Sysctl::open("nf_conntrack_udp_timeout_stream", UDP_DEFAULT) }
    }

    /// Reads them again: an administrator may have changed them.
    pub fn refresh(&mut self) {
        self.tcp.refresh();
        self.udp.refresh();
    }

    /// Seconds that an entry of this protocol is kept without a packet.
    pub fn of_protocol(&self, protocol: u8) -> u32 {
        if protocol == TCP { self.tcp.value } else { self.udp.value }
    }
}

fn read(file: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = file.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}
