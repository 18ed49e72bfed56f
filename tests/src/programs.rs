//! The programs under test, as `make build` leaves them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The plugin: `SOCKPATH_PLUGIN`, or target/release/kubectl-sockpath.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn plugin() -> PathBuf {
    find("SOCKPATH_PLUGIN", "kubectl-sockpath")
}

/// The helper: `SOCKPATH_HELPER`, or target/release/sockpath-helper.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn helper() -> PathBuf {
    find("SOCKPATH_HELPER", "sockpath-helper")
}

/// The program of the lab: `SOCKPATH_LAB_PROGRAM`, or target/release/sockpath-lab.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn lab() -> PathBuf {
    find("SOCKPATH_LAB_PROGRAM", "sockpath-lab")
}

/// The same with test switches: `SOCKPATH_LAB_TEST_PROGRAM`, or target/release/sockpath-lab-test.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn lab_with_test_switches() -> PathBuf {
    find("SOCKPATH_LAB_TEST_PROGRAM", "sockpath-lab-test")
}

/// The plugin as a command that uses the lab of [`lab`].
///
/// # Panics
/// When one of them is not built.
#[must_use]
pub fn plugin_command() -> Command {
    let mut command = Command::new(plugin());
    command.env("SOCKPATH_LAB_PROGRAM", lab()).env("NO_COLOR", "1");
    command
}

fn find(variable: &str, name: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release").join(name),
    };
    assert!(path.is_file(), "{} is not there: build it with `make build test-programs`, or name another in {variable}", path.display());
    path
}
