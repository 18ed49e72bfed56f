//! The neighbour tables: ARP and neighbour discovery (include/uapi/linux/neighbour.h).

use std::io;
use std::net::IpAddr;

use crate::netlink::{Attributes, Body, Socket, half, word};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
/// Size of `struct ndmsg`.
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NUD_PERMANENT: u16 = 0x80;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Index of the device.
    pub device: u32,
    /// `NUD_*`.
    pub state: u16,
}

impl Neighbour {
    /// Whether it was entered by hand and does not count for the table's limit.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.state & NUD_PERMANENT != 0
    }

    /// The word of iproute2 for its state.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match self.state {
            0x01 => "INCOMPLETE",
            0x02 => "REACHABLE",
            0x04 => "STALE",
            0x08 => "DELAY",
            0x10 => "PROBE",
            0x20 => "FAILED",
            0x40 => "NOARP",
            0x80 => "PERMANENT",
            _ => "NONE",
        }
    }
}

/// The entries of the socket's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, v6: bool) -> io::Result<Vec<Neighbour>> {
    let mut header = [0u8; NDMSG];
    header[0] = u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or(0);
    let mut found = Vec::new();
    socket.dump(RTM_GETNEIGH, RTM_NEWNEIGH, Body::new(&header).bytes(), |body| found.extend(read(body)))?;
    Ok(found)
}

fn read(body: &[u8]) -> Option<Neighbour> {
    let address = Attributes::behind(body, NDMSG).address(NDA_DST)?;
    Some(Neighbour { address, device: word(body, 4)?, state: half(body, 8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read() {
        let mut header = [0u8; NDMSG];
        header[4..8].copy_from_slice(&3u32.to_ne_bytes());
        header[8..10].copy_from_slice(&0x20u16.to_ne_bytes());
        let body = Body::new(&header).with(NDA_DST, &[10, 0, 0, 9]);
        let read = read(body.bytes()).expect("an entry");
        assert_eq!((read.address, read.device, read.state_name()), ([10, 0, 0, 9].into(), 3, "FAILED"));
        assert!(!read.is_permanent());
    }
}
