//! Files that rendered text is compared with.

use std::fs;
use std::path::Path;

/// Compares with the golden file of this name; `UPDATE_GOLDEN=1` writes it.
pub fn check(name: &str, rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, rendered).expect("golden file is written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; UPDATE_GOLDEN=1 writes it", path.display()));
    if expected != rendered {
        let line = expected.lines().zip(rendered.lines()).position(|(a, b)| a != b).unwrap_or(0);
        panic!(
            "{name} differs from line {}:\n  golden:   {:?}\n  rendered: {:?}\nUPDATE_GOLDEN=1 accepts what is rendered",
            line + 1,
            expected.lines().nth(line),
            rendered.lines().nth(line)
        );
    }
}
