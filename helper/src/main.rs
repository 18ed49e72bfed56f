//! The helper: serves one session of the plugin over stdin and stdout, on a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    sockpath_helper::cli::main()
}
