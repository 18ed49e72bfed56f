//! Programs at tc: tcx links (6.6), which end with the process that holds them, or filters of clsact, which stay.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys as sys;
use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcAttachPoint, TcHookBuilder};

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
    Clsact {
        /// Index of its device.
        device: u32,
        /// Which packets it sees.
        side: Side,
    },
}

/// Priority and handle of our filters: other tools begin at 49152 and count down.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 0x50;

/// Attaches a program to a device of the network namespace of this thread. A filter needs the device's clsact queue discipline
/// ([`make_clsact`]).
///
/// # Errors
/// When the kernel refuses; EINVAL for a tcx link before 6.6.
pub fn attach(program: BorrowedFd<'_>, device: u32, side: Side, mechanism: Mechanism) -> io::Result<Attached> {
    let index = i32::try_from(device).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match mechanism {
        Mechanism::Tcx => tcx(program, index, side).map(Attached::Tcx),
        Mechanism::Clsact => {
            let mut hook = TcHookBuilder::new(program).ifindex(index).replace(true).handle(HANDLE).priority(PRIORITY).hook(point(side));
            hook.attach().map_err(|e| io::Error::other(e.to_string()))?;
            Ok(Attached::Clsact { device, side })
        }
    }
}

/// Makes the clsact queue discipline of a device; false when it is there already.
///
/// # Errors
/// When the kernel refuses.
pub fn make_clsact(device: u32) -> io::Result<bool> {
    let mut hook = both_sides(device);
    // SAFETY: the struct lives until the call returns and carries its size.
    match unsafe { sys::bpf_tc_hook_create(&raw mut hook) } {
        r if r >= 0 => Ok(true),
        r if r == -libc::EEXIST => Ok(false),
        r => Err(io::Error::from_raw_os_error(-r)),
    }
}

/// Removes the clsact queue discipline of a device with all filters that it has. It is well when there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_clsact(device: u32) -> io::Result<()> {
    let mut hook = both_sides(device);
    // SAFETY: as above.
    well_when_absent(unsafe { sys::bpf_tc_hook_destroy(&raw mut hook) })
}

/// Detaches the filter that [`attach`] makes. A device that is gone took it along.
///
/// # Errors
/// When the kernel refuses.
pub fn detach_filter(device: u32, side: Side) -> io::Result<()> {
    let hook = sys::bpf_tc_hook { attach_point: point(side), ..both_sides(device) };
    let opts_size = size_of::<sys::bpf_tc_opts>() as u64;
    let opts = sys::bpf_tc_opts { sz: opts_size, handle: HANDLE, priority: PRIORITY, ..Default::default() };
    // SAFETY: both structs live until the call returns and carry their sizes.
    well_when_absent(unsafe { sys::bpf_tc_detach(&raw const hook, &raw const opts) })
}

fn both_sides(device: u32) -> sys::bpf_tc_hook {
    sys::bpf_tc_hook {
        sz: size_of::<sys::bpf_tc_hook>() as u64,
        // A number that is too large names no device.
        ifindex: i32::try_from(device).unwrap_or(i32::MAX),
        attach_point: TC_INGRESS | TC_EGRESS,
        ..Default::default()
    }
}

fn well_when_absent(r: i32) -> io::Result<()> {
    if r >= 0 || [-libc::ENOENT, -libc::ENODEV, -libc::EINVAL].contains(&r) { Ok(()) } else { Err(io::Error::from_raw_os_error(-r)) }
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

fn point(side: Side) -> TcAttachPoint {
    match side {
        Side::Ingress => TC_INGRESS,
        Side::Egress => TC_EGRESS,
    }
}

/// The id of a program, by which tools name it.
///
/// # Errors
/// When the kernel refuses.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = sys::bpf_prog_info::default();
    let mut length = u32::try_from(size_of::<sys::bpf_prog_info>()).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes of `info`, whose pointers are null: it follows none.
    let r = unsafe { sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut length) };
    if r < 0 { Err(io::Error::from_raw_os_error(-r)) } else { Ok(info.id) }
}

impl Attached {
    /// Detaches it; a filter's device is looked for in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(self) -> io::Result<()> {
        match self {
            Self::Tcx(link) => {
                drop(link);
                Ok(())
            }
            Self::Clsact { device, side } => detach_filter(device, side),
        }
    }
}
