//! The lab with test switches: never shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    sockpath_lab::main()
}
