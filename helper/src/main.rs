//! The helper: `session` serves one plugin over stdin and stdout, `lab` builds and runs the lab on this machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    sockpath_helper::cli::main()
}
