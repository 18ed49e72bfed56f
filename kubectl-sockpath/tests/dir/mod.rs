//! A directory of a test.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory that is removed with the test.
pub struct Dir(PathBuf);

impl Dir {
    /// An empty one; `name` tells it from those of other tests of the program.
    pub fn new(name: &str) -> Self {
        let path = format!("{}-{name}-{}", env!("CARGO_CRATE_NAME"), std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(path);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("temporary directory");
        Self(path)
    }

    /// The path of a file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
