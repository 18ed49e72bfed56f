//! A node that is a virtual machine, with a kernel of its own (tests/cluster/machine).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::text;
use crate::{program_or_skip, skipped};

/// The node of `Setup::OtherKernel` that is a virtual machine.
pub const MACHINE: &str = "n3";

/// Debian's release whose kernel it has.
const SUITE: &str = "trixie";

/// Whether there can be such a node; says that the test is skipped where there cannot.
pub(super) fn available_or_skip(test: &str) -> bool {
    let needs = [("qemu-system-x86_64", "qemu-system-x86"), ("sshd", "openssh-server"), ("cpio", "cpio"), ("depmod", "kmod")];
    if !needs.iter().all(|(program, package)| program_or_skip(test, program, package)) {
        return false;
    }
    match kernel() {
        None => {
            skipped(test, &format!("the kernel of {SUITE} could not be fetched"));
            false
        }
        Some(release) if release == kernel_here() => {
            skipped(test, &format!("this machine has the kernel of {SUITE}, too"));
            false
        }
        Some(_) => true,
    }
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
    let out = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/fetch")).arg(SUITE).arg(kernel_dir()).output().ok()?;
    out.status.success().then(|| text(&out.stdout).trim().to_owned())
}

/// Where it is.
pub(super) fn kernel_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kernels").join(SUITE)
}
