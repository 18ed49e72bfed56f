//! Programs at tc: tcx links (6.6), which end with the process that holds them, or filters of clsact, which stay.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys as sys;
use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHook, TcHookBuilder};

/// Which packets of a device a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Those that come in.
    Ingress,
    /// Those that go out.
    Egress,
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// By a tcx link.
    Tcx,
    /// By a filter of a clsact queue discipline.
    Clsact,
}

/// An attached program. A tcx link ends when this is dropped; a filter stays until [`Attached::detach`].
#[derive(Debug)]
pub enum Attached {
    /// The link.
    Tcx(OwnedFd),
    /// The filter.
    Clsact(TcHook),
}

/// Priority and handle of our filters: other tools begin at 49152 and count down.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 0x50;

/// Attaches a program to a device of the network namespace of this thread.
///
/// # Errors
/// When the kernel refuses; EINVAL for a tcx link before 6.6.
pub fn attach(program: BorrowedFd<'_>, device: u32, side: Side, mechanism: Mechanism) -> io::Result<Attached> {
    let index = i32::try_from(device).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match mechanism {
        Mechanism::Tcx => tcx(program, index, side).map(Attached::Tcx),
        Mechanism::Clsact => clsact(program, index, side).map(Attached::Clsact).map_err(|e| io::Error::other(e.to_string())),
    }
}

fn tcx(program: BorrowedFd<'_>, device: i32, side: Side) -> io::Result<OwnedFd> {
    let place = match side {
        Side::Ingress => sys::BPF_TCX_INGRESS,
        Side::Egress => sys::BPF_TCX_EGRESS,
    };
    // SAFETY: it takes numbers only; there are no options.
    let fd = unsafe { sys::bpf_link_create(program.as_raw_fd(), device, place, std::ptr::null()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn clsact(program: BorrowedFd<'_>, device: i32, side: Side) -> libbpf_rs::Result<TcHook> {
    let point = match side {
        Side::Ingress => TC_INGRESS,
        Side::Egress => TC_EGRESS,
    };
    let mut hook = TcHookBuilder::new(program).ifindex(device).replace(true).handle(HANDLE).priority(PRIORITY).hook(point);
    hook.create()?;
    hook.attach()
}

impl Attached {
    /// Detaches it. A filter's device is looked for in the network namespace of this thread; one that is gone took the filter along.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(self) -> io::Result<()> {
        match self {
            Self::Tcx(link) => drop(link),
            Self::Clsact(mut hook) => match hook.detach() {
                Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => return Err(io::Error::other(e.to_string())),
                _ => {}
            },
        }
        Ok(())
    }
}
