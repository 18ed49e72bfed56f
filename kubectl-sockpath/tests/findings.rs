//! The table of findings: docs/findings.md is what the table says, and what the table says of tests is true.

use std::fs;
use std::path::{Path, PathBuf};

use kubectl_sockpath::report::{explain, kind::KINDS};
use kubectl_sockpath::terminal::Style;
use sockpath_protocol::mechanism::MECHANISMS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = root().join("docs/findings.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, explain::document()).expect("docs/findings.md is written");
    }
    let written = fs::read_to_string(&path).expect("docs/findings.md");
    assert!(written == explain::document(), "docs/findings.md is not what the table says: UPDATE_GOLDEN=1 writes it");
}

#[test]
fn ids_are_unique_and_explained() {
    let ids: Vec<&str> = KINDS.iter().map(|k| k.id).chain(MECHANISMS.iter().map(|m| m.id)).collect();
    for id in &ids {
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1, "{id} stands twice");
        assert!(explain::explain(id, &Style::plain(80)).is_some_and(|text| text.contains(id)), "{id}");
        assert!(explain::list(&Style::plain(80)).contains(id), "{id}");
    }
    assert!(explain::explain("NO_SOCKET", &Style::plain(80)).is_some());
    assert!(explain::explain("no-such-id", &Style::plain(80)).is_none());
}

#[test]
fn the_tests_that_are_named_exist() {
    let tests = KINDS.iter().flat_map(|k| k.tested).chain(MECHANISMS.iter().flat_map(|m| m.tested));
    for test in tests {
        let (file, name) = test.split_once(": ").unwrap_or_else(|| panic!("{test} names no file"));
        let (path, needle) = match file {
            "recording" => (root().join(format!("kubectl-sockpath/tests/recordings/{name}.jsonl")), String::new()),
            "unit" => (root().join("kubectl-sockpath/src/report/causes.rs"), format!("fn {name}(")),
            "unit-helper" => (root().join("helper/src/trace/settings/neighbour.rs"), format!("fn {name}(")),
            "unit-question" => (root().join("helper/src/trace/rules/question.rs"), format!("fn {name}(")),
            "unit-group" => (root().join("helper/src/trace/settings/control_group.rs"), format!("fn {name}(")),
            "conntrack" => (root().join("tests/tests/causes/conntrack.rs"), format!("fn {name}(")),
            "causes" => (root().join("tests/tests/causes/rows.rs"), format!("\"{name}\"")),
            "subsystems" => (root().join("tests/tests/causes/subsystems.rs"), format!("fn {name}(")),
            "halves" => (root().join("tests/tests/causes/halves.rs"), format!("fn {name}(")),
            file => (root().join(format!("tests/tests/{file}.rs")), format!("fn {name}(")),
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{test}: {}: {e}", path.display()));
        assert!(text.contains(&needle), "{test}: {} has no such test", path.display());
    }
}
