//! What the tests on real kernels share: the programs under test, a lab of one's own, and what exists in the kernel.

pub mod apiserver;
pub mod bench;
pub mod changes;
pub mod cluster;
pub mod lab;
pub mod openvswitch;
pub mod planted;
pub mod pod_fields;
pub mod polled;
pub mod programs;
pub mod sbom;
pub mod services;
pub mod snapshot;
pub mod state;
pub mod talk;
pub mod torture;
pub mod trace;

#[cfg(test)]
mod shape;

use std::io::Write as _;

/// Whether this test may run: it needs root. Says on stderr, past the test runner's capture, when it is skipped and why.
#[must_use]
pub fn root_or_skip(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skipped(test, "it needs root, for network namespaces and cgroups");
    false
}

/// Says that a test or a part of one was skipped, and why.
pub fn skipped(test: &str, why: &str) {
    line("skipped", test, why);
}

/// Reports a known and documented deviation of a connection from TCP.
pub fn deviation(test: &str, what: &str) {
    line("deviation", test, what);
}

/// Not eprintln!, which the test runner keeps to itself when a test passes. On a line of its own, which `tests/run-all` counts: the runner
/// may just have printed "test NAME ... ". In one piece, as other tests and the runner write at the same time.
fn line(kind: &str, test: &str, text: &str) {
    let _ = std::io::stderr().write_all(format!("\n{kind}: {test}: {text}\n").as_bytes());
}

/// Whether a program is installed; says that the test is skipped when it is not.
#[must_use]
pub fn program_or_skip(test: &str, program: &str, package: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|d| d.join(program).is_file());
    if !found {
        skipped(test, &format!("{program} is not installed (apt-get install {package})"));
    }
    found
}
