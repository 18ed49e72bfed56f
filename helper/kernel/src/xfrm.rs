//! IPsec policies (include/uapi/linux/xfrm.h).

use std::io;

use crate::netlink::{NETLINK_XFRM, Socket};

const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// Size of `struct xfrm_userpolicy_id`.
const USERPOLICY_ID: usize = 64;

/// Whether the network namespace of this thread has IPsec policies.
///
/// # Errors
/// When the kernel refuses; one without IPsec has none.
pub fn has_policies() -> io::Result<bool> {
    let mut socket = match Socket::open(NETLINK_XFRM) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        socket => socket?,
    };
    let mut any = false;
    socket.dump(XFRM_MSG_GETPOLICY, XFRM_MSG_NEWPOLICY, &[0; USERPOLICY_ID], |_| any = true)?;
    Ok(any)
}
