//! Words for kinds of packets, and plurals.

use sockpath_protocol::packet::PacketKind;

/// What a packet is.
pub(super) fn kind_word(kind: PacketKind) -> &'static str {
    match kind {
        PacketKind::Syn => "SYN",
        PacketKind::SynAck => "SYN-ACK",
        PacketKind::Ack => "ACK",
        PacketKind::Data => "data",
        PacketKind::Fin => "FIN",
        PacketKind::Rst => "RST",
        PacketKind::EchoRequest => "echo request",
        PacketKind::EchoReply => "echo reply",
        PacketKind::IcmpError => "ICMP error",
        PacketKind::IcmpRedirect => "ICMP redirect",
        PacketKind::Bypass => "message on the socket path",
    }
}

/// The ending of a noun after a count.
pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
