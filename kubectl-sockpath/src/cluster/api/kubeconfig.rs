//! Reading kubeconfig files: as kubectl finds and merges them, but none larger than it can sensibly be.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kube::config::{Kubeconfig, KubeconfigError};

/// Bytes of a kubeconfig at most: one with a thousand clusters and their certificates has about 5 MiB.
const LARGEST: u64 = 16 << 20;

/// Reads the file, or what `$KUBECONFIG` names, or `~/.kube/config`.
///
/// # Errors
/// When there is none, one cannot be read or parsed, or has more than [`LARGEST`] bytes.
pub fn read(file: Option<&Path>) -> Result<Kubeconfig, KubeconfigError> {
    if let Some(path) = file {
        return read_one(path);
    }
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let mut paths: Vec<PathBuf> = std::env::split_paths(&listed).filter(|p| !p.as_os_str().is_empty()).collect();
    if paths.is_empty() {
        paths.extend(std::env::home_dir().map(|home| home.join(".kube/config")).filter(|path| path.exists()));
    }
    if paths.is_empty() {
        return Kubeconfig::read();
    }
    paths.iter().try_fold(Kubeconfig::default(), |merged, path| merged.merge(read_one(path)?))
}

fn read_one(path: &Path) -> Result<Kubeconfig, KubeconfigError> {
    let failed = |e| KubeconfigError::ReadConfig(e, path.to_owned());
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.len() > 0 {
        check(metadata.len()).map_err(failed)?;
        // Paths in it are relative to where it is.
        return Kubeconfig::read_from(path);
    }
    // A pipe (of a shell's `<(...)`) or a device: nothing but reading tells how much there is.
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(failed)?;
    check(text.len() as u64).map_err(failed)?;
    Kubeconfig::from_yaml(&text)
}

fn check(length: u64) -> io::Result<()> {
    if length <= LARGEST { Ok(()) } else { Err(io::Error::other(format!("it has more than {LARGEST} bytes: is this the right file?"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_does_not_end_is_not_read_to_its_end() {
        let error = read(Some(Path::new("/dev/zero"))).unwrap_err().to_string();
        assert!(error.contains("/dev/zero"), "{error}");
    }

    #[test]
    fn large_files_are_refused_and_others_read() {
        let path = std::env::temp_dir().join(format!("sockpath-kubeconfig-{}", std::process::id()));
        std::fs::write(&path, "current-context: here\n").unwrap();
        assert_eq!(read(Some(&path)).unwrap().current_context.as_deref(), Some("here"));
        File::options().write(true).open(&path).unwrap().set_len(LARGEST + 1).unwrap();
        let error = read(Some(&path)).unwrap_err();
        let _ = std::fs::remove_file(&path);
        assert!(matches!(&error, KubeconfigError::ReadConfig(e, _) if e.to_string().contains("is this the right file?")), "{error}");
    }
}
