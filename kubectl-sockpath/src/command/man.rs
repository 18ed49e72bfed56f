//! `man`: manual pages of all commands, for those who make packages.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cli;
use crate::exit::Exit;

/// Writes a page for each command into a directory.
///
/// # Errors
/// When a page cannot be written.
pub fn write(dir: &Path) -> Result<Exit> {
    let context = || format!("cannot write manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(context)?;
    clap_mangen::generate_to(cli::command(), dir).with_context(context)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = std::env::temp_dir().join(format!("sockpath-man-{}", std::process::id()));
        write(&dir).expect("pages");
        for page in ["kubectl-sockpath.1", "kubectl-sockpath-trace.1", "kubectl-sockpath-accelerate.1", "kubectl-sockpath-lab-up.1"] {
            let text = std::fs::read_to_string(dir.join(page)).expect(page);
            assert!(text.contains(".TH") && text.contains(".SH NAME"), "{page}: {text}");
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
