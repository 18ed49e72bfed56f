//! Listeners of the torture: how each is set up, and its ports.

/// How a listener is set up; each variant has its own ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listener {
    /// No options.
    Plain,
    /// `TCP_DEFER_ACCEPT`: data waits before accept(2).
    Defer,
    /// `TCP_FASTOPEN`: data in the SYN.
    FastOpen,
    /// `SO_RCVBUF` and `SO_SNDBUF` of 4 KiB before listen.
    TinyBuffers,
    /// 8 MiB of both.
    HugeBuffers,
    /// An MPTCP listener.
    Mptcp,
    /// Accepts with a delay.
    Slow,
    /// Deferred and with a delay: the first writes pile up in the TCP queue.
    DeferSlow,
}

impl Listener {
    /// All variants, in the order of their ports.
    pub const ALL: [Self; 8] =
        [Self::Plain, Self::Defer, Self::FastOpen, Self::TinyBuffers, Self::HugeBuffers, Self::Mptcp, Self::Slow, Self::DeferSlow];

    /// Number of ports that all variants take: one for `AF_INET`, one for `AF_INET6` sockets each.
    pub const PORTS: u16 = 16;

    /// The port of this variant.
    #[must_use]
    pub fn port(self, base: u16, v6: bool) -> u16 {
        let index = Self::ALL.iter().position(|l| *l == self).unwrap_or(0);
        base + u16::try_from(index).unwrap_or(0) * 2 + u16::from(v6)
    }
}
