//! The repository's documents and files for others: the JSON Schema, links, words, the krew manifest, workflows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod documents;
mod krew;
mod schema;
mod workflows;

use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files of a directory with this ending, by their path in the repository.
fn files(dir: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(dir)).unwrap_or_else(|e| panic!("{dir}: {e}"));
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(ending));
    let mut found: Vec<String> = names.map(|name| format!("{dir}/{name}")).collect();
    found.sort();
    found
}
