//! A node that is a virtual machine, with a kernel of its own (tests/cluster/machine).

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{Held, Setup, cluster_or_skip, repository, text};
use crate::{program_or_skip, skipped};

/// The node of [`Setup::OtherKernel`] that is a virtual machine.
pub const MACHINE: &str = "n3";

/// Debian's release whose kernel it has.
const SUITE: &str = "trixie";

/// As [`cluster_or_skip`], with a node whose kernel is that of another Debian release.
///
/// # Panics
/// When the cluster of our own does not come up.
#[must_use]
pub fn cluster_with_machine_or_skip(test: &str) -> Option<Held> {
    const OWN: &str = "a node that is a virtual machine is added to a cluster of our own only: set K8S_BIN, as root";
    if env::var_os("K8S_BIN").is_none_or(|k| k.is_empty()) {
        skipped(test, OWN);
        return None;
    }
    let needs = [("qemu-system-x86_64", "qemu-system-x86"), ("sshd", "openssh-server"), ("cpio", "cpio"), ("depmod", "kmod")];
    if !needs.iter().all(|(program, package)| program_or_skip(test, program, package)) {
        return None;
    }
    match kernel() {
        None => {
            skipped(test, &format!("the kernel of {SUITE} could not be fetched"));
            return None;
        }
        Some(release) if release == kernel_here() => {
            skipped(test, &format!("this machine has the kernel of {SUITE}, too"));
            return None;
        }
        Some(_) => {}
    }
    let held = cluster_or_skip(test, Setup::OtherKernel)?;
    if !held.is_own() {
        skipped(test, OWN);
        return None;
    }
    Some(held)
}

/// The release of this machine's kernel.
///
/// # Panics
/// When /proc is not readable.
#[must_use]
pub fn kernel_here() -> String {
    let path = "/proc/sys/kernel/osrelease";
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}")).trim().to_owned()
}

/// The release of the machine's kernel, which is fetched once; `None` where it cannot be.
fn kernel() -> Option<String> {
    let out = Command::new(repository().join("tests/kernels/fetch")).arg(SUITE).arg(kernel_dir()).output().ok()?;
    out.status.success().then(|| text(&out.stdout).trim().to_owned())
}

/// Where it is.
pub(super) fn kernel_dir() -> PathBuf {
    repository().join("target/kernels").join(SUITE)
}
