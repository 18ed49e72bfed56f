//! Where the programs are attached: at the pods' devices, and at the devices to other nodes.

use std::collections::{HashMap, HashSet};
use std::io;

use anyhow::{Context, Result};
use sockpath_kernel::tc::{self, Attached, Mechanism, Side};

use super::programs::Programs;
use crate::node::Netns;
use crate::trace::netns::inside;

/// What a device is to the short path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The node's end of a chosen pod's veth pair.
    Pod,
    /// A device to other nodes.
    Uplink,
}

/// The attached programs of a node, by device.
#[derive(Debug)]
pub struct Attachments {
    mechanism: Mechanism,
    by_device: HashMap<u32, (Role, Vec<Attached>)>,
}

impl Attachments {
    /// None yet.
    pub fn new() -> Self {
        Self { mechanism: Mechanism::Tcx, by_device: HashMap::new() }
    }

    /// Devices to other nodes that programs are attached to.
    pub fn uplinks(&self) -> HashSet<u32> {
        self.by_device.iter().filter(|(_, (role, _))| *role == Role::Uplink).map(|(device, _)| *device).collect()
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
        let delivered = &programs.delivered;
        let attached = inside(&netns.file, || {
            // What goes out is observed first: nothing is approved before it is.
            let mut attached = Vec::new();
            for (program, side) in [(delivered, Side::Egress), (incoming, Side::Ingress)] {
                let at = |mechanism| tc::attach(std::os::fd::AsFd::as_fd(program), device, side, mechanism);
                attached.push(match at(self.mechanism) {
                    Err(e) if self.mechanism == Mechanism::Tcx && is_without_tcx(&e) => {
                        self.mechanism = Mechanism::Clsact;
                        at(self.mechanism)?
                    }
                    outcome => outcome?,
                });
            }
            Ok(attached)
        });
        self.by_device.insert(device, (role, attached.with_context(|| format!("cannot attach to device {device}"))?));
        Ok(())
    }

    /// Detaches the programs from a device.
    pub fn detach(&mut self, netns: &Netns, device: u32) -> Result<()> {
        let Some((_, attached)) = self.by_device.remove(&device) else { return Ok(()) };
        inside(&netns.file, || attached.into_iter().try_for_each(|a| a.detach().context("cannot detach a program")))
    }

    /// Detaches them from devices of pods that are not among these, and from none to other nodes.
    pub fn keep_pods(&mut self, netns: &Netns, devices: &HashSet<u32>) -> Result<()> {
        let old: Vec<u32> = self.by_device.iter().filter(|(d, (r, _))| *r == Role::Pod && !devices.contains(d)).map(|(d, _)| *d).collect();
        old.into_iter().try_for_each(|device| self.detach(netns, device))
    }

    /// Detaches them everywhere.
    pub fn detach_all(&mut self, netns: &Netns) -> Result<()> {
        let all: Vec<u32> = self.by_device.keys().copied().collect();
        all.into_iter().try_for_each(|device| self.detach(netns, device))
    }
}

/// Kernels before 6.6 do not know the attachment point.
fn is_without_tcx(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EINVAL)
}
