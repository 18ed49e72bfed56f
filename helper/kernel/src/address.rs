//! Addresses of devices (include/uapi/linux/if_addr.h).

use std::io;
use std::net::IpAddr;

use crate::netlink::{Attributes, Body, Socket, word};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// Size of `struct ifaddrmsg`.
const IFADDRMSG: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// The addresses of the socket's namespace, each with the index of its device.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut found = Vec::new();
    socket.dump(RTM_GETADDR, RTM_NEWADDR, Body::new(&[0; IFADDRMSG]).bytes(), |body| found.extend(read(body)))?;
    Ok(found)
}

fn read(body: &[u8]) -> Option<(u32, IpAddr)> {
    let attributes = Attributes::behind(body, IFADDRMSG);
    // On a point-to-point device IFA_ADDRESS is the other side's.
    let address = attributes.address(IFA_LOCAL).or_else(|| attributes.address(IFA_ADDRESS))?;
    Some((word(body, 4)?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_is_read() {
        let mut header = [0u8; IFADDRMSG];
        header[4..8].copy_from_slice(&3u32.to_ne_bytes());
        let body = Body::new(&header).with(IFA_ADDRESS, &[10, 0, 0, 2]).with(IFA_LOCAL, &[10, 0, 0, 1]);
        assert_eq!(read(body.bytes()), Some((3, IpAddr::from([10, 0, 0, 1]))));
        let body = Body::new(&header).with(IFA_ADDRESS, &[0xfd; 16]);
        assert_eq!(read(body.bytes()), Some((3, IpAddr::from([0xfd; 16]))));
    }
}
