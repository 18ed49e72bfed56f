//! The helper's only exit to stderr, which goes to the pod's log and to the plugin. What it writes is harmless to both: names and
//! notes of processes and rules come in as fields of a message.

use std::io::Write;

use sockpath_protocol::text;

/// Writes an error with its cause.
pub fn error(what: &str) {
    say(&format!("error: {what}"));
}

/// Writes a message. Its lines after the first are indented, so that none can pass for another message.
pub fn say(message: &str) {
    let mut line = text::message(message);
    line.push('\n');
    // The reader may be gone; there is no place left for an error.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Reports a skipped test past the test runner's capture, and in one piece: `tests/run-all` counts these lines.
#[cfg(test)]
pub fn skipped(name: &str, why: &str) {
    std::io::stderr().write_all(format!("\nskipped: {name}: {why}\n").as_bytes()).unwrap();
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn there_is_one_exit_to_stderr() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        sources(&src, &mut files);
        assert!(files.len() > 30);
        for file in files {
            let name = file.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for word in ["eprintln!", "eprint!", "io::stderr", "dbg!"] {
                // The lab runs on its user's machine and writes what is its own.
                assert!(name == "stderr.rs" || name.starts_with("lab/") || !code.contains(word), "{name} holds {word}");
            }
        }
    }
}
