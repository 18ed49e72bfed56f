//! Where the programs are attached: at the pods' devices, and at the devices to other nodes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use sockpath_bpf::short::types::short_attachment;
use sockpath_kernel::netns::inside;
use sockpath_kernel::tc::{self, Attached, Mechanism, Side};
use sockpath_protocol::bypass::BypassKind;

use super::programs::Programs;
use crate::node::Netns;
use crate::node::programs::Programs as AllPrograms;
use crate::switches;
use crate::trace::tc::on_devices;

/// What a device is to the short path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The node's end of a chosen pod's veth pair.
    Pod,
    /// A device to other nodes.
    Uplink,
}

/// A device with programs of sockpath.
#[derive(Debug)]
struct Device {
    role: Role,
    programs: Vec<Attached>,
    /// `enum short_attachment`.
    attachment: u32,
}

/// The attached programs of a node, by device.
#[derive(Debug)]
pub struct Attachments {
    mechanism: Mechanism,
    by_device: HashMap<u32, Device>,
}

impl Attachments {
    /// None yet.
    pub fn new() -> Self {
        let mechanism = if switches::is_absent("tcx") { Mechanism::Clsact } else { Mechanism::Tcx };
        Self { mechanism, by_device: HashMap::new() }
    }

    /// Devices to other nodes that programs are attached to.
    pub fn uplinks(&self) -> HashSet<u32> {
        self.by_device.iter().filter(|(_, d)| d.role == Role::Uplink).map(|(device, _)| *device).collect()
    }

    /// Attaches the programs to a device, once.
    pub fn attach(&mut self, netns: &Netns, programs: &Programs, device: u32, role: Role) -> Result<()> {
        if self.by_device.contains_key(&device) {
            return Ok(());
        }
        let incoming = match role {
            Role::Pod => &programs.from_pod,
            Role::Uplink => &programs.from_node,
        };
        // What goes out is observed first: nothing is approved before it is.
        let sides = [(&programs.delivered, Side::Egress), (incoming, Side::Ingress)];
        let what = || format!("cannot attach to device {device}");
        if self.mechanism == Mechanism::Tcx {
            let links = inside(&netns.file, || {
                Ok(sides.iter().map(|(p, side)| tc::attach(p.as_fd(), device, *side, Mechanism::Tcx)).collect::<io::Result<Vec<_>>>())
            })?;
            match links {
                Err(e) if is_without_tcx(&e) => self.mechanism = Mechanism::Clsact,
                links => {
                    self.by_device.insert(device, Device { role, programs: links.with_context(what)?, attachment: 0 });
                    return Ok(());
                }
            }
        }
        let attachment = inside(&netns.file, || tc::make_clsact(device).with_context(what))
            .map(|own| short_attachment::SHORT_FILTERS.0 | if own { short_attachment::SHORT_OWN_QDISC.0 } else { 0 })?;
        // Noted before there is something to remove.
        programs.note_attachment(device, attachment)?;
        let filters = inside(&netns.file, || {
            Ok(sides.iter().map(|(p, side)| tc::attach(p.as_fd(), device, *side, Mechanism::Clsact)).collect::<io::Result<Vec<_>>>())
        })?;
        match filters {
            Ok(programs) => {
                self.by_device.insert(device, Device { role, programs, attachment });
                Ok(())
            }
            Err(e) => {
                remove_filters(netns, device, attachment)?;
                programs.forget_attachment(device);
                Err(e).with_context(what)
            }
        }
    }

    /// Detaches the programs from a device.
    pub fn detach(&mut self, netns: &Netns, programs: &Programs, device: u32) -> Result<()> {
        let Some(Device { programs: attached, attachment, .. }) = self.by_device.remove(&device) else { return Ok(()) };
        drop(attached);
        if attachment != 0 {
            remove_filters(netns, device, attachment)?;
            programs.forget_attachment(device);
        }
        Ok(())
    }

    /// Detaches them from devices of pods that are not among these, and from none to other nodes.
    pub fn keep_pods(&mut self, netns: &Netns, programs: &Programs, devices: &HashSet<u32>) -> Result<()> {
        let old: Vec<u32> = self.by_device.iter().filter(|(d, e)| e.role == Role::Pod && !devices.contains(d)).map(|(d, _)| *d).collect();
        old.into_iter().try_for_each(|device| self.detach(netns, programs, device))
    }

    /// Detaches them everywhere.
    pub fn detach_all(&mut self, netns: &Netns, programs: &Programs) -> Result<()> {
        let all: Vec<u32> = self.by_device.keys().copied().collect();
        all.into_iter().map(|device| self.detach(netns, programs, device)).fold(Ok(()), Result::and)
    }
}

/// Removes our filters from a device, and the queue discipline that was made for them unless others have filters there by now.
pub fn remove_filters(netns: &Netns, device: u32, attachment: u32) -> Result<()> {
    inside(&netns.file, || {
        [Side::Ingress, Side::Egress].into_iter().try_for_each(|side| tc::detach_filter(device, side)).context("cannot detach a program")
    })?;
    let name = device.to_string();
    let is_filter = |kind: BypassKind| matches!(kind, BypassKind::TcFilter | BypassKind::TcProgram | BypassKind::Mirror);
    let is_used = || {
        let found = on_devices(&netns.file, &[(device, name)], &AllPrograms::loaded().unwrap_or_default());
        // A device that is gone took everything along.
        found.is_ok_and(|found| found.iter().any(|(_, kind, what)| is_filter(*kind) && !what.contains("tcx")))
    };
    if attachment & short_attachment::SHORT_OWN_QDISC.0 != 0 && !is_used() {
        inside(&netns.file, || tc::remove_clsact(device).context("cannot remove a clsact queue discipline"))?;
    }
    Ok(())
}

/// Kernels before 6.6 do not know the attachment point.
fn is_without_tcx(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EINVAL)
}
