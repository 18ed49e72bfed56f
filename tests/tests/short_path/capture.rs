//! Packets as tcpdump sees them: a packet socket at a device.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use sockpath_tests::lab::Lab;

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes of packets that wait to be read.
static BUFFER: libc::c_int = 64 << 20;

/// What of a TCP or UDP packet has to be as by the stack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Sent by this device, not received.
    pub outgoing: bool,
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// TOS or traffic class, with the bits of ECN.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    pub dont_fragment: bool,
    pub payload: Vec<u8>,
    /// All checksums are right; not so while checksum offload is on.
    pub is_sound: bool,
}

/// A packet socket.
pub struct Capture(OwnedFd);

impl Capture {
    /// Captures at a device from now on.
    pub fn start(lab: &Lab, entity: &str, device: &str) -> Self {
        lab.inside(entity, || Self::here(device)).unwrap_or_else(|e| panic!("cannot capture at {device} of {entity}: {e}"))
    }

    fn here(device: &str) -> io::Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be();
        // SAFETY: makes a socket; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, all.into()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given this descriptor, and no other object owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = |size: usize| u32::try_from(size).expect("a small number");
        let size = length(size_of::<libc::c_int>());
        // SAFETY: the kernel reads one integer, which lives until the call returns.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const BUFFER).cast(), size) };
        // SAFETY: an all-zero sockaddr_ll is a valid one.
        let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        place.sll_family = u16::try_from(libc::AF_PACKET).expect("a small number");
        place.sll_protocol = all;
        place.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(device)?).expect("an index");
        // SAFETY: the kernel reads the address, which lives until the call returns, with the length that is given.
        let bound = unsafe { libc::bind(fd, (&raw const place).cast(), length(size_of::<libc::sockaddr_ll>())) };
        if set != 0 || bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// The packets since the start or the last call. A packet is here before a program has received it.
    pub fn take(&self) -> Vec<Seen> {
        let mut buffer = vec![0; 1 << 17];
        let mut all = Vec::new();
        loop {
            // SAFETY: an all-zero sockaddr_ll is a valid one.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("a small number");
            let place = (&raw mut from).cast();
            // SAFETY: the kernel writes at most the lengths that are given to buffer and address, which live until the call returns.
            let n = unsafe { libc::recvfrom(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0, place, &raw mut length) };
            match usize::try_from(n) {
                Ok(n) => all.extend(read(&buffer[..n], from.sll_pkttype == libc::PACKET_OUTGOING)),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::WouldBlock => return all,
                    e => panic!("cannot read packets: {e}"),
                },
            }
        }
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A frame with a TCP or UDP packet; others are not compared.
fn read(frame: &[u8], outgoing: bool) -> Option<Seen> {
    let ip = frame.get(ETHERNET..)?;
    let of_ip4 = |at: usize| ip.get(at..at + 4)?.try_into().ok().map(|b: [u8; 4]| IpAddr::V4(Ipv4Addr::from(b)));
    let of_ip6 = |at: usize| ip.get(at..at + 16)?.try_into().ok().map(|b: [u8; 16]| IpAddr::V6(Ipv6Addr::from(b)));
    let (ends, header, length, protocol, tos, ttl, dont_fragment) = match half(frame, 12) {
        0x0800 => {
            let header = usize::from(ip[0] & 15) * 4;
            let length = usize::from(half(ip, 2)).checked_sub(header)?;
            ([of_ip4(12)?, of_ip4(16)?], header, length, ip[9], ip[1], ip[8], ip[6] & 0x40 != 0)
        }
        0x86dd => {
            let tos = ip[0] << 4 | ip[1] >> 4;
            ([of_ip6(8)?, of_ip6(24)?], 40, usize::from(half(ip, 4)), ip[6], tos, ip[7], false)
        }
        _ => return None,
    };
    // Behind a short packet the frame is padded.
    let transport = ip.get(header..header + length)?;
    let headers = match protocol {
        TCP => usize::from(transport[12] >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let addresses = if ends[0].is_ipv4() { &ip[12..20] } else { &ip[8..40] };
    let pseudo = u32::from(protocol) + u32::try_from(length).ok()?;
    let is_sound = is_complete(sum(addresses) + pseudo + sum(transport)) && (ends[0].is_ipv6() || is_complete(sum(&ip[..header])));
    Some(Seen {
        outgoing,
        protocol,
        source: SocketAddr::new(ends[0], half(transport, 0)),
        destination: SocketAddr::new(ends[1], half(transport, 2)),
        tos,
        ttl,
        dont_fragment,
        payload: transport.get(headers..)?.to_vec(),
        is_sound,
    })
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// Whether what the checksum covers, with the checksum, adds up as it has to.
fn is_complete(mut sum: u32) -> bool {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}
