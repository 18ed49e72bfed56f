//! Programs whose connections go socket to socket by themselves: those that the project's own test suite runs through that path, with small
//! and large messages on one connection, and with acceleration that goes on and off meanwhile. Where a self-test of the kernel fails, the
//! connections of others stay on the short path.

/// A program.
struct Row {
    /// Names of its file: distributions differ.
    files: &'static [&'static str],
    /// The test that runs it, in tests/tests/real_programs/data.rs.
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers, and for the test that it exists"))]
    test: &'static str,
}

const PROVEN: [Row; 8] = [
    // Debian's redis-server is a link to redis-check-rdb.
    Row { files: &["redis-server", "redis-check-rdb"], test: "redis" },
    Row { files: &["redis-benchmark"], test: "redis" },
    Row { files: &["postgres"], test: "postgresql" },
    Row { files: &["pgbench"], test: "postgresql" },
    Row { files: &["mariadbd"], test: "mariadb" },
    Row { files: &["sysbench"], test: "mariadb" },
    Row { files: &["memcached"], test: "memcached" },
    Row { files: &["memcaslap"], test: "memcached" },
];

/// The kernel's programs keep this many bytes of a file's name.
const KEPT: usize = 31;

/// The proven programs: those of the table, and those that the user has named.
#[derive(Debug, Default, Clone)]
pub struct Proven {
    named: Vec<String>,
}

impl Proven {
    /// The table and these names of files.
    pub fn with(named: &[String]) -> Self {
        Self { named: named.to_vec() }
    }

    /// Whether a program with this file name, of which the first [`KEPT`] bytes count, is one of them.
    pub fn has(&self, name: &str) -> bool {
        let is = |row: &str| row == name || name.len() == KEPT && row.starts_with(name);
        PROVEN.iter().flat_map(|row| row.files).any(|file| is(file)) || self.named.iter().any(|named| is(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_their_files() {
        let proven = Proven::with(&["a-name-that-is-longer-than-the-kernel-keeps".to_owned(), "mine".to_owned()]);
        for name in ["redis-check-rdb", "postgres", "mine", "a-name-that-is-longer-than-the-"] {
            assert!(proven.has(name), "{name}");
        }
        for name in ["nginx", "redis", "min", "mine2", "a-name-that-is-longer", ""] {
            assert!(!proven.has(name), "{name}");
        }
    }

    #[test]
    fn each_row_names_a_test_that_runs_its_program() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tests/real_programs/data.rs");
        let tests = std::fs::read_to_string(path).expect("the tests of real programs");
        for row in &PROVEN {
            assert!(tests.contains(&format!("#[test]\nfn {}()", row.test)), "{:?}: no test {}", row.files, row.test);
        }
    }
}
