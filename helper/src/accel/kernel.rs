//! What acceleration asks of a kernel before anything is loaded. What the kernel then does is for the self-tests to find out.

use anyhow::{Context, Result};
use libbpf_rs::btf::Btf;

use super::calls;
use crate::coded::Coded;
use crate::trace::hooks;

/// Fails where what a reader has taken cannot be seen, so that bytes could overtake others; tells where calls can be observed.
pub fn require() -> Result<calls::Choice> {
    let btf = Btf::from_vmlinux().context("cannot read the kernel's BTF (/sys/kernel/btf/vmlinux): acceleration needs it")?;
    if hooks::has_tracepoint(&btf, "sock_recv_length") {
        return Ok(calls::Choice::make(&btf));
    }
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    Err(Coded::new(
        "kernel",
        format!(
            "acceleration needs Linux 6.3 or later, this is {release}: what a reader has taken is known from the tracepoint \
             sock_recv_length, which came with it; boot a newer kernel on this node, or use `trace`, which works without"
        ),
    ))
}
