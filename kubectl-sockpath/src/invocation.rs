//! How the plugin was called.

use std::path::Path;

/// How the user calls us: `kubectl sockpath` when kubectl did, the program's own name otherwise.
#[must_use]
pub fn invocation() -> String {
    let argv0 = std::env::args_os().next().unwrap_or_default();
    let stem = Path::new(&argv0).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    match stem.strip_prefix("kubectl-") {
        Some(name) => format!("kubectl {name}"),
        None if stem.is_empty() => "kubectl sockpath".to_owned(),
        None => stem,
    }
}
