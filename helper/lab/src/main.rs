//! The lab: builds two nodes and their pods on this machine, and serves sessions of a plugin that runs with `--lab`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sockpath_lab::main()
}
